"""Two bounds on how many hosts may fail that cost next to nothing (SCIENCE §3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from libs.planning.pool import Pool, Rooms, wants_of
from libs.planning.snapshot import GroupRule, SnapshotVm
from libs.planning.witness import promised

LOOKED_AT = 500
"""VMs of which it is counted how many hosts could take them."""


def necessary(pool: Pool, living: Sequence[int]) -> int:
    """More than so many is impossible, proved: a host that fails takes what is free on it, and adds what was promised.
    Also no VM can be placed once all hosts are lost that could take it."""
    demand = {at: promised(pool, [at]) for at in living}
    if not any(demand.values()):
        return len(living)
    bound = len(living) - 1
    for dimension in range(2):
        free = {at: max(0.0, pool.free[at][dimension]) if pool.usable[at] else 0.0 for at in living}
        asked = {at: sum((vm.memory_mib, vm.vcpus)[dimension] for vm in vms) for at, vms in demand.items()}
        total, taken = sum(free.values()), 0.0
        for count, offered in enumerate(sorted((free[at] + asked[at] for at in living), reverse=True), 1):
            taken += offered
            if taken > total:
                bound = min(bound, count - 1)
                break
    for at, vm in _choosy(pool, demand):
        bound = min(bound, _choice(Rooms(pool, [at]), vm, bound))
    return bound


def _choosy(pool: Pool, demand: Mapping[int, Sequence[SnapshotVm]]) -> list[tuple[int, SnapshotVm]]:
    """Of VMs that ask the same of a host the largest in memory and in vCPUs, and of those in groups the first few:
    whoever has the fewest hosts to choose from is among them, but for groups."""
    largest: dict[object, tuple[int, int, SnapshotVm]] = {}
    for at, vms in sorted(demand.items()):
        for vm in vms:
            wants: object = vm.name if vm.name in pool.groups else wants_of(vm)
            for which, size in (("memory", vm.memory_mib), ("vcpus", vm.vcpus)):
                known = largest.get((wants, which))
                if known is None or size > known[0]:
                    largest[wants, which] = (size, at, vm)
    return [(at, vm) for _, at, vm in largest.values()][:LOOKED_AT]


def _choice(rooms: Rooms, vm: SnapshotVm, enough: int) -> int:
    """How many hosts could take the VM, counted up to `enough`. Whom it must be with may be lost, too, and then go with it:
    affinity does not count against a host."""
    count = 0
    pool = rooms.pool
    apart = not any(
        group.strict and group.rule is GroupRule.AFFINITY for group in pool.groups.get(vm.name, ())
    )
    for at in pool.roomiest:
        if count >= enough or rooms.free(at)[0] < vm.memory_mib:
            break
        if at not in rooms.without and rooms.holds(vm, at) and not pool.obstacle(at, vm):
            count += not apart or rooms.broken(vm, at) is None
    return count


def any_fit(pool: Pool, living: Sequence[int]) -> int:
    """So many for which placing succeeds in any order whatsoever, proved. Who is stuck is blocked on every survivor by
    memory or vCPUs, so more was placed there than what is free less the largest VM. Where anything but room constrains
    a VM this says nothing: 0."""
    demand = {at: promised(pool, [at]) for at in living}
    vms = [vm for one in demand.values() for vm in one]
    if not vms:
        return len(living)
    if any(wants_of(vm) is not None or vm.name in pool.groups for vm in vms):
        return 0
    largest = (max(vm.memory_mib for vm in vms), max(vm.vcpus for vm in vms))
    asked = [
        sorted((sum((vm.memory_mib, vm.vcpus)[d] for vm in one) for one in demand.values()), reverse=True)
        for d in range(2)
    ]
    certified = 0
    for count in range(1, len(living)):
        top = [sum(asked[d][:count]) for d in range(2)]
        spare = sorted(
            min(max(0.0, pool.free[at][d] - largest[d]) / top[d] for d in range(2))
            for at in living
            if pool.usable[at]
        )
        if sum(spare[: len(spare) - count]) < 2:
            break
        certified = count
    return certified
