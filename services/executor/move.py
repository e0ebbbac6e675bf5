"""The executor's hands that make room: a VM moved while it runs, or stopped.

A move is: the lease says where the VM may come to run, then libvirt moves it, then both hosts are asked how it is, and the
lease follows under a higher token. Killed at any line, the next attempt reads the lease, asks both, and ends it from there.
Whoever takes the lease meanwhile, since its holder was fenced, asks the host to which it may have gone (`rule` in
libs/leases.py names it).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from libs.core.ports import ConflictError, Hypervisor, Hypervisors, MoveRefusedError, UnavailableError
from libs.events.failovers import PlannedMove, PlannedStart, PlannedStop
from libs.leases import migrated, moved, moving, put_down_by_us, put_down_there, put_down_where_moved
from libs.model import Incarnation, LeaseState, RunLease, StopReason, VmReport, VmState
from services.executor.evict import Rewrite, Way, evict
from services.executor.orders import MoveVm, Result, RoomMade, StopVm

ASK_S = 5.0
RACES = 5
Read = Callable[[str], Awaitable[tuple[RunLease | None, int]]]
Write = Callable[[RunLease, int], Awaitable[int]]


async def carried_out(hypervisors: Hypervisors, read: Read, write: Write, request: MoveVm) -> RoomMade:
    """Raises UnavailableError where nothing is known of the outcome."""
    move = request.move
    lease, revision = await read(move.vm)
    if lease is None or lease.state is not LeaseState.RUNNING or lease.strays:
        return _stays(request, f"its lease is {'nobody' if lease is None else lease.state.value}")
    if lease.holder == move.to:
        return RoomMade(key=request.key, makes=move, result=Result.STARTED, token=lease.token)
    if lease.holder != move.origin:
        return _stays(request, f"it is held by {lease.holder}")
    begun = lease.moving_to is not None
    try:
        source, target = await hypervisors.at(move.origin, ASK_S), await hypervisors.at(move.to, ASK_S)
        here, there = await _said(source, move), await _said(target, move)
    except UnavailableError as error:
        if begun:
            raise
        return _stays(request, str(error))
    if begun or not _ready(move, here, there):
        return await _judged(request, lease, revision, write, here, there)
    found = StopReason.NONE if there is None else there.stop_reason
    lease, revision = await _written(write, moving(lease, move.to, found), revision)
    refused = ""
    try:
        await source.migrate(move.vm, target, request.timeout_s)
    except MoveRefusedError as error:
        refused = str(error)
    here, there = await _said(source, move), await _said(target, move)
    return await _judged(request, lease, revision, write, here, there, refused)


def _ready(move: PlannedMove, here: VmReport | None, there: VmReport | None) -> bool:
    """It runs there as it was planned, and nobody moves it."""
    runs = here is not None and here.state is VmState.RUNNING and here.run == move.run
    return runs and (there is None or there.state is VmState.STOPPED)


async def _judged(
    request: MoveVm,
    lease: RunLease,
    revision: int,
    write: Write,
    here: VmReport | None,
    there: VmReport | None,
    refused: str = "",
) -> RoomMade:
    """By the word of both hosts. Raises UnavailableError where the lease cannot be written."""
    left = here is None or here.state is VmState.STOPPED
    # who was shut down where it ran, on its way, has not arrived, whatever its half copy says
    gone = here is None or migrated(here)
    ended = there is not None and gone and put_down_where_moved(lease, there)
    arrived = ended or (there is not None and there.state is VmState.RUNNING)
    if left and arrived:
        mine, _ = await _written(write, moved(lease, request.move.to), revision)
        return RoomMade(key=request.key, makes=request.move, result=Result.STARTED, token=mine.token)
    if there is not None and there.state is not VmState.STOPPED:
        reason = f"{request.move.to} says that it is {there.state.value} there"
        return RoomMade(key=request.key, makes=request.move, result=Result.UNCERTAIN, reason=reason)
    if lease.moving_to is not None:
        await _written(write, moving(lease, None), revision)
    how = "it is not there" if here is None else f"it is {here.state.value} there, run {here.run}"
    return _stays(request, refused or f"{request.move.origin} says: {how}")


async def _written(write: Write, lease: RunLease, expected: int) -> tuple[RunLease, int]:
    try:
        return lease, await write(lease, expected)
    except ConflictError as error:
        raise UnavailableError(f"the lease of {lease.name} was written by another") from error


async def _said(host: Hypervisor, move: PlannedMove) -> VmReport | None:
    report = await host.report(move.vm)
    if report is not None and report.state is VmState.UNKNOWN:
        raise UnavailableError(f"the state of {move.name} cannot be told")
    return report


def _stays(request: MoveVm, reason: str) -> RoomMade:
    return RoomMade(key=request.key, makes=request.move, result=Result.NOT_STARTED, reason=reason)


async def may_run(
    hypervisors: Hypervisors, rewrite: Rewrite, lease: RunLease, at: Incarnation, found: StopReason
) -> str:
    """Why a VM that may have been moved to `at`, where it was `found` stopped before, may not be started elsewhere; "" where
    that host itself says that it does not run there, and that no person put it down there after it had come. Where one did,
    the lease follows it there, and what was done with it is read from that host as with any other VM."""
    try:
        report = await (await hypervisors.at(at, ASK_S)).report(lease.vm)
    except UnavailableError as error:
        return f"it may have been moved to {at}, which does not say: {error}"
    if report is not None and report.state is not VmState.STOPPED:
        return f"it may have been moved to {at}, which says that it is {report.state.value}"
    if report is not None and put_down_there(lease, report, found):
        await rewrite(lease, moved(lease, at))
        return f"it was moved to {at}, and ended there by a person's hand: {report.stop_reason.value}"
    return ""


async def stopped(hypervisors: Hypervisors, read: Read, rewrite: Rewrite, request: StopVm) -> RoomMade:
    """Stop it where it runs, as an eviction does, and note in its lease that its holder runs it no more: whoever starts
    it may take that. Raises UnavailableError where the lease cannot be read or written."""
    stop = request.stop
    for _ in range(RACES):
        lease, _revision = await read(stop.vm)
        if lease is None or lease.holder != stop.at or lease.strays:
            return _not_stopped(request, "it is held elsewhere")
        if lease.state is LeaseState.FAILED:
            return RoomMade(key=request.key, makes=stop, result=Result.STARTED, token=lease.token)
        if lease.state not in (LeaseState.RUNNING, LeaseState.EVICTING) or lease.moving_to is not None:
            return _not_stopped(request, f"its lease is {lease.state.value}")
        evicted = await evict(hypervisors, rewrite, _as_start(stop), lease)
        if evicted.way is Way.STAYS:
            return _not_stopped(request, evicted.reason)
        if evicted.way is Way.GONE and await rewrite(lease, put_down_by_us(lease, stop.run)):
            return RoomMade(key=request.key, makes=stop, result=Result.STARTED, token=lease.token)
    return RoomMade(key=request.key, makes=stop, result=Result.UNCERTAIN, reason="the lease keeps changing")


def _not_stopped(request: StopVm, reason: str) -> RoomMade:
    return RoomMade(key=request.key, makes=request.stop, result=Result.NOT_STARTED, reason=reason)


def _as_start(stop: PlannedStop) -> PlannedStart:
    """As an eviction knows it: the run that is to end, and where."""
    report = stop.report
    return PlannedStart(
        key=stop.key,
        vm=stop.vm,
        name=stop.name,
        origin=stop.at,
        to=stop.at,
        wave=0,
        priority_rank=report.policy.priority.rank,
        memory_mib=report.memory_mib,
        vcpus=report.vcpus,
        policy=report.policy,
        run=stop.run,
        evict=True,
    )
