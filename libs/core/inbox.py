"""What a shell has heard and not taken yet, and whose turn it is: that of what was heard, of a deadline, or of everybody else."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from libs.core.bell import Bell
from libs.core.decider import Input
from libs.core.ports import Clock, Delivery
from libs.events.signals import Heartbeat, InventorySeen

LATE_MOST_S = 0.1
"""So late a deadline is no more put off for what is still being heard."""
FAIR_MOST_S = 0.3
"""The turn of what is heard between two deadlines is no longer."""
BREATH_S = 0.02
"""So long the inbox is drained before others have a turn: a server ends the connection of who answers no ping."""
MANY, TOGETHER = 64, 256
"""From so many inputs that wait on, what so many signals change is written together: thousands of hosts that join one after
the other would wait for an answer of the store each, and all heartbeats behind them."""


@dataclass(slots=True)  # not frozen: there is one for each heartbeat, and that costs as much as what is in it
class Item:
    event: Input
    at: float
    delivery: Delivery | None = None
    settles: tuple[str, str] | None = None
    """Record and key of the owed act whose outcome this is."""


class Inbox:
    """Of one shell. Nothing here depends on time that does not pass: in virtual time it is a queue."""

    def __init__(self, clock: Clock, bell: Bell) -> None:
        """`bell` is rung at each input."""
        self._clock, self._bell = clock, bell
        self._items: deque[Item] = deque()
        self._fair_at = -math.inf
        self._cut = math.inf
        self._taken, self._breathed = 0, -math.inf

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item, *, first: bool = False) -> None:
        """At its end. `first`: before all that was heard, and before any deadline."""
        if first:
            self._cut = math.inf
            self._items.appendleft(item)
        else:
            self._items.append(item)
        self._bell.ring()

    def put_back(self, items: Iterable[Item]) -> None:
        """What was taken too early."""
        self._items.extend(items)

    @property
    def ready(self) -> bool:
        """Something is to be taken before a deadline."""
        return bool(self._items) and self._items[0].at <= self._cut

    def take(self) -> Item:
        """The first of what is ready."""
        return self._items.popleft()

    def together(self) -> Iterator[Item]:
        """Where many wait: the signals that come first among what is ready, TOGETHER at most."""
        taken = 0 if len(self._items) >= MANY else TOGETHER
        while taken < TOGETHER and self.ready and isinstance(self._items[0].event, Heartbeat | InventorySeen):
            taken += 1
            yield self._items.popleft()

    # -- deadlines

    def due_at(self, wake_at: float) -> float:
        """When a deadline is to be taken up: what is heard has its turn between two of them."""
        return max(wake_at, self._fair_at)

    def woken(self, began: float) -> None:
        """A deadline that was taken up then is over: what is heard has as much time as it took."""
        now = self._clock.monotonic()
        self._fair_at = now + min(now - began, FAIR_MOST_S)

    def cut_off(self, due_at: float) -> None:
        """Where this deadline is too late, what is heard from now on comes after it."""
        now = self._clock.monotonic()
        if now - due_at > LATE_MOST_S:
            self._cut = min(self._cut, now)

    def lift(self) -> float | None:
        """The deadline is taken up, or there is none any more. Returns as of when it is to be judged; None: as of now."""
        cut, self._cut = self._cut, math.inf
        return None if cut == math.inf else cut

    # -- everybody else

    async def breathe(self) -> bool:
        """After some time of taking what is here, a turn for everybody else. False where it was not time for that."""
        self._taken += 1
        if (
            self._taken % MANY and len(self._items) < MANY
        ) or self._clock.monotonic() - self._breathed < BREATH_S:
            return False
        await asyncio.sleep(0)
        self._breathed = self._clock.monotonic()
        return True
