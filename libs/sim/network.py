"""Who reaches whom, and how late. Links are directed: a cut may be one-way."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

BUS = "bus"
SHORTEST_S, LONGEST_S = 0.0005, 0.008


class Network:
    """Machines by name. `management` machines and the bus share a name only where the world says so."""

    def __init__(self, chance: Random, own: Random, aside: Random | None = None) -> None:
        """`own`: the luck of what a process says to itself, which is nobody else's. `aside`: that of what goes on beside
        the story in every world (the mark of the stored state), so that it shifts nobody's luck."""
        self._chance, self.own, self.aside = chance, own, aside or own
        self._cuts: set[tuple[str, str]] = set()
        self.delay_s = 0.0
        self.loss = 0.0
        """Share of core messages and of single calls that are lost."""

    @property
    def calm(self) -> bool:
        return not self._cuts and not self.delay_s and not self.loss

    def reaches(self, sender: str, receiver: str) -> bool:
        return not self._cuts or (sender, receiver) not in self._cuts

    def both_ways(self, one: str, other: str) -> bool:
        return self.reaches(one, other) and self.reaches(other, one)

    def latency(self, luck: Random | None = None) -> float:
        """Seconds for one way. What goes on beside the story takes its time in bad weather only."""
        if luck is self.aside and luck is not self.own and self.calm:
            return 0.0
        chance = luck or self._chance
        late = chance.random()
        base = SHORTEST_S + (LONGEST_S - SHORTEST_S) * late * late
        return base if not self.delay_s else base + self.delay_s * chance.random()

    def lost(self, luck: Random | None = None) -> bool:
        return self.loss > 0 and (luck or self._chance).random() < self.loss

    def cut(self, groups: Iterable[Iterable[str]], *, one_way: bool = False) -> None:
        """No member of one group reaches a member of another; with `one_way` the first group is not heard by
        the others and hears them."""
        parts = [list(group) for group in groups]
        links = [
            (a, b)
            for index, group in enumerate(parts)
            for other, others in enumerate(parts)
            if index != other and (not one_way or index == 0)
            for a in group
            for b in others
        ]
        self._cuts.update(links)

    def heal(self) -> None:
        """All cuts, delays and losses end."""
        self._cuts.clear()
        self.delay_s = self.loss = 0.0
