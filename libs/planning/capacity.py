"""How many hosts may fail: three numbers, never an optimistic guess.

`tolerates` is guaranteed: whichever k hosts fail, at once or in any order, there is a plan for it. `verified`: the adversary, who
picks hosts by what they offer and carry, and packs with the real planner, found no k hosts that break it. `upper_bound`:
more is proved impossible. What is promised are VMs with protection `restart` that run; nothing that is well is moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, permutations
from math import comb

from libs.model import Protection
from libs.planning.adversary import suspects
from libs.planning.bounds import any_fit, necessary
from libs.planning.compose import Shape, clashing, composes, mended, shapes
from libs.planning.plan import plan_in
from libs.planning.pool import Pool, Rooms
from libs.planning.snapshot import Snapshot
from libs.planning.succession import Succession
from libs.planning.witness import LIVING, Budget, Witness, Witnesses, promised, sought

SETS_MAX = 20_000
PLANNED_MAX = 3_000
LOOKS_MAX = 600_000
Shapes = Mapping[int, Shape]
Sets = Sequence[tuple[int, ...]]
PLANNED_HOSTS_MAX = 50
"""Of hosts whose loss leaves something down: for so many it is planned what."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """`worst_case` are the first hosts found whose loss leaves something down; () where there are none. `in_turn`: it does so
    if they fail one after the other in this order, and nothing that was started meanwhile is moved."""

    tolerates: int
    verified: int
    upper_bound: int
    proof: str
    worst_case: tuple[str, ...]
    in_turn: bool
    unplaced: tuple[str, ...]
    per_host: tuple[tuple[str, Witness], ...]
    fit_nowhere: tuple[str, ...]
    without: Capacity | None
    """The same without those that fit nowhere; None where there are none."""


@dataclass(slots=True)
class _Level:
    """What is known about the loss of k hosts. `certain`: that it fails is proved, not only that no plan was found."""

    holds: bool | None
    broken: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    certain: bool = False
    in_turn: bool = False


def capacity(snapshot: Snapshot, witnesses: Witnesses | None = None, up_to: int | None = None) -> Capacity:
    """All numbers, for at most `up_to` hosts where that is given. `witnesses` of the same pool save their making."""
    kept = witnesses or Witnesses(Pool(snapshot))
    found = _capacity(kept, up_to)
    if not found.fit_nowhere:
        return found
    names = set(found.fit_nowhere)
    vms = tuple(
        vm.model_copy(update={"protection": Protection.NONE}) if vm.name in names else vm
        for vm in snapshot.vms
    )
    rest = _capacity(kept.refreshed(Pool(snapshot.model_copy(update={"vms": vms}))), up_to)
    return replace(found, without=rest)


def _capacity(kept: Witnesses, up_to: int | None) -> Capacity:
    pool = kept.pool
    living = [at for at, host in enumerate(pool.hosts) if host.state in LIVING]
    upper = necessary(pool, living)
    most = upper if up_to is None else min(up_to, upper)
    budget = Budget(LOOKS_MAX)
    tolerates, how = 0, "nothing was asked"
    last = _Level(True)
    end = upper + 1 if up_to is None else min(up_to, upper + 1)  # one that is too many is named, too
    for count in range(1, min(end, len(living)) + 1):
        last = _level(kept, living, count, budget)
        if not last.holds:
            break
        tolerates, how = count, f"a plan for each loss of {_hosts(count)}"
    if last.certain:
        upper = min(upper, tolerates)
    if last.holds is None:
        certified = min(any_fit(pool, living), most)
        if certified > tolerates:
            tolerates = certified
            how = f"any order of placing after a loss of {_hosts(certified)} succeeds, by what is free everywhere"
    upper = max(upper, tolerates)
    verified = tolerates
    if last.holds is None:
        verified, found = _verified(kept, living, tolerates, min(most, upper), budget)
        last = found or last
    return Capacity(
        tolerates=tolerates,
        verified=verified,
        upper_bound=upper,
        proof=_proof(tolerates, verified, upper, how, last.holds is True),
        worst_case=last.broken,
        in_turn=last.in_turn,
        unplaced=_planned(pool, last.broken, last.left),
        per_host=_per_host(kept, living),
        fit_nowhere=tuple(sorted(_fit_nowhere(kept, living))),
        without=None,
    )


def _level(kept: Witnesses, living: list[int], count: int, budget: Budget) -> _Level:
    """Whether whichever `count` hosts may be lost, at once and in any order. Unknown where there are too many sets of them
    to be looked at."""
    if count == 1:
        return _ones(kept, living)
    known = shapes(kept.pool, kept.of, living)
    sets, series = _pairs(kept, known) if count == 2 else _sets(kept, known, count)
    if sets is None:
        return _Level(None)
    level = _first_broken(kept, sets, budget)
    return _in_any_order(kept, living, known, count, series, budget) if level.holds else level


def _pairs(kept: Witnesses, known: Shapes) -> tuple[Sets, Sets]:
    """Pairs whose witnesses do not go together, and the orders in which they do not."""
    orders = [
        one
        for pair in sorted(clashing(kept.pool, known))
        for one in (pair, pair[::-1])
        if not mended(kept.pool, kept.of, known, one)
    ]
    twice = Counter(tuple(sorted(one)) for one in orders)
    return [pair for pair, count in twice.items() if count == 2], orders


def _sets(kept: Witnesses, known: Shapes, count: int) -> tuple[Sets | None, Sets]:
    """The same for more than two. None where there are too many."""
    if comb(len(known), count) > SETS_MAX:
        return None, []
    lost = (one for one in combinations(sorted(known), count) if not composes(kept.pool, known, one))
    sets = list(islice(lost, PLANNED_MAX + 1))
    if len(sets) > PLANNED_MAX:
        return None, []
    return sets, [order for one in sets for order in permutations(one)]


def _in_any_order(
    kept: Witnesses, living: list[int], known: Shapes, count: int, series: Sets, budget: Budget
) -> _Level:
    """The same hosts one after the other. A plan for the first that does better than its witness is its witness from now on."""
    pool = kept.pool
    game = Succession(kept, living, known, budget)
    holds = game.holds(count, series)
    for at, where in game.better.items() if holds else ():
        kept.of[pool.hosts[at].name] = Witness({vm: pool.hosts[to].name for vm, to in sorted(where.items())})
    if holds:
        return _Level(True)
    broken = tuple(pool.hosts[at].name for at in game.broken)
    return _Level(holds, broken, game.left, holds is False, in_turn=True)


def _ones(kept: Witnesses, living: list[int]) -> _Level:
    """The worst host: the one whose loss leaves the most down."""
    pool = kept.pool
    broken = [
        (host.name, witness)
        for host in (pool.hosts[at] for at in living)
        if not (witness := kept.of[host.name]).complete
    ]
    if not broken:
        return _Level(True)

    def badness(one: tuple[str, Witness]) -> tuple[object, ...]:
        name, witness = one
        memory = sum(pool.vms[vm].memory_mib for vm in witness.left)
        return (witness.possible is not False, -len(witness.left), -memory, name)

    name, witness = min(broken, key=badness)
    return _Level(False, (name,), witness.left, witness.possible is False)


def _first_broken(kept: Witnesses, sets: Iterable[tuple[int, ...]], budget: Budget) -> _Level:
    pool, doubtful = kept.pool, _Level(True)
    for lost in sets:
        start = None
        if len(lost) == 2:
            start = {vm: to for at in lost for vm, to in kept.of[pool.hosts[at].name].placed.items()}
        found = sought(pool, frozenset(lost), budget, start)
        if found.complete:
            continue
        level = _Level(False, tuple(pool.hosts[at].name for at in lost), found.left, found.possible is False)
        if level.certain:
            return level
        if doubtful.holds:
            doubtful = level
    return doubtful


def _verified(
    kept: Witnesses, living: list[int], tolerates: int, upper: int, budget: Budget
) -> tuple[int, _Level | None]:
    """How far the adversary finds nothing, and what it found one further: in steps that double, then halve."""
    fine, broken, found, step = tolerates, upper + 1, None, 1
    while broken - fine > 1:
        count = min(fine + step, broken - 1) if found is None else (fine + broken) // 2
        level = _first_broken(kept, suspects(kept.pool, living, count), budget)
        if level.holds:
            fine, step = count, 2 * step
        else:
            broken, found = count, level
    return fine, found


def _planned(pool: Pool, lost: tuple[str, ...], left: tuple[str, ...]) -> tuple[str, ...]:
    """Which promised VMs the plan for these hosts leaves out, the most important first: a failed search for a witness
    leaves some, not those that a plan would."""
    found = plan_in(pool, frozenset(lost)).unplaced if lost else ()
    return tuple(one.vm for one in found if pool.vms[one.vm].protection is Protection.RESTART) or left


def _per_host(kept: Witnesses, living: list[int]) -> tuple[tuple[str, Witness], ...]:
    told, planned = [], 0
    for at in living:
        name = kept.pool.hosts[at].name
        witness = kept.of[name]
        if not witness.complete and planned < PLANNED_HOSTS_MAX:
            planned += 1
            witness = replace(witness, left=_planned(kept.pool, (name,), witness.left))
        told.append((name, witness))
    return tuple(told)


def _fit_nowhere(kept: Witnesses, living: list[int]) -> Iterator[str]:
    """VMs that find no room at all if their own host is lost, not even as the only ones."""
    pool = kept.pool
    for at in living:
        witness = kept.of[pool.hosts[at].name]
        if witness.complete:
            continue
        fresh = Rooms(pool, [at])
        for vm in promised(pool, [at]):
            if fresh.roomiest(vm) is None:
                yield vm.name


def _hosts(count: int) -> str:
    return "one host" if count == 1 else f"{count} hosts"


def _proof(tolerates: int, verified: int, upper: int, how: str, asked: bool) -> str:
    if tolerates == upper:
        return (
            f"exact: {how}, and {_hosts(upper + 1)} are proved too many" if tolerates else "exact: proved 0"
        )
    if tolerates < verified:
        return f"{how}; up to {_hosts(verified)} an adversary found nothing"
    if asked:
        return f"{how}; no more was asked for"
    return f"{how}; for {_hosts(tolerates + 1)} no plan was found, and none is proved impossible"
