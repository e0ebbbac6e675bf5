"""Small pools packed exactly: the search that a greedy packing leaves out, within a number of steps and no clock, so
that the same pool always gets the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence

from libs.planning.pack import Class, Packer
from libs.planning.pool import Rooms
from libs.planning.snapshot import SnapshotVm

VMS_MAX, HOSTS_MAX = 24, 48
STEPS = 160_000
"""Looks at a host in one search."""
Value = tuple[int, int, int]
"""Of the VMs that may be placed: how many are, and the memory and vCPUs that they take, negated."""


class _Search:
    """Some VMs must all be placed, and of others as many as possible, of these those that take the least."""

    def __init__(self, packer: Packer, rooms: Rooms, steps: int) -> None:
        self.packer, self.rooms = packer, rooms
        self.hosts = list(rooms.hosts())
        self.steps = steps // max(1, len(self.hosts))
        self.alike = not rooms.pool.groups and not packer.barred
        self.best: Value | None = None
        self.found: dict[str, int] = {}

    def run(self, must: Sequence[SnapshotVm], may: Sequence[SnapshotVm]) -> bool:
        """False where the steps ran out."""
        self.vms, self.first_may = [*must, *may], len(must)
        self.memory, self.cpus = [0], [0]
        for vm in reversed(self.vms):
            self.memory.insert(0, self.memory[0] + vm.memory_mib)
            self.cpus.insert(0, self.cpus[0] + vm.vcpus)
        return self._go(0, (0, 0, 0))

    def _go(self, at: int, value: Value) -> bool:
        self.steps -= 1
        if self.steps < 0:
            return False
        if at == len(self.vms):
            if self.best is None or value > self.best:
                self.best, self.found = value, dict(self.rooms.at)
            return True
        may = at >= self.first_may
        if self._vain(at, value, may):
            return True
        vm = self.vms[at]
        more = (value[0] + 1, value[1] - vm.memory_mib, value[2] - vm.vcpus) if may else value
        for place in self._places(vm):
            self.rooms.put(vm, place)
            whole = self._go(at + 1, more)
            self.rooms.lift(vm, place)
            if not whole:
                return False
            if self.best is not None and self.best[0] == len(self.vms) - self.first_may:
                return True  # nothing is left out: it cannot be better
        return self._go(at + 1, value) if may else True

    def _vain(self, at: int, value: Value, may: bool) -> bool:
        """Nothing better can come of it, or not even what must be placed has room."""
        if self.best is not None:
            left = len(self.vms) - max(at, self.first_may)
            if value[0] + left < self.best[0]:
                return True
            all_placed = (value[0] + left, value[1] - self.memory[at], value[2] - self.cpus[at])
            if may and value[0] + left == self.best[0] and all_placed <= self.best:
                return True
        if may:
            return False
        free = [self.rooms.free(place) for place in self.hosts]
        memory = sum(max(0.0, one[0]) for one in free)
        cpus = sum(max(0.0, one[1]) for one in free)
        end = self.first_may
        return memory < self.memory[at] - self.memory[end] or cpus < self.cpus[at] - self.cpus[end]

    def _places(self, vm: SnapshotVm) -> list[int]:
        """Hosts that could take it, the tightest first; of those that are alike only one."""
        rooms = self.rooms
        found = sorted(rooms.fitting(vm, self.packer.bar(vm)), key=lambda one: (*rooms.free(one), one))
        if not self.alike:
            return found
        seen = set()
        first = []
        for place in found:
            devices = rooms.devices_left(place) if rooms.pool.hosts[place].devices else {}
            like = (rooms.free(place), rooms.pool.kind[place], tuple(sorted(devices.items())))
            if like not in seen:
                seen.add(like)
                first.append(place)
        return first


def improved(packer: Packer, fresh: Rooms, steps: int = STEPS) -> Rooms | None:
    """The best plan by class while the classes are small: which VMs of a class are placed is settled before the next
    class is looked at, where they go is not. None where the pool is too large, or the steps do not suffice."""
    must: list[SnapshotVm] = []
    found: dict[str, int] | None = None
    settled = 0
    if sum(1 for _ in fresh.hosts()) > HOSTS_MAX:
        return None
    for vms in packer.classes:
        if len(must) + len(vms) > VMS_MAX:
            break
        search = _Search(packer, fresh.copy(), steps)
        whole = search.run(_large_first(must), list(vms))
        if search.best is None:
            break
        found = search.found
        must += [vm for vm in vms if vm.name in found]
        settled += 1
        if not whole:
            break
    if found is None:
        return None
    rooms = fresh.copy()
    for vms in packer.classes[:settled]:
        for vm in vms:
            if vm.name in found:
                rooms.put(vm, found[vm.name])
    for vms in packer.classes[settled:]:
        packer.one_class(rooms, vms, "worst", "large")
    return rooms


def all_placed(
    packer: Packer, fresh: Rooms, vms: Class, steps: int = STEPS
) -> tuple[bool | None, dict[str, int]]:
    """Whether all these VMs can be placed at once, and where; None where the steps ran out before that was clear."""
    search = _Search(packer, fresh.copy(), steps)
    whole = search.run(_large_first(vms), [])
    if search.best is not None:
        return True, search.found
    return (False if whole else None), {}


def _large_first(vms: Sequence[SnapshotVm]) -> list[SnapshotVm]:
    return sorted(vms, key=lambda vm: (-vm.memory_mib, -vm.vcpus, vm.name))
