"""How many starts at once a host and a datastore take, by how long starts take there. Pure.

Additive increase, multiplicative decrease, as TCP does: while starts are about as quick as the quickest lately, one more
is tried for each round of them; one that takes a multiple of that, or whose end nobody can tell, halves the number, once
for those that were under way then. The settings are the bounds above, one start at a time that below.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from rpds import HashTrieMap

from libs.config.settings import Restart
from libs.core.evolve import replace
from libs.events.failovers import PlannedStart

SLOW, SLOW_S = 3.0, 2.0
"""A start is slow that takes so many times the quickest, and at least so many seconds."""
FORGETS = 1.02
"""With each start the quickest counts for a little longer: what was quick on an idle host is not for ever."""
FIRST = 4
"""With so many at once a host or a datastore of which nothing is known begins, if the settings allow."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one host or datastore."""

    limit: float
    quickest_s: float | None = None
    lowered_at: float = -1.0
    """When it was halved last: starts that had begun by then say nothing new."""


Paces: TypeAlias = "HashTrieMap[str, Pace]"


def keys(start: PlannedStart) -> tuple[str, ...]:
    """What a start loads: its host, and the datastores of its disks."""
    return (f"host/{start.to.host}", *(f"datastore/{name}" for name in start.datastores))


def most(settings: Restart, key: str) -> int:
    """The bound by the settings."""
    return settings.parallel_per_host if key.startswith("host/") else settings.parallel_per_datastore


def allowed(paces: Paces, settings: Restart, key: str) -> int:
    """How many starts at once, now."""
    known = paces.get(key)
    return max(1, int(known.limit)) if known is not None else min(FIRST, most(settings, key))


def ended(
    paces: Paces, settings: Restart, loads: Iterable[str], began: float, now: float, *, told: bool
) -> Paces:
    """After a start that began then has ended now. Not `told`: nobody can tell how it ended, which is slow."""
    took = now - began
    for key in loads:
        before = paces.get(key) or Pace(float(min(FIRST, most(settings, key))))
        known = before.quickest_s
        quickest = took if known is None else min(took, known * FORGETS)
        slow = not told or (known is not None and took > max(SLOW * known, SLOW_S))
        after = replace(before, quickest_s=quickest if told else known)
        if slow and began > before.lowered_at:
            after = replace(after, limit=max(1.0, before.limit / 2), lowered_at=now)
        elif not slow:
            grown = before.limit + 1.0 / max(1.0, before.limit)
            after = replace(after, limit=min(float(most(settings, key)), grown))
        paces = paces.insert(key, after)
    return paces
