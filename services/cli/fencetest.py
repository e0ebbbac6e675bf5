"""`rekindle fence-test`: see libs/fencetest.py, which decides what may be done."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from libs import fencetest
from libs.config.yamlfile import BadInputError
from services.cli import operator, tables
from services.cli.app import ConfigOption, JsonOption, print_json, settings_of

WARNING = """\
{host} (boot {boot}) will be put into maintenance and REALLY switched off, through each of its fence levels in turn:
  {devices}
It runs {vms}. {fate}
{after}
"""
KILLED = "They die with it; those that are protected are restarted elsewhere."
SPARED = "As long as any VM runs there nothing is done: move them away first, or say --drain or --force."
MOVED = "They move to other hosts first, while they run. Where one of them has to stay, nothing else is done{forced}."


def fence_test(
    host: operator.HostArgument,
    checked: Annotated[
        str | None,
        typer.Option("--yes-i-checked", metavar="HOST", help="the host's name again, instead of asking"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="also where VMs run there: they die with it")
    ] = False,
    drain: Annotated[
        bool, typer.Option("--drain", help="its VMs move to other hosts first, while they run")
    ] = False,
    leave_off: Annotated[bool, typer.Option("--leave-off", help="do not switch it on again")] = False,
    back_s: Annotated[
        float, typer.Option(min=1, help="how long to wait for it to come back, in seconds")
    ] = fencetest.BACK_S,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Really fence a host that you name, through each of its levels, and see it come back. Exit 1 where a level proved
    nothing or it did not come back."""
    if checked is not None and checked != host:
        raise BadInputError(f"--yes-i-checked: it names {checked}, the command {host}")
    pool = settings_of(config)
    wanted = fencetest.Wanted(forced=force, drain=drain, switch_on=not leave_off, back_s=back_s)
    planned = operator.said(pool, as_json, lambda one: fencetest.look(one, host))
    if checked is None:
        sys.stderr.write(_warning(planned, wanted))
        operator.typed(host, f"Type {host} to have it switched off: ", "that is not its name")
    found = operator.said(pool, as_json, lambda one: fencetest.run(one, planned, wanted, _tell))
    if as_json:
        print_json({"schema": "rekindle.fence_test.v1", **found})
    else:
        _print(found)
    if not found["passed"]:
        raise typer.Exit(1)


def _warning(planned: fencetest.Planned, wanted: fencetest.Wanted) -> str:
    fate = KILLED if wanted.forced else SPARED
    if wanted.drain:
        fate = MOVED.format(forced=": with --force it dies with the host" if wanted.forced else "")
    after = "It stays off, and in maintenance."
    if wanted.switch_on:
        after = "It is switched on again then, and leaves maintenance when it is back."
    return WARNING.format(
        host=planned.at.host,
        boot=planned.at.boot[:8],
        devices="\n  ".join(planned.devices),
        vms=planned.named,
        fate=fate if planned.running else "",
        after=after,
    )


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _print(found: dict[str, Any]) -> None:
    data = [
        {
            "level": level["level"],
            "devices": ", ".join(level["devices"]),
            "result": _result(level),
            "seconds": f"{level['took_s']:.1f}",
            "said": "; ".join(level["missing"] or level["said"]),
        }
        for level in found["levels"]
    ]
    tables.rows(f"fence test of {found['host']}", ("level", "devices", "result", "seconds", "said"), data)
    back = found["back_after_s"]
    text = f"back after {back} s" if back is not None else "not back"
    if found["never_off"]:
        text = "it never went off, whatever its devices say"
    elif not found["switched_on"]:
        text = "not switched on again" + (
            f": {found['switch_on_detail']}" if found["switch_on_detail"] else ""
        )
    tables.console.print(
        f"{'passed' if found['passed'] else 'FAILED'}; {found['host']}: {text}"
        + ("; it is in maintenance" if found["maintenance"] else ""),
        highlight=False,
    )


def _result(level: dict[str, Any]) -> str:
    if not level["proven"]:
        return "NO PROOF"
    return "proven; it was off already" if level["found_off"] else "proven"
