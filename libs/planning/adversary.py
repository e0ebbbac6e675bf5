"""Sets of hosts whose loss is most likely to break the pool: by what they offer, carry and have alone, and some by chance
that is the same each time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

from libs.planning.pool import Pool, Rooms
from libs.planning.snapshot import SnapshotVm
from libs.planning.witness import promised

DRAWN = 40
TAKERS = 12
FEWEST, PLACED = 5, 10_000
"""Sets, and VMs placed for all sets of one size."""


def suspects(pool: Pool, living: Sequence[int], count: int) -> Iterator[tuple[int, ...]]:
    """Each set once, and the larger they are the fewer."""
    told: set[tuple[int, ...]] = set()
    vms = sum(len(pool.on[at]) for at in living) * count // max(1, len(living))
    most = max(FEWEST, PLACED // max(1, vms))
    for one in _all(pool, living, count):
        lost = tuple(sorted(one))
        if len(lost) == count and lost not in told:
            told.add(lost)
            yield lost
        if len(told) >= most:
            return


def _all(pool: Pool, living: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    demand = {at: promised(pool, [at]) for at in living}
    memory = {at: sum(vm.memory_mib for vm in vms) for at, vms in demand.items()}
    cpus = {at: sum(vm.vcpus for vm in vms) for at, vms in demand.items()}
    free = {at: pool.free[at] if pool.usable[at] else (0.0, 0.0) for at in living}
    keys: list[Callable[[int], float]] = [
        lambda at: free[at][0] + memory[at],
        lambda at: free[at][1] + cpus[at],
        lambda at: memory[at],
        lambda at: cpus[at],
        lambda at: len(demand[at]),
        lambda at: max((vm.memory_mib for vm in demand[at]), default=0),
        lambda at: free[at][0],
    ]
    for key in keys:
        ordered = sorted(living, key=lambda at: (-key(at), at))
        yield ordered[:count]
        for skip in range(min(count, 3)):  # one of them spared for the next
            yield [*ordered[:skip], *ordered[skip + 1 : count + 1]]
    yield from _takers(pool, living, demand, count)
    for number in range(DRAWN):
        yield sorted(living, key=lambda at: _chance(pool.hosts[at].name, count, number))[:count]


def _takers(
    pool: Pool, living: Sequence[int], demand: dict[int, list[SnapshotVm]], count: int
) -> Iterator[Sequence[int]]:
    """The VMs with the fewest hosts to choose from: their own host, and the roomiest of those that could take them."""
    scarce = []
    for at in living:
        rooms = Rooms(pool, [at])
        for vm in demand[at][:3]:
            takers = [to for to in pool.roomiest if to != at and rooms.fits(vm, to)][:count]
            scarce.append((len(takers), vm.name, [at, *takers[: count - 1]]))
    scarce.sort()
    for _, _, lost in scarce[:TAKERS]:
        yield lost


def _chance(name: str, count: int, number: int) -> bytes:
    return hashlib.sha256(f"{name}/{count}/{number}".encode()).digest()
