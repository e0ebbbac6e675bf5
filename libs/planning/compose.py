"""Which witnesses go together: hosts whose witnesses do not use each other and do not crowd any target may be lost, at
once or one after the other, without another plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from libs.planning.pool import Pool
from libs.planning.snapshot import SnapshotVm
from libs.planning.witness import Witness

Load = dict[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a witness takes, and what its host bears on: `load` by target in MiB and vCPUs, `devices` by target;
    `groups` are strict ones of VMs that it places, `members` those of which any VM runs on the lost host."""

    whole: bool
    load: Load
    devices: frozenset[tuple[int, str]]
    groups: frozenset[str]
    members: frozenset[str]


def shapes(pool: Pool, of: Mapping[str, Witness], living: Sequence[int]) -> dict[int, Shape]:
    """By host, of all that may fail."""
    return {at: _shape(pool, of[pool.hosts[at].name], at) for at in living}


def _shape(pool: Pool, witness: Witness, lost: int) -> Shape:
    load: Load = {}
    devices: set[tuple[int, str]] = set()
    for name, to in witness.placed.items():
        at, vm = pool.place[to], pool.vms[name]
        memory, cpus = load.get(at, (0, 0))
        load[at] = (memory + vm.memory_mib, cpus + vm.vcpus)
        devices.update((at, device) for device in vm.devices)
    groups = _strict(pool, witness.placed) if pool.groups else frozenset()
    members = _strict(pool, [vm.name for vm in pool.on[lost]]) if pool.groups else frozenset()
    return Shape(witness.complete, load, frozenset(devices), groups, members)


def _strict(pool: Pool, names: Mapping[str, str] | Sequence[str]) -> frozenset[str]:
    return frozenset(group.name for name in names for group in pool.groups.get(name, ()) if group.strict)


def _meddles(one: Shape, other: Shape) -> bool:
    """More than memory and vCPUs is between them: a strict group of which both hosts have members, or a target whose
    devices both want."""
    return (
        not one.groups.isdisjoint(other.members)
        or not other.groups.isdisjoint(one.members)
        or not one.devices.isdisjoint(other.devices)
    )


def clashing(pool: Pool, known: Mapping[int, Shape]) -> set[tuple[int, int]]:
    """Pairs of hosts whose witnesses do not go together as they are. Only targets that two witnesses could crowd are
    looked at pair by pair."""
    found: set[tuple[int, int]] = set()
    users: dict[int, list[int]] = defaultdict(list)
    grouped: dict[str, list[int]] = defaultdict(list)
    for at, shape in known.items():
        for to in shape.load:
            users[to].append(at)
            if to in known:
                found.add((min(at, to), max(at, to)))
        for group in shape.members:
            grouped[group].append(at)
    for to, using in users.items():
        found |= _crowded(pool, known, to, using)
    for hosts in grouped.values():
        found |= {pair for pair in combinations(sorted(hosts), 2) if _meddles(*(known[at] for at in pair))}
    return found


def _crowded(pool: Pool, known: Mapping[int, Shape], to: int, using: list[int]) -> set[tuple[int, int]]:
    """Pairs that want more of one target than there is."""
    free, found = pool.free[to], set()
    wanting = [at for at in using if known[at].devices]
    found |= {pair for pair in combinations(sorted(wanting), 2) if _meddles(*(known[at] for at in pair))}
    tight = [
        d
        for d in range(2)
        if sum(sorted((known[at].load[to][d] for at in using), reverse=True)[:2]) > free[d]
    ]
    for one, other in combinations(sorted(using), 2) if tight else ():
        if any(known[one].load[to][d] + known[other].load[to][d] > free[d] for d in tight):
            found.add((one, other))
    return found


def composes(pool: Pool, known: Mapping[int, Shape], lost: Sequence[int]) -> bool:
    """The witnesses of all these hosts go together as they are."""
    total: Load = {}
    for at in lost:
        shape = known[at]
        if not shape.whole:
            return False
        for to, (memory, cpus) in shape.load.items():
            if to in lost:
                return False
            before = total.get(to, (0, 0))
            total[to] = (before[0] + memory, before[1] + cpus)
    if not all(
        memory <= pool.free[to][0] and cpus <= pool.free[to][1] for to, (memory, cpus) in total.items()
    ):
        return False
    return not any(_meddles(known[one], known[other]) for one, other in combinations(lost, 2))


def mended(pool: Pool, of: Mapping[str, Witness], known: Mapping[int, Shape], lost: Sequence[int]) -> bool:
    """The witnesses of all these hosts go together once those VMs are put elsewhere that they would put onto each other,
    or onto a target that is full by then: where most room is. So it is for one after the other, too: the first keeps all
    of its witness that is not on the second host. False says nothing."""
    total: Load = {}
    homeless = []
    for at in lost:
        witness, shape = of[pool.hosts[at].name], known[at]
        if not shape.whole or shape.groups or shape.devices:
            return False
        for name, to in witness.placed.items():
            if not _added(pool, total, pool.vms[name], pool.place[to], lost):
                homeless.append(pool.vms[name])
    for vm in sorted(homeless, key=lambda vm: (-vm.memory_mib, -vm.vcpus, vm.name)):
        for place in pool.roomiest:
            if pool.free[place][0] < vm.memory_mib:
                return False
            if not pool.obstacle(place, vm) and _added(pool, total, vm, place, lost):
                break
        else:
            return False
    return True


def _added(pool: Pool, total: Load, vm: SnapshotVm, to: int, lost: Sequence[int]) -> bool:
    memory, cpus = total.get(to, (0, 0))
    memory, cpus = memory + vm.memory_mib, cpus + vm.vcpus
    if to in lost or memory > pool.free[to][0] or cpus > pool.free[to][1]:
        return False
    total[to] = (memory, cpus)
    return True
