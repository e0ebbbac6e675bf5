"""`rekindle plan`, `capacity`, `admit`: questions to the planner, about a snapshot file or about the live pool, which
`rekindle snapshot` exports. Nothing is done to a pool."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from libs.config.yamlfile import BadInputError, did_you_mean
from services.cli.app import ConfigOption, JsonOption, settings_of

if TYPE_CHECKING:  # the planner is read only once one of these commands is meant
    from pydantic import BaseModel

    from libs.planning.snapshot import Snapshot, SnapshotVm

SHOWN = 10
"""VMs that are not agile; with --json all are told."""
SnapshotOption = Annotated[
    Path | None,
    typer.Option(
        "--snapshot", "-s", help="a pool, as rekindle.snapshot.v1; else the live pool", metavar="FILE"
    ),
]


def snapshot(config: ConfigOption = None) -> None:
    """The live pool as rekindle.snapshot.v1, for `plan`, `capacity` and `admit`. What had to be left out is told on standard error."""
    _print(_live(config))


def plan(
    snapshot: SnapshotOption = None,
    config: ConfigOption = None,
    *,
    fail: Annotated[str, typer.Option("--fail", metavar="HOST[,HOST...]", help="hosts that are lost")],
    no_moves: Annotated[
        bool, typer.Option("--no-moves", help="whatever the policy says, leave healthy VMs where they run")
    ] = False,
    preempt: Annotated[
        bool, typer.Option("--preempt", help="whatever the policy says, stop VMs that matter less")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What would be started where if these hosts were lost. Exit 1 if a VM with protection `restart` finds no place."""
    from libs.planning.documents import plan_told
    from libs.planning.plan import Allowed
    from libs.planning.plan import plan as planned
    from services.cli import tables

    pool = _pool(snapshot, config)
    failed = _hosts(pool, "--fail", [name.strip() for name in fail.split(",") if name.strip()])
    allowed = Allowed(pool.policy.migrations and not no_moves, pool.policy.preemption or preempt)
    begun = time.perf_counter()
    found = planned(pool, failed, allowed=allowed)
    told = plan_told(pool, failed, found, 1000 * (time.perf_counter() - begun))
    if as_json:
        _print(told)
    else:
        starts = [one.model_dump(by_alias=True) for one in told.starts]
        if starts:
            tables.rows("", ("wave", "vm", "from", "to"), starts)
        moves = [one.model_dump(by_alias=True) for one in told.migrations]
        if moves:
            tables.rows("moved before that, to make room", ("vm", "from", "to"), moves)
        stops = [one.model_dump() for one in told.preemptions]
        if stops:
            tables.rows("stopped, to make room", ("vm", "host"), stops)
        lacking = [one.model_dump() for one in told.unplaced]
        if lacking:
            tables.rows("no place", ("vm", "priority", "reason", "detail"), lacking)
        sys.stdout.write(
            f"{_counted(len(starts), 'VM')} to start, {_counted(len(moves), 'move')}, "
            f"{len(stops)} stopped, {len(lacking)} without a place ({told.elapsed_ms:.1f} ms)\n"
        )
    promised = {vm.name for vm in pool.vms if vm.protection == "restart"}
    if any(one.vm in promised for one in told.unplaced):
        raise typer.Exit(1)


def capacity(
    snapshot: SnapshotOption = None,
    config: ConfigOption = None,
    *,
    up_to: Annotated[
        int | None, typer.Option("--up-to", min=1, help="ask about the loss of no more hosts than so many")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How many hosts may fail so that every VM with protection `restart` finds a place. Exit 1 if that is less than the target."""
    from libs.planning.capacity import capacity as counted
    from libs.planning.documents import capacity_told
    from services.cli import tables

    pool = _pool(snapshot, config)
    begun = time.perf_counter()
    told = capacity_told(pool, counted(pool, up_to=up_to), 1000 * (time.perf_counter() - begun))
    if as_json:
        _print(told)
    else:
        hosts = [
            {
                "host": one.host,
                "its loss": "no place for" if one.unplaced else "recoverable",
                "vms": [*one.unplaced],
            }
            for one in told.per_host
        ]
        tables.rows("", ("host", "its loss", "vms"), hosts)
        lines = [
            f"tolerates {told.tolerates} (verified {told.verified}, at most {told.upper_bound}), target {told.target}"
            + (": OVERCOMMITTED" if told.overcommitted else ""),
            f"proof: {told.proof}",
        ]
        if told.worst_case_in_words:
            lines.append(f"worst case: {told.worst_case_in_words}")
        if told.without_fit_nowhere is not None:
            names = ", ".join(told.fit_nowhere)
            lines.append(f"fit nowhere: {names}; without them {told.without_fit_nowhere.tolerates}")
        lines += [
            f"not agile: {one.vm} on {one.host} ({one.reason}: {one.detail})"
            for one in told.not_agile[:SHOWN]
        ]
        if len(told.not_agile) > SHOWN:
            lines.append(f"and {len(told.not_agile) - SHOWN} more that are not agile")
        sys.stdout.write("\n".join(lines) + "\n")
    if told.overcommitted:
        raise typer.Exit(1)


def admit(
    snapshot: SnapshotOption = None,
    config: ConfigOption = None,
    *,
    vm: Annotated[
        Path | None, typer.Option("--vm", metavar="FILE", help="a VM to start or protect, as in a snapshot")
    ] = None,
    enter_maintenance: Annotated[str | None, typer.Option(metavar="HOST")] = None,
    remove_host: Annotated[str | None, typer.Option(metavar="HOST")] = None,
    as_json: JsonOption = False,
) -> None:
    """May this be done without losing what is promised? Exit 1 if not. Nothing is done."""
    from libs.planning.admit import admit_vm, admit_without
    from libs.planning.documents import AdmitTold, admit_told
    from libs.planning.files import load_vm

    asked = [one for one in (vm, enter_maintenance, remove_host) if one is not None]
    if len(asked) != 1:
        raise BadInputError("give one of --vm, --enter-maintenance, --remove-host")
    pool = _pool(snapshot, config)
    told: AdmitTold
    if vm is not None:
        entry = load_vm(vm)
        refused = _misfit(pool, entry)
        if refused:
            raise BadInputError(f"{vm}: {refused}")
        told = admit_told(pool, "start", entry.name, admit_vm(pool, entry))
    elif enter_maintenance is not None:
        _hosts(pool, "--enter-maintenance", [enter_maintenance])
        answer = admit_without(pool, enter_maintenance, removed=False)
        told = admit_told(pool, "enter_maintenance", enter_maintenance, answer)
    else:
        assert remove_host is not None
        _hosts(pool, "--remove-host", [remove_host])
        answer = admit_without(pool, remove_host, removed=True)
        told = admit_told(pool, "remove_host", remove_host, answer)
    if as_json:
        _print(told)
    else:
        at = f" on {told.host}" if told.host else ""
        lost = f"; lost: {', '.join(told.lost)}" if told.lost else ""
        sys.stdout.write(f"{'allowed' if told.allowed else 'refused'}{at}: {told.reason}{lost}\n")
    if not told.allowed:
        raise typer.Exit(1)


def _misfit(pool: Snapshot, vm: SnapshotVm) -> str:
    """Why the VM cannot stand in this snapshot, as "field: reason"; "" where it can."""
    from libs.planning.consistency import refusal

    others = tuple(one for one in pool.vms if one.name != vm.name)
    return refusal(pool.model_copy(update={"vms": (*others, vm)}))


def _pool(path: Path | None, config: Path | None) -> Snapshot:
    from libs.planning.files import load_snapshot

    return load_snapshot(path) if path is not None else _live(config)


def _live(config: Path | None) -> Snapshot:
    """The live pool, as the bus knows it."""
    from libs import readmodel
    from libs.liveshot import exported

    async def read() -> Snapshot:
        async with readmodel.reader(settings_of(config)) as reader:
            found, told = await exported(reader)
        for one in told:
            sys.stderr.write(f"rekindle: {one}\n")
        return found

    return asyncio.run(read())


def _hosts(pool: Snapshot, option: str, names: list[str]) -> frozenset[str]:
    known = [host.name for host in pool.hosts]
    if not names:
        raise BadInputError(f"{option}: name a host")
    for name in names:
        if name not in known:
            raise BadInputError(f"{option}: there is no host {name}{did_you_mean(name, known)}")
    return frozenset(names)


def _print(told: BaseModel) -> None:
    sys.stdout.write(told.model_dump_json(by_alias=True, indent=2) + "\n")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
