"""A snapshot made ready for planning: who suits whom, what is free where, who is where of a group's members.

`Pool` does not change while it is planned over. A `Rooms` is what one plan in the making has taken of it, as a
layer of its own: to begin a plan, or to go back to an earlier point of it, costs only what it has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from heapq import heappop, heappush

from libs.planning.snapshot import (
    GroupRule,
    Snapshot,
    SnapshotGroup,
    SnapshotHost,
    SnapshotHostState,
    SnapshotVm,
)

Free = tuple[float, float]
"""Memory in MiB and vCPUs."""
Wants = tuple[object, ...]


class Pool:
    """Hosts by name, with what is free on each now. Places (`int`) are positions in `hosts`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.policy = snapshot.policy
        self.hosts = sorted(snapshot.hosts, key=lambda host: host.name)
        self.place = {host.name: at for at, host in enumerate(self.hosts)}
        self.vms = {vm.name: vm for vm in snapshot.vms}
        self.on: list[list[SnapshotVm]] = [[] for _ in self.hosts]
        for vm in snapshot.vms:
            if vm.host is not None and vm.state == "running":
                self.on[self.place[vm.host]].append(vm)
        for vms in self.on:
            vms.sort(key=lambda vm: vm.name)
        self.size: list[Free] = [self._size(host) for host in self.hosts]
        self.free: list[Free] = [self._left(at) for at in range(len(self.hosts))]
        self.usable = [host.state is SnapshotHostState.ONLINE for host in self.hosts]
        self.roomiest = sorted(
            (at for at, usable in enumerate(self.usable) if usable),
            key=lambda at: (*self.free[at], at),
            reverse=True,
        )
        """Usable hosts, the one with the most memory left first."""
        self.groups: dict[str, list[SnapshotGroup]] = {}
        for group in sorted(snapshot.groups, key=lambda group: group.name):
            for name in group.vms:
                self.groups.setdefault(name, []).append(group)
        self._suits: dict[Wants, dict[int, str]] = {}
        self._kinds: dict[Wants, int] = {}
        self.kind = [self._kinds.setdefault(_kind(host), len(self._kinds)) for host in self.hosts]
        self._example = {kind: self.hosts[at] for at, kind in enumerate(self.kind)}

    def _size(self, host: SnapshotHost) -> Free:
        memory = (host.memory_mib - host.memory_reserved_mib) * self.policy.memory_overcommit
        return memory, host.cpus * self.policy.cpu_overcommit

    def _left(self, at: int) -> Free:
        memory, cpus = self.size[at]
        for vm in self.on[at]:
            memory -= vm.memory_mib
            cpus -= vm.vcpus
        return memory, cpus

    def devices_left(self, at: int) -> Counter[str]:
        """Devices of a host that no running VM has."""
        left = Counter(self.hosts[at].devices)
        for vm in self.on[at]:
            left.subtract(vm.devices)
        return left

    def obstacle(self, at: int, vm: SnapshotVm) -> str:
        """Why this host could not take the VM even if it were empty; "" where it could. Room apart."""
        wants = wants_of(vm)
        if wants is None:
            return ""
        known = self._suits.setdefault(wants, {})
        kind = self.kind[at]
        if kind not in known:
            known[kind] = obstacle(self._example[kind], vm)
        return known[kind]

    def domain(self, at: int, scope: str) -> str:
        """The value of a host for a group's scope."""
        host = self.hosts[at]
        if scope == "host":
            return host.name
        value = host.labels.get(scope)
        return f"-{host.name}" if value is None else f"={value}"


def wants_of(vm: SnapshotVm) -> Wants | None:
    """All that a VM asks of a host beside room; None where it asks nothing."""
    if not (vm.requires_labels or vm.devices or vm.cpu_model) and vm.storage is None and vm.networks is None:
        return None
    return (
        vm.storage,
        vm.networks,
        vm.cpu_model,
        tuple(sorted(vm.requires_labels.items())),
        tuple(sorted(vm.devices.items())),
    )


def _kind(host: SnapshotHost) -> Wants:
    return (
        host.storage,
        host.networks,
        host.cpu_models,
        tuple(sorted(host.labels.items())),
        tuple(sorted(host.devices.items())),
    )


def obstacle(host: SnapshotHost, vm: SnapshotVm) -> str:
    """Why this host could not take the VM even if it were empty; "" where it could. Room apart."""
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
    if vm.cpu_model is not None and host.cpu_models is not None and vm.cpu_model not in host.cpu_models:
        return f"no CPU model {vm.cpu_model}"
    return ""


class Rooms:
    """What is free where, in a plan in the making. Where a VM was put or taken away is remembered."""

    def __init__(self, pool: Pool, without: Iterable[int] = ()) -> None:
        self.pool = pool
        self.without = frozenset(without)
        self.changed: dict[int, Free] = {}
        self.devices: dict[int, Counter[str]] = {}
        self.at: dict[str, int] = {}
        """VMs that this plan starts, or moves."""
        self.gone: set[str] = set()
        """VMs that this plan takes away from where they run."""
        self.count: dict[int, int] = {}
        self._heap: list[tuple[float, float, int]] = []
        """Hosts that this plan has changed, the roomiest first; entries of earlier states lie among them."""
        self._next = 0
        """Before this one of the pool's roomiest all are changed or not to be used."""

    def copy(self) -> Rooms:
        """As it is now, for a try that may fail."""
        other = Rooms(self.pool, self.without)
        other.changed = dict(self.changed)
        other.devices = {at: Counter(left) for at, left in self.devices.items()}
        other.at = dict(self.at)
        other.gone = set(self.gone)
        other.count = dict(self.count)
        other._heap, other._next = list(self._heap), self._next
        return other

    def free(self, at: int) -> Free:
        return self.changed.get(at) or self.pool.free[at]

    def open(self, at: int) -> bool:
        """True where VMs may be put."""
        return self.pool.usable[at] and at not in self.without

    def hosts(self) -> Iterator[int]:
        """All that VMs may be put on, by name."""
        return (at for at, usable in enumerate(self.pool.usable) if usable and at not in self.without)

    def devices_left(self, at: int) -> Counter[str]:
        """Devices of a host that nobody has, and nobody gets by this plan."""
        if at not in self.devices:
            self.devices[at] = self.pool.devices_left(at)
        return self.devices[at]

    def put(self, vm: SnapshotVm, at: int) -> None:
        """It takes its room there."""
        self._take(vm, at, 1)
        self.at[vm.name] = at

    def lift(self, vm: SnapshotVm, at: int) -> None:
        """It leaves its room there: from where it runs, or where this plan has put it."""
        self._take(vm, at, -1)
        if self.at.get(vm.name) == at:
            del self.at[vm.name]
        else:
            self.gone.add(vm.name)

    def _take(self, vm: SnapshotVm, at: int, times: int) -> None:
        memory, cpus = self.free(at)
        memory, cpus = memory - times * vm.memory_mib, cpus - times * vm.vcpus
        self.changed[at] = (memory, cpus)
        heappush(self._heap, (-memory, -cpus, -at))
        self.count[at] = self.count.get(at, 0) + times
        if vm.devices:
            left = self.devices_left(at)
            for device, count in vm.devices.items():
                left[device] -= times * count

    def holds(self, vm: SnapshotVm, at: int) -> bool:
        """There is room for it, whatever else stands against it."""
        memory, cpus = self.free(at)
        if memory < vm.memory_mib or cpus < vm.vcpus:
            return False
        if not vm.devices:
            return True
        left = self.devices_left(at)
        return all(left[device] >= count for device, count in vm.devices.items())

    def members(self, group: SnapshotGroup, but: str) -> Counter[str]:
        """How many of the group's other members run in each domain, or will."""
        return Counter(domain for name, domain in self._places(group) if name != but)

    def apart(self, group: SnapshotGroup, ours: Collection[str]) -> bool:
        """Members of an affinity group that are put somewhere by this plan (`ours`) are not where the others are."""
        places = list(self._places(group))
        mine = {domain for name, domain in places if name in ours}
        others = {domain for name, domain in places if name not in ours}
        return not mine <= others if others else len(mine) > 1

    def _places(self, group: SnapshotGroup) -> Iterator[tuple[str, str]]:
        """The members that run, or will, each with its domain."""
        pool = self.pool
        for name in group.vms:
            at = self.at.get(name)
            if at is None:
                vm = pool.vms[name]
                if name in self.gone or vm.host is None or vm.state != "running":
                    continue
                at = pool.place[vm.host]
                if at in self.without:
                    continue
            yield name, pool.domain(at, group.scope)

    def broken(self, vm: SnapshotVm, at: int) -> SnapshotGroup | None:
        """A strict group that this place would break."""
        for group in self.pool.groups.get(vm.name, ()):
            if group.strict and self._breaks(group, vm, at):
                return group
        return None

    def _breaks(self, group: SnapshotGroup, vm: SnapshotVm, at: int) -> bool:
        there = self.members(group, vm.name)
        if not there:
            return False
        meets = self.pool.domain(at, group.scope) in there
        return meets if group.rule is GroupRule.ANTI_AFFINITY else not meets

    def regrets(self, vm: SnapshotVm, at: int) -> int:
        """How many soft rules this place breaks."""
        labels = self.pool.hosts[at].labels
        count = sum(1 for label, value in vm.prefers_labels.items() if labels.get(label) != value)
        for group in self.pool.groups.get(vm.name, ()):
            if not group.strict and self._breaks(group, vm, at):
                count += 1
        return count

    def suits(self, vm: SnapshotVm, at: int, barred: frozenset[str] = frozenset()) -> bool:
        """It may be put there, if there is room."""
        return (
            not self.pool.obstacle(at, vm)
            and not (barred and self.pool.hosts[at].name in barred)
            and (vm.name not in self.pool.groups or self.broken(vm, at) is None)
        )

    def fits(self, vm: SnapshotVm, at: int, barred: frozenset[str] = frozenset()) -> bool:
        """It may be put there, now."""
        return self.holds(vm, at) and self.suits(vm, at, barred)

    def fitting(self, vm: SnapshotVm, barred: frozenset[str] = frozenset()) -> list[int]:
        """All hosts that could take it now, by name."""
        return [at for at in self.hosts() if self.fits(vm, at, barred)]

    def roomiest(self, vm: SnapshotVm, barred: frozenset[str] = frozenset()) -> int | None:
        """Of the hosts that could take it that with the most memory left, then vCPUs. Only hosts roomier than the
        answer are looked at."""
        best = self._roomiest_changed(vm, barred)
        roomiest = self.pool.roomiest
        while self._next < len(roomiest) and self._passed(roomiest[self._next]):
            self._next += 1
        for position in range(self._next, len(roomiest)):
            at = roomiest[position]
            free = self.pool.free[at]
            if free[0] < vm.memory_mib or (best is not None and (*free, at) < best):
                break
            if not self._passed(at) and self.fits(vm, at, barred):
                return at
        return best[2] if best else None

    def _passed(self, at: int) -> bool:
        return at in self.changed or at in self.without

    def _roomiest_changed(self, vm: SnapshotVm, barred: frozenset[str]) -> tuple[float, float, int] | None:
        best, aside = None, []
        while self._heap:
            entry = self._heap[0]
            memory, cpus, at = -entry[0], -entry[1], -entry[2]
            if self.changed[at] != (memory, cpus):
                heappop(self._heap)
                continue
            if memory < vm.memory_mib:
                break
            if self.open(at) and self.fits(vm, at, barred):
                best = (memory, cpus, at)
                break
            aside.append(heappop(self._heap))
        for entry in aside:
            heappush(self._heap, entry)
        return best
