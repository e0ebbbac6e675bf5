"""A decider driven by hand: what it is told, and what it says and asks for."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from libs.core.decider import Decider, Input, Step
from tests.unit.made import facts, kinds, requests

S = TypeVar("S")


class Desk(Generic[S]):
    """Begins at `now`, on a monotonic clock in seconds that only `wait` moves."""

    def __init__(self, decider: Decider[S], now: float) -> None:
        self.decider, self.now = decider, now
        self.state: S = decider.initial(now)
        self.told: list[Any] = []
        self.asked: list[Any] = []

    def take(self, step: Step[S]) -> list[str]:
        """Kinds of the facts, then keys of the requests."""
        self.state = step.state
        self.told += facts(step.effects)
        self.asked += requests(step.effects)
        return [*kinds(step.effects), *(request.key for request in requests(step.effects))]

    def hear(self, event: Input) -> list[str]:
        return self.take(self.decider.step(self.state, event, self.now))

    def wait(self) -> list[str]:
        """Until the next deadline."""
        wake_at = self.decider.wake_at(self.state)
        assert wake_at is not None
        assert wake_at > self.now
        self.now = wake_at
        return self.take(self.decider.step(self.state, None, self.now))
