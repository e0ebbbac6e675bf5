"""Who writes: rule 8. Only what a majority of the bus's servers takes is written, and only a role's holder decides."""

from __future__ import annotations

import json
from typing import Any

from libs.events.hosts import HostFailed
from libs.sim.broker import Stored
from libs.sim.invariants.book import Book
from libs.sim.loop import Process
from libs.sim.truth import Truth
from libs.sim.world import World

FAILED = b'"state":"failed"'


class Quorum:
    """Looks at every row and every fact, and at who writes it."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._book = world, book
        self._failed: set[str] = set()
        """Records of hosts that are held failed."""
        world.broker.on_row.append(self._row)
        world.broker.on_fact.append(self._fact)

    def _row(self, bucket: str, key: str, value: bytes | None, process: Process | None) -> None:
        self._written(f"{bucket} {key}", process)
        if bucket == "state" and key.startswith("detector.") and value is not None and process is not None:
            # most rows are of hosts that are well: these need not be read
            record = json.loads(value)["record"] or {} if FAILED in value else {}
            self._verdict(key, record, process)

    def _verdict(self, key: str, record: dict[str, Any], process: Process) -> None:
        """A host is held failed from now on: by who holds the role."""
        failed, held = record.get("state") == "failed", holder(self._world, "detector")
        if failed and key not in self._failed and not held.startswith(f"{process.name}#"):
            said = f"{process.name} writes a verdict on {record['host']}, and {held or 'nobody'} leads"
            self._book.broken("8", said)
        (self._failed.add if failed else self._failed.discard)(key)

    def _fact(self, stored: Stored) -> None:
        what = "a verdict" if isinstance(stored.fact, HostFailed) else stored.fact.kind
        self._written(f"{what} on {stored.fact.about}", stored.process)

    def _written(self, what: str, process: Process | None) -> None:
        if process is None:
            return
        if not self._world.broker.quorum:
            self._book.broken("8", f"{process.name} writes {what} with most servers of the bus away")
        elif self._of_minority(process):
            self._book.broken("8", f"{process.name} writes {what} from a minority's side")

    def _of_minority(self, process: Process) -> bool:
        mine = (one for one in self._world.broker.clients if one.process is process)
        return any(one.minority_since is not None for one in mine)


def holder(world: World, role: str) -> str:
    """The process that holds a role by the store, as it names itself there; "" for none."""
    row = next((one for one in world.broker.scan("leaders", role) if one.key == role), None)
    return "" if row is None else str(json.loads(row.value)["holder"])
