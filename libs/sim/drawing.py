"""What a maker of misfortunes is given, and what it makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

Step = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Draw:
    """What a maker of faults is given."""

    chance: Random
    hosts: list[str]
    vms: list[str]
    homes: dict[str, str]
    autostart: frozenset[str]
    replicas: int
    at_s: float
    stores: dict[str, list[str]] = field(default_factory=dict)
    """The datastores that have a name, and their hosts."""
    racks: dict[str, list[str]] = field(default_factory=dict)
    """Hosts by their rack, where the pool says so."""

    def when(self) -> dict[str, Any]:
        return {"at_s": self.at_s}

    def soon(self, least_s: float, most_s: float) -> float:
        """A moment so much later."""
        return round(self.at_s + self.chance.uniform(least_s, most_s), 3)

    def host(self) -> str:
        return self.chance.choice(self.hosts)
