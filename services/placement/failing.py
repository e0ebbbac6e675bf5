"""VMs that failed on a host that lives: in place with a budget, then elsewhere, then given up; and grey hosts."""

from __future__ import annotations

from dataclasses import dataclass

from libs.config.settings import Guests, Restart
from libs.core.decider import Effect, Publish, Step
from libs.core.evolve import replace
from libs.crashes import well
from libs.events.guests import HostDrainEnded, HostDraining, HostGrey, VmEvictFailed
from libs.events.vms import Stage, VmFailed, VmGivenUp, VmRestartFailed, VmStillHeld
from libs.model import LeaseState, RunLease
from services.placement import incidents, pool
from services.placement.keeping import keep
from services.placement.state import Incident, Item, Phase, PlacementRecord, PlacementState

TOLD_KEPT = 8
GREY_KEPT = 8
HOLD_S = 2.0
"""A guest that fails while its QEMU lives is left for so long: others of its host may follow, and then it is grey."""
State = PlacementState


@dataclass(frozen=True, slots=True)
class Dealt:
    """What a failure comes to. With `begun` its incident is there already, and what it holds is planned."""

    state: State
    incident: Incident | None = None
    items: tuple[Item, ...] = ()
    effects: tuple[Effect, ...] = ()
    begun: bool = False


def dealt_with(state: State, fact: VmFailed, settings: Restart, now: float) -> Dealt:
    """Open an incident for it, or give the VM up."""
    alive = fact.report.state.active
    incident = Incident(id=fact.incident, cause=fact.key)
    key = f"crashes.{fact.vm}"
    record = state.records.get(key)
    known = record if isinstance(record, PlacementRecord) else PlacementRecord()
    begun = f"incident.{incident.id}" in state.records  # and not marked as told: we died between both
    if _history(state, fact) or incident.id in known.told or (fact.vm in state.open_vms() and not begun):
        return Dealt(state)
    recent = tuple(at for at in known.crashes if now - settings.crash_window_s < at <= now)
    crashes = (*recent, now)[-2 * settings.crash_budget - 1 :]
    kept = PlacementRecord(crashes=crashes, told=(*known.told, incident.id)[-TOLD_KEPT:])
    state = replace(state, records=state.records.insert(key, kept))
    if not alive:
        state = pool.crash_shown(state, fact)
    if begun:
        return Dealt(state, begun=True)
    if not alive and _runs_anew(state, fact):
        return Dealt(state)  # it counts, and was dealt with: we died between both, and its incident is over
    update: dict[str, object] = {"run": max(1, fact.run)}
    if alive:
        update |= {"evict": True, "ill": fact.why, "shown": (fact.agent, fact.rev, fact.look)}
        state = replace(state, retry_at=state.retry_at.insert(fact.vm, now + HOLD_S))
    if len(crashes) <= settings.crash_budget:
        update |= {"in_place": True}
    elif len(crashes) <= 2 * settings.crash_budget:
        update |= {"avoid": (fact.at.host,)}
    else:
        given_up = VmGivenUp(
            vm=fact.vm,
            name=fact.name,
            at=fact.at,
            incident=incident.id,
            failures=len(crashes),
            cause=fact.key,
            rule="its budget of restarts is spent",
        )
        return Dealt(state, effects=(Publish(key, given_up),))
    item = incidents.item_of(fact.report, fact.at).model_copy(update=update)
    return Dealt(state, incident, (item,))


def _history(state: State, fact: VmFailed) -> bool:
    """It has moved on since, or what is shown by now is another run."""
    lease = state.leases.get(fact.vm)
    if lease is not None and (lease.holder != fact.at or not _runs_on(state, lease)):
        return True
    if not fact.report.state.active:
        return False
    if lease is None:
        return True  # nobody holds it yet: looked at again as soon as somebody does
    heard = state.heard.get(fact.at.host)
    report = heard.vm(fact.vm) if heard is not None and heard.at == fact.at else None
    if report is None or report.run < fact.run:
        return False  # the fact may overtake the inventory
    return report.run > fact.run or not report.state.active


def _runs_on(state: State, lease: RunLease) -> bool:
    """Its holder runs it for all that is known: also where we were about to stop it, could not, and have given that up."""
    given_up = lease.state is LeaseState.EVICTING and state.room_of(lease.vm) is None
    return lease.state is LeaseState.RUNNING or given_up


def _runs_anew(state: State, fact: VmFailed) -> bool:
    """The same boot shows a later run of it already."""
    heard = state.heard.get(fact.at.host)
    report = heard.vm(fact.vm) if heard is not None and heard.at == fact.at else None
    return report is not None and report.state.active and report.run > fact.run > 0


def not_startable(
    state: State, incident: Incident, item: Item, fact: VmRestartFailed, wait_s: float, now: float
) -> Step[State]:
    """It could not be stopped where it is, or the lock of its disks is held: no fault of the host that it was to start on,
    and no other would do. The same once more, later, for ever; told once."""
    said: tuple[Effect, ...] = ()
    update: dict[str, object] = {"phase": Phase.WAITING, "reason": fact.reason[:300]}
    if fact.stage is Stage.EVICT and not item.stuck:
        stuck = VmEvictFailed(
            vm=item.vm,
            name=item.name,
            at=item.origin,
            incident=incident.id,
            reason=fact.reason[:300],
            cause=fact.key,
            rule="a stop that fails condemns the VM, never the host",
        )
        said = (Publish(f"incident.{incident.id}", stuck),)
        update["stuck"] = True
    if fact.stage is Stage.LOCK and not item.held:
        held = VmStillHeld(
            vm=item.vm,
            name=item.name,
            at=fact.at,
            incident=incident.id,
            reason=fact.reason[:300],
            cause=fact.key,
            rule="what a lock of the disks refuses is no other host's to start",
        )
        said = (Publish(f"incident.{incident.id}", held),)
        update["held"] = True
    state = keep(state, incidents.replaced(incident, item.model_copy(update=update)))
    due = now + wait_s
    plan_at = due if state.plan_at is None else min(due, state.plan_at)
    return Step(replace(state, retry_at=state.retry_at.insert(item.vm, due), plan_at=plan_at), said)


def greyed(state: State, fact: HostGrey, guests: Guests) -> Step[State]:
    """A grey host: by policy it takes no new VMs from now on, and its failing guests are restarted elsewhere."""
    words = state.words_on(fact.at.host)
    if guests.grey != "drain" or fact.mark in words.grey or state.is_over(fact.at):
        return Step(state)
    reason = f"all its guests of known health fail: {', '.join(fact.guests)}"
    drained = words.model_copy(update={"drain": reason, "grey": (*words.grey, fact.mark)[-GREY_KEPT:]})
    draining = HostDraining(
        at=fact.at, reason=reason, mark=fact.mark, cause=fact.key, rule="guests.grey is drain"
    )
    told = () if words.drain else (Publish(f"host.{fact.at.host}", draining),)
    return Step(pool.said(state, fact.at.host, drained), told)


def reopened(state: State) -> Step[State]:
    """Hosts whose guests are well are drained no longer."""
    effects: list[Effect] = []
    for host, heard in sorted(state.heard.items()):
        words = state.words_on(host)
        if not words.drain or not well(heard):
            continue
        state = pool.said(state, host, words.model_copy(update={"drain": ""}))
        ended = HostDrainEnded(
            at=heard.at, mark=words.grey[-1] if words.grey else "", rule="its guests are well"
        )
        effects.append(Publish(f"host.{host}", ended))
    return Step(state, tuple(effects))
