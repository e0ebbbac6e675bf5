"""No protected VM stays with a host that is fenced: within a minute it is planned, waits with a reason, or runs: rule 10."""

from __future__ import annotations

import json
from typing import Any

from libs.model import Protection
from libs.sim.invariants.book import Book
from libs.sim.truth import Truth
from libs.sim.world import World

LOOK_S = 1.0
MOST_S = 60.0


class Assigned:
    """Looks at the leases and at placement's records, once a second. A time in which the bus takes no writes, or no
    placement runs, does not count."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._truth, self._book = world, truth, book
        self._since: dict[str, float] = {}
        self._look()

    def _look(self) -> None:
        world, now = self._world, self._world.loop.time()
        slots = [slot for slot in world.slots.values() if slot.name in ("placement", "executor", "fencer")]
        works = all(slot.process is not None and not slot.process.stopped for slot in slots)
        if not works or now - self._truth.rough_at < LOOK_S:
            self._since = {vm: since + LOOK_S for vm, since in self._since.items()}
        left = self._left()
        self._since = {vm: min(now, self._since.get(vm, now)) for vm in left}
        for vm, since in self._since.items():
            if now - since > MOST_S:
                said = f"VM {self._book.name(vm)} is still held by a fenced host, and nobody deals with it"
                self._book.broken("10", said)
        world.loop.world_later(LOOK_S, self._look)

    def _left(self) -> set[str]:
        """Wanted and protected, held by a boot that is fenced, and in nobody's hands."""
        book, dealt = self._book, {item["vm"] for item in self._items()}
        found = set()
        for vm, known in book.leases.items():
            lease = known[-1][1]
            protected = lease.wanted and lease.policy.protection is Protection.RESTART
            excused = vm in dealt or vm in book.given_up or vm in self._world.stopped_on_purpose
            left = lease.holder in book.fenced and not self._world.machines.running(vm)
            if protected and left and not excused:
                found.add(vm)
        return found

    def _items(self) -> list[dict[str, Any]]:
        rows = self._world.broker.scan("state", "placement.incident.")
        records = [json.loads(row.value)["record"] or {} for row in rows]
        items = [record["incident"]["items"] for record in records if record.get("incident")]
        return [item for some in items for item in some if item["phase"] in ("waiting", "planned")]
