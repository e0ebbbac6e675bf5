"""`rekindle lab …` and `rekindle demo`."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console

from infra.lab import chaoscommand, planecommand, soakcommand, steps
from infra.lab.build import LOCKD
from infra.lab.bus import NODES
from infra.lab.chaos import Chaos
from infra.lab.interrupt import interruptible
from infra.lab.lab import Lab, LabError
from infra.lab.needs import missing_packages
from infra.lab.outage import Outage
from infra.lab.paths import default_root
from infra.lab.plane import Plane
from infra.lab.planechaos import PlaneChaos
from infra.lab.playing import play
from infra.lab.run import LabRun, RunFailedError
from infra.lab.soak import Soak
from libs.config.settings import Logging
from libs.config.yamlfile import BadInputError, reason_of
from libs.events.envelope import Envelope
from libs.logs import configure
from libs.scenario.files import misgiven
from libs.scenario.model import HOST_STEPS, SERVICE_STEPS, VM_STEPS, Scenario, StepEntry
from libs.scenario.outcome import Outcome
from libs.scenario.pool import ScenarioHost, ScenarioVm

lab = typer.Typer(help="A pool on this one machine, out of real parts.", no_args_is_help=True)
RootOption = Annotated[
    Path | None, typer.Option("--root", help="the lab's directory; default /tmp/rkl-<uid>")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print the outcome document alone")]
KeepOption = Annotated[bool, typer.Option(help="leave logs, consoles and observations behind")]
BareOption = Annotated[
    bool,
    typer.Option("--bare", help="guests without an operating system, which are up at once on any machine"),
]
LockOption = Annotated[
    bool, typer.Option("--lock-manager", help="each host has a virtlockd that guards the disks")
]
PRIORITIES = ("highest", "high", "medium", "medium", "low", "lowest")


def example(hosts: int = 3, vms: int = 6) -> Scenario:
    """The demo's pool: VMs of all priorities over the hosts, the first host with the first, fourth, ..."""
    names = [f"h{number + 1}" for number in range(hosts)]
    machines = [
        ScenarioVm.model_validate(
            {
                "name": f"vm{number + 1}",
                "host": names[number % hosts],
                "memory_mib": 128,
                "priority": PRIORITIES[number % len(PRIORITIES)],
            }
        )
        for number in range(vms)
    ]
    steps = (StepEntry(at_s=2.0, do="power_off", host=names[0]),)
    expect = [{"vm": vm.name, "state": "running"} for vm in machines]
    return Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "one host loses its power",
            "duration_s": 60,
            "hosts": [ScenarioHost(name=name) for name in names],
            "vms": machines,
            "steps": steps,
            "expect": expect,
        }
    )


def _require_packages() -> None:
    missing = missing_packages()
    if missing:
        raise BadInputError(f"the lab needs packages that are not here: apt-get install {' '.join(missing)}")


def _new_root(given: Path | None) -> Path:
    return given or Path(tempfile.mkdtemp(prefix="rkl-"))


class _Result(Protocol):
    @property
    def passed(self) -> bool: ...

    def document(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=_Result)


def _end(
    console: Console, result: R, report: Callable[[Console, R], None], as_json: bool, kept: Path | None
) -> None:
    """Print what came out, and where the logs are if they were kept. Exits with 1 where it did not pass."""
    if as_json:
        sys.stdout.write(json.dumps(result.document(), indent=2) + "\n")
    else:
        report(console, result)
    if kept is not None:
        console.print(f"logs: {kept}")
    if not result.passed:
        raise typer.Exit(1)


def run_scenario(run: LabRun) -> Outcome:
    """Run it. Exits with 1 where the lab itself fails."""
    _require_packages()
    return play(run.run(), run, "the lab did not come up")


@lab.command("run")
def lab_run(
    file: Annotated[Path, typer.Argument(help="a scenario file (rekindle.scenario.v1)")],
    root: RootOption = None,
    as_json: JsonOption = False,
    keep: KeepOption = False,
    agentless: Annotated[
        bool, typer.Option(help="no agents on the hosts; they are watched over libvirt")
    ] = False,
    bare: BareOption = False,
) -> None:
    """Run a scenario file on real hosts. Exit 1 if it does not go as the file expects."""
    run = LabRun(steps.load(file), _new_root(root), agents=not agentless, keep=keep, bare=bare)
    _play(run, as_json)


def demo(
    root: RootOption = None, as_json: JsonOption = False, keep: KeepOption = False, bare: BareOption = False
) -> None:
    """Three hosts, six VMs, one host's power cut: what happens, and how fast."""
    _play(LabRun(example(), _new_root(root), keep=keep, bare=bare), as_json)


def _play(run: LabRun, as_json: bool) -> None:
    from services.cli import tables

    console = Console(stderr=as_json)
    zero: list[datetime] = []

    def say(line: str) -> None:
        if hasattr(run, "zero"):
            zero[:] = [run.zero]
        console.print(f"[dim]{'':10}  {line}[/]", highlight=False)

    def heard(envelope: Envelope) -> None:
        if hasattr(run, "zero") and envelope.time >= run.zero:
            console.print(tables.event_line(envelope, run.zero), highlight=False, soft_wrap=True)

    run.say, run.heard = say, heard
    scenario = run.scenario
    console.print(f"[bold]{scenario.name}[/]: {len(scenario.hosts)} hosts, {len(scenario.vms)} VMs")
    outcome = run_scenario(run)
    if as_json:
        sys.stdout.write(outcome.model_dump_json(indent=2, by_alias=True) + "\n")
    else:
        report(console, scenario, outcome)
        if run.keep:
            console.print(f"logs: {run.root}")
    if not outcome.passed:
        raise typer.Exit(1)


def report(console: Console, scenario: Scenario, outcome: Outcome) -> None:
    """The tables after a run."""
    from services.cli import tables

    tables.machines(scenario, outcome)
    for one in outcome.failovers:
        zero = one.occurred_s if one.occurred_s is not None else one.suspected_s
        if zero is None:
            continue
        columns = ("suspected", "confirmed", "fenced", "planned", "first start", "all running", "guests up")
        values = (
            one.suspected_s,
            one.confirmed_s,
            one.fenced_s,
            one.planned_s,
            one.first_start_s,
            one.all_running_s,
            one.guests_up_s,
        )
        row = {
            column: "-" if value is None else f"{value - zero:.2f} s"
            for column, value in zip(columns, values, strict=True)
        }
        console.print()
        tables.rows(f"failover of {one.host}, since it failed", columns, [row])
    console.print()
    rate = outcome.observer.get("lowest_hz", 0.0)
    console.print(
        f"ran twice: {outcome.double_running_s:.2f} s, as an independent observer saw it "
        f"(at least {rate:.0f} looks a second at every host)",
        highlight=False,
    )
    for broken in outcome.violations:
        console.print(f"[bold red]rule {broken.rule}[/] at {broken.at_s} s: {broken.detail}", highlight=False)
    console.print("[green]passed[/]" if outcome.passed else "[bold red]failed[/]")


@lab.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="how long")] = 60.0,
    loss_percent: Annotated[
        float, typer.Option(min=0.0, max=90.0, help="of the packets on each host's link, each way")
    ] = 5.0,
    bus_nodes: Annotated[int, typer.Option(help="NATS servers, 1 or 3")] = NODES,
    burners: Annotated[
        int | None,
        typer.Option(min=0, help="busy loops; one a processor by default, 0 where all are busy already"),
    ] = None,
    burners_yield: Annotated[
        bool,
        typer.Option("--burners-yield", help="busy loops take only what else on this machine leaves"),
    ] = False,
    root: RootOption = None,
    as_json: JsonOption = False,
    keep: KeepOption = False,
    bare: BareOption = False,
) -> None:
    """Load, loss, a change of NATS's leader each minute, and no suspicion may become a verdict. Exit 1 if one does."""
    soakcommand.check(bus_nodes)
    _require_packages()
    console, where = Console(stderr=as_json, highlight=False), _new_root(root)

    def say(line: str) -> None:
        console.print(f"[dim]{line}[/]")

    soaked = Soak(
        where, minutes, loss_percent, bus_nodes, burners, burners_yield, keep=keep, bare=bare, say=say
    )
    result = soakcommand.perform(soaked)
    _end(console, result, soakcommand.report, as_json, where if keep else None)


@lab.command()
def chaos(
    faults: Annotated[int, typer.Option(min=1, help="how many, over all rounds")] = 200,
    seed: Annotated[int, typer.Option(help="what is drawn; the same seed draws the same")] = 1,
    hosts: Annotated[int, typer.Option(min=3, max=8)] = 5,
    vms: Annotated[int, typer.Option(min=1, max=32)] = 8,
    bus_nodes: Annotated[int, typer.Option(help="NATS servers, 1 or 3")] = 1,
    lock_manager: LockOption = False,
    autostart: Annotated[
        bool, typer.Option(help="the VMs of a host that is about to reboot start with it")
    ] = True,
    root: RootOption = None,
    as_json: JsonOption = False,
    keep: KeepOption = False,
) -> None:
    """Random faults, some on top of one another: no VM may run twice, all must run again. Exit 1 where one did, or does not."""
    soakcommand.check_nodes(bus_nodes)
    _require_packages()
    console, where = Console(stderr=as_json, highlight=False), _new_root(root)

    def say(line: str) -> None:
        console.print(f"[dim]{datetime.now(UTC):%H:%M:%S}  {line}[/]")

    manager = LOCKD if lock_manager else ""
    day = Chaos(where, faults, seed, hosts, vms, bus_nodes, manager, autostart, keep=keep, say=say)
    result = chaoscommand.perform(day)
    _end(console, result, chaoscommand.report, as_json, where if keep else None)


@lab.command()
def planechaos(
    failovers: Annotated[int, typer.Option(min=1)] = 100,
    alone: Annotated[int, typer.Option(min=1, help="failovers before that, for comparison")] = 5,
    seed: Annotated[int, typer.Option(help="what befalls the plane")] = 1,
    root: RootOption = None,
    as_json: JsonOption = False,
    keep: KeepOption = False,
) -> None:
    """Failovers while parts of three management nodes are killed, paused and cut. Exit 1 where an incident was lost or doubled, a VM ran twice, or it took too long."""
    _require_packages()
    console, where = Console(stderr=as_json, highlight=False), _new_root(root)

    def say(line: str) -> None:
        console.print(f"[dim]{datetime.now(UTC):%H:%M:%S}  {line}[/]")

    result = planecommand.perform(PlaneChaos(where, failovers, seed, alone, keep=keep, say=say))
    _end(console, result, planecommand.report, as_json, where if keep else None)


@lab.command()
def outage(
    minutes: Annotated[float, typer.Option(min=0.1, help="for how long the plane is away")] = 10.0,
    quiet_s: Annotated[float, typer.Option(min=1.0, help="detection.quiet_after_start_s")] = 60.0,
    root: RootOption = None,
    as_json: JsonOption = False,
    keep: KeepOption = False,
) -> None:
    """The whole management plane is killed, a host dies, the plane comes back. Exit 1 where another VM was touched, or its view is not right in 30 s."""
    _require_packages()
    console, where = Console(stderr=as_json, highlight=False), _new_root(root)

    def say(line: str) -> None:
        console.print(f"[dim]{datetime.now(UTC):%H:%M:%S}  {line}[/]")

    result = planecommand.perform_outage(Outage(where, minutes, quiet_s, keep=keep, say=say))
    _end(console, result, planecommand.report_outage, as_json, where if keep else None)


@lab.command()
def up(
    root: RootOption = None,
    hosts: Annotated[int, typer.Option(min=1, max=16)] = 3,
    vms: Annotated[int, typer.Option(min=0, max=64)] = 6,
    bus_nodes: Annotated[int, typer.Option(help="NATS servers, 1 or 3")] = 1,
    bare: BareOption = False,
    lock_manager: LockOption = False,
) -> None:
    """Build a lab with VMs and Rekindle over it, and leave it running until `lab down`."""
    _require_packages()
    configure(Logging(level="error"))
    console = Console()
    where = root or default_root()
    soakcommand.check_nodes(bus_nodes)
    scenario = example(hosts, vms).model_copy(update={"lock_manager": LOCKD if lock_manager else None})
    run = LabRun(scenario, where, bus_nodes=bus_nodes, bare=bare)
    run.say = lambda line: console.print(line, style="dim", highlight=False)
    try:
        asyncio.run(interruptible(_raise(run), lambda: run.stopping))
    except (LabError, RunFailedError, TimeoutError) as error:
        raise BadInputError(f"lab: {error}") from error
    console.print(f"lab runs at {where}; look: rekindle hosts -c {run.plane.config}", highlight=False)
    console.print("break it: rekindle lab do power_off h1; end it: rekindle lab down", highlight=False)


async def _raise(run: LabRun) -> None:
    building = asyncio.create_task(asyncio.to_thread(run.build))
    try:
        await asyncio.shield(building)
        async with run.playing():
            return
    except BaseException:
        await run.abandon(building)
        raise


DOABLE = sorted(steps.POSSIBLE & (HOST_STEPS | VM_STEPS | SERVICE_STEPS))


@lab.command("do")
def lab_do(
    what: Annotated[str, typer.Argument(help=", ".join(DOABLE))],
    subject: Annotated[str, typer.Argument(help="host, VM or service")],
    how: Annotated[str | None, typer.Option(help=f"break_fencing: {', '.join(steps.BREAKS)}")] = None,
    root: RootOption = None,
) -> None:
    """Do one step of a scenario to a running lab."""
    if what not in DOABLE:
        raise BadInputError(f"{what} is not possible here; possible are {', '.join(DOABLE)}")
    key = "vm" if what in VM_STEPS else "service" if what in SERVICE_STEPS else "host"
    try:
        step = StepEntry.model_validate({"at_s": 0, "do": what, key: subject, "how": how})
    except ValidationError as error:
        raise BadInputError(f"{what} {subject}: {key}: {reason_of(error.errors()[0], StepEntry)}") from error
    wrong = steps.problem(example(), step) or misgiven(step)
    if wrong is not None:
        raise BadInputError(f"{what} {subject}: {wrong[0]}: {wrong[1]}")
    found = _open(root)
    try:
        steps.Stage(found, Plane(found, ())).perform(step)
    except (LabError, OSError) as error:
        raise BadInputError(f"{what} {subject}: {error}") from error


@lab.command()
def status(root: RootOption = None, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Hosts of the lab, their power and their VMs, by their own lists."""
    from services.cli import tables

    found = _open(root)
    data = [
        {"host": host, "power": found.power_state(host), "uri": found.uri(host), "vms": found.domains(host)}
        for host in found.hosts
    ]
    if as_json:
        sys.stdout.write(json.dumps({"schema": "rekindle.lab.status.v1", "hosts": data}, indent=2) + "\n")
    else:
        tables.rows("", ("host", "power", "vms", "uri"), data)


@lab.command()
def down(root: RootOption = None, keep_logs: KeepOption = False) -> None:
    """Take the lab away: every process, mount, network and file of it, and nothing else."""
    found = _open(root)
    Plane(found, ()).stop_left_over()
    found.down(keep_logs=keep_logs)


def _open(root: Path | None) -> Lab:
    try:
        return Lab.open(root)
    except LabError as error:
        raise BadInputError(str(error)) from error
