"""Which VMs a host's end leaves to be started. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from libs.events.hosts import HostFenced, HostObeyed
from libs.model import Protection
from services.placement import incidents, pool, stores
from services.placement.state import Item, PlacementState

State = PlacementState


def to_be_started(state: State, item: Item, now: float) -> bool:
    """False for what is not protected, and for what runs already by a person's hand."""
    return item.policy.protection is not Protection.NONE and pool.runs_at(state, item, now) is None


def orphans_of(state: State, fact: HostFenced | HostObeyed) -> Iterable[Item]:
    """By lease, and by what the host itself last reported where no lease says otherwise."""
    open_ = state.open_vms()
    orphans: dict[str, Item] = {}
    for lease in state.leases.values():
        if lease.holder == fact.at and lease.wanted and lease.vm not in open_:
            item = incidents.item_of(pool.size_of(state, lease), fact.at)
            orphans[lease.vm] = item.model_copy(update={"taken": pool.taken_away(state, lease)})
    for lease in state.leases.values():  # it was moved here, and its former host alone says so
        left = pool.came_from(state, lease, fact.at) if lease.moving_to == fact.at else None
        if left is not None and lease.vm not in open_:
            item = incidents.item_of(pool.size_of(state, lease), lease.holder)
            orphans[lease.vm] = item.model_copy(update={"run": max(1, left.run)})
    for report in fact.vms:
        known = state.leases.get(report.uuid)
        came = None if known is None else pool.came_from(state, known, fact.at)
        if known is not None and came is not None and report.state.active and report.uuid not in open_:
            item = incidents.item_of(report, known.holder)
            orphans[report.uuid] = item.model_copy(update={"run": max(1, came.run)})
            continue
        otherwise = known is not None and (known.holder != fact.at or not known.wanted)
        if report.uuid not in open_ and report.uuid not in orphans and not otherwise:
            orphans[report.uuid] = incidents.item_of(report, fact.at)
    found = [orphans[vm] for vm in sorted(orphans)]
    return [item.model_copy(update={"datastores": stores.lies_on(state, item)}) for item in found]
