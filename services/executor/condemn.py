"""A VM that is said to run on two hosts: both are asked, and the run that is not the lease's is condemned. ADR 5."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from libs.core.ports import ConflictError, Hypervisors, UnavailableError
from libs.model import Incarnation, RunLease, VmReport, VmState
from libs.strays import condemn, condemned
from services.executor.orders import CondemnRun, RunCondemned

ASK_S = 2.0
Read = Callable[[str], Awaitable[tuple[RunLease | None, int]]]
Write = Callable[[RunLease, int], Awaitable[int]]


async def judged(hypervisors: Hypervisors, read: Read, write: Write, request: CondemnRun) -> RunCondemned:
    """Raises UnavailableError where one of them does not answer, or the lease cannot be read or written."""
    lease, at = request.lease, request.at
    if not await runs_twice(hypervisors, request):
        return RunCondemned(key=request.key, lease=(await read(lease.vm))[0], at=at, run=request.run)
    found, revision = await read(lease.vm)
    if found == lease:
        lease = condemn(found, at, request.run)
        try:
            # what succeeds was decided on the latest lease there is: a reading alone may be stale
            await write(lease, revision)
            found = lease
        except ConflictError:
            found, _ = await read(lease.vm)
    done = found is not None and condemned(found, at, request.run)
    return RunCondemned(key=request.key, lease=found, at=at, run=request.run, done=done)


async def runs_twice(hypervisors: Hypervisors, request: CondemnRun) -> bool:
    """The one host, the other, and the first again, each by its own libvirt: between the first answer and the last that
    very run went on, and in between the other ran. A migration does not look so: until it is through the target's
    copy is paused, and from then on the source's is not running."""
    here, there = request.at, request.lease.holder
    one = await _report(hypervisors, here, request.lease.vm)
    if one is None or one.run != request.run or one.state is not VmState.RUNNING:
        return False
    other = await _report(hypervisors, there, request.lease.vm)
    if other is None or other.state is not VmState.RUNNING:
        return False
    again = await _report(hypervisors, here, request.lease.vm)
    return again is not None and again.run == request.run and again.state is VmState.RUNNING


async def _report(hypervisors: Hypervisors, at: Incarnation, vm: str) -> VmReport | None:
    """By a connection that is proven to lead to this boot."""
    report = await (await hypervisors.at(at, ASK_S)).report(vm)
    if report is not None and report.state is VmState.UNKNOWN:
        raise UnavailableError(f"{at} cannot tell the state of {report.name}")
    return report
