"""The commands. Errors go to standard error: exit 2 for bad input, 1 for "no" or a failed run."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from libs.config.settings import Logging, Settings, load_settings
from libs.config.yamlfile import BadInputError
from libs.core.clock import SystemClock
from libs.core.ports import UnavailableError
from libs.jetstream.connection import BusRefusedError
from libs.jetstream.schema import WrongStreamError
from libs.logs import configure

T = TypeVar("T")
AUTHORITY = Path("secrets/authority")
"""Where init.sh has `rekindle pki` keep the bus's authority, seen from the directory of docker-compose.yml."""
SERVICES = ("heartbeat", "detector", "fencer", "placement", "executor", "alerting")
app = typer.Typer(
    name="rekindle",
    help="Keeps the virtual machines of a libvirt/KVM pool alive.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
show_failovers = typer.Typer(help="Failovers, past and present.", invoke_without_command=True)
app.add_typer(show_failovers, name="failovers")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="pool file; else $REKINDLE_CONFIG, ./pool.yaml, /etc/rekindle/pool.yaml"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]


def config_path(given: Path | None) -> Path:
    """Which pool file. Raises BadInputError."""
    if given is not None:
        return given
    if "REKINDLE_CONFIG" in os.environ:
        return Path(os.environ["REKINDLE_CONFIG"])
    for path in (Path("pool.yaml"), Path("/etc/rekindle/pool.yaml")):
        if path.exists():
            return path
    raise BadInputError(
        "no pool file: give --config FILE, or put it at ./pool.yaml or /etc/rekindle/pool.yaml"
    )


def settings_of(given: Path | None) -> Settings:
    """For a command that asks: its own output counts, what its connection goes through does not."""
    configure(Logging(level="error"))
    return load_settings(config_path(given))


def print_json(document: Any) -> None:
    """A result for machines."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@app.command()
def up(
    config: ConfigOption = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="one log file a service there, not the terminal")
    ] = None,
) -> None:
    """Run the management plane: embedded NATS and every service, supervised. Ctrl-C stops it; no VM is touched."""
    from services.cli import nursery
    from services.cli.supervisor import Supervisor

    path = config_path(config)
    settings = load_settings(path)
    configure(settings.logging)
    supervisor = Supervisor(settings, path.resolve(), log_dir, nursery.fork())
    raise typer.Exit(_run(supervisor.run()))


@app.command()
def service(
    name: Annotated[str, typer.Argument(help=", ".join(SERVICES))],
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="heartbeat: the host that this agent runs on")] = None,
) -> None:
    """Run one service in this process."""
    if name not in SERVICES:
        raise BadInputError(f"service: no service is called {name}; there are {', '.join(SERVICES)}")
    if host is not None and name != "heartbeat":
        raise BadInputError(f"--host: only heartbeat runs on a host, not {name}")
    module = importlib.import_module(f"services.{name}.__main__")
    extra = {"host": host} if name == "heartbeat" else {}
    raise typer.Exit(module.main(config_path(config), **extra))


@app.command()
def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check a pool file against the world: every URI and every fence device is tried, nothing is changed."""
    from services.cli.checking import check_pool

    path = config_path(config)
    findings = _run(check_pool(load_settings(path), path))
    if as_json:
        print_json({"schema": "rekindle.check.v1", "ok": not findings, "findings": findings})
    for finding in findings:
        sys.stderr.write(finding + "\n")
    if findings:
        raise typer.Exit(2)
    if not as_json:
        sys.stdout.write(f"{path}: every host answers and every fence device can be read\n")


@app.command()
def hosts(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Hosts: what each is held to be, and how full it is."""
    from libs import readmodel
    from services.cli import tables

    async def read() -> list[dict[str, Any]]:
        async with readmodel.reader(settings_of(config)) as reader:
            return await reader.hosts()

    found, now = _run(read()), SystemClock().wall()
    for row in found:
        for path in row["fence_paths"]:
            path["proven_s_ago"] = tables.age_s(path["proven_at"], now)
    if as_json:
        print_json({"schema": "rekindle.hosts.v1", "hosts": found})
        return
    columns = ["host", "state", "no new VMs", "epoch", "vms", "memory_used_mib", "memory_mib"]
    columns += ["ready plan", "fencing"]
    shown = [
        {
            **row,
            "no new VMs": tables.closed(row),
            "ready plan": tables.ready_plan(row["ready_plan"]),
            "fencing": tables.paths(row, now),
        }
        for row in found
    ]
    if any(row["watchdog_s"] is not None for row in found):
        columns.append("watchdog_s")
    tables.rows("", columns, shown)
    for row in found:
        for reason in row["fence_missing"]:
            tables.console.print(f"[red]{row['host']} is not fenced[/]: {reason}", highlight=False)
        for one in row["stays"]:
            said = f"[yellow]{row['host']} is drained[/], and {one['vm']} stays: {one['detail']}"
            tables.console.print(said, highlight=False)


@app.command()
def vms(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """VMs: where each runs, under which lease, or why it waits."""
    from libs import readmodel
    from services.cli import tables

    async def read() -> list[dict[str, Any]]:
        async with readmodel.reader(settings_of(config)) as reader:
            return await reader.vms()

    found = _run(read())
    if as_json:
        print_json({"schema": "rekindle.vms.v1", "vms": found})
        return
    columns = ("vm", "state", "host", "protection", "priority", "memory_mib", "token", "lease", "detail")
    tables.rows("", columns, found)


@app.command()
def events(
    config: ConfigOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on as they come")] = False,
    after: Annotated[int, typer.Option(help="only those after this sequence", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Facts as they lie in the stream; with --json one CloudEvent a line."""
    from libs import readmodel
    from services.cli import tables

    async def read() -> None:
        async with readmodel.reader(settings_of(config)) as reader:
            async for sequence, envelope in reader.events(follow=follow, after=after):
                if as_json:
                    body = {"sequence": sequence, **envelope.model_dump(mode="json")}
                    sys.stdout.write(json.dumps(body) + "\n")
                    sys.stdout.flush()
                else:
                    tables.console.print(tables.event_line(envelope), highlight=False, soft_wrap=True)

    _run(read())


@show_failovers.callback()
def failovers(context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """All failovers; `failovers show ID` tells one in full."""
    if context.invoked_subcommand is not None:
        return
    from libs import readmodel
    from services.cli import tables

    async def read() -> list[Any]:
        async with readmodel.reader(settings_of(config)) as reader:
            return await reader.failovers()

    stories = _run(read())
    if as_json:
        body = [story.model_dump(mode="json") for story in stories]
        print_json({"schema": "rekindle.failovers.v1", "failovers": body})
        return
    columns = ("incident", "host", "rule", "confirmed", "vms", "running", "completed")
    data = [
        {
            "incident": story.incident,
            "host": story.host,
            "rule": story.rule,
            "confirmed": story.confirmed and story.confirmed.strftime("%Y-%m-%d %H:%M:%S"),
            "vms": len(story.vms),
            "running": sum(1 for vm in story.vms.values() if vm.state == "running"),
            "completed": "yes" if story.completed else "no",
        }
        for story in stories
    ]
    tables.rows("", columns, data)


@show_failovers.command("show")
def show(
    incident: Annotated[str, typer.Argument(help="as `rekindle failovers` lists it")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """One failover: its times and what became of each VM."""
    from libs import readmodel
    from services.cli import tables

    async def read() -> list[Any]:
        async with readmodel.reader(settings_of(config)) as reader:
            return await reader.failovers()

    story = next((one for one in _run(read()) if one.incident == incident), None)
    if story is None:
        raise BadInputError(f"no failover is called {incident}; `rekindle failovers` lists them")
    if as_json:
        print_json({"schema": "rekindle.failover.v1", **story.model_dump(mode="json")})
    else:
        tables.failover(story)


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """One look at everything. Exit 1 if any host is not healthy, a VM waits, a role is vacant, a storm is held, a fence path is broken, the detector is degraded, the stored state is an old copy, or the bus has no quorum here or does not answer: then it says `degraded`, and why."""
    from libs import readmodel
    from services.cli import tables

    async def read() -> dict[str, Any]:
        async with readmodel.reader(settings_of(config)) as reader:
            hosts, vms, held = await reader.hosts(), await reader.vms(), await reader.leaders()
            stories, storm, detector = await asyncio.gather(
                reader.failovers(), reader.storm(), reader.detector()
            )
            restored = await reader.restored()
        vacant = [role for role in SERVICES if role not in held and role != "heartbeat"]
        unwell = [host["host"] for host in hosts if host["state"] != "healthy"]
        waiting = [vm["vm"] for vm in vms if vm["state"] == "waiting"]
        paths = [(host["host"], path) for host in hosts for path in host["fence_paths"]]
        broken = [f"{host}: {path['device']}" for host, path in paths if path["state"] == "broken"]
        return {
            "schema": "rekindle.status.v1",
            "degraded": "",
            "ok": not (
                vacant or unwell or waiting or storm or restored or broken or detector["state"] != "ok"
            ),
            "hosts": len(hosts),
            "hosts_not_healthy": unwell,
            "hosts_in_maintenance": [host["host"] for host in hosts if host["maintenance"]],
            "hosts_quarantined": [host["host"] for host in hosts if host["quarantined"]],
            "fence_paths_broken": broken,
            "detector": detector,
            "storm": storm,
            "restored_state": restored,
            "vms": len(vms),
            "vms_running": sum(1 for vm in vms if vm["state"] == "running"),
            "vms_waiting": waiting,
            "roles_vacant": vacant,
            "failovers_open": [story.incident for story in stories if story.completed is None],
        }

    try:
        found = _run(read())
    except (UnavailableError, BusRefusedError) as error:  # so is each server that is cut off from its peers
        found = {"schema": "rekindle.status.v1", "ok": False, "degraded": str(error)}
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            if name != "schema":
                tables.console.print(f"{name:<20} {tables.told(value)}", highlight=False)
    if not found["ok"]:
        raise typer.Exit(1)


def _add_commands(wanted: str) -> None:
    """Commands of other modules, each where it may be meant: to read them all takes longer than most commands do."""
    if wanted in ("service", "up"):  # a service's own process is lean: see __main__
        return
    from services.cli.gate import gate

    app.command()(gate)
    if _has(wanted):  # a host's boot waits for the gate
        return
    from services.cli.doctor import doctor
    from services.cli.fencetest import fence_test
    from services.cli.operator import confirm_absent, confirm_failed, maintenance, readmit, remove_host, storm
    from services.cli.planning import admit, capacity, plan, snapshot

    app.command()(doctor)
    for command in (plan, capacity, admit, snapshot):
        app.command()(command)
    app.command("confirm-failed")(confirm_failed)
    app.command("fence-test")(fence_test)
    app.command("confirm-absent")(confirm_absent)
    app.command()(maintenance)
    app.command()(storm)
    app.command()(readmit)
    app.command("remove-host")(remove_host)
    if _has(wanted):
        return
    from services.cli.alerts import alerts
    from services.cli.backup import backup, restore
    from services.cli.bus import bus
    from services.cli.contract import schema
    from services.cli.credentials import credentials
    from services.cli.pki import pki
    from services.cli.scaleout import scale_out
    from services.cli.webhooks import webhooks

    app.add_typer(alerts, name="alerts")
    app.add_typer(bus, name="bus")
    app.add_typer(pki, name="pki")
    app.add_typer(schema, name="schema")
    app.add_typer(credentials, name="credentials")
    app.add_typer(webhooks, name="webhooks")
    app.command("scale-out")(scale_out)
    app.command()(backup)
    app.command()(restore)
    if _has(wanted):
        return
    from infra.lab.commands import demo, lab
    from services.cli.simulate import simulate

    app.add_typer(lab, name="lab")
    app.command("demo")(demo)
    app.command()(simulate)


def _has(wanted: str) -> bool:
    """Whether this command is known already."""
    here = {one.name or str(getattr(one.callback, "__name__", "")) for one in app.registered_commands}
    return wanted in {*here, *(str(one.name) for one in app.registered_groups)}


def main() -> int:
    """Entry point. Translates our errors into a message and an exit status."""
    _add_commands(sys.argv[1] if len(sys.argv) > 1 else "")
    try:
        left = app(standalone_mode=False)
    except typer.TyperException as error:  # a wrong option or argument
        if isinstance(error, typer.Exit):
            return int(error.exit_code)
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return 2
    except typer.Abort:
        return 130
    except BadInputError as error:
        sys.stderr.write(f"rekindle: {error}\n")
        return 2
    except (UnavailableError, BusRefusedError, WrongStreamError) as error:
        sys.stderr.write(f"rekindle: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return left if isinstance(left, int) else 0
