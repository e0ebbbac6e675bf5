"""Room that is made, and hosts that are emptied, by the executor's doing: healthy VMs moved while they run, and VMs stopped
that matter less. Pure.

One order a VM at a time. Like a start it is written down before it begins, and carried out again after a crash, under its
key. While it is under way the VM's lease is its hands' to write: nobody else concludes from what two hosts show meanwhile.
"""

from __future__ import annotations

from collections import Counter

from libs.config.settings import Restart
from libs.core.decider import Act, Effect, Publish, Step
from libs.core.evolve import replace
from libs.events.drains import HostDrainPlanned
from libs.events.facts import AnyFact
from libs.events.failovers import FailoverPlanned, PlannedMove, PlannedStop
from libs.events.vms import VmMoved, VmMoveFailed, VmOrderUncertain, VmPreempted, VmPreemptFailed
from libs.model import Incarnation
from services.executor.orders import MoveVm, Phase, Result, RoomMade, RoomRecord, StartRecord, StopVm
from services.executor.state import State

RETRY_S = 1.0
STOP_S = 60.0
DOUBTED_TRIES = 3
AROUND_S = 30.0
"""For the reports before and after a migration, and the lease, beside the migration itself."""


def ordered(state: State, fact: FailoverPlanned | HostDrainPlanned) -> Step[State]:
    """Take up what a plan orders. Of a VM of which another order or a start is under way it is said that it is not done:
    who ordered it would wait for ever."""
    orders: list[PlannedMove | PlannedStop] = [*fact.moves]
    if isinstance(fact, FailoverPlanned):
        orders += fact.stops
    refused: list[Effect] = []
    for makes in orders:
        name = f"room.{makes.vm}"
        record = RoomRecord(makes=makes, incident=fact.incident, cause=fact.key)
        known = state.records.get(name)
        if isinstance(known, RoomRecord) and known.makes.key == makes.key:
            continue  # told again
        if known is not None or isinstance(state.records.get(makes.vm), StartRecord):
            why = "another order for it is under way" if known is not None else "it is being started"
            refused.append(Publish(name, _not_done(record, why, "one order a VM at a time")))
            continue
        state = replace(state, records=state.records.insert(name, record))
    return Step(state, tuple(refused))


def dispatched(state: State, settings: Restart) -> Step[State]:
    """Begin what may begin: stops at once, and so many moves in all and a host."""
    rooms = sorted((name, one) for name, one in state.records.items() if isinstance(one, RoomRecord))
    busy = [one for _, one in rooms if one.phase is not Phase.QUEUED and one.move is not None]
    by_host = Counter(host for one in busy for host in one.hosts)
    free, acts = settings.parallel_moves - len(busy), list[Effect]()
    for name, record in rooms:
        if record.phase is not Phase.QUEUED or name in state.retry_at:
            continue
        if record.move is not None and not record.tries:
            if free <= 0 or any(by_host[host] >= settings.parallel_moves_per_host for host in record.hosts):
                continue
            free -= 1
            by_host.update(record.hosts)
        record = record.model_copy(update={"phase": Phase.STARTING, "tries": record.tries + 1})
        state = replace(state, records=state.records.insert(name, record))
        acts.append(Act(name, _request(record, settings)))
    return Step(state, tuple(acts))


def _request(record: RoomRecord, settings: Restart) -> MoveVm | StopVm:
    key = f"{record.makes.key}/{record.tries}"
    if isinstance(record.makes, PlannedMove):
        return MoveVm(
            key=key,
            deadline_s=settings.move_timeout_s + AROUND_S,
            move=record.makes,
            timeout_s=settings.move_timeout_s,
        )
    return StopVm(key=key, deadline_s=STOP_S, stop=record.makes)


def made(state: State, outcome: RoomMade, now: float) -> Step[State]:
    """How an order ended; one of which nobody can tell is looked at again until both hosts say how it is."""
    name = f"room.{outcome.makes.vm}"
    record = state.records.get(name)
    if not isinstance(record, RoomRecord) or record.makes.key != outcome.makes.key:
        return Step(state)  # dropped since: one of its hosts was fenced
    if outcome.result is Result.UNCERTAIN:
        return uncertain(state, name, outcome.reason, now)
    state = replace(state, records=state.records.discard(name))
    return Step(state, (Publish(name, _fact(record, outcome)),))


def uncertain(state: State, name: str, reason: str, now: float) -> Step[State]:
    """Nobody can tell what came of it: asked again until both hosts say how it is, or one is fenced. That is told, once
    it was asked a few times: a host whose libvirt is slow for a moment is nobody's business."""
    record = state.records[name]
    assert isinstance(record, RoomRecord)
    makes, doubted = record.makes, record.tries >= DOUBTED_TRIES
    said: tuple[Effect, ...] = ()
    if doubted and not record.doubted:
        move = record.move
        fact = VmOrderUncertain(
            vm=makes.vm,
            name=makes.name,
            at=move.to if move is not None else record.ends[0],
            incident=record.incident,
            order_key=makes.key,
            origin=move.origin if move is not None else None,
            reason=reason[:500],
            cause=record.cause,
            rule="asked again until its hosts say how it is, or one is fenced",
        )
        said = (Publish(name, fact),)
    record = record.model_copy(update={"phase": Phase.QUEUED, "doubted": doubted or record.doubted})
    records, retry_at = state.records.insert(name, record), state.retry_at.insert(name, now + RETRY_S)
    return Step(replace(state, records=records, retry_at=retry_at), said)


def _fact(record: RoomRecord, outcome: RoomMade) -> AnyFact:
    makes, done = record.makes, outcome.result is Result.STARTED
    incident, cause, reason = record.incident, record.cause, outcome.reason[:500]
    vm, name = makes.vm, makes.name
    if isinstance(makes, PlannedMove):
        origin, at, key = makes.origin, makes.to, makes.key
        if done:
            rule = "seen running there, and no more where it was"
            return VmMoved(
                vm=vm, name=name, at=at, origin=origin, incident=incident, move_key=key, token=outcome.token,
                cause=cause, rule=rule,
            )  # fmt: skip
    elif done:
        return VmPreempted(
            vm=vm, name=name, at=makes.at, incident=incident, stop_key=makes.key, run=makes.run,
            makes_room_for=makes.makes_room_for, cause=cause, rule="its host says that it is stopped",
        )  # fmt: skip
    rule = "known not to run there" if isinstance(makes, PlannedMove) else "it was not stopped by us"
    return _not_done(record, reason, rule)


def _not_done(record: RoomRecord, reason: str, rule: str) -> VmMoveFailed | VmPreemptFailed:
    makes, incident, cause = record.makes, record.incident, record.cause
    if isinstance(makes, PlannedMove):
        return VmMoveFailed(
            vm=makes.vm, name=makes.name, at=makes.to, origin=makes.origin, incident=incident, move_key=makes.key,
            reason=reason, cause=cause, rule=rule,
        )  # fmt: skip
    return VmPreemptFailed(
        vm=makes.vm, name=makes.name, at=makes.at, incident=incident, stop_key=makes.key, reason=reason,
        cause=cause, rule=rule,
    )  # fmt: skip


def over(state: State, at: Incarnation) -> Step[State]:
    """A host is fenced: nothing is moved from or to it, nor stopped there, and placement plans anew. Where it was told
    that nobody can tell what came of an order, that is over, too."""
    said: list[Effect] = []
    for name, record in state.records.items():
        if isinstance(record, RoomRecord) and at in record.ends:
            records, retry_at = state.records.discard(name), state.retry_at.discard(name)
            state = replace(state, records=records, retry_at=retry_at)
            if record.doubted:
                said.append(Publish(name, _not_done(record, f"{at} is over", "one of its hosts is over")))
    return Step(state, tuple(said))
