"""A host that is drained: what runs there moves to others while it runs, the most important first. Pure.

By the orders by which room is made for others (making.py), and no more at a time than the executor moves: one that waits
for its turn would hold up the restart of its VM. Nothing is stopped. What cannot be moved stays and runs on; it is
named with its reason once nothing else moves, and looked at again every few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rpds import HashTrieMap

from libs.core.decider import Effect, Publish, Step
from libs.core.evolve import replace
from libs.crashes import crashes, to_restart
from libs.events.drains import HostDrained, HostDrainPlanned, HostDrainStuck, StayingVm
from libs.events.vms import VmMoveFailed
from libs.model import Inventory, LeaseState, VmReport, VmState
from libs.planning.snapshot import PoolPolicy
from services.placement import incidents, making, pool
from services.placement.leaving import Means, named, ordered, staying
from services.placement.state import Drain, FailedMoves, PlacementRecord, PlacementState, RoomOrder

TRIES = 3
"""Migrations of one VM that may fail in one drain: a fourth would fail as well, and each costs the guest something."""
RETRY_S = 10.0
SETTLE_S = 10.0
"""What stays is told once it has been so for so long: a lease that is just written, a restart that is about to be
planned are over by then."""
UNHEARD_S = 60.0
"""Beyond the time-out of a migration: where nothing was heard of an order for so long it is told again, under its key. Its
executor may have been of a version that does not know drains, or what came of it was lost."""
State = PlacementState


def looked(state: State, means: Means, now: float) -> Step[State]:
    """One look at all hosts that are drained: what moves next, what stays, and whether one is empty."""
    marks = _marks(state)
    if not marks:
        return Step(state)
    state = _kept(making.settled(state), marks, now)
    hosts = [host for host in pool.usable(state, now) if marks.get(host)]
    movable, tied = dict[str, VmReport](), dict[str, list[StayingVm]]()
    for host in hosts:
        mine, tied[host] = _sorted_out(state, state.heard[host], means.policy, now)
        movable |= {named(report, host): report for report in mine}
    state, orders = ordered(state, means, movable, now)
    effects: list[Effect] = []
    for host in hosts:
        left = [
            vm for name, vm in state.drains.unplaced.items() if name in movable and name.endswith(f"@{host}")
        ]
        state, unheard = _unheard(state, host, means.restart.move_timeout_s + UNHEARD_S, now)
        step = _told(state, host, (*unheard, *orders.get(host, ())), (*tied[host], *left), now)
        state = step.state
        effects += step.effects
    return Step(state, tuple(effects))


def failed(state: State, order: RoomOrder, fact: VmMoveFailed, now: float) -> State:
    """A move of a drain's came to nothing: it is tried to another host, later; or given up."""
    drain = state.drain_of(order.at.host)
    if drain is None or drain.incident != order.incident:
        return state
    before = drain.failed.get(order.vm, FailedMoves())
    after = FailedMoves(to=(*before.to, fact.at.host), reason=fact.reason[:300])
    looks = state.drains
    retry_at = looks.retry_at.insert(order.vm, now + RETRY_S * len(after.to))
    state = replace(state, drains=replace(looks, retry_at=retry_at))
    return _keep(state, drain.model_copy(update={"failed": {**drain.failed, order.vm: after}}))


# -- which hosts, which VMs


def _marks(state: State) -> dict[str, str]:
    """The hosts that are drained, by which drain; "" for one that is so no longer."""
    hosts = {
        key.partition(".")[2]
        for key, record in state.records.items()
        if (key.startswith("host.") and record.words is not None and record.words.drained)
        or key.startswith("drain.")
    }
    return {host: state.words_on(host).drained for host in sorted(hosts)}


def _kept(state: State, marks: Mapping[str, str], now: float) -> State:
    """A record for each host that is drained, of its present boot; none for any other."""
    usable = set(pool.usable(state, now))
    looks = state.drains
    retry_at = HashTrieMap({vm: at for vm, at in looks.retry_at.items() if at > now})
    since = HashTrieMap({host: one for host, one in looks.since.items() if marks.get(host)})
    keys = {order.key for order in state.rooms()}
    asked = HashTrieMap({key: at for key, at in looks.asked.items() if key in keys})
    state = replace(state, drains=replace(looks, retry_at=retry_at, since=since, asked=asked))
    for host, mark in marks.items():
        known = state.drain_of(host)
        if not mark:
            state = replace(state, records=state.records.discard(f"drain.{host}"))
        elif host in usable and (known is None or (known.at, known.mark) != (state.heard[host].at, mark)):
            at = state.heard[host].at
            number = mark.removeprefix("maintenance-")
            by_word = number != mark
            incident = f"maintenance-{host}-{number}" if by_word else f"grey-{host}-{at.boot}-{mark}"
            state = _keep(state, Drain(at=at, incident=incident, mark=mark))
    return state


def _keep(state: State, drain: Drain) -> State:
    key, record = f"drain.{drain.at.host}", PlacementRecord(drain=drain)
    if state.records.get(key) == record:
        return state
    return replace(state, records=state.records.insert(key, record))


def _sorted_out(
    state: State, heard: Inventory, policy: PoolPolicy, now: float
) -> tuple[list[VmReport], list[StayingVm]]:
    """What of the host may be moved now, and what is tied to it. Neither: what is moved or restarted already, or is
    about to be."""
    drain, open_ = state.drain_of(heard.at.host), state.open_vms()
    assert drain is not None
    crashed = {fact.vm: fact.incident for fact in crashes(heard, None)}
    movable, tied = [], []
    for report in heard.vms:
        busy = report.uuid in open_ or state.room_of(report.uuid) is not None
        if report.state is VmState.STOPPED or busy:
            continue
        told = state.records.get(f"crashes.{report.uuid}", PlacementRecord()).told
        if to_restart(report) is not None and crashed.get(report.uuid) not in told:
            continue
        why = _tied(state, drain, heard, report, policy)
        if why is not None:
            tied.append(staying(report, *why))
        elif state.drains.retry_at.get(report.uuid, now) <= now:
            movable.append(report)
    return movable, tied


def _tied(
    state: State, drain: Drain, heard: Inventory, report: VmReport, policy: PoolPolicy
) -> tuple[str, str] | None:
    """Why a VM cannot be moved whatever room there is."""
    lease, moves = state.leases.get(report.uuid), drain.failed.get(report.uuid, FailedMoves())
    ours = lease is not None and lease.holder == heard.at and lease.state is LeaseState.RUNNING
    if not policy.migrations:
        return "migrations_off", "placement.migrations is off"
    if heard.at.outside:
        return "agentless", "its host has no agent, so its boot cannot be told exactly"
    if report.health.bad:
        return "guest_fails", f"its guest fails ({report.health.value}) and is left as it is"
    if report.state is not VmState.RUNNING:
        return "not_running", f"it is {report.state.value}"
    if state.held_at(report.uuid) is not None:
        return "held", f"a copy of it may run on {state.held_at(report.uuid)}"
    if not ours or lease is None or lease.strays:
        how = (
            "nobody holds it" if lease is None else f"its lease is {lease.state.value} on {lease.holder.host}"
        )
        return "not_held", how
    if len(moves.to) >= TRIES:
        return "move_failed", f"{len(moves.to)} migrations failed, the last one: {moves.reason}"
    return None


# -- what is told


def _told(
    state: State, host: str, orders: Sequence[RoomOrder], stays: tuple[StayingVm, ...], now: float
) -> Step[State]:
    """The orders of one host; or, where nothing of it moves, what stays, or that it is empty."""
    drain, heard = state.drain_of(host), state.heard[host]
    assert drain is not None
    what = _in_short(stays)
    if what != _in_short(drain.stays):
        drain = drain.model_copy(update={"stays": tuple(sorted(stays, key=lambda one: one.name))})
    there = [report for report in heard.vms if report.state is not VmState.STOPPED]
    gone = set(drain.failed) - {report.uuid for report in there}
    if gone:
        kept = {vm: one for vm, one in drain.failed.items() if vm not in gone}
        drain = drain.model_copy(update={"failed": kept})
    about = {"at": drain.at, "incident": drain.incident, "mark": drain.mark, "revision": drain.revision + 1}
    fact: HostDrainPlanned | HostDrainStuck | HostDrained | None = None
    state, settled = _settled(state, host, what, now)
    moving = bool(orders) or any(order.at.host == host for order in state.rooms() if order.to is not None)
    trying = any(state.drains.retry_at.get(report.uuid, now) > now for report in there)
    if orders:
        moves = incidents.as_moves(orders)
        fact = HostDrainPlanned(**about, moves=moves, rule="protected ones first, by priority")
        for order in orders:
            state = replace(
                state, records=state.records.insert(f"room.{order.vm}", PlacementRecord(room=order))
            )
    elif not there and not moving and not drain.empty:
        fact = HostDrained(**about, rule="its own word")
    elif stays and settled and not moving and not trying and what != drain.told:
        fact = HostDrainStuck(**about, stays=drain.stays, rule="no way to move them")
        drain = drain.model_copy(update={"told": what})
    if fact is not None:
        drain = drain.model_copy(update={"revision": drain.revision + 1})
    empty = not there and (drain.empty or isinstance(fact, HostDrained))
    drain = drain.model_copy(update={"empty": empty})
    return Step(_keep(state, drain), () if fact is None else (Publish(f"drain.{host}", fact),))


def _unheard(state: State, host: str, after_s: float, now: float) -> tuple[State, tuple[RoomOrder, ...]]:
    """Orders of this host's drain of which nothing was heard for so long, since they were told or we lead."""
    drain, asked = state.drain_of(host), state.drains.asked
    found = []
    for order in state.rooms():
        if drain is None or order.incident != drain.incident or order.done:
            continue
        if now - asked.get(order.key, now) >= after_s:
            found.append(order)
            asked = asked.insert(order.key, now)
        elif order.key not in asked:
            asked = asked.insert(order.key, now)
    return replace(state, drains=replace(state.drains, asked=asked)), tuple(found)


def _in_short(stays: Sequence[StayingVm]) -> str:
    return " ".join(sorted(f"{one.vm}/{one.reason}" for one in stays))


def _settled(state: State, host: str, what: str, now: float) -> tuple[State, bool]:
    """Whether the same stays there for long enough to be told."""
    known = state.drains.since.get(host)
    if known is None or known[0] != what:
        known = (what, now)
        state = replace(state, drains=replace(state.drains, since=state.drains.since.insert(host, known)))
    return state, now - known[1] >= SETTLE_S
