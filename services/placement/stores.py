"""Datastores that a host has lost, or that have failed for all, by the detector's word: whose VMs move for it, and who
is no target meanwhile.

A VM is stopped where its datastore is lost before it starts anywhere (`Item.evict`): its QEMU hangs, and would write on
once the datastore is back. Where the datastore has failed for all, nothing moves and nothing starts on it.
"""

from __future__ import annotations

from collections.abc import Mapping

from rpds import HashTrieMap

from libs.core.evolve import replace
from libs.events.datastores import DatastoreFailed, DatastoreLost, DatastoreRecovered
from libs.model import Incarnation, Protection, VmReport
from libs.planning.snapshot import Snapshot
from services.placement import incidents
from services.placement.state import (
    HostLoss,
    Incident,
    Item,
    PlacementRecord,
    PlacementState,
    StoreWords,
)

State = PlacementState
RECORD = "datastore."
OVER_KEPT = 16


def told(state: State, fact: DatastoreLost | DatastoreFailed | DatastoreRecovered) -> State:
    """What is said of a datastore; they may be heard in any order, and again."""
    words = _words(state, fact.datastore)
    if fact.number in words.over:
        return state
    update: dict[str, object] = {}
    match fact:
        case DatastoreLost(at=at, number=number):
            known = words.lost.get(at.host)
            if known is None or known.number < number:
                update["lost"] = {**words.lost, at.host: HostLoss(number=number, at=at)}
        case DatastoreFailed(number=number):
            update["failed"] = max(number, words.failed)
        case DatastoreRecovered(number=number):
            update["over"] = (*words.over, number)[-OVER_KEPT:]
            update["failed"] = 0 if words.failed == number else words.failed
            update["lost"] = {host: loss for host, loss in words.lost.items() if loss.number != number}
            state = _at_once(state, fact.datastore)
    if not update:
        return state
    record = PlacementRecord(store=words.model_copy(update=update))
    return replace(state, records=state.records.insert(f"{RECORD}{fact.datastore}", record))


def _at_once(state: State, name: str) -> State:
    """What could not be stopped, or started, while the datastore hung is tried again without waiting longer."""
    mine = {
        item.vm for incident in state.incidents() for item in incident.items if name in lies_on(state, item)
    }
    later = {vm: at for vm, at in state.retry_at.items() if vm not in mine}
    return replace(state, retry_at=HashTrieMap(later))


def opened(state: State, fact: DatastoreLost) -> tuple[Incident, list[Item]] | None:
    """The incident of a loss that was told just now: what moves for it, of what ran there when it was judged. What has
    begun to run since may have done so because the datastore is back."""
    incident = Incident(id=fact.incident, cause=fact.key)
    known = _words(state, fact.datastore).lost.get(fact.at.host)
    if known is None or known.number != fact.number or f"incident.{incident.id}" in state.records:
        return None
    heard = state.heard.get(fact.at.host)
    judged = {(report.uuid, report.run) for report in fact.vms}
    reports = heard.vms if heard is not None and heard.at == fact.at else fact.vms
    reports = tuple(report for report in reports if (report.uuid, report.run) in judged)
    items = _stranded(state, fact.datastore, fact.at, reports)
    return (incident, items) if items else None


def left(state: State, settle_s: float, now: float) -> tuple[State, list[tuple[Incident, Item]]]:
    """The net under the fact: what runs where its datastore is lost, and no incident deals with. It came to run there
    since, or nobody held it when the loss was told. Only after `settle_s`: a start that hung there may have come through
    since the datastore is back, which is not told in the same moment."""
    since: dict[str, float] = {}
    found = []
    for name, words in _stores(state):
        for host, loss in sorted(words.lost.items()):
            heard = state.heard.get(host)
            if heard is None or heard.at != loss.at:
                continue
            for item in _stranded(state, name, loss.at, heard.vms):
                which = f"store-{name}-{loss.number}-{item.vm}-{item.run}"
                since[which] = state.stranded.get(which, now)
                if now - since[which] >= settle_s:
                    cause = f"datastore.lost/{name}/{loss.number}"
                    found.append((Incident(id=which, cause=cause), item))
    if not since and not state.stranded:
        return state, found
    return replace(state, stranded=HashTrieMap(since)), found


def _stranded(state: State, name: str, at: Incarnation, reports: tuple[VmReport, ...]) -> list[Item]:
    """Protected VMs that run there under their lease with a disk on a datastore that is lost there."""
    if _words(state, name).failed:
        return []
    open_ = state.open_vms()
    items = []
    for report in reports:
        lease = state.leases.get(report.uuid)
        ours = lease is not None and lease.holder == at and lease.wanted
        protected = report.policy.protection is not Protection.NONE
        if not report.state.active or name not in report.datastores or report.uuid in open_:
            continue
        if ours and protected and state.held_at(report.uuid) is None:
            update = {"run": max(1, report.run), "evict": True, "lost": True}
            items.append(incidents.item_of(report, at).model_copy(update=update))
    return items


def lies_on(state: State, item: Item) -> tuple[str, ...]:
    """On which datastores the VM lies; as its origin shows it where nothing was known when the item was made."""
    heard = state.heard.get(item.origin.host)
    report = heard.vm(item.vm) if heard is not None and not item.datastores else None
    return report.datastores if report is not None else item.datastores


def lost(state: State, item: Item) -> bool:
    """Its origin has lost a datastore of it."""
    return any(item.origin.host in _words(state, name).lost for name in lies_on(state, item))


def failed(state: State, item: Item) -> str:
    """A datastore of it that has failed for all; "" where none has."""
    return next((name for name in lies_on(state, item) if _words(state, name).failed), "")


def with_reach(
    state: State, shot: Snapshot, has: Mapping[str, tuple[str, ...]], wanted: list[Item]
) -> Snapshot:
    """The snapshot with what each host reaches, of the datastores that it `has` by the pool file, and with what
    each of the VMs to place needs. Without datastores in the pool nothing is asked of a host."""
    if not any(has.values()):
        return shot
    stores = dict(_stores(state))

    def reached(host: str) -> tuple[str, ...]:
        away = {name for name, words in stores.items() if words.failed or host in words.lost}
        return tuple(name for name in has.get(host, ()) if name not in away)

    needs = {item.vm: lies_on(state, item) or None for item in wanted}
    hosts = tuple(host.model_copy(update={"storage": reached(host.name)}) for host in shot.hosts)
    vms = tuple(vm.model_copy(update={"storage": needs.get(vm.name)}) for vm in shot.vms)
    return shot.model_copy(update={"hosts": hosts, "vms": vms})


def _stores(state: State) -> list[tuple[str, StoreWords]]:
    return [
        (key.removeprefix(RECORD), record.store)
        for key, record in sorted(state.records.items())
        if isinstance(record, PlacementRecord) and record.store is not None
    ]


def _words(state: State, name: str) -> StoreWords:
    record = state.records.get(f"{RECORD}{name}")
    words = record.store if isinstance(record, PlacementRecord) else None
    return words if words is not None else StoreWords()
