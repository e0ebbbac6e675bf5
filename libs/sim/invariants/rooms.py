"""Room that is made for others: only as the pool's policy allows, never upward, and told only where it is so."""

from __future__ import annotations

import json

from libs.events.drains import HostDrainPlanned
from libs.events.failovers import FailoverPlanned, PlannedStop
from libs.events.vms import VmMoved
from libs.model import Protection, VmPolicy
from libs.sim.broker import Stored
from libs.sim.invariants.book import Book
from libs.sim.invariants.drains import drained
from libs.sim.loop import Process
from libs.sim.truth import Truth
from libs.sim.world import World


class Rooms:
    """Looks at every order to move or stop a VM, and at what is told of it; and at whose VMs are moved away."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._book = world, book
        self._words: dict[str, dict[str, object]] = {}
        """By host what placement has stored of the words on it."""
        self._orders: set[str] = set()
        world.broker.on_fact.append(self._fact)
        world.broker.on_row.append(self._row)

    def _fact(self, stored: Stored) -> None:
        fact = stored.fact
        if isinstance(fact, FailoverPlanned):
            self._planned(fact)
        if isinstance(fact, HostDrainPlanned) and not self._world.settings.placement.migrations:
            self._book.broken("room", f"VM {fact.moves[0].name} is moved, and placement.migrations is off")
        if isinstance(fact, VmMoved):
            spells = self._world.machines.spells.get(fact.vm, ())
            if not any(spell.at == fact.at for spell in spells):
                self._book.broken(
                    "room", f"VM {fact.name} is told to be moved to {fact.at}, and never ran there"
                )

    def _row(self, bucket: str, key: str, value: bytes | None, process: Process | None) -> None:
        """By what placement itself has stored: a VM moves for others; or for nobody, from a host that is drained to one
        that takes VMs."""
        if bucket != "state" or not key.startswith("placement.") or value is None:
            return
        record = json.loads(value)["record"] or {}
        words, order = record.get("words"), record.get("room")
        if words is not None:
            host = key.removeprefix("placement.host.")
            self._words[host] = words
            if drained(words):
                self._book.drained.setdefault(host, self._world.loop.time())
            else:
                self._book.drained.pop(host, None)
        if order is None or order["to"] is None or order["key"] in self._orders:
            return
        self._orders.add(order["key"])
        source, target = (self._words.get(order[end]["host"], {}) for end in ("at", "to"))
        if not order["makes_room_for"] and not (source and drained(source)):
            self._book.broken("room", f"VM {order['name']} is moved from {order['at']}, which is not drained")
        if target.get("drain") or target.get("maintenance") or target.get("quarantined"):
            self._book.broken("room", f"VM {order['name']} is moved to {order['to']}, which takes none")

    def _planned(self, fact: FailoverPlanned) -> None:
        placement = self._world.settings.placement
        if fact.moves and not placement.migrations:
            self._book.broken("room", f"VM {fact.moves[0].name} is moved, and placement.migrations is off")
        for stop in fact.stops:
            self._book.preempted.add((stop.at, stop.vm, stop.run))
            if not placement.preemption:
                self._book.broken("room", f"VM {stop.name} is stopped, and placement.preemption is off")
            self._never_upward(stop)

    def _never_upward(self, stop: PlannedStop) -> None:
        specs = {spec.name: spec for spec in self._world.machines.specs.values()}
        for name in stop.makes_room_for:
            if not _rank(specs[name].policy) < _rank(stop.report.policy):
                self._book.broken("room", f"VM {stop.name} is stopped for {name}, which matters no more")


def _rank(policy: VmPolicy) -> tuple[bool, int]:
    return policy.protection is not Protection.RESTART, policy.priority.rank
