"""A VM that a person migrated away and that no host shows: where it went failed before it could tell, or is no host of this
pool. Nobody can know which, and what may run elsewhere is not started here (DESIGN §4 rules 1 and 3): a person is told, and the
lease says `migrated_out`, so that it is not restarted either when the host that let it go fails.

Whoever then starts it by hand, on whichever host, or brings it back, takes its lease along.
"""

from __future__ import annotations

from libs.core.decider import Effect, Publish
from libs.core.evolve import replace
from libs.events.vms import VmUnseen
from libs.leases import over, turned
from libs.model import Incarnation, Inventory, LeaseState, Protection, StopReason, VmReport, VmState
from services.executor.orders import StartRecord
from services.executor.state import State, Unseen, write

UNSEEN_S = 30.0
"""Whoever took it in tells it in a moment; one that is cut off is fenced or heard in this time, or told of."""


def looked(state: State, inventory: Inventory, now: float) -> tuple[State, list[Effect]]:
    """What this host let go, and nobody shows: told once that has lasted, once a run."""
    at, effects = inventory.at, list[Effect]()
    for vm, seen in state.unseen.items():
        if seen.at.host == at.host and (seen.at != at or not _gone(state, inventory, vm)):
            state = replace(state, unseen=state.unseen.discard(vm))
    for report in inventory.vms:
        if not _gone(state, inventory, report.uuid):
            continue
        known = state.unseen.get(report.uuid) or Unseen(at, now)
        state = replace(state, unseen=state.unseen.insert(report.uuid, known))
        if now - known.since >= UNSEEN_S:
            state, more = _let_go(state, inventory, report, known)
            effects += more
    return state, effects


def ended(state: State, at: Incarnation, now: float) -> tuple[State, list[Effect]]:
    """A host is proven over whose last word was that it had let VMs go which nobody shows: it was not only it that they
    ran on, and they are not restarted because of it."""
    inventory, effects = state.heard.get(at.host), list[Effect]()
    if inventory is None or inventory.at != at:
        return state, effects
    for report in inventory.vms:
        if _gone(state, inventory, report.uuid):
            known = state.unseen.get(report.uuid) or Unseen(at, now)
            state, more = _let_go(state, inventory, report, known)
            effects += more
    return state, effects


def _let_go(
    state: State, inventory: Inventory, report: VmReport, known: Unseen
) -> tuple[State, list[Effect]]:
    """Tell it once, and write it into the lease until that has come through."""
    effects: list[Effect] = [] if known.told else [Publish(report.uuid, _fact(inventory, report))]
    state = replace(state, unseen=state.unseen.insert(report.uuid, replace(known, told=True)))
    if report.uuid not in state.writing:
        state, act = write(state, turned(state.leases[report.uuid], LeaseState.MIGRATED_OUT))
        effects.append(act)
    return state, effects


def _gone(state: State, inventory: Inventory, vm: str) -> bool:
    """Its lease is this boot's, which says that it was migrated; no start of it is owed, and nobody says that it has it."""
    report, lease = inventory.vm(vm), state.leases.get(vm)
    if (
        report is None
        or lease is None
        or lease.holder != inventory.at
        or lease.state is not LeaseState.RUNNING
    ):
        return False
    migrated = report.state is VmState.STOPPED and report.stop_reason is StopReason.MIGRATED
    if not migrated or not over(lease, report) or report.policy.protection is Protection.NONE:
        return False
    if isinstance(state.records.get(vm), StartRecord):
        return False
    others = (one.vm(vm) for one in state.heard.values() if one.at.host != inventory.at.host)
    return all(one is None or one.state is VmState.STOPPED for one in others)


def _fact(inventory: Inventory, report: VmReport) -> VmUnseen:
    return VmUnseen(
        vm=report.uuid,
        name=report.name,
        at=inventory.at,
        run=report.run,
        token=report.token,
        rule="what may run elsewhere is not started here",
    )
