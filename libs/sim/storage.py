"""The datastore that all hosts share, as each host reaches it: it may stall on one and be well on another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from libs.sim.loop import SimLoop


@dataclass(slots=True)
class Stall:
    """From when to when the datastore answered nothing on one host."""

    host: str
    began: float
    ended: float | None = None


class Datastore:
    """What needs it on a host where it stalls hangs there until it is back, and is neither lost nor failed."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.stalls: list[Stall] = []
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    def stalled(self, host: str) -> bool:
        return any(one.host == host and one.ended is None for one in self.stalls)

    def stall(self, host: str) -> None:
        if not self.stalled(host):
            self.stalls.append(Stall(host, self._loop.time()))

    def restore(self, host: str) -> None:
        """All that hung on this host goes on, in the order in which it began to hang."""
        for one in self.stalls:
            if one.host == host and one.ended is None:
                one.ended = self._loop.time()
        for work in self._waiting.pop(host, []):
            work()

    def when_back(self, host: str, work: Callable[[], None]) -> None:
        """Now where it is well on this host, else as soon as it is back."""
        if self.stalled(host):
            self._waiting.setdefault(host, []).append(work)
        else:
            work()

    def stalled_s(self, host: str, began: float, ended: float) -> float:
        """For how much of this time a guest on this host could neither read nor write."""
        now = self._loop.time()
        return sum(
            max(0.0, min(ended, now if one.ended is None else one.ended) - max(began, one.began))
            for one in self.stalls
            if one.host == host
        )
