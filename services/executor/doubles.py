"""A VM that runs on two hosts, as the executor sees it by what both of them tell: level, not edge, at every inventory."""

from __future__ import annotations

from collections.abc import Callable

from libs import strays
from libs.core.decider import Act, Effect, Publish, Send, Step
from libs.core.evolve import replace
from libs.events.signals import LeaseWritten
from libs.events.vms import VmRunsTwice
from libs.model import Inventory, LeaseState, RunLease, VmState
from services.executor.orders import CondemnRun, RunCondemned, StartRecord
from services.executor.state import FRESH_S, Doubled, State, known, write

MIGRATED_S = 1.0
"""Two hosts that show a VM in the midst of its migration have both told how it went by then."""
CONDEMN_S = 15.0
"""For two hosts to be asked, and one of them again, and the lease to be written."""


def found(state: State, vm: str, inventory: Inventory, now: float) -> tuple[State, list[Effect]]:
    """A second copy: look again in a moment; where it is condemned, tell its host's agent, again and again."""
    lease, report, at = state.leases.get(vm), inventory.vm(vm), inventory.at
    if lease is None or report is None:
        return state, []
    if report.state.active and strays.condemned(lease, at, report.run):
        return state, [Send(f"stray.{at.host}", LeaseWritten(lease=lease))]
    looks = strays.looks_stray(lease, at, report, state.heard.get(lease.holder.host))
    if vm in state.doubled or not looks or not _fresh(state, lease, now):
        return state, []
    seen = Doubled(at, report.run, now + MIGRATED_S)
    return replace(state, doubled=state.doubled.insert(vm, seen)), []


def beyond(state: State, inventory: Inventory, now: float) -> tuple[State, tuple[Effect, ...]]:
    """What a boot still says that is proven over: nothing of it counts, but that what runs there runs twice."""
    state, effects = forgotten(state, lambda lease: strays.ended(lease, inventory))
    for report in inventory.vms:
        state, more = found(state, report.uuid, inventory, now)
        effects += more
    return state, tuple(effects)


def _fresh(state: State, lease: RunLease, now: float) -> bool:
    """The holder has said lately what it runs."""
    return now - state.heard_at.get(lease.holder.host, -FRESH_S) < FRESH_S


def looked(state: State, now: float) -> tuple[State, list[Effect]]:
    """What its holder still runs, when a migration would have been told by both, is asked about."""
    acts: list[Effect] = []
    for vm, seen in sorted(state.doubled.items()):
        if seen.due > now:
            continue
        state = replace(state, doubled=state.doubled.discard(vm))
        lease = state.leases.get(vm)
        if lease is None or isinstance(state.records.get(vm), StartRecord) or not _fresh(state, lease, now):
            continue
        holder = state.heard[lease.holder.host]
        there = holder.vm(vm)
        if lease.holder == seen.at or holder.at != lease.holder or there is None:
            continue
        if lease.state is LeaseState.RUNNING and there.state is VmState.RUNNING:
            key = f"condemn/{vm}/{lease.seq}/{seen.at.boot}/{seen.run}"
            request = CondemnRun(key=key, deadline_s=CONDEMN_S, lease=lease, at=seen.at, run=seen.run)
            acts.append(Act(None, request))
    return state, acts


def condemned(state: State, outcome: RunCondemned) -> Step[State]:
    """Its agent is told at once; people, too: whatever both copies wrote may have harmed the disk."""
    lease = outcome.lease
    if lease is None:
        return Step(state)
    state = known(state, lease)
    if not outcome.done:
        return Step(state)
    fact = VmRunsTwice(
        vm=lease.vm,
        name=lease.name,
        at=outcome.at,
        run=outcome.run,
        holder=lease.holder,
        token=lease.token,
        rule="two hosts say that they run it, and the lease is the other's",
    )
    tell = Send(f"stray.{outcome.at.host}", LeaseWritten(lease=lease))
    return Step(state, (Publish(lease.vm, fact), tell))


def forgotten(state: State, ended: Callable[[RunLease], RunLease | None]) -> tuple[State, list[Effect]]:
    """Runs that were condemned and are over are taken out of their leases."""
    acts: list[Effect] = []
    for lease in [one for one in state.leases.values() if one.strays and one.vm not in state.writing]:
        change = ended(lease)
        if change is not None:
            state, act = write(state, change)
            acts.append(act)
    return state, sorted(acts, key=lambda act: act.key if isinstance(act, Act) else "")
