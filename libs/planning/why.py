"""Why a VM finds no place, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.planning.pool import Rooms
from libs.planning.snapshot import SnapshotVm

REASONS = {
    "no_host": "no usable host is left",
    "failed_everywhere": "a start failed on every host that is left",
    "no_host_suits": "no host that is left has the storage, networks, devices, labels or CPU model that it needs",
    "strict_rule": "a strict rule of a group keeps it off each host that has room",
    "no_room": "no host that suits has room",
}


@dataclass(frozen=True, slots=True)
class Unplaced:
    """`short_*` is what was missing on the host that came closest; 0 where room was not the obstacle."""

    vm: str
    priority: str
    reason: str
    short_memory_mib: int
    short_vcpus: int
    detail: str
    short_devices: dict[str, int] = field(default_factory=dict)


def why(vm: SnapshotVm, rooms: Rooms, barred: frozenset[str]) -> Unplaced:
    """What stands against it on the hosts that are left. `rooms` is what the plan leaves free."""
    pool, priority = rooms.pool, vm.priority.value
    hosts = list(rooms.hosts())
    if not hosts:
        return Unplaced(vm.name, priority, "no_host", vm.memory_mib, vm.vcpus, "no usable host is left")
    open_ = [at for at in hosts if pool.hosts[at].name not in barred and not pool.obstacle(at, vm)]
    if not open_:
        told = sorted(
            f"{pool.hosts[at].name}: {pool.obstacle(at, vm) or 'a start failed there'}" for at in hosts
        )
        reason = "failed_everywhere" if len(barred) >= len(hosts) else "no_host_suits"
        return Unplaced(vm.name, priority, reason, 0, 0, "; ".join(told)[:300])
    allowed = [at for at in open_ if rooms.broken(vm, at) is None]
    if not allowed or (any(rooms.holds(vm, at) for at in open_)):
        told = [f"{pool.hosts[at].name}: {_rule(rooms, vm, at)}" for at in open_]
        return Unplaced(vm.name, priority, "strict_rule", 0, 0, "; ".join(told)[:300])
    near = max(allowed, key=lambda at: (*rooms.free(at), at))
    memory, cpus = rooms.free(near)
    short = {"memory": max(0, round(vm.memory_mib - memory)), "vcpus": max(0, round(vm.vcpus - cpus))}
    devices = {
        device: count - max(0, rooms.devices_left(near)[device])
        for device, count in sorted(vm.devices.items())
        if rooms.devices_left(near)[device] < count
    }
    detail = f"{short['memory']} MiB and {short['vcpus']} vCPUs short on {pool.hosts[near].name}, the roomiest of {len(allowed)}"
    if devices:
        detail += "; no " + ", ".join(f"{count} more {device}" for device, count in devices.items())
    return Unplaced(vm.name, priority, "no_room", short["memory"], short["vcpus"], detail, devices)


def _rule(rooms: Rooms, vm: SnapshotVm, at: int) -> str:
    broken = rooms.broken(vm, at)
    return "no room" if broken is None else f"{broken.rule.value} of {broken.name} over {broken.scope}"
