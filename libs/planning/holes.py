"""Room made for a VM that has none: healthy VMs are moved away, or such as matter less are stopped.

A move may need another one first, so they are told in an order in which each finds its room. A VM is moved once at
most. Where two ways open a hole, that with fewer moves is looked at first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from libs.model import Protection
from libs.planning.pack import Packer
from libs.planning.pool import Rooms
from libs.planning.snapshot import GroupRule, SnapshotGroup, SnapshotVm

TRIES = 1500
HOSTS, SETS, DEPTH = 24, 6, 3
MANY = 128
Rank = Callable[[SnapshotVm], tuple[int, ...]]


@dataclass(slots=True)
class Opener:
    """The moves and stops of one plan in the making."""

    packer: Packer
    rooms: Rooms
    moves: list[tuple[str, int, int]] = field(default_factory=list)
    stopped: list[tuple[str, int]] = field(default_factory=list)
    tries: int = TRIES
    vms: dict[str, SnapshotVm] = field(default_factory=dict)
    """Those that this plan starts: they are put elsewhere without a move."""
    fixed: frozenset[str] = frozenset()
    """Those that may be neither moved nor stopped."""

    def put(self, vm: SnapshotVm, at: int) -> None:
        self.rooms.put(vm, at)
        self.vms[vm.name] = vm

    def move_for(self, vm: SnapshotVm) -> bool:
        """Put it somewhere, by moves."""
        self.vms[vm.name] = vm
        return any(self._place(vm, depth, frozenset()) for depth in range(1, DEPTH + 1))

    def _place(self, vm: SnapshotVm, depth: int, busy: frozenset[int]) -> bool:
        hosts = self.rooms.pool.hosts
        many = len(hosts) > MANY
        but = frozenset(hosts[at].name for at in busy)
        at = self.packer.choose(self.rooms, vm, "worst" if many else "tight", but)
        if at is not None:
            self.rooms.put(vm, at)
            return True
        if depth == 0:
            return False
        ways = [
            (len([one for one in victims if one.name not in self.vms]), waste, at, victims)
            for at in self._near(vm, busy)
            for waste, victims in self._sets(vm, at)
        ]
        ways.sort(key=lambda way: way[:3])
        for _, _, at, victims in ways:
            if self.tries <= 0:
                return False
            self.tries -= 1
            if self._swap(vm, at, victims, depth, busy):
                return True
        return False

    def _swap(
        self, vm: SnapshotVm, at: int, victims: Sequence[SnapshotVm], depth: int, busy: frozenset[int]
    ) -> bool:
        """The VM there, and the victims elsewhere; nothing where that fails."""
        before, moves = self.rooms.copy(), len(self.moves)
        for one in victims:
            self.rooms.lift(one, at)
        if self.rooms.fits(vm, at, self.packer.bar(vm)):
            self.rooms.put(vm, at)
            for one in victims:
                # moves come before stops: what runs cannot move into room that a stop is yet to make
                stops = frozenset() if one.name in self.vms else frozenset(there for _, there in self.stopped)
                if not self._place(one, depth - 1, busy | {at} | stops):
                    break
                if one.name not in self.vms:
                    self.moves.append((one.name, at, self.rooms.at[one.name]))
            else:
                if not self._deserted(self.rooms, victims):
                    return True
        self.rooms = before
        del self.moves[moves:]
        return False

    def _near(self, vm: SnapshotVm, busy: frozenset[int]) -> list[int]:
        """Hosts that would suit it, those that lack the least first."""
        rooms, barred = self.rooms, self.packer.bar(vm)
        found = [
            at
            for at in rooms.hosts()
            if at not in busy
            and rooms.pool.size[at][0] >= vm.memory_mib
            and not rooms.pool.obstacle(at, vm)
            and rooms.pool.hosts[at].name not in barred
        ]
        return sorted(found, key=lambda at: (self._lacking(vm, at)[0], at))[:HOSTS]

    def _lacking(self, vm: SnapshotVm, at: int) -> tuple[float, float]:
        memory, cpus = self.rooms.free(at)
        return max(0.0, vm.memory_mib - memory), max(0.0, vm.vcpus - cpus)

    def _movable(self, at: int) -> list[SnapshotVm]:
        """Who may leave this host, the big ones first. What holds a device cannot be migrated while it runs."""
        rooms = self.rooms
        there = [
            vm
            for vm in rooms.pool.on[at]
            if vm.name not in rooms.gone
            and vm.name not in rooms.at
            and vm.name not in self.fixed
            and not vm.devices
        ]
        there += [vm for name, vm in self.vms.items() if rooms.at.get(name) == at]
        return sorted(there, key=lambda vm: (-vm.memory_mib, -vm.vcpus, vm.name))

    def _sets(self, vm: SnapshotVm, at: int) -> Iterator[tuple[float, list[SnapshotVm]]]:
        """Sets of VMs of that host without which there would be room, with how much more they free than needed: few
        big ones, and with each start one smaller. Where room is not what lacks, each by itself."""
        memory, cpus = self._lacking(vm, at)
        movable = [one for one in self._movable(at) if one.name != vm.name]
        sizes: set[tuple[tuple[int, int], ...]] = set()
        for first in range(len(movable)):
            found: list[SnapshotVm] = []
            freed, freed_cpus = 0, 0
            for one in movable[first:]:
                found.append(one)
                freed += one.memory_mib
                freed_cpus += one.vcpus
                if freed >= memory and freed_cpus >= cpus:
                    break
            else:
                return
            like = tuple((one.memory_mib, one.vcpus) for one in found)
            if like in sizes and not self.rooms.pool.groups and not vm.devices:
                continue
            sizes.add(like)
            yield freed - memory, found
            if len(sizes) >= SETS:
                return

    def stop_for(self, vm: SnapshotVm, rank: Rank) -> bool:
        """Put it where the least important VMs, all less important than it, make room by being stopped."""
        if vm.protection is not Protection.RESTART:
            return False
        ways = [
            (self._loss(victims, rank), at, victims)
            for at in self._near(vm, frozenset())
            if (victims := self._victims(vm, at, rank))
        ]
        if not ways:
            return False
        _, at, victims = min(ways, key=lambda way: way[:2])
        for one in victims:
            self.rooms.lift(one, at)
            self.stopped.append((one.name, at))
        self.put(vm, at)
        return True

    def _loss(self, victims: Sequence[SnapshotVm], rank: Rank) -> tuple[object, ...]:
        """What it costs: the importance of those that are stopped, the most important first, then how many."""
        told = sorted(rank(one) for one in victims)
        return tuple(tuple(-step for step in one) for one in told), len(told)

    def _victims(self, vm: SnapshotVm, at: int, rank: Rank) -> list[SnapshotVm]:
        """Who would be stopped there; [] where that would not help."""
        mine, rooms = rank(vm), self.rooms
        lesser = [
            one
            for one in rooms.pool.on[at]
            if rank(one) > mine
            and one.protection is not Protection.NONE
            and one.name not in self.fixed
            and one.name not in rooms.gone
            and one.name not in rooms.at
        ]
        lesser.sort(key=lambda one: (rank(one), one.memory_mib, one.name), reverse=True)
        tried, found = rooms.copy(), list[SnapshotVm]()
        for one in lesser:
            if self._helps(tried, vm, at, found):
                break
            without = tried.copy() if self._holding([one]) else tried
            without.lift(one, at)
            if not self._deserted(without, [one]):
                tried = without
                found.append(one)
        if not self._helps(tried, vm, at, found):
            return []
        for one in reversed(list(found)):  # the most important may be spared where the others suffice
            fewer, again = [other for other in found if other is not one], rooms.copy()
            for other in fewer:
                again.lift(other, at)
            if self._helps(again, vm, at, fewer):
                found = fewer
        return found

    def _helps(self, rooms: Rooms, vm: SnapshotVm, at: int, gone: Sequence[SnapshotVm]) -> bool:
        """Once these are gone from there it fits, and nobody whom this plan has put somewhere is worse off by that."""
        if not rooms.fits(vm, at, self.packer.bar(vm)):
            return False
        if not self._holding(gone):
            return True
        after = rooms.copy()
        after.put(vm, at)
        return not self._deserted(after, gone, {vm.name})

    def _holding(self, vms: Iterable[SnapshotVm]) -> list[SnapshotGroup]:
        """The groups that others must stay together with these by."""
        found = [group for vm in vms for group in self.rooms.pool.groups.get(vm.name, ())]
        return [group for group in found if group.strict and group.rule is GroupRule.AFFINITY]

    def _deserted(
        self, rooms: Rooms, left: Iterable[SnapshotVm], more: Collection[str] = frozenset()
    ) -> bool:
        """Without these, where they were, whom this plan had put beside them (or puts: `more`) would be away from the rest
        of its group."""
        ours = {*self.vms, *more}
        return any(rooms.apart(group, ours) for group in self._holding(left))
