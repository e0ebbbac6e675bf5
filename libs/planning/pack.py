"""One greedy packing: class by class, a VM after the other, each onto the host that a score says.

No score wins everywhere (SCIENCE §3.2), so several are tried and the best plan is kept. `worth` is what makes one plan
better than another: a class before any number of the next, and nothing is weighed against anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from libs.planning.pool import Rooms
from libs.planning.snapshot import GroupRule, SnapshotVm

Class = Sequence[SnapshotVm]
"""VMs of one rank, the big ones first: that is also the order in which ties between them are broken."""
Barred = Mapping[str, frozenset[str]]
"""By VM the hosts where it may not go: a start of it failed there."""
Score = Callable[[Rooms, SnapshotVm, int], tuple[float, ...]]
"""The least is the best. Each ends with the host's place, so that no tie is left."""
Worth = tuple[object, ...]
NOWHERE: frozenset[str] = frozenset()


def _worst(rooms: Rooms, vm: SnapshotVm, at: int) -> tuple[float, ...]:
    memory, cpus = rooms.free(at)
    return (-memory, -cpus, -at)


def _first(rooms: Rooms, vm: SnapshotVm, at: int) -> tuple[float, ...]:
    return (at,)


def _best(rooms: Rooms, vm: SnapshotVm, at: int) -> tuple[float, ...]:
    return (*rooms.free(at), at)


def _tetris(rooms: Rooms, vm: SnapshotVm, at: int) -> tuple[float, ...]:
    """What it wants and what is free there point the same way."""
    (memory, cpus), (all_memory, all_cpus) = rooms.free(at), rooms.pool.size[at]
    aligned = vm.memory_mib * memory / all_memory**2 + vm.vcpus * cpus / all_cpus**2
    return (-aligned, at)


def _tight(rooms: Rooms, vm: SnapshotVm, at: int) -> tuple[float, ...]:
    """Least is left over, in memory and vCPUs together."""
    (memory, cpus), (all_memory, all_cpus) = rooms.free(at), rooms.pool.size[at]
    left = ((memory - vm.memory_mib) / all_memory) ** 2 + ((cpus - vm.vcpus) / all_cpus) ** 2
    return (left, at)


def _fewest(rooms: Rooms, vm: SnapshotVm, at: int) -> tuple[float, ...]:
    return (len(rooms.pool.on[at]) + rooms.count.get(at, 0), at)


SCORES: dict[str, Score] = {
    "worst": _worst,
    "first": _first,
    "tetris": _tetris,
    "best": _best,
    "tight": _tight,
    "fewest": _fewest,
}


def _small(rooms: Rooms, vms: Class) -> Class:
    return sorted(vms, key=lambda vm: (vm.memory_mib, vm.vcpus, vm.name))


def _named(rooms: Rooms, vms: Class) -> Class:
    return sorted(vms, key=lambda vm: vm.name)


def _scarce(rooms: Rooms, vms: Class) -> Class:
    """Those with the fewest hosts to choose from first."""
    choice = {vm.name: len(rooms.fitting(vm)) for vm in vms}
    return sorted(vms, key=lambda vm: (choice[vm.name], -vm.memory_mib, -vm.vcpus, vm.name))


ORDERS: dict[str, Callable[[Rooms, Class], Class]] = {
    "large": lambda rooms, vms: vms,
    "scarce": _scarce,
    "small": _small,
    "named": _named,
}
VARIANTS = [(score, order) for order in ORDERS for score in SCORES]


@dataclass(slots=True)
class Packer:
    """The VMs to place, most important class first, and what bars them."""

    classes: Sequence[Class]
    barred: Barred

    def bar(self, vm: SnapshotVm) -> frozenset[str]:
        return self.barred.get(vm.name, NOWHERE)

    def whole(self, rooms: Rooms, score: str, order: str) -> Rooms:
        """All classes by one score. Fills the rooms that are given."""
        for vms in self.classes:
            self.one_class(rooms, vms, score, order)
        return rooms

    def by_class(self, rooms: Rooms) -> Rooms:
        """Each class by what serves it best."""
        for vms in self.classes:
            tries = [self.one_class(rooms.copy(), vms, score, order) for score, order in VARIANTS]
            rooms = max(tries, key=lambda one: worth([vms], one))
        return rooms

    def one_class(self, rooms: Rooms, vms: Class, score: str, order: str) -> Rooms:
        for vm in ORDERS[order](rooms, vms):
            at = self.choose(rooms, vm, score)
            if at is not None:
                rooms.put(vm, at)
        return rooms

    def choose(self, rooms: Rooms, vm: SnapshotVm, score: str, but: frozenset[str] = NOWHERE) -> int | None:
        """The host for this VM, not one of `but`; None where none can take it."""
        barred = self.bar(vm) | but
        grouped = vm.name in rooms.pool.groups
        if score == "worst" and not grouped and not vm.prefers_labels:
            return rooms.roomiest(vm, barred)
        found = rooms.fitting(vm, barred)
        if not found:
            return None
        if grouped:
            found = self._with_companions(rooms, vm, found)
        if grouped or vm.prefers_labels:
            regrets = {at: rooms.regrets(vm, at) for at in found}
            least = min(regrets.values())
            found = [at for at in found if regrets[at] == least]
        key = SCORES[score]
        return min(found, key=lambda at: key(rooms, vm, at))

    def _with_companions(self, rooms: Rooms, vm: SnapshotVm, found: list[int]) -> list[int]:
        """Hosts with room also for those that must share the host of this one and are yet to be placed; all that
        were found where none has."""
        names = {
            name
            for group in rooms.pool.groups[vm.name]
            if group.strict and group.rule is GroupRule.AFFINITY and group.scope == "host"
            for name in group.vms
        }
        also = [one for vms in self.classes for one in vms if one.name in names - {vm.name} - rooms.at.keys()]
        if not also:
            return found
        memory = vm.memory_mib + sum(one.memory_mib for one in also)
        cpus = vm.vcpus + sum(one.vcpus for one in also)
        wide = [
            at
            for at in found
            if rooms.free(at)[0] >= memory
            and rooms.free(at)[1] >= cpus
            and all(rooms.suits(one, at, self.bar(one)) for one in also)
        ]
        return wide or found

    def left(self, rooms: Rooms) -> list[SnapshotVm]:
        """Those that this plan does not place."""
        return [vm for vms in self.classes for vm in vms if vm.name not in rooms.at]

    def hopeless(self, fresh: Rooms, vm: SnapshotVm) -> bool:
        """It would find no place even if it were the only one."""
        return fresh.roomiest(vm, self.bar(vm)) is None

    def regrets(self, rooms: Rooms) -> int:
        return sum(
            rooms.regrets(vm, rooms.at[vm.name])
            for vms in self.classes
            for vm in vms
            if vm.name in rooms.at and (vm.prefers_labels or vm.name in rooms.pool.groups)
        )


def worth(classes: Sequence[Class], rooms: Rooms) -> Worth:
    """The greatest is the best: by class most VMs, then least of memory and vCPUs taken, then the bigger ones."""
    told: list[object] = []
    for vms in classes:
        placed = [vm for vm in vms if vm.name in rooms.at]
        told += [
            len(placed),
            -sum(vm.memory_mib for vm in placed),
            -sum(vm.vcpus for vm in placed),
            tuple(vm.name in rooms.at for vm in vms),
        ]
    return tuple(told)


def full_worth(packer: Packer, rooms: Rooms) -> Worth:
    """Worth, then least soft rules broken, then fewest moves, then the most even load."""
    pool = rooms.pool
    uneven = 0.0
    for at in sorted(rooms.changed):
        size = pool.size[at][0]
        if size > 0:
            uneven += (1 - rooms.changed[at][0] / size) ** 2 - (1 - pool.free[at][0] / size) ** 2
    return (*worth(packer.classes, rooms), -packer.regrets(rooms), -len(rooms.gone), -round(uneven, 9))
