"""What a decider remembers stays bounded, however long a process lives and whatever it hears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

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
    kind: Any = type(value)
    names = _parts(kind)
    if names is None:
        return 0
    if names:
        return sum(entries(getattr(value, name)) for name in names)
    if isinstance(value, tuple | list | frozenset | set):
        return len(value) + sum(map(entries, value))
    assert isinstance(value, Mapping | HashTrieMap)
    return len(value) + sum(map(entries, value.values()))


@cache  # what a class is does not change, and asking it costs more than counting
def _parts(kind: type[Any]) -> tuple[str, ...] | None:
    """None for a value that holds nothing; the fields of a record; empty for a collection."""
    if issubclass(kind, Mapping | HashTrieMap | tuple | list | frozenset | set):
        return ()
    if issubclass(kind, BaseModel):
        return tuple(kind.model_fields) or None
    if is_dataclass(kind):
        return tuple(one.name for one in fields(kind)) or None
    return None
