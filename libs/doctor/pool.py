"""What is wrong with the pool as a whole: room after a loss, what could not be told, the plane."""

from __future__ import annotations

from collections.abc import Iterator

from libs.doctor.made import Finding, version
from libs.doctor.seen import HostSeen, Seen
from libs.doctor.suits import Has, Pool
from libs.doctor.vms import protected
from libs.model import DiskLocks
from libs.planning.plan import plan
from libs.planning.snapshot import Snapshot, SnapshotHost, SnapshotHostState, SnapshotVm


def of_pool(pool: Pool) -> Iterator[Finding]:
    """Findings about no host and no VM alone."""
    name, seen = pool.settings.pool, pool.seen
    yield from _room(pool)
    yield from _versions(name, seen.hosts)
    yield from _locks(pool)
    unread = [host.name for host in seen.hosts if seen.clock(host) is None]
    if len(seen.hosts) > 1 and unread:
        which = "" if len(unread) == len(seen.hosts) else f": {', '.join(unread)}"
        yield Finding("clock-unknown", name, f"the clocks of {len(unread)} hosts{which}")
    if seen.bus.error:
        yield Finding("plane-not-reached", name, seen.bus.error)
    for role in seen.bus.vacant:
        yield Finding("role-vacant", name, role)


def _locks(pool: Pool) -> Iterator[Finding]:
    name, seen = pool.settings.pool, pool.seen
    running = [(host, vm) for host in seen.hosts for vm in host.domains if protected(vm) and vm.state.active]
    unproven = sum(1 for host, vm in running if not vm.wants.leased and seen.locks(host) is None)
    if unproven:
        said = (
            f"{unproven} of {len(running)} protected VMs have no lease of a lock manager in their definition"
        )
        yield Finding("lock-manager-unknown", name, said)
    known = {
        host.name: locks for host in seen.hosts if (locks := seen.locks(host)) is not None and locks.manager
    }
    if len({(one.manager, one.space) for one in known.values()}) > 1:
        told = (f"{host}: {one.manager}, {one.space or 'on the disks'}" for host, one in known.items())
        yield Finding("lock-managers-differ", name, "; ".join(told))
    local = [said for host in seen.hosts if host.name in known and (said := _local(pool, host, known))]
    if local:
        yield Finding("locks-local", name, "; ".join(local))


def _local(pool: Pool, host: HostSeen, known: dict[str, DiskLocks]) -> str:
    """Why the directory of a host's locks is surely not that of another; "" where it may be."""
    space = known[host.name].space
    for other in pool.seen.hosts if space else ():
        if other.name != host.name and other.name in known:
            verdict = pool.shared(space, host, other)
            if verdict.has is Has.NO:
                return f"{host.name}: {space}: {other.name}: {verdict.why}"
    return ""


def _versions(name: str, hosts: tuple[HostSeen, ...]) -> Iterator[Finding]:
    told = {
        host.name: (host.kind, version(host.libvirt), version(host.hypervisor))
        for host in hosts
        if not host.error and host.libvirt is not None
    }
    if len(set(told.values())) > 1:
        said = "; ".join(
            f"{host}: libvirt {libvirt}, {kind} {own or 'of unknown version'}"
            for host, (kind, libvirt, own) in told.items()
        )
        yield Finding("versions-differ", name, said)


def _room(pool: Pool) -> Iterator[Finding]:
    """The loss of each host by itself, planned as placement would. What has no host that suits is told of the VM."""
    snapshot = _snapshot(pool)
    worst: tuple[int, str] | None = None
    for host in pool.seen.hosts:
        if host.error:
            continue
        planned = plan(snapshot, frozenset({host.name}))
        missing = {one.vm: one.detail for one in planned.unplaced if one.reason == "no_room"}
        if not missing:
            continue
        lost = [vm for vm in snapshot.vms if vm.host == host.name and vm.protection != "none"]
        left = [vm for vm in lost if vm.name in missing]
        short = sum(vm.memory_mib for vm in left)
        free = sum(_free(pool, other) for other in pool.others(host))
        names = ", ".join(sorted(_name(pool.seen, vm.name) for vm in left))
        said = (
            f"without {host.name}: {sum(vm.memory_mib for vm in lost)} MiB of {len(lost)} protected VMs to place, "
            f"{free:.0f} MiB free elsewhere; no room for {names}: {next(iter(missing.values()))}"
        )
        if worst is None or short > worst[0]:
            worst = (short, said)
    if worst is not None:
        yield Finding("not-n-plus-one", pool.settings.pool, worst[1])


def _free(pool: Pool, host: HostSeen) -> float:
    return pool.memory_mib(host) - sum(vm.memory_mib for vm in host.domains if vm.state.active)


def _name(seen: Seen, key: str) -> str:
    uuid, _, where = key.partition("@")
    return next(vm.name for vm in seen.host(where).domains if vm.uuid == uuid)


def _snapshot(pool: Pool) -> Snapshot:
    """As planning reads it. A host's `storage` stands for the VMs that it suits: what a VM needs beside room has been
    looked at already."""
    seen = pool.seen
    suits: dict[str, list[str]] = {host.name: [] for host in seen.hosts}
    vms = []
    for home in seen.hosts:
        for vm in home.domains:
            if not vm.state.active:
                continue
            key = f"{vm.uuid}@{home.name}"
            for other, lacking in pool.lacks(vm, home).items() if protected(vm) else ():
                if not lacking:
                    suits[other].append(key)
            vms.append(
                SnapshotVm(
                    name=key,
                    host=home.name,
                    memory_mib=vm.memory_mib,
                    vcpus=vm.vcpus,
                    protection=vm.policy.protection,
                    priority=vm.policy.priority,
                    order=vm.policy.order,
                    storage=(key,),
                )
            )
    hosts = [
        SnapshotHost(
            name=host.name,
            state=SnapshotHostState.OFFLINE if pool.closed(host) else SnapshotHostState.ONLINE,
            memory_mib=entry.memory_mib or host.memory_mib or 1,
            memory_reserved_mib=entry.memory_reserved_mib,
            cpus=entry.cpus or host.cpus or 1,
            storage=tuple(suits[host.name]),
        )
        for host in seen.hosts
        for entry in [pool.settings.host(host.name)]
    ]
    return Snapshot(schema="rekindle.snapshot.v1", policy=pool.policy, hosts=tuple(hosts), vms=tuple(vms))
