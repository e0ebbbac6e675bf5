"""What waits, looked at before it is planned: whether it needs a start of ours any more, and whether it may have one."""

from __future__ import annotations

from libs.config.settings import Guests
from libs.core.decider import Effect, Publish, Step
from libs.core.evolve import replace
from libs.crashes import grey, to_restart
from libs.events.guests import VmHealthRestored
from libs.leases import ways, why_unwanted
from libs.model import Failure, Inventory, LeaseState, VmReport
from services.placement import incidents, pool, stores
from services.placement.keeping import keep, settle
from services.placement.state import Incident, Item, Phase, PlacementRecord, PlacementState

State = PlacementState


def looked_at(state: State, guests: Guests, now: float) -> Step[State]:
    """What waits and needs no start of ours any more: a person started it, or stopped it on purpose, or its guest is
    well again. And what must have none, since it may run where it could not be stopped, or since its host is grey:
    that is why it waits."""
    effects: list[Effect] = []
    for incident in state.incidents():
        changed = incident
        for item in incident.items:
            if item.phase is not Phase.WAITING:
                continue
            if _needs_nothing(state, item):
                state, changed, said = _left_alone(state, changed, item)
                effects += said
                continue
            changed = _standing(state, changed, item, guests, now)
        if changed is incident:
            continue
        if not changed.items and not changed.exhausted:
            record = f"incident.{incident.id}"
            state = replace(state, records=state.records.discard(record))
            continue
        step = settle(state, changed, [])
        state = step.state
        effects += step.effects
    return Step(state, tuple(effects))


def _standing(state: State, incident: Incident, item: Item, guests: Guests, now: float) -> Incident:
    lease, at = state.leases.get(item.vm), pool.runs_at(state, item, now)
    update: dict[str, object]
    if at is not None and copied(state, item, now):
        update = {"reason": f"a copy of it runs on {at}, too: one of both is stopped first"}
    elif at is not None:
        update = {"phase": Phase.RUNNING, "to": at, "reason": ""}
    elif lease is not None and not lease.wanted:
        update = {"phase": Phase.GIVEN_UP, "reason": why_unwanted(lease)}
    elif (brought := pool.brought_to(state, item, now)) is not None:
        update = {
            "reason": f"a migration may have brought it to {brought}, which does not say that it has not"
        }
    elif item.taken:
        update = {
            "reason": f"it was migrated away from {item.origin}, and no host shows it: it may run elsewhere"
        }
    elif (held := state.held_at(item.vm)) is not None:
        update = {"reason": f"its stop failed on {held}: it may run there"}
    elif item.in_place and item.ill is not None and state.words_on(item.origin.host).drain:
        update = {"in_place": False, "avoid": (*item.avoid, item.origin.host), "reason": ""}
    elif item.in_place and pool.watched(state, item.origin, now):
        # a host without its agent takes no starts, and says whether the VM is stopped
        update = {"in_place": False, "reason": ""}
    elif item.in_place and (name := stores.failed(state, item)):
        update = {"reason": f"datastore {name} has failed: it is started again where it is once that is back"}
    elif item.in_place and stores.lost(state, item):
        update = {"in_place": False, "reason": ""}
    elif (ill := _fails_where_it_is(state, item)) is not None:
        update = {"in_place": True, "lost": False, "ill": ill, "reason": ""}
    elif on_grey(state, item, guests):
        if guests.grey == "drain":
            return incident  # that is told in a moment, and it starts elsewhere
        update = {"reason": f"all guests of {item.origin} fail: none is restarted there"}
    else:
        changed = incidents.proven(
            incident, item, state.proof_of(lease.holder) if lease is not None else None
        )
        for to, _ in () if lease is None else ways(lease):
            known = next(one for one in changed.items if one.vm == item.vm)
            changed = incidents.proven(changed, known, state.proof_of(to))
        for later in [one.later for one in item.proofs if one.later is not None]:
            known = next(one for one in changed.items if one.vm == item.vm)
            changed = incidents.proven(changed, known, state.proof_of(later))
        return changed
    if all(getattr(item, name) == value for name, value in update.items()):
        return incident
    return incidents.replaced(incident, item.model_copy(update=update))


def _shown(state: State, item: Item) -> VmReport | None:
    """The run that is to end, as its living origin shows it now; nothing by what is older than its failure."""
    heard = state.heard.get(item.origin.host)
    if _older(heard, item):
        return None
    report = heard.vm(item.vm) if heard is not None and heard.at == item.origin else None
    same = report is not None and report.state.active and report.run == item.run
    return report if same else None


def _older(heard: Inventory | None, item: Item) -> bool:
    """What is known of its origin was read before it failed there."""
    agent, *when = item.shown
    return heard is not None and heard.agent == agent and [heard.rev, heard.look] < when


def copied(state: State, item: Item, now: float) -> bool:
    """Its failing run goes on where its lease is, and a person has started it elsewhere beside that: neither is it
    restarted by that, nor may it be started while the copy, which is condemned in a moment, still runs."""
    lease = state.leases.get(item.vm)
    held = lease is not None and lease.holder == item.origin and lease.state is LeaseState.RUNNING
    return held and _shown(state, item) is not None and pool.runs_at(state, item, now) is not None


def unread(state: State, item: Item) -> bool:
    """Its guest fails, which we heard sooner than we read what else fails there: whether its host is grey is not known
    yet."""
    return item.ill is not None and item.in_place and _older(state.heard.get(item.origin.host), item)


def on_grey(state: State, item: Item, guests: Guests) -> bool:
    """Its guest fails where all do: it would be restarted in place, and is not."""
    if item.ill is None or not item.in_place or _shown(state, item) is None:
        return False
    return bool(grey(state.heard[item.origin.host], guests.grey_min))


def _needs_nothing(state: State, item: Item) -> bool:
    """The guest does its work again, or is to be left by its policy, or its datastore is back, and nothing was done
    about it yet. Once a stop was ordered it is carried out."""
    if (item.ill is None and not item.lost) or item.attempt or stores.lost(state, item):
        return False
    report = _shown(state, item)
    return report is not None and to_restart(report) is None


def _fails_where_it_is(state: State, item: Item) -> Failure | None:
    """What is wrong with a guest that was to move for its datastore: that is back before anything was done, and the guest
    is not well. It is restarted there, in the room that it has."""
    if not item.lost or item.in_place or item.attempt or stores.lost(state, item):
        return None
    report = _shown(state, item)
    return None if report is None else to_restart(report)


def _left_alone(state: State, incident: Incident, item: Item) -> tuple[State, Incident, tuple[Publish, ...]]:
    """Its failure does not count, and is dealt with as a new one should it come back."""
    key = f"crashes.{item.vm}"
    record = state.records.get(key)
    if isinstance(record, PlacementRecord) and item.ill is not None:
        told = tuple(one for one in record.told if one != incident.id)
        kept = record.model_copy(update={"told": told, "crashes": record.crashes[:-1]})
        state = replace(state, records=state.records.insert(key, kept))
    state = replace(keep(state, incident), retry_at=state.retry_at.discard(item.vm))
    left = incident.model_copy(update={"items": tuple(one for one in incident.items if one.vm != item.vm)})
    report = _shown(state, item)
    if report is None or report.health.bad:
        return state, left, ()  # by its policy: that needs no word of ours
    restored = VmHealthRestored(
        vm=item.vm,
        name=item.name,
        at=item.origin,
        incident=incident.id,
        cause=incident.cause,
        rule="its datastore is back before anything was done"
        if item.lost
        else "well again before anything was done",
    )
    return state, left, (Publish(f"incident.{incident.id}", restored),)
