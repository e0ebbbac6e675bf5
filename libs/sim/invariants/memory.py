"""What a decider remembers stays bounded, however long a process lives and whatever it hears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from pydantic import BaseModel
from rpds import HashTrieMap

from libs.sim.invariants.book import Book
from libs.sim.world import World

LOOK_S = 10.0
EACH, FREE = 4, 40
"""Entries that a decider may hold for each host, VM and open incident, and besides. Twice what was measured."""


class Memory:
    """Looks at the state of every living decider now and then."""

    def __init__(self, world: World, book: Book) -> None:
        self._world, self._book = world, book
        world.loop.world_later(LOOK_S, self._again)

    def _again(self) -> None:
        self.look()
        self._world.loop.world_later(LOOK_S, self._again)

    def look(self) -> None:
        world, book = self._world, self._book
        open_ = len(book.failed_at) + len(world.scenario.vms) - len(book.completed)
        things = len(world.members) + len(world.scenario.vms) + max(0, open_)
        most = EACH * things + FREE
        for process, state in world.minds():
            held = entries(state)
            if held > most:
                said = f"{process} holds {held} entries for {things} hosts, VMs and open incidents"
                book.broken("bounded", f"{said}; {most} at most")


def entries(value: object) -> int:
    """How many elements all collections below this value have together."""
    if isinstance(value, str | bytes):
        return 0
    if isinstance(value, Mapping | HashTrieMap):
        return sum(1 + entries(one) for _, one in value.items())
    if isinstance(value, tuple | list | frozenset | set):
        return sum(1 + entries(one) for one in value)
    if isinstance(value, BaseModel):
        return sum(entries(one) for _, one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return sum(entries(getattr(value, one.name)) for one in fields(value))
    return 0
