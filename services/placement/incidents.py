"""One incident's bookkeeping, pure: what a plan makes of its items, what is complete, what is short of room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from libs.events.facts import AnyFact
from libs.events.failovers import (
    AwaitedVm,
    CapacityExhausted,
    CapacityRelieved,
    FailoverCompleted,
    FailoverPlanned,
    PlannedMove,
    PlannedStart,
    PlannedStop,
    WaitingVm,
)
from libs.model import FenceProof, Incarnation, RunLease, VmReport
from libs.planning.plan import Plan
from libs.planning.why import Unplaced
from services.placement.state import Incident, Item, Phase, RoomOrder

NO_ROOM = frozenset({"no_room", "no_host", "no_host_suits", "strict_rule"})
PROOFS_KEPT = 8
MAKING = "making_room"
"""Why a VM waits for which others are moved or stopped."""


def item_of(size: RunLease | VmReport, origin: Incarnation) -> Item:
    """A VM to be restarted, as its lease or its host's last report describes it."""
    return Item(
        vm=size.vm if isinstance(size, RunLease) else size.uuid,
        name=size.name,
        memory_mib=size.memory_mib,
        vcpus=size.vcpus,
        policy=size.policy,
        origin=origin,
        datastores=size.datastores if isinstance(size, VmReport) else (),
        needs=size.needs if isinstance(size, VmReport) else None,
    )


def replaced(incident: Incident, item: Item) -> Incident:
    """The incident with this item instead of the former one of the same VM."""
    items = tuple(item if one.vm == item.vm else one for one in incident.items)
    return incident.model_copy(update={"items": items})


def proven(incident: Incident, item: Item, proof: FenceProof | None) -> Incident:
    """Whoever holds the VM's lease by now is fenced, too: it may be taken on the strength of that."""
    if proof is None or proof in item.proofs:
        return incident
    proofs = (*item.proofs, proof)[-PROOFS_KEPT:]
    return replaced(incident, item.model_copy(update={"proofs": proofs, "in_place": False}))


def start_key(incident: Incident, item: Item) -> str:
    """The same for every delivery of one order, another for each attempt."""
    return f"{incident.id}/{item.vm}/{item.attempt}"


def reclaimed(incident: Incident, proof: FenceProof, open_: set[str]) -> Incident:
    """After a host was fenced: what was planned to it, or ran there since, is to be planned again, and what
    came from it may be taken on the strength of this proof. `open_` are VMs that some incident still has to
    start: one that ran there and has crashed since is that incident's, not this one's, too."""
    items = []
    for item in incident.items:
        renamed = [one.later for one in item.proofs if one.later is not None]
        if proof.of in (item.to, item.origin, *renamed) and proof not in item.proofs:
            update: dict[str, object] = {"proofs": (*item.proofs, proof)[-PROOFS_KEPT:], "in_place": False}
            ran = item.phase is Phase.RUNNING and item.vm not in open_
            if item.to == proof.of and (ran or item.phase is Phase.PLANNED):
                update |= {"phase": Phase.WAITING, "reason": f"{proof.of} was fenced"}
            item = item.model_copy(update=update)
        items.append(item)
    return incident.model_copy(update={"items": tuple(items)})


def released(incident: Incident, proof: FenceProof) -> Incident:
    """After an isolated host obeyed: what still waits to be stopped or started there by this incident, and is among
    what was stopped, may be taken on the strength of that. The host lives, and keeps what it runs."""
    for item in incident.items:
        if item.phase is Phase.RUNNING or item.origin != proof.of or not proof.covers(item.vm):
            continue
        incident = proven(incident, item, proof)
    return incident


def revised(
    incident: Incident,
    found: Plan,
    targets: dict[str, Incarnation],
    in_place: set[str],
    after: Mapping[str, tuple[AwaitedVm, ...]],
    ready: bool = False,
    orders: Sequence[RoomOrder] = (),
) -> tuple[Incident, list[AnyFact]]:
    """The incident after a plan over all incidents, and what is to be said of it; nothing where the plan
    changes nothing here. `targets` are the hosts' present incarnations; `after` is whom each start comes after; `ready`
    where the plan is one that was kept for this."""
    to = {start.vm: start for start in found.starts}
    missing = {one.vm: one for one in found.unplaced}
    mine = [i for i in incident.items if i.phase is Phase.WAITING and (i.vm in to or i.vm in in_place)]
    without = [i for i in incident.items if i.phase is Phase.WAITING and i.vm in missing]
    if not mine and not orders and all(item.reason == _reason(missing[item.vm]) for item in without):
        return incident, []
    incident = incident.model_copy(update={"revision": incident.revision + 1})
    starts = []
    for item in mine:
        target = item.origin if item.vm in in_place else targets[to[item.vm].to]
        update = {"phase": Phase.PLANNED, "to": target, "attempt": item.attempt + 1, "reason": ""}
        item = item.model_copy(update=update)
        incident = replaced(incident, item)
        wave, urgency = (0, ()) if item.vm in in_place else (to[item.vm].wave, to[item.vm].urgency)
        starts.append(_start(incident, item, wave, urgency, after.get(item.vm, ())))
    starts.sort(key=lambda start: (start.wave, start.priority_rank, start.name))
    waiting = []
    for item in without:
        item = item.model_copy(update={"reason": _reason(missing[item.vm])})
        incident = replaced(incident, item)
        waiting.append(_waiting(item, missing[item.vm]))
    planned = FailoverPlanned(
        incident=incident.id,
        revision=incident.revision,
        starts=tuple(starts),
        waiting=tuple(waiting),
        cause=incident.cause,
        moves=as_moves(orders),
        stops=as_stops(orders),
        ready=ready,
        rule="as was kept ready for this loss" if ready else "most room first, by priority",
    )
    facts: list[AnyFact] = [planned]
    short = tuple(sorted(one.vm for one in waiting if missing[one.vm].reason in NO_ROOM))
    if short and short != incident.short:
        facts.append(
            CapacityExhausted(
                incident=incident.id,
                revision=incident.revision,
                waiting=tuple(one for one in waiting if one.vm in short),
                cause=planned.key,
                rule="no room",
            )
        )
        incident = incident.model_copy(update={"exhausted": incident.revision, "short": short})
    return incident, facts


def settled(incident: Incident) -> tuple[Incident | None, list[AnyFact]]:
    """Say what is complete and what is relieved; None where the incident needs nothing more."""
    facts: list[AnyFact] = []
    waiting = [item for item in incident.items if item.phase is Phase.WAITING]
    if incident.exhausted and not any(item.vm in incident.short for item in waiting):
        relieved = CapacityRelieved(
            incident=incident.id, revision=incident.exhausted, rule="nothing waits for room"
        )
        facts.append(relieved)
        incident = incident.model_copy(update={"exhausted": 0, "short": ()})
    open_ = any(item.phase is Phase.PLANNED for item in incident.items)
    if open_ or any(not item.reason or item.reason.startswith(MAKING) for item in waiting):
        return incident, facts
    done = FailoverCompleted(
        incident=incident.id,
        revision=incident.revision,
        restarted=tuple(item.name for item in incident.items if item.phase is Phase.RUNNING),
        waiting=tuple(item.name for item in waiting),
        given_up=tuple(item.name for item in incident.items if item.phase is Phase.GIVEN_UP),
        cause=incident.cause,
        rule="all seen running, or waiting with a reason",
    )
    return (incident if waiting else None), [*facts, done]


def as_moves(orders: Sequence[RoomOrder]) -> tuple[PlannedMove, ...]:
    """Those that are moves, as the executor is told of them."""
    return tuple(
        PlannedMove(
            key=one.key,
            vm=one.vm,
            name=one.name,
            origin=one.at,
            to=one.to,
            run=one.report.run,
            memory_mib=one.report.memory_mib,
            vcpus=one.report.vcpus,
            makes_room_for=one.names,
        )
        for one in orders
        if one.to is not None
    )


def as_stops(orders: Sequence[RoomOrder]) -> tuple[PlannedStop, ...]:
    """Those that are stops."""
    return tuple(
        PlannedStop(
            key=one.key,
            vm=one.vm,
            name=one.name,
            at=one.at,
            run=one.report.run,
            report=one.report,
            makes_room_for=one.names,
        )
        for one in orders
        if one.to is None
    )


def _reason(one: Unplaced) -> str:
    return f"{one.reason}: {one.detail}"


def _start(
    incident: Incident, item: Item, wave: int, urgency: tuple[int, ...], after: tuple[AwaitedVm, ...]
) -> PlannedStart:
    assert item.to is not None
    return PlannedStart(
        key=start_key(incident, item),
        vm=item.vm,
        name=item.name,
        origin=item.origin,
        to=item.to,
        wave=wave,
        after=after,
        priority_rank=item.policy.priority.rank,
        urgency=urgency,
        memory_mib=item.memory_mib,
        vcpus=item.vcpus,
        policy=item.policy,
        datastores=item.datastores,
        proofs=item.proofs,
        run=item.run,
        evict=item.evict,
    )


def _waiting(item: Item, one: Unplaced) -> WaitingVm:
    return WaitingVm(
        vm=item.vm,
        name=item.name,
        priority=item.policy.priority.value,
        reason=item.reason,
        memory_mib=item.memory_mib,
        vcpus=item.vcpus,
        short_memory_mib=one.short_memory_mib,
        short_vcpus=one.short_vcpus,
        storage=item.datastores,
        networks=() if item.needs is None else item.needs.networks,
        devices=one.short_devices if item.needs is None else item.needs.devices,
        requires_labels=item.policy.requires_labels,
    )
