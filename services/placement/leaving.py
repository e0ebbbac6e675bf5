"""Where the VMs of hosts that are drained go, and which of them now. Pure.

As if their hosts were lost: the most important first, where there is room, with what is down placed before them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from libs.config.settings import Restart
from libs.core.evolve import replace
from libs.events.drains import StayingVm
from libs.model import Priority, Protection, VmReport
from libs.planning.plan import plan_in
from libs.planning.pool import Pool
from libs.planning.snapshot import GroupRule, PoolPolicy, Snapshot, SnapshotVm
from services.placement import pool, rules, stores
from services.placement.state import FailedMoves, Item, Phase, PlacementState, RoomOrder

REPLAN_S = 15.0
LAST = 1_000_000
"""As its start order what has no protection comes after all that has."""
State = PlacementState


@dataclass(frozen=True, slots=True)
class Means:
    """What a drain may do, and what it has to do with."""

    policy: PoolPolicy
    labels: dict[str, dict[str, str]]
    has: Mapping[str, tuple[str, ...]]
    restart: Restart


def staying(report: VmReport, reason: str, detail: str) -> StayingVm:
    """As it is told."""
    policy = report.policy
    return StayingVm(
        vm=report.uuid,
        name=report.name,
        protection=policy.protection.value,
        priority=policy.priority.value,
        reason=reason,
        detail=detail[:300],
    )


def named(report: VmReport, host: str) -> str:
    """As a snapshot calls it."""
    return f"{report.uuid}@{host}"


def ordered(
    state: State, means: Means, movable: Mapping[str, VmReport], now: float
) -> tuple[State, dict[str, tuple[RoomOrder, ...]]]:
    """By host the orders of this look. What found no place is not planned at every look: in a large pool that takes its
    time."""
    if not movable or (movable.keys() == state.drains.unplaced.keys() and now < state.drains.plan_at):
        return state, {}
    shot, down = _snapshot(state, means, movable, now)
    drained = frozenset(name.partition("@")[2] for name in movable)
    stays = {name: staying(movable[name], "down_first", down) for name in movable} if down else {}
    chosen: list[tuple[str, str]] = []
    if not down:
        stays |= _bound(shot, movable, drained)
        placed = _without(shot, set(stays))
        found = plan_in(Pool(placed), drained, _avoided(state, movable, now))
        stays |= {one.vm: staying(movable[one.vm], one.reason, one.detail) for one in found.unplaced}
        chosen = _in_turn(state, means.restart, [(one.vm, one.to) for one in found.starts])
    state = replace(state, drains=replace(state.drains, plan_at=now + REPLAN_S, unplaced=stays))
    orders: dict[str, tuple[RoomOrder, ...]] = {}
    for name, to in chosen:
        host = name.partition("@")[2]
        orders[host] = (*orders.get(host, ()), _order(state, movable[name], host, to))
    return state, orders


def _snapshot(
    state: State, means: Means, movable: Mapping[str, VmReport], now: float
) -> tuple[Snapshot, str]:
    """The pool with what is down where it will start, and what is to be moved as important as it is. With the reason
    why nothing may be moved now, where something that is down finds no room."""
    wanted = [
        item
        for incident in state.incidents()
        for item in incident.items
        if item.phase is Phase.WAITING and not item.in_place
    ]
    shot = pool.snapshot(state, means.policy, means.labels, wanted, now)
    shot, _ = rules.with_rules(state, stores.with_reach(state, shot, means.has, wanted), wanted)
    avoid = {item.vm: frozenset(item.avoid) for item in wanted}
    found = plan_in(Pool(shot), frozenset({pool.NOWHERE}), avoid) if wanted else None
    short = {one.vm for one in found.unplaced if one.reason == "no_room"} if found is not None else set()
    to = {start.vm: start.to for start in found.starts} if found is not None else {}
    vms = []
    for vm in shot.vms:
        if vm.name in to:
            vm = vm.model_copy(update={"host": to[vm.name], "protection": Protection.NONE})
        elif vm.name in movable:
            vm = _as_important(vm, movable[vm.name], any(means.has.values()))
        vms.append(vm)
    return shot.model_copy(update={"vms": tuple(vms)}), _down_first(wanted, short)


def _down_first(wanted: Sequence[Item], short: set[str]) -> str:
    names = ", ".join(sorted(item.name for item in wanted if item.vm in short))
    return f"{names} waits for room, and comes first" if names else ""


def _as_important(vm: SnapshotVm, report: VmReport, stored: bool) -> SnapshotVm:
    """Protected ones first, by priority; then all others. The planner places nothing that has no protection."""
    policy = report.policy
    update: dict[str, object] = {
        "protection": policy.protection,
        "priority": policy.priority,
        "order": policy.order,
    }
    if policy.protection is Protection.NONE:
        update = {
            "protection": Protection.BEST_EFFORT,
            "priority": Priority.LOWEST,
            "order": LAST + policy.priority.rank,
        }
    if stored:
        update["storage"] = report.datastores or None
    return vm.model_copy(update=update)


def _bound(shot: Snapshot, movable: Mapping[str, VmReport], drained: frozenset[str]) -> dict[str, StayingVm]:
    """What must be on one host with something that stays there."""
    there = {vm.name for vm in shot.vms if vm.host in drained}
    found = {}
    for group in shot.groups:
        if group.rule is not GroupRule.AFFINITY or not group.strict or group.scope != "host":
            continue
        stay = [name for name in group.vms if name in there and name not in movable]
        for name in group.vms:
            with_ = [other for other in stay if other.partition("@")[2] == name.partition("@")[2]]
            if name in movable and with_:
                detail = f"it must be on one host with others of {group.name}, which stay"
                found[name] = staying(movable[name], "strict_rule", detail)
    return found


def _without(shot: Snapshot, stay: set[str]) -> Snapshot:
    """The same, and these are not placed."""
    vms = (
        vm.model_copy(update={"protection": Protection.NONE}) if vm.name in stay else vm for vm in shot.vms
    )
    return shot.model_copy(update={"vms": tuple(vms)})


def _avoided(state: State, movable: Mapping[str, VmReport], now: float) -> dict[str, frozenset[str]]:
    """By VM the hosts to which it could not be moved, while there are others."""
    taking, found = set(pool.taking(state, now)), {}
    for name in movable:
        vm, _, host = name.partition("@")
        drain = state.drain_of(host)
        to = frozenset(drain.failed.get(vm, FailedMoves()).to) if drain is not None else frozenset()
        found[name] = to if taking - to else frozenset()
    return found


def _in_turn(state: State, restart: Restart, starts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """So many of them as the executor moves at once, in all and a host."""
    under_way = [order for order in state.rooms() if order.to is not None and not order.done]
    by_host = Counter(at.host for order in under_way for at in (order.at, order.to) if at is not None)
    free, chosen = restart.parallel_moves - len(under_way), []
    for name, to in starts:
        ends = (name.partition("@")[2], to)
        if free <= 0:
            break
        if any(by_host[host] >= restart.parallel_moves_per_host for host in ends):
            continue
        free -= 1
        by_host.update(ends)
        chosen.append((name, to))
    return chosen


def _order(state: State, report: VmReport, host: str, to: str) -> RoomOrder:
    drain = state.drain_of(host)
    assert drain is not None
    return RoomOrder(
        key=f"{drain.incident}/{report.uuid}/drain-{drain.revision + 1}",
        incident=drain.incident,
        vm=report.uuid,
        name=report.name,
        at=state.heard[host].at,
        to=state.heard[to].at,
        report=report,
        makes_room_for=(),
    )
