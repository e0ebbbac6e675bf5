"""Hosts that fail one after the other: what was started after one failure is not moved when the next host fails.

It is a game. Somebody names a host, we place what was promised there and what we had placed there before, and so on for k
hosts. Who has an answer to each series has one to each loss at once, too: the places in the end. The reverse does not
hold: the plan for the first host must leave room for whichever is the second.

The first answer for each host is its witness. Whatever goes together as it is (see compose.py) needs no look in any order,
so only the rest is played: first with the witnesses, then with other plans, in small pools with all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from libs.planning.compose import Shape, composes
from libs.planning.pack import VARIANTS, Packer
from libs.planning.pool import Rooms
from libs.planning.snapshot import SnapshotVm
from libs.planning.witness import Budget, Witness, Witnesses, packed_all, promised

TRIES = 20_000
"""Answers that are looked for where a witness does not do as it is."""
AVOIDED = 8
"""How often a plan is sought that spares the hosts with whose loss the one before did not cope."""
Where = Mapping[str, int]
"""By VM the place where an earlier answer put it."""


class Succession:
    """One question to one pool: may these hosts fail in this number, whichever, one after the other?"""

    def __init__(
        self, kept: Witnesses, living: Sequence[int], known: Mapping[int, Shape], budget: Budget
    ) -> None:
        self.kept, self.living, self.known, self.budget = kept, living, known, budget
        self.tries = TRIES
        self.memo: dict[object, bool | None] = {}
        self.following: dict[frozenset[int], set[int]] = defaultdict(set)
        self.broken: tuple[int, ...] = ()
        """The first series to which there was no answer, where that is so in the end, and what it leaves down."""
        self.left: tuple[str, ...] = ()
        self._stuck: tuple[int, ...] = ()
        """The series of the last try that failed."""
        self.better: dict[int, Where] = {}
        """Plans for the first host that do where its witness did not."""

    def holds(self, count: int, series: Iterable[Sequence[int]]) -> bool | None:
        """None where the tries do not suffice. `series` are those in which witnesses do not do as they are; all others
        are known to hold."""
        for one in series:
            for length in range(count):
                self.following[frozenset(one[:length])].add(one[length])
        answer: bool | None = True
        for at in sorted(self.following[frozenset()]):
            doubtful = (self.broken, self.left)
            self.broken = self.left = ()
            found = self._answered((), {}, at, count - 1, True)
            if found is False:
                return False
            answer = answer and found
            if found or doubtful[0]:
                self.broken, self.left = doubtful
        return answer

    def _goes_on(self, lost: tuple[int, ...], where: Where, more: int, plain: bool) -> bool | None:
        """Whichever `more` hosts fail next. `plain`: all answers so far were witnesses as they are."""
        if more == 0:
            return True
        key = (frozenset(lost), frozenset(where.items()), more)
        if key in self.memo:
            return self.memo[key]
        following = self.following[frozenset(lost)] if plain else set(self.living)
        answer: bool | None = True
        for at in sorted(following.difference(lost)):
            found = self._answered(lost, where, at, more - 1, plain)
            if found is not True:
                answer = found
            if found is False:
                break
        self.memo[key] = answer
        return answer

    def _answered(
        self, before: tuple[int, ...], where: Where, at: int, more: int, plain: bool
    ) -> bool | None:
        """The next host fails: is there a plan with which it goes on?"""
        pool, lost = self.kept.pool, (*before, at)
        again = [pool.vms[name] for name, place in where.items() if place == at]
        staying = {name: place for name, place in where.items() if place != at}
        witness = self.kept.of[pool.hosts[at].name]
        doubt = False
        if not again and self._stands(witness, lost, staying):
            held = plain and composes(pool, self.known, lost)
            found = self._goes_on(lost, {**staying, **_places(self, witness)}, more, held)
            if found or more == 0:
                return found
            doubt = found is None
        vms = sorted([*again, *promised(pool, [at])], key=lambda vm: (-vm.memory_mib, -vm.vcpus, vm.name))
        fresh = self._rooms(lost, staying)
        first = packed_all(fresh, vms, self.budget, witness.placed)
        self.tries -= 1
        if not first.complete:
            self._stuck = lost
            if not self.broken:
                self.broken, self.left = lost, first.left
            return None if doubt or first.possible is not False else False
        found = self._goes_on(lost, {**staying, **_places(self, first)}, more, False)
        if found or self.tries < 0:
            return found or None
        return self._otherwise(lost, staying, fresh, vms, more, doubt or found is None)

    def _otherwise(
        self,
        lost: tuple[int, ...],
        staying: Where,
        fresh: Rooms,
        vms: Sequence[SnapshotVm],
        more: int,
        doubt: bool,
    ) -> bool | None:
        """The witness does not do: plans that spare the hosts that broke it, other greedy ones, then each there is."""
        for one in self._others(fresh, vms, lost):
            if self.tries < 0:
                return None
            found = self._goes_on(lost, {**staying, **one}, more, False)
            if found:
                if len(lost) == 1:
                    self.better[lost[0]] = one
                return True
            doubt = doubt or found is None
        return None if doubt else False

    def _others(self, fresh: Rooms, vms: Sequence[SnapshotVm], lost: tuple[int, ...]) -> Iterator[Where]:
        hosts, spared = fresh.pool.hosts, set[str]()
        for _ in range(AVOIDED):
            culprit = next((at for at in self._stuck if at not in lost), None)
            if culprit is None or hosts[culprit].name in spared:
                break
            spared.add(hosts[culprit].name)
            packer = Packer([vms], dict.fromkeys((vm.name for vm in vms), frozenset(spared)))
            rooms = packer.whole(fresh.copy(), "worst", "large")
            if not packer.left(rooms):
                yield {vm.name: rooms.at[vm.name] for vm in vms}
        packer = Packer([vms], {})
        if self.budget.take(len(VARIANTS) * len(vms) * len(hosts) // 4):
            for score, order in VARIANTS:
                rooms = packer.whole(fresh.copy(), score, order)
                if not packer.left(rooms):
                    yield {vm.name: rooms.at[vm.name] for vm in vms}
        yield from _each(fresh.copy(), vms, 0)

    def _stands(self, witness: Witness, lost: tuple[int, ...], staying: Where) -> bool:
        """The witness of the host that fails last does as it is, where all it places needs room alone."""
        pool, shape = self.kept.pool, self.known[lost[-1]]
        if not shape.whole or any(to in lost for to in shape.load):
            return False
        if staying and (shape.groups or shape.devices):
            return False
        taken: dict[int, tuple[int, int]] = {}
        for name, to in staying.items():
            if to in shape.load:
                memory, cpus = taken.get(to, shape.load[to])
                vm = pool.vms[name]
                taken[to] = (memory + vm.memory_mib, cpus + vm.vcpus)
        return all(
            memory <= pool.free[to][0] and cpus <= pool.free[to][1] for to, (memory, cpus) in taken.items()
        )

    def _rooms(self, lost: tuple[int, ...], staying: Where) -> Rooms:
        rooms = Rooms(self.kept.pool, lost)
        for name, to in staying.items():
            rooms.put(self.kept.pool.vms[name], to)
        return rooms


def _places(game: Succession, witness: Witness) -> Where:
    place = game.kept.pool.place
    return {name: place[to] for name, to in witness.placed.items()}


def _each(rooms: Rooms, vms: Sequence[SnapshotVm], at: int) -> Iterator[Where]:
    """All placements of all these VMs that break nothing."""
    if at == len(vms):
        yield {vm.name: rooms.at[vm.name] for vm in vms}
        return
    for place in rooms.fitting(vms[at]):
        rooms.put(vms[at], place)
        yield from _each(rooms, vms, at + 1)
        rooms.lift(vms[at], place)
