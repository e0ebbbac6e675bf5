"""Room made for what waits: which healthy VMs move, or stop, by the plan; ordered, and followed until it is seen. Pure.

What needs the room waits meanwhile, and is planned like everything that waits once the room is there: an order that
fails costs nothing but its time. A VM is moved or stopped once at most for one incident, so this ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from libs.core.evolve import replace
from libs.events.vms import VmMoved, VmMoveFailed, VmPreempted, VmPreemptFailed
from libs.model import Incarnation, LeaseState, Protection, VmPolicy, VmReport, VmState
from libs.planning.plan import Allowed, Migration, Plan, Preemption, plan_in
from libs.planning.pool import Pool
from libs.planning.snapshot import Snapshot, SnapshotVm
from libs.planning.stages import begun_at_once
from libs.planning.why import Unplaced
from services.placement import incidents, pool, reach, rules
from services.placement.keeping import keep
from services.placement.state import OPEN, Incident, Item, Phase, PlacementRecord, PlacementState, RoomOrder

State = PlacementState


@dataclass(frozen=True, slots=True)
class Made:
    """A plan with what is done for it: orders by the incident for which they are."""

    plan: Plan
    orders: Mapping[str, tuple[RoomOrder, ...]] = field(default_factory=dict)


def with_room(
    state: State,
    shot: Snapshot,
    wanted: Sequence[Item],
    found: Plan,
    avoid: Mapping[str, frozenset[str]],
) -> Made:
    """The plan, and where it leaves VMs out for want of room one that makes some, as the pool's policy allows. VMs for
    which room is being made already wait for that."""
    awaited = {vm for order in state.rooms() for vm in order.makes_room_for}
    items = {item.vm: item for item in wanted}
    found = _kept_free(state, _still_made(state, found, awaited), items)
    policy = shot.policy
    left = {one.vm for one in found.unplaced if one.reason in incidents.NO_ROOM}
    if not left or not (policy.migrations or policy.preemption):
        return Made(found)
    known = rules.Known(state)
    full = shot.model_copy(
        update={"vms": tuple(_as_it_is(known, vm) for vm in shot.vms if vm.name not in awaited)}
    )
    whole, failed = Pool(reach.as_they_run(state, full)), frozenset({pool.NOWHERE})
    allowed = Allowed(policy.migrations, policy.preemption, _fixed(state, shot))
    better = plan_in(whole, failed, avoid, allowed)
    if not better.migrations and not better.preemptions:
        return Made(found)
    starts, moves = begun_at_once(whole, failed, better)
    stops = better.preemptions
    delayed = [start for start in better.starts if start.vm not in starts]
    if not delayed or not (moves or stops):
        return Made(found)
    orders = _orders(state, known, items, [one.vm for one in delayed], moves, stops)
    said = _said(next(iter(orders.values())))
    waits = tuple(_unplaced(items[start.vm], said) for start in delayed)
    others = tuple(one for one in found.unplaced if one.vm in awaited)
    begun = tuple(start for start in better.starts if start.vm in starts)
    return Made(Plan(begun, (*better.unplaced, *waits, *others)), orders)


def _still_made(state: State, found: Plan, awaited: set[str]) -> Plan:
    """Who waits for room that is being made has that as the reason."""
    by_vm = {vm: order for order in state.rooms() for vm in order.makes_room_for}
    unplaced = tuple(
        replace(one, reason=incidents.MAKING, detail=_said((by_vm[one.vm],))) if one.vm in awaited else one
        for one in found.unplaced
    )
    return Plan(found.starts, unplaced)


def _kept_free(state: State, found: Plan, items: Mapping[str, Item]) -> Plan:
    """Room that is made for a VM is not given meanwhile to one that matters less."""
    free: dict[str, tuple[tuple[bool, int], str]] = {}
    for order in state.rooms():
        for vm in order.makes_room_for:
            if vm in items:
                mine = (_rank(items[vm].policy), items[vm].name)
                free[order.at.host] = min(mine, free.get(order.at.host, mine))
    late = [one for one in found.starts if one.to in free and _rank(items[one.vm].policy) > free[one.to][0]]
    waits = [_unplaced(items[one.vm], f"room on {one.to} is kept for {free[one.to][1]}") for one in late]
    starts = tuple(one for one in found.starts if one not in late)
    return replace(found, starts=starts, unplaced=(*found.unplaced, *waits)) if late else found


def _unplaced(item: Item, said: str) -> Unplaced:
    return Unplaced(item.vm, item.policy.priority.value, incidents.MAKING, 0, 0, said)


def _said(orders: Sequence[RoomOrder]) -> str:
    told = [
        f"{one.name} moves from {one.at.host} to {one.to.host}"
        if one.to
        else f"{one.name} stops on {one.at.host}"
        for one in orders
    ]
    return ", ".join(told)


def _as_it_is(known: rules.Known, vm: SnapshotVm) -> SnapshotVm:
    """What runs, with its protection and importance and what it needs of a host: it may be moved, or stopped."""
    report = known.report(vm.name)
    if report is None:
        return vm
    policy = report.policy
    update: dict[str, object] = {"protection": policy.protection, "priority": policy.priority}
    update |= {"order": policy.order, "storage": report.datastores or None}
    return vm.model_copy(update=update)


def _fixed(state: State, shot: Snapshot) -> frozenset[str]:
    """Those that stay as they are: all that do not run well under their lease, or were moved or stopped before."""
    known, open_ = rules.Known(state), state.open_vms()
    before = {vm for incident in state.incidents() for vm in incident.made_room}
    busy = {order.vm for order in state.rooms()} | open_ | before
    found = set()
    for vm in shot.vms:
        uuid, _, host = vm.name.partition("@")
        if not host:
            continue
        report, heard, lease = known.report(vm.name), state.heard.get(host), state.leases.get(uuid)
        well = (
            report is not None
            and report.state is VmState.RUNNING
            and not report.health.bad
            and not report.migrated
        )
        held = lease is not None and heard is not None and lease.holder == heard.at
        ours = held and lease is not None and lease.state is LeaseState.RUNNING and not lease.strays
        outside = heard is None or heard.at.outside
        if not (well and ours) or uuid in busy or outside or state.held_at(uuid) is not None:
            found.add(vm.name)
    return frozenset(found)


def _orders(
    state: State,
    known: rules.Known,
    items: Mapping[str, Item],
    delayed: Sequence[str],
    moves: Sequence[Migration],
    stops: Sequence[Preemption],
) -> dict[str, tuple[RoomOrder, ...]]:
    """As records, under the incident of the first VM that waits for them."""
    owner = next(
        incident for incident in state.incidents() if any(item.vm == delayed[0] for item in incident.items)
    )
    orders = []
    chosen: list[Migration | Preemption] = [*moves, *stops]
    for one in chosen:
        name = one.vm
        report = known.report(name)
        assert report is not None
        uuid, _, host = name.partition("@")
        to = one.to if isinstance(one, Migration) else None
        for_whom = [vm for vm in delayed if to is not None or _rank(items[vm].policy) < _rank(report.policy)]
        orders.append(
            RoomOrder(
                key=f"{owner.id}/{uuid}/room-{owner.revision + 1}",
                incident=owner.id,
                vm=uuid,
                name=report.name,
                at=state.heard[host].at,
                to=state.heard[to].at if to is not None else None,
                report=report,
                makes_room_for=tuple(for_whom),
                names=tuple(items[vm].name for vm in for_whom),
            )
        )
    return {owner.id: tuple(orders)}


def _rank(policy: VmPolicy) -> tuple[bool, int]:
    return policy.protection is not Protection.RESTART, policy.priority.rank


def noted(state: State, incident: Incident, orders: Sequence[RoomOrder]) -> tuple[State, Incident]:
    """The orders kept, and in the incident that they were given."""
    for order in orders:
        state = replace(state, records=state.records.insert(f"room.{order.vm}", PlacementRecord(room=order)))
    made = (*incident.made_room, *(order.vm for order in orders))
    return state, incident.model_copy(update={"made_room": made})


def ended(
    state: State, fact: VmMoved | VmMoveFailed | VmPreempted | VmPreemptFailed
) -> tuple[State, RoomOrder | None]:
    """How an order ended, and which; None where that is no news. One that was carried out is kept until its host shows it."""
    name = f"room.{fact.vm}"
    order = state.room_of(fact.vm)
    key = fact.stop_key if isinstance(fact, VmPreempted | VmPreemptFailed) else fact.move_key
    if order is None or order.key != key or order.done:
        return state, None
    if isinstance(fact, VmMoved | VmPreempted):
        kept = PlacementRecord(room=order.model_copy(update={"done": True}))
        return settled(replace(state, records=state.records.insert(name, kept))), order
    return replace(state, records=state.records.discard(name)), order


def stopped(order: RoomOrder, cause: str) -> tuple[Incident, Item]:
    """The incident of a VM that gave its room: it waits for some, and is as important as it was."""
    item = incidents.item_of(order.report, order.at)
    update = {"run": max(1, order.report.run), "preempted": True}
    which = f"preempted-{order.vm}-{order.at.boot[:8]}-{order.report.run}-{order.report.token}"
    return Incident(id=which, cause=cause), item.model_copy(update=update)


def gave_its_room(state: State, vm: str) -> State | None:
    """The same of one that another incident has to start already, as it failed, or lost its datastore, before it was
    stopped: there it waits for room like any other. None where no incident has."""
    for incident in state.incidents():
        item = next((one for one in incident.items if one.vm == vm and one.phase in OPEN), None)
        if item is not None and item.phase is Phase.WAITING:
            item = item.model_copy(update={"preempted": True, "in_place": False})
            return keep(state, incidents.replaced(incident, item))
        if item is not None:
            return state
    return None


def left(state: State) -> list[tuple[Incident, Item]]:
    """The net under orders that nobody keeps: a stop of ours that came through only after it had been given up, or whose plan
    was told and whose order was not stored, since we died between both. The lease still says whose doing that was, and no
    order is under way that would start the VM again."""
    found, open_ = [], state.open_vms()
    for lease in sorted(state.leases.values(), key=lambda one: one.vm):
        ours = lease.run and lease.state in (LeaseState.EVICTING, LeaseState.FAILED)
        if not ours or lease.vm in open_ or state.room_of(lease.vm) is not None:
            continue
        heard = state.heard.get(lease.holder.host)
        report = heard.vm(lease.vm) if heard is not None and heard.at == lease.holder else None
        if report is None or report.state is not VmState.STOPPED or not report.destroyed:
            continue
        if report.run == lease.run and report.policy.protection is not Protection.NONE:
            item = incidents.item_of(report, lease.holder)
            item = item.model_copy(update={"run": max(1, report.run), "evict": True, "preempted": True})
            cause = "a stop of ours that no order tells of"
            which = f"stopped-{lease.vm}-{lease.holder.boot[:8]}-{report.run}-{lease.token}"
            found.append((Incident(id=which, cause=cause), item))
    return found


def settled(state: State) -> State:
    """Without the orders of which their hosts show by now that they were carried out."""
    for order in state.rooms():
        if order.done and not _shown_there(state, order):
            state = replace(state, records=state.records.discard(f"room.{order.vm}"))
    return state


def _shown_there(state: State, order: RoomOrder) -> bool:
    heard = state.heard.get(order.at.host)
    report: VmReport | None = heard.vm(order.vm) if heard is not None and heard.at == order.at else None
    return report is not None and report.state.active and report.run == order.report.run


def over(state: State, at: Incarnation) -> State:
    """That boot is over, or out of the pool: nothing comes or goes there any more."""
    for order in state.rooms():
        if at in (order.at, order.to):
            state = replace(state, records=state.records.discard(f"room.{order.vm}"))
    return state
