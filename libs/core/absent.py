"""Ports of a process whose bus is not there yet: nothing is heard, and nothing is known of what is stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Never

from libs.config.settings import Settings
from libs.core.ports import Bus, Clock, Delivery, Row, Subscription, UnavailableError
from libs.events.facts import AnyFact
from libs.events.signals import Signal


def _away() -> Never:
    raise UnavailableError("there is no bus yet")


class _Nothing:
    """A subscription to what does not come."""

    async def stop(self) -> None:
        return


class AbsentBus:
    """See ports.Bus."""

    connected = False

    def on_change(self, heard: Callable[[bool], None]) -> Callable[[], None]:
        return lambda: None

    async def publish(self, fact: AnyFact) -> None:
        _away()

    async def send(self, topic: str, signal: Signal) -> None:
        return

    async def listen(self, topics: Sequence[str], heard: Callable[[Signal], None]) -> Subscription:
        return _Nothing()

    async def consume(
        self, durable: str, kinds: Sequence[str], heard: Callable[[Delivery], None]
    ) -> Subscription:
        return _Nothing()

    async def ask(self, topic: str, question: Signal, timeout_s: float) -> Signal:
        _away()

    async def answer(self, topic: str, answer: Callable[[Signal], Awaitable[Signal]]) -> Subscription:
        return _Nothing()


class AbsentStore:
    """See ports.Store."""

    async def get(self, key: str) -> Row | None:
        _away()

    async def put(self, key: str, value: bytes, expected: int | None) -> int:
        _away()

    async def delete(self, key: str, expected: int | None) -> None:
        _away()

    async def scan(self, prefix: str) -> list[Row]:
        _away()


@dataclass(frozen=True, slots=True)
class AbsentPorts:
    """See wiring.Ports. Nothing can be led from here."""

    settings: Settings
    service: str
    clock: Clock
    me: str = ""
    bus: Bus = field(default_factory=AbsentBus)
    meter: None = None

    def store(self, bucket: str) -> AbsentStore:
        return AbsentStore()

    def lease(self) -> Never:
        _away()

    def guard(self) -> Never:
        _away()

    def beside(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        _away()
