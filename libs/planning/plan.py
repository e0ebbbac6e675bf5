"""Who starts where after a loss: pure, deterministic, blind to the order of its input.

A `restart` VM goes before any `best_effort`, a higher priority before any number of lower, then start order;
inside a class the big ones first. Each goes to the usable host with the most memory left: that spreads the
load, and adding a host or memory never makes such a plan worse (SCIENCE §3.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from libs.model import Protection
from libs.planning.snapshot import Snapshot, SnapshotHost, SnapshotHostState, SnapshotVm


@dataclass(frozen=True, slots=True)
class Start:
    vm: str
    from_host: str | None
    to: str
    wave: int


@dataclass(frozen=True, slots=True)
class Unplaced:
    """`short_*` is what was missing on the host that came closest; 0 where room was not the obstacle."""

    vm: str
    priority: str
    reason: str
    short_memory_mib: int
    short_vcpus: int
    detail: str


@dataclass(frozen=True, slots=True)
class Plan:
    starts: tuple[Start, ...]
    unplaced: tuple[Unplaced, ...]


@dataclass(slots=True)
class _Room:
    host: SnapshotHost
    memory_mib: float
    vcpus: float
    devices: dict[str, int]


def _rank(vm: SnapshotVm) -> tuple[int, int, int]:
    return (0 if vm.protection is Protection.RESTART else 1, vm.priority.rank, vm.order)


def plan(
    snapshot: Snapshot, failed: frozenset[str], avoid: Mapping[str, frozenset[str]] | None = None
) -> Plan:
    """Place every protected running VM of the failed hosts. `avoid` names hosts where a start just failed."""
    orphans = [
        vm
        for vm in snapshot.vms
        if vm.host in failed and vm.state == "running" and vm.protection is not Protection.NONE
    ]
    orphans.sort(key=lambda vm: (*_rank(vm), -vm.memory_mib, -vm.vcpus, vm.name))
    waves = {rank: wave for wave, rank in enumerate(sorted({_rank(vm) for vm in orphans}))}
    rooms = _rooms(snapshot, failed)
    starts: list[Start] = []
    unplaced: list[Unplaced] = []
    for vm in orphans:
        barred = (avoid or {}).get(vm.name, frozenset())
        reachable = [room for room in rooms if room.host.name not in barred and not _obstacle(room.host, vm)]
        fitting = [room for room in reachable if _fits(room, vm)]
        if not fitting:
            unplaced.append(_why(vm, rooms, reachable, barred))
            continue
        best = max(fitting, key=lambda room: (room.memory_mib, room.vcpus, room.host.name))
        _occupy(best, vm)
        starts.append(Start(vm.name, vm.host, best.host.name, waves[_rank(vm)]))
    return Plan(tuple(starts), tuple(unplaced))


def _rooms(snapshot: Snapshot, failed: frozenset[str]) -> list[_Room]:
    """What is left on each usable host, by name."""
    policy = snapshot.policy
    rooms = {
        host.name: _Room(
            host,
            (host.memory_mib - host.memory_reserved_mib) * policy.memory_overcommit,
            host.cpus * policy.cpu_overcommit,
            dict(host.devices),
        )
        for host in sorted(snapshot.hosts, key=lambda host: host.name)
        if host.state is SnapshotHostState.ONLINE and host.name not in failed
    }
    for vm in snapshot.vms:
        if vm.state == "running" and vm.host in rooms:
            _occupy(rooms[vm.host], vm)
    return list(rooms.values())


def _occupy(room: _Room, vm: SnapshotVm) -> None:
    room.memory_mib -= vm.memory_mib
    room.vcpus -= vm.vcpus
    for device, count in vm.devices.items():
        room.devices[device] = room.devices.get(device, 0) - count


def _obstacle(host: SnapshotHost, vm: SnapshotVm) -> str:
    """Why this host could not take the VM even if it were empty; "" where it could."""
    for have, need, what in (
        (host.storage, vm.storage, "storage"),
        (host.networks, vm.networks, "network"),
    ):
        if have is not None and need is not None and (lacking := sorted(set(need) - set(have))):
            return f"no {what} {lacking[0]}"
    for label, value in sorted(vm.requires_labels.items()):
        if host.labels.get(label) != value:
            return f"not labelled {label}={value}"
    for device, count in sorted(vm.devices.items()):
        if host.devices.get(device, 0) < count:
            return f"no {count} {device}"
    return ""


def _fits(room: _Room, vm: SnapshotVm) -> bool:
    devices = all(room.devices.get(device, 0) >= count for device, count in vm.devices.items())
    return room.memory_mib >= vm.memory_mib and room.vcpus >= vm.vcpus and devices


def _why(vm: SnapshotVm, rooms: list[_Room], reachable: list[_Room], barred: frozenset[str]) -> Unplaced:
    priority = vm.priority.value
    if not rooms:
        return Unplaced(vm.name, priority, "no_host", vm.memory_mib, vm.vcpus, "no usable host is left")
    if not reachable:
        reasons = sorted(
            f"{room.host.name}: {_obstacle(room.host, vm) or 'a start failed there'}" for room in rooms
        )
        reason = "failed_everywhere" if len(barred) >= len(rooms) else "no_host_suits"
        return Unplaced(vm.name, priority, reason, 0, 0, "; ".join(reasons)[:300])
    near = max(reachable, key=lambda room: (room.memory_mib, room.vcpus, room.host.name))
    memory = max(0, round(vm.memory_mib - near.memory_mib))
    vcpus = max(0, round(vm.vcpus - near.vcpus))
    detail = f"{memory} MiB and {vcpus} vCPUs short on {near.host.name}, the roomiest of {len(reachable)}"
    return Unplaced(vm.name, priority, "no_room", memory, vcpus, detail)
