"""Witness plans: for the loss of each host a plan that places all that was promised there, kept while it holds.

A change of the pool costs what it changed: a witness whose own VMs and whose targets are as they were is kept unseen,
one whose targets changed is checked, and only one that does not hold any more is sought anew. So a pool that gains
a host, or memory, never loses a witness (SCIENCE §3.4: greedy planning from scratch may).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from libs.model import Protection
from libs.planning.exact import HOSTS_MAX, all_placed
from libs.planning.pack import VARIANTS, Packer
from libs.planning.pool import Pool, Rooms
from libs.planning.snapshot import SnapshotHostState, SnapshotVm

LOOKS_MAX = 100_000
"""Looks of a VM at a host in one refresh beside the first try a host."""
STEPS = 40_000
LIVING = (SnapshotHostState.ONLINE, SnapshotHostState.MAINTENANCE)


@dataclass(frozen=True, slots=True)
class Witness:
    """Where the promised VMs of lost hosts go. `possible`: False where it is sure that not all can be placed, None where
    none was found and one may exist."""

    placed: Mapping[str, str]
    left: tuple[str, ...] = ()
    possible: bool | None = True

    @property
    def complete(self) -> bool:
        return not self.left


class Budget:
    """How many looks may still be taken. A count and no clock: the same pool always gets the same answer."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def take(self, looks: int) -> bool:
        self.looks -= looks
        return self.looks >= 0


def promised(pool: Pool, places: Iterable[int]) -> list[SnapshotVm]:
    """VMs that must run again if these hosts are lost, the big ones first."""
    found = [vm for at in places for vm in pool.on[at] if vm.protection is Protection.RESTART]
    return sorted(found, key=lambda vm: (-vm.memory_mib, -vm.vcpus, vm.name))


def sought(
    pool: Pool, lost: frozenset[int], budget: Budget, start: Mapping[str, str] | None = None
) -> Witness:
    """A plan for what was promised on the lost hosts. With `start`, first what that says where it still may be."""
    return packed_all(Rooms(pool, lost), promised(pool, lost), budget, start)


def packed_all(
    fresh: Rooms, vms: Sequence[SnapshotVm], budget: Budget, start: Mapping[str, str] | None = None
) -> Witness:
    """A plan for all these VMs, the big ones first, where `fresh` has room. With `start`, first what that says."""
    pool = fresh.pool
    packer = Packer([vms], {})
    if start is not None:
        rooms = kept(packer, fresh.copy(), vms, start)
        if not packer.left(rooms):
            return _told(packer, rooms)
    first = packer.whole(fresh.copy(), "worst", "large")
    left = packer.left(first)
    if not left:
        return _told(packer, first)
    if any(packer.hopeless(fresh, vm) for vm in left) or not _sums_up(fresh, vms):
        return _told(packer, first, False)
    looks = len(vms) * len(pool.hosts)
    best = first
    for score, order in VARIANTS[1:]:
        if not budget.take(looks):
            break
        rooms = packer.whole(fresh.copy(), score, order)
        if not packer.left(rooms):
            return _told(packer, rooms)
        if len(packer.left(rooms)) < len(packer.left(best)):
            best = rooms
    if len(pool.hosts) > HOSTS_MAX or not budget.take(STEPS // 4):
        return _told(packer, best, None)
    possible, found = all_placed(packer, fresh, vms, STEPS)
    if possible:
        return Witness({vm: pool.hosts[at].name for vm, at in sorted(found.items())})
    return _told(packer, best, possible)


def kept(packer: Packer, rooms: Rooms, vms: Sequence[SnapshotVm], start: Mapping[str, str]) -> Rooms:
    """What `start` says where that may be, the rest to where most room is."""
    place = rooms.pool.place
    for vm in vms:
        at = place.get(start.get(vm.name, ""))
        if at is not None and rooms.open(at) and rooms.fits(vm, at, packer.bar(vm)):
            rooms.put(vm, at)
    for vm in vms:
        if vm.name not in rooms.at and (at := packer.choose(rooms, vm, "worst")) is not None:
            rooms.put(vm, at)
    return rooms


def _sums_up(fresh: Rooms, vms: Sequence[SnapshotVm]) -> bool:
    """All that is free together is enough."""
    free = [fresh.free(at) for at in fresh.hosts()]
    memory, cpus = sum(max(0.0, one[0]) for one in free), sum(max(0.0, one[1]) for one in free)
    return memory >= sum(vm.memory_mib for vm in vms) and cpus >= sum(vm.vcpus for vm in vms)


def _told(packer: Packer, rooms: Rooms, possible: bool | None = True) -> Witness:
    placed = {vm: rooms.pool.hosts[at].name for vm, at in sorted(rooms.at.items())}
    return Witness(placed, tuple(vm.name for vm in packer.left(rooms)), possible)


class Witnesses:
    """One witness a host that may fail. A value: `refreshed` makes the next one."""

    def __init__(self, pool: Pool, before: Witnesses | None = None) -> None:
        self.pool = pool
        self.of: dict[str, Witness] = {}
        self.sought = 0
        """How many had to be sought, and were not kept."""
        budget = Budget(LOOKS_MAX)
        changed, better = _changes(pool, before.pool if before else None)
        for at, host in enumerate(pool.hosts):
            if host.state not in LIVING:
                continue
            known = before.of.get(host.name) if before else None
            if known and before and _holds(pool, before.pool, at, known, changed, better):
                self.of[host.name] = known
                continue
            self.sought += 1
            self.of[host.name] = sought(pool, frozenset([at]), budget, known.placed if known else None)

    def refreshed(self, pool: Pool) -> Witnesses:
        """Of the pool as it is now: what holds is kept."""
        return Witnesses(pool, self)


def _holds(pool: Pool, before: Pool, at: int, known: Witness, changed: set[str], better: bool) -> bool:
    host = pool.hosts[at]
    old = before.place[host.name]
    if pool.on[at] != before.on[old] and promised(pool, [at]) != promised(before, [old]):
        return False
    if not known.complete:
        return not better and not changed
    grouped = any(vm in pool.groups for vm in known.placed)
    if not grouped and not changed.intersection(known.placed.values()):
        return True
    rooms = Rooms(pool, [at])
    for vm in promised(pool, [at]):
        to = pool.place.get(known.placed[vm.name])
        if to is None or not rooms.open(to) or not rooms.fits(vm, to):
            return False
        rooms.put(vm, to)
    return True


def _changes(pool: Pool, before: Pool | None) -> tuple[set[str], bool]:
    """Hosts that are not as they were, and whether any may take more than before."""
    if before is None:
        return set(), True
    changed = before.place.keys() - pool.place.keys()
    better = bool(changed) or pool.groups != before.groups
    for at, host in enumerate(pool.hosts):
        old = before.place.get(host.name)
        if old is None:
            changed, better = changed | {host.name}, True
            continue
        same = before.hosts[old] is host or before.hosts[old] == host
        if not same or before.free[old] != pool.free[at] or _devices(before, old) != _devices(pool, at):
            changed.add(host.name)
            worse = same and all(
                now <= then for now, then in zip(pool.free[at], before.free[old], strict=True)
            )
            better = better or not worse
    return changed, better


def _devices(pool: Pool, at: int) -> Mapping[str, int]:
    return pool.devices_left(at) if pool.hosts[at].devices else {}
