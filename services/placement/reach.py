"""What hosts offer beside room, and what VMs need of it: networks, passed-through devices, CPU models. Pure.

Not known is no constraint: an agent of an older version says neither, and only a start tells. A snapshot names of what a host
offers only what some VM in it needs: hosts that differ in nothing that matters are alike to the planner, which saves it much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from libs.core.evolve import replace
from libs.model import Incarnation, Inventory, Offers, VmNeeds
from libs.planning.snapshot import Snapshot
from services.placement import rules
from services.placement.state import Item, Offered, PlacementState

State = PlacementState


def told(state: State, row: Inventory) -> State:
    """With what a stored inventory says that its host offers: it is told nowhere else."""
    host, known = row.at.host, state.offers.get(row.at.host)
    if row.offers is None:
        return state if known is None else replace(state, offers=state.offers.discard(host))
    if known is not None and known.at == row.at and known.offers == row.offers:
        return state
    return replace(state, offers=state.offers.insert(host, Offered(row.at, row.offers)))


def offers_of(state: State, at: Incarnation) -> Offers:
    """Of this boot: another one may lack what the one before had."""
    known = state.offers.get(at.host)
    return known.offers if known is not None and known.at == at else Offers()


def needs_of(state: State, item: Item) -> VmNeeds | None:
    """As its origin shows it where nothing was known when the item was made."""
    return item.needs or shown(state, item.vm, item.origin.host)


def noted(state: State, item: Item) -> Item:
    """With what it needs, before its origin may show it no longer."""
    needs = needs_of(state, item)
    return item if needs == item.needs else item.model_copy(update={"needs": needs})


def shown(state: State, vm: str, host: str) -> VmNeeds | None:
    """By the host's last word on it."""
    heard = state.heard.get(host)
    report = None if heard is None else heard.vm(vm)
    return None if report is None else report.needs


def of_vm(needs: VmNeeds | None) -> dict[str, Any]:
    """Fields of a VM in a snapshot; nothing where it needs nothing that is known."""
    if needs is None or not (needs.networks or needs.devices or needs.cpu_model):
        return {}
    return {
        "networks": needs.networks or None,
        "devices": needs.devices,
        "cpu_model": needs.cpu_model or None,
    }


class Needed:
    """All that the VMs of one snapshot need."""

    def __init__(self, all_needs: Iterable[VmNeeds | None]) -> None:
        self.networks: set[str] = set()
        self.models: set[str] = set()
        self.devices: Counter[str] = Counter()
        for needs in all_needs:
            if needs is not None:
                self.networks.update(needs.networks)
                self.devices.update(needs.devices)
                self.models.update([needs.cpu_model] if needs.cpu_model else [])

    def of_host(self, offers: Offers) -> dict[str, Any]:
        """Fields of a host in the snapshot. One whose devices are not known counts as if it had all."""
        known = offers.devices
        return {
            "networks": _of(self.networks, offers.networks),
            "cpu_models": _of(self.models, offers.cpu_models),
            "devices": dict(self.devices)
            if known is None
            else {name: known[name] for name in sorted(self.devices) if known.get(name)},
        }


def _of(needed: set[str], offered: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if offered is None or not needed else tuple(sorted(needed.intersection(offered)))


def as_they_run(state: State, shot: Snapshot) -> Snapshot:
    """For moves: a running VM that has its host's own CPU moves only to a host with the same. libvirt would take some
    others too, and refuses the rest; which, only it can tell."""
    known = rules.Known(state)
    marks: Mapping[str, str] = {
        host: f"that of {offers_of(state, heard.at).cpu}"
        for host, heard in state.heard.items()
        if offers_of(state, heard.at).cpu
    }
    models = {vm.cpu_model for vm in shot.vms if vm.cpu_model}
    bound, vms = set[str](), []
    for vm in shot.vms:
        report, mark = known.report(vm.name), marks.get(vm.host or "")
        if mark is not None and report is not None and report.needs is not None and report.needs.host_cpu:
            bound.add(mark)
            vm = vm.model_copy(update={"cpu_model": mark})
        vms.append(vm)
    if not bound:
        return shot
    hosts = []
    for host in shot.hosts:
        mark = marks.get(host.name)
        if mark is not None or host.cpu_models is not None:
            can = models if host.cpu_models is None else host.cpu_models
            own = bound if mark is None else bound & {mark}
            host = host.model_copy(update={"cpu_models": tuple(sorted({*can, *own}))})
        hosts.append(host)
    return shot.model_copy(update={"hosts": tuple(hosts), "vms": tuple(vms)})
