"""Commands by which an operator tells the pool something. What may be said when is decided in libs/operator.py."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from libs import readmodel
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.core.clock import SystemClock
from libs.operator import Operator, RefusedError, Verdict
from services.cli.app import ConfigOption, JsonOption, print_json, settings_of

T = TypeVar("T")
HostArgument = Annotated[str, typer.Argument(help="name of the host in the pool file")]
RISK = """\
{host} (boot {boot}) is held failed, and no fence device has proven that it is down. Your word will be the proof.
If it is still running, these VMs will run TWICE and write the same disks, which destroys them:
  {vms}
Go and look: its power must be off, or its mains unplugged. "Not reachable" is not enough.
"""


def confirm_failed(
    host: HostArgument,
    checked: Annotated[
        str | None,
        typer.Option("--yes-i-checked", metavar="HOST", help="the host's name again, instead of asking"),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Vouch that a failed host is down, where no fence device can tell. Its VMs start elsewhere at once."""
    if checked is not None and checked != host:
        raise BadInputError(f"--yes-i-checked: it names {checked}, the command {host}")
    pool = settings_of(config)
    verdict = _said(pool, as_json, lambda operator: operator.verdict(host))
    if checked is None:
        _ask(verdict)
    _said(pool, as_json, lambda operator: operator.confirm_failed(verdict))
    done = {"host": host, "boot": verdict.at.boot, "incident": verdict.incident, "vms": verdict.vms}
    _done(
        as_json,
        "confirmed_failed",
        done,
        f"{host} counts as fenced; to be started elsewhere: {_names(verdict)}",
    )


STORM = """\
These hosts are silent at once, more than believable, and nobody is held failed without a proof:
  {suspects}
Most often it is the network or this machine. If you release them, those that nobody can reach are fenced and their
VMs are started elsewhere. Whoever falls silent after this is held again.
"""


def storm(
    what: Annotated[str, typer.Argument(metavar="release")],
    checked: Annotated[
        int | None,
        typer.Option("--yes-i-checked", metavar="N", help="the number of silent hosts, instead of asking"),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the suspects of a storm be held failed, after you have looked. Of these hosts, in this storm only."""
    if what != "release":
        raise BadInputError(f"storm: release, not {what}")
    pool = settings_of(config)
    seen = _said(pool, as_json, lambda operator: operator.storm())
    count, names = len(seen.suspects), ", ".join(seen.suspects)
    if checked is None:
        sys.stderr.write(STORM.format(suspects=names))
        _typed(
            str(count), f"Type how many hosts these are ({count}) to release them: ", "that is not how many"
        )
    elif checked != count:
        _refused(as_json, f"{count} hosts are silent, not {checked}: {names}")
    _said(pool, as_json, lambda operator: operator.release_storm(seen))
    done = {"number": seen.number, "suspects": seen.suspects}
    _done(as_json, "storm_released", done, f"may be held failed now: {names}")


def maintenance(
    what: Annotated[str, typer.Argument(metavar="enter|exit")],
    host: HostArgument,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """A host in maintenance takes no new VMs. It stays watched: if it fails, its VMs are restarted elsewhere."""
    if what not in ("enter", "exit"):
        raise BadInputError(f"maintenance: enter or exit, not {what}")
    entering = what == "enter"

    async def say(operator: Operator) -> None:
        await (operator.enter_maintenance(host) if entering else operator.exit_maintenance(host))

    _said(settings_of(config), as_json, say)
    text = f"{host} takes no new VMs" if entering else f"{host} takes VMs again"
    _done(as_json, "maintenance", {"host": host, "maintenance": entering}, text)


def readmit(host: HostArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Let a host out of quarantine: it failed too often and gets new VMs again. Its failures are forgotten."""
    _said(settings_of(config), as_json, lambda operator: operator.readmit(host))
    _done(as_json, "readmitted", {"host": host}, f"{host} takes VMs again")


def remove_host(host: HostArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Take a host out of the pool for good: nobody minds its silence. Refused while protected VMs run there."""
    _said(settings_of(config), as_json, lambda operator: operator.remove(host))
    text = f"{host} is out of the pool; take it out of the pool file, too: its next boot would join anew"
    _done(as_json, "removed", {"host": host}, text)


@contextlib.asynccontextmanager
async def _operator(settings: Settings) -> AsyncIterator[Operator]:
    async with readmodel.reader(settings) as reader:
        yield Operator(reader, reader.bus, SystemClock(), f"{getpass.getuser()}@{socket.gethostname()}")


def _said(settings: Settings, as_json: bool, work: Callable[[Operator], Coroutine[Any, Any, T]]) -> T:
    """Each word over a connection of its own: a person may take long to answer a question in between."""

    async def run() -> T:
        async with _operator(settings) as operator:
            return await work(operator)

    try:
        return asyncio.run(run())
    except RefusedError as error:
        _refused(as_json, str(error))


def _refused(as_json: bool, reason: str) -> NoReturn:
    """The answer is no."""
    if as_json:
        print_json({"schema": "rekindle.word.v1", "said": False, "reason": reason})
    sys.stderr.write(f"rekindle: {reason}\n")
    raise typer.Exit(1)


def _ask(verdict: Verdict) -> None:
    """The host's name, typed by a person who was told what is at risk."""
    host = verdict.at.host
    sys.stderr.write(RISK.format(host=host, boot=verdict.at.boot[:8], vms=_names(verdict)))
    _typed(host, f"Type {host} to say that you looked and it is down: ", "that is not its name")


def _typed(expected: str, prompt: str, wrong: str) -> None:
    """What a person must type, having read what was written before it."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    if sys.stdin.readline().strip() != expected:
        sys.stderr.write(f"rekindle: {wrong}: nothing was said\n")
        raise typer.Exit(1)


def _names(verdict: Verdict) -> str:
    return ", ".join(verdict.vms) or "no VM that is known"


def _done(as_json: bool, word: str, fields: dict[str, Any], text: str) -> None:
    if as_json:
        print_json({"schema": "rekindle.word.v1", "said": True, "word": word, **fields})
    else:
        sys.stdout.write(text + "\n")
