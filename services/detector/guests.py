"""What an inventory tells of its guests, pure: which failed, and whether all of a host did."""

from __future__ import annotations

import hashlib

from libs.crashes import crashes, grey, unhealthy
from libs.events.facts import AnyFact
from libs.events.guests import HostGrey
from libs.model import Inventory


def told(inventory: Inventory, before: Inventory | None, grey_min: int) -> list[AnyFact]:
    """The facts about VMs that this inventory adds to the one before it; all of them where there is none."""
    facts: list[AnyFact] = [*crashes(inventory, before), *unhealthy(inventory, before)]
    failing = grey(inventory, grey_min)
    was = before is not None and before.at == inventory.at and bool(grey(before, grey_min))
    if failing and not was:
        runs = " ".join(f"{one.uuid}/{one.run}/{one.token}" for one in failing)
        facts.append(
            HostGrey(
                at=inventory.at,
                guests=tuple(one.name for one in failing),
                mark=hashlib.sha256(runs.encode()).hexdigest()[:8],
                rule="all guests of known health fail, and the host speaks",
            )
        )
    return facts
