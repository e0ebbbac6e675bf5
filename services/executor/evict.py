"""Eviction: a VM whose QEMU lives is stopped where it is, and that host's own word proves it, before it starts anywhere.

The lease says `evicting` before the stop is called. Killed at any line, the next attempt reads the lease and asks the
origin, and goes on from there; nothing is remembered elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from libs.core.ports import Hypervisor, Hypervisors, UnavailableError
from libs.events.failovers import PlannedStart
from libs.events.vms import Stage
from libs.leases import adopted, evicting, migrated, over, turned
from libs.model import Isolation, LeaseState, RunLease, VmState

ORIGIN_S = 5.0
EVICT_S = 35.0
"""More than libvirt takes to give up killing a process that does not die."""


class Way(StrEnum):
    GONE = "gone"  # the origin itself says that it does not run: its lease may be taken
    AGAIN = "again"  # something was done, or changed: look again
    STAYS = "stays"


@dataclass(frozen=True, slots=True)
class Eviction:
    """How one look ended; `stage` and `reason` say why a VM stays where it is."""

    way: Way
    stage: Stage = Stage.START
    reason: str = ""


Rewrite = Callable[[RunLease, RunLease], Awaitable[bool]]


async def evict(hypervisors: Hypervisors, rewrite: Rewrite, start: PlannedStart, lease: RunLease) -> Eviction:
    """One look at the origin, and one stop where it still runs there. Raises UnavailableError where the lease cannot
    be written: then nothing was stopped."""
    try:
        origin = await hypervisors.at(start.origin, ORIGIN_S)
    except UnavailableError as error:
        return Eviction(Way.STAYS, Stage.ASK, f"{start.origin} does not answer: {error}")
    found = await _look(origin, rewrite, start, lease, lease)
    if found is not None:
        return found
    if (lease.state, lease.run) != (LeaseState.EVICTING, start.run):
        marked = evicting(lease, start.run)
        if not await rewrite(lease, marked):
            return Eviction(Way.AGAIN)
        # a stop in the time that the mark took was not ours yet; from now on it may be
        found = await _look(origin, rewrite, start, lease, marked)
        if found is not None:
            return found
    return await _stop(origin, start)


async def _look(
    origin: Hypervisor, rewrite: Rewrite, start: PlannedStart, before: RunLease, lease: RunLease
) -> Eviction | None:
    """None where that run goes on. `lease` is as it lies now; by `before` it is known whose doing an end is."""
    at = start.origin
    try:
        report = await origin.report(start.vm)
    except UnavailableError as error:
        return Eviction(Way.STAYS, Stage.ASK, f"{at} does not answer: {error}")
    if report is None:
        return Eviction(Way.GONE) if before is lease else Eviction(Way.AGAIN)
    if report.state is VmState.UNKNOWN:
        return Eviction(Way.STAYS, Stage.ASK, f"{at} cannot tell its state")
    if report.state is VmState.STOPPED:
        if migrated(report) and over(lease, report):
            return await _taken_along(rewrite, start, lease)
        if adopted(before, at, report, report, holder_known=True) is not None:
            return await _put_down(rewrite, start, before, lease)
        return Eviction(Way.GONE) if before is lease else Eviction(Way.AGAIN)
    if report.run != start.run:
        return Eviction(Way.STAYS, Stage.START, f"it was started anew on {at}")
    return None


async def _put_down(rewrite: Rewrite, start: PlannedStart, before: RunLease, lease: RunLease) -> Eviction:
    """libvirt shows it as stopped on purpose. Where an order to an isolated host may have stopped it, only its agent
    can tell that from a person's will: the lease is left to what the agent says."""
    ordered = start.policy.isolation is Isolation.SHUTDOWN
    state = before.state if ordered else LeaseState.STOPPED
    if state is not lease.state:
        await rewrite(lease, turned(lease, state))
    return Eviction(Way.STAYS, Stage.ASK if ordered else Stage.START, "it was stopped on purpose")


async def _taken_along(rewrite: Rewrite, start: PlannedStart, lease: RunLease) -> Eviction:
    """A person migrated it away before it could be stopped: that run goes on elsewhere, and what its end here proves is
    nothing. The lease is as it was, and follows to whoever shows it, or says in time that nobody does."""
    if lease.state is LeaseState.EVICTING:
        await rewrite(lease, turned(lease, LeaseState.RUNNING))
    return Eviction(Way.STAYS, Stage.ASK, f"it was migrated away from {start.origin}")


async def _stop(origin: Hypervisor, start: PlannedStart) -> Eviction:
    try:
        async with asyncio.timeout(EVICT_S):
            await origin.destroy(start.vm)
            report = await origin.report(start.vm)
    except UnavailableError as error:
        return Eviction(Way.STAYS, Stage.EVICT, f"its stop failed: {error}")
    except TimeoutError:
        return Eviction(Way.STAYS, Stage.EVICT, f"its stop had no end in {EVICT_S} s")
    if report is not None and report.state is not VmState.STOPPED:
        return Eviction(Way.STAYS, Stage.EVICT, f"it was stopped and is {report.state.value}")
    return Eviction(Way.AGAIN)
