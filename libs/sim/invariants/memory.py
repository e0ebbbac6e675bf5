"""What a decider remembers stays bounded, however long a process lives and whatever it hears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from rpds import HashTrieMap

from libs.sim.invariants.book import Book
from libs.sim.truth import Truth
from libs.sim.world import World

LOOK_S = 10.0
EACH, FREE = 4, 40
"""Entries that a decider may hold for each host, VM and open incident, for each slot of a host but its first, and
besides. Twice what was measured."""
PROVED, PROVED_HOST = 8, 13
"""What placement holds more for each where it watches what the pool could take: a snapshot, a proof, a plan for each loss.
Of a host that is its inventory, its place in the snapshot and its storage there; its name and the plan for its loss,
as a pair in the list of such pairs, and once more without those that fit nowhere (six); the plan kept ready; and in the
records, which the proof holds as they were when it was made, that it joined, and what is shown of that plan (two)."""
CLOCKS = 2
"""What the detector holds more of each host: the clocks stored with it, services/detector/clocks.py."""
COPY = 2
"""A definition of a VM on one more host, where a start has failed or from where it has moved: the host's inventory shows
it, with its datastore. The proof holds the inventories that it was made from."""
NAMED = 3
"""How often placement holds what a host offers and a VM needs by name: as it was told, as the proof was made from it, and in
the proof's snapshot. Others hold what a VM needs with their inventories."""
DOUBT, WELL_S = 15, 6.0
"""What the detector holds more of a host in doubt: an answer by its fence device and its libvirt, one of the peer that
is asked in every round, two more a round for the five rounds in which an answer comes or is of use, and the latest two
signs of life. Whoever has been well for so long is in no doubt (rule 6, which verdicts.py checks)."""


class Memory:
    """Looks at the state of every living decider now and then."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._truth, self._book = world, truth, book
        world.loop.world_later(LOOK_S, self._again)

    def _again(self) -> None:
        self.look()
        self._world.loop.world_later(LOOK_S, self._again)

    def look(self) -> None:
        world, book = self._world, self._book
        open_ = len(book.failed_at) + len(book.preempted) + len(world.scenario.vms) - len(book.completed)
        things = len(world.members) + len(world.scenario.vms) + max(0, open_)
        slots = sum(len(one.hosts or world.members) for one in world.settings.datastores)
        things += max(
            0, slots - len(world.members)
        )  # what was seen of each is kept while its host is in doubt
        doubted = sum(self._truth.well_for(host) <= WELL_S for host in world.machines.hosts)
        defined = sum(len(host.domains) for host in world.machines.hosts.values())
        copies = COPY * max(0, defined - len(world.scenario.vms))
        hosts, needed = len(world.members), _needed(world)
        named = NAMED * (needed + _offered(world)) - needed
        for process, state in world.minds():
            held, asking = entries(state), 0
            if process.startswith("detector"):
                asking = DOUBT * doubted + CLOCKS * hosts + copies
            if process.startswith("placement"):
                proved = bool(world.settings.placement.failures_to_tolerate)
                asking = copies + proved * (PROVED * (things - hosts) + PROVED_HOST * hosts + copies) + named
            most = EACH * things + FREE + asking + needed
            if held > most:
                said = f"{process} holds {held} entries for {things} hosts, VMs, further slots and open incidents"
                book.broken("bounded", f"{said}, {doubted} hosts in doubt; {most} at most")


def _needed(world: World) -> int:
    """What VMs need by name."""
    return sum(len(vm.networks) + len(vm.devices) for vm in world.scenario.vms)


def _offered(world: World) -> int:
    """What hosts offer by name, and each that offers something."""
    return sum(1 + entries(host.offers) for host in world.machines.hosts.values() if host.offers is not None)


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
