"""The live pool as a snapshot, for an onlooker: what `rekindle snapshot` exports, and planning commands ask about where
no file is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from libs.config.settings import Settings
from libs.model import Inventory, Offers, VmNeeds, VmPolicy, VmReport
from libs.planning.policies import after_of, groups_of, labels_of, without_circles
from libs.planning.snapshot import PoolPolicy, Snapshot, SnapshotHost, SnapshotHostState, SnapshotVm
from libs.poolview import PoolView

USABLE = "healthy"
LOST = ("failed", "fenced")


async def exported(view: PoolView) -> tuple[Snapshot, list[str]]:
    """The snapshot, and what had to be left out or dropped, in words. Raises UnavailableError."""
    return assembled(view.settings, await view.hosts(), await view.inventories(), await view.vms())


def assembled(
    settings: Settings,
    hosts: Sequence[dict[str, Any]],
    inventories: Mapping[str, Inventory],
    rows: Sequence[dict[str, Any]],
) -> tuple[Snapshot, list[str]]:
    """From what the buckets say. A VM that waits runs nowhere; one whose host is in doubt counts where it was."""
    told = [
        f"host {row['host']} has not been heard: left out" for row in hosts if row["host"] not in inventories
    ]
    names = Counter(str(row["vm"]) for row in rows)
    vms, policies, asked = [], dict[str, VmPolicy](), Counter[str]()
    for row in rows:
        report = inventories[row["host"]].vm(row["uuid"])
        if report is None:
            continue
        name = report.name if names[report.name] == 1 else f"{report.name}@{report.uuid}"
        vms.append(_vm(name, row, report, bool(settings.datastores)))
        policies[name] = report.policy
        asked.update(report.needs.devices if report.needs is not None else {})
    known = {vm.name for vm in vms}
    for at, vm in enumerate(vms):
        unknown = sorted({one.vm for one in vm.after} - known)
        if unknown:
            told.append(f"after of {vm.name} is dropped: there is no VM {unknown[0]}")
            vms[at] = vm.model_copy(update={"after": tuple(one for one in vm.after if one.vm in known)})
    shown = []
    for row in hosts:
        inventory = inventories.get(row["host"])
        if inventory is None:
            continue
        if asked and (inventory.offers is None or inventory.offers.devices is None):
            told.append(
                f"the devices of {row['host']} are not known: it counts as if it had all that VMs have"
            )
        shown.append(_host(settings, row, inventory, asked))
    vms, circles = without_circles(vms)
    ruled = groups_of(policies, vms)
    told += [f"{rule} is dropped: {why}" for rule, why in (*circles, *ruled.dropped)]
    snapshot = Snapshot(
        schema="rekindle.snapshot.v1",
        pool=settings.pool,
        policy=PoolPolicy(**settings.placement.model_dump()),
        hosts=tuple(shown),
        vms=tuple(vms),
        groups=ruled.groups,
    )
    return snapshot, told


def _host(
    settings: Settings, row: dict[str, Any], inventory: Inventory, asked: dict[str, int]
) -> SnapshotHost:
    """`asked` are all devices that VMs have: a host whose own are not known counts as if it had them."""
    name = str(row["host"])
    closed = row["maintenance"] or row["quarantined"] or row["drain"]
    if row["state"] in LOST:
        state = SnapshotHostState.FAILED
    elif row["state"] != USABLE:
        state = SnapshotHostState.OFFLINE
    else:
        state = SnapshotHostState.MAINTENANCE if closed else SnapshotHostState.ONLINE
    offers = inventory.offers or Offers()
    stores = tuple(store.name for store in settings.datastores_of(name))
    return SnapshotHost(
        name=name,
        state=state,
        memory_mib=inventory.memory_mib,
        memory_reserved_mib=inventory.memory_reserved_mib,
        cpus=inventory.cpus,
        labels=settings.host(name).labels,
        storage=stores if settings.datastores else None,
        networks=offers.networks,
        devices=asked if offers.devices is None else offers.devices,
        cpu_models=offers.cpu_models,
    )


def _vm(name: str, row: dict[str, Any], report: VmReport, stores: bool) -> SnapshotVm:
    policy, needs = report.policy, report.needs or VmNeeds()
    runs = row["state"] in ("running", "paused", "unknown")
    return SnapshotVm(
        name=name,
        host=str(row["host"]) if runs else None,
        state="running" if runs else "stopped",
        memory_mib=report.memory_mib,
        vcpus=report.vcpus,
        protection=policy.protection,
        priority=policy.priority,
        order=policy.order,
        start_delay_s=policy.start_delay_s,
        storage=(report.datastores or None) if stores else None,
        networks=needs.networks or None,
        devices=needs.devices,
        cpu_model=needs.cpu_model or None,
        requires_labels=labels_of(policy.requires_labels),
        prefers_labels=labels_of(policy.prefers_labels),
        after=tuple(after_of(policy.after)),
    )
