"""Who may hold the disks of a VM whose start their lock refused. No lock names its holder: what is known is said."""

from __future__ import annotations

from collections.abc import Iterable

from libs.events.failovers import PlannedStart
from libs.model import Inventory


def still_held(start: PlannedStart, shown: Iterable[Inventory]) -> str:
    """By what hosts say that are heard; where none says that it runs there, where it ran last, and what was proven of that.
    A proof that the lock contradicts is worth a look: its device may lie."""
    for inventory in shown:
        report = inventory.vm(start.vm)
        if report is not None and report.state.active and inventory.at != start.to:
            return f"still held by {inventory.at}, which says that it is {report.state.value} there"
    proof = next((one for one in start.proofs if one.of == start.origin), None)
    known = f", which was held harmless by {proof.method.value}" if proof is not None else ""
    return f"still held by a host that does not say so: it ran last on {start.origin}{known}"
