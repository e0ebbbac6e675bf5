"""VMs that wait: rule 10 (each for a stated reason), and priority across all incidents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from libs.events.failovers import FailoverCompleted, FailoverPlanned
from libs.model import Priority, Protection
from libs.sim.broker import Stored
from libs.sim.definitions import suits
from libs.sim.invariants.book import Book
from libs.sim.loop import Process
from libs.sim.truth import Truth
from libs.sim.world import World

INCIDENT = "placement.incident."
LATER_S = 1.5
"""One plan writes the records of several incidents, one after another: after so long all are written."""
Item = dict[str, Any]


class Waiting:
    """Looks at every incident that placement stores, and at what is said of it."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._truth, self._book = world, truth, book
        self._planned: dict[tuple[str, str], str] = {}
        """By incident and VM the start that was last stored."""
        self._stated: set[tuple[str, str]] = set()
        """By incident the names of VMs that were stored as waiting for a reason."""
        world.broker.on_row.append(self._row)
        world.broker.on_fact.append(self._fact)

    def _fact(self, stored: Stored) -> None:
        fact = stored.fact
        if isinstance(fact, FailoverPlanned):
            for waiting in fact.waiting:
                if not waiting.reason.strip():
                    self._book.broken("10", f"VM {waiting.name} waits, and no reason is stated")
        elif isinstance(fact, FailoverCompleted):
            for name in fact.waiting:
                if (fact.incident, name) not in self._stated:
                    self._book.broken("10", f"VM {name} waits after {fact.incident}, and no record says why")

    def _row(self, bucket: str, key: str, value: bytes | None, process: Process | None) -> None:
        if bucket != "state" or not key.startswith(INCIDENT):
            return
        for incident, item in _items(value):
            start = f"{item['to']}/{item['attempt']}" if item["phase"] == "planned" else ""
            if start and self._planned.get((incident, item["vm"]), "") != start:
                self._begun(incident, item)
            self._planned[incident, item["vm"]] = start
            if item["phase"] == "waiting" and item["reason"].strip():
                self._stated.add((incident, item["name"]))

    def _begun(self, incident: str, item: Item) -> None:
        """Room is taken: who waited for it by then, more important, and still does when all of that plan is written?"""
        if item["to"] == item["origin"]:
            return  # it was there before
        for other, waits in waiting(self._world):
            if other != incident and self._before(waits, item):
                self._world.loop.world_later(LATER_S, self._look, other, waits, item)

    def _look(self, incident: str, waits: Item, took: Item) -> None:
        still = any(other == incident and one == waits for other, one in waiting(self._world))
        if still and not self._world.machines.running(waits["vm"]):
            said = f"VM {waits['name']} waits, {took['name']} of another incident took room before it"
            self._book.broken("priority", said)

    def _before(self, waits: Item, took: Item) -> bool:
        """It waits for room only, on any host; it would fit where the other goes; and it comes before it."""
        machines, mine, other = self._world.machines, waits["policy"], took["policy"]
        never_tried = not waits["attempt"] and not waits["avoid"] and not waits["evict"]
        fits = waits["memory_mib"] <= took["memory_mib"] and waits["vcpus"] <= took["vcpus"]
        same = mine["protection"] == other["protection"] == Protection.RESTART.value
        changed = waits["vm"] in machines.policy_at or took["vm"] in machines.policy_at
        lies_alike = machines.specs[waits["vm"]].datastore == machines.specs[took["vm"]].datastore
        higher = Priority(mine["priority"]).rank < Priority(other["priority"]).rank
        for_room = waits["reason"].startswith("no_room") and suits(
            machines.hosts[took["to"]["host"]], machines.specs[waits["vm"]]
        )
        return never_tried and fits and same and not changed and lies_alike and higher and for_room


def _items(value: bytes | None) -> Iterator[tuple[str, Item]]:
    """Of one stored record, which may be of an incident that is over."""
    record = None if value is None else json.loads(value)["record"]
    incident = record and record.get("incident")
    if incident:
        yield from ((incident["id"], item) for item in incident["items"])


def waiting(world: World) -> Iterator[tuple[str, Item]]:
    """Incident and item of each VM that waits by placement's stored records."""
    for row in world.broker.scan("state", INCIDENT):
        yield from ((incident, item) for incident, item in _items(row.value) if item["phase"] == "waiting")


def unstated(world: World, book: Book, down: list[str]) -> Iterator[tuple[str, str]]:
    """Of VMs that run nowhere and for which there is no room those whose host was fenced: each is queued by some
    incident, with a reason."""
    queued = {item["vm"] for _, item in waiting(world) if item["reason"].strip()}
    for vm in down:
        _, lease = book.leases[vm][-1] if book.leases.get(vm) else (0.0, None)
        if lease is not None and lease.holder in book.fenced and lease.wanted and vm not in queued:
            yield "10", f"VM {book.name(vm)} runs nowhere, has no room, and no incident says why it waits"
