"""A bus and a store in memory that outlive the processes that use them, and processes that can die.

Every await on a port is a turn. At a chosen turn the process dies: from then on none of its calls returns or
has any effect, as after kill -9.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from libs.core.ports import ConflictError, Delivery, Row, UnavailableError
from libs.events.facts import AnyFact
from libs.events.signals import Signal


@dataclass
class World:
    """What lies on the server's disk."""

    rows: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    revision: int = 0
    stream: list[AnyFact] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    acknowledged_early: list[str] = field(default_factory=list)
    """Facts acknowledged while nothing about them lay in the store."""
    stored_when_acknowledged: Callable[[AnyFact, World], bool] | None = None
    given_back: list[str] = field(default_factory=list)
    turns: int = 0
    dies_at: int = 0
    answer_lost_at: int = 0
    """Number of the store's write whose answer gets lost though it was carried out."""
    writes: int = 0
    store_down: bool = False
    consumers: list[tuple[Process, tuple[str, ...], Callable[[Delivery], None]]] = field(default_factory=list)

    def put_fact(self, fact: AnyFact) -> None:
        if any(known.key == fact.key for known in self.stream):
            return  # the server drops a repeat by its id
        self.stream.append(fact)
        for process, kinds, heard in list(self.consumers):
            if not process.dead and fact.kind in kinds:
                heard(self.delivery(process, fact, heard))

    def delivery(self, process: Process, fact: AnyFact, heard: Callable[[Delivery], None]) -> Delivery:
        async def ack() -> None:
            await process.turn()
            if self.stored_when_acknowledged and not self.stored_when_acknowledged(fact, self):
                self.acknowledged_early.append(fact.key)
            self.acknowledged.add(fact.key)
            await process.turn()

        async def nak(delay_s: float) -> None:
            await process.turn()
            self.given_back.append(fact.key)
            loop = asyncio.get_running_loop()
            loop.call_later(delay_s / 20, self._again, process, fact, heard)

        return Delivery(fact, ack, nak)

    def _again(self, process: Process, fact: AnyFact, heard: Callable[[Delivery], None]) -> None:
        if not process.dead and fact.key not in self.acknowledged:
            heard(self.delivery(process, fact, heard))

    def told(self) -> list[str]:
        return [fact.key for fact in self.stream]


class Process:
    """The bus and the store as one process sees them, until it dies."""

    def __init__(self, world: World) -> None:
        self.world, self.dead, self.died = world, False, asyncio.Event()
        self.sent: list[tuple[str, Signal]] = []
        self.heard: Callable[[Signal], None] = lambda _: None
        self.changed: list[Callable[[bool], None]] = []
        self.replies: Callable[[str, Signal], Signal | None] = lambda topic, question: None
        """What is answered to a question; None where nobody answers."""

    async def turn(self) -> None:
        """An await at which the process may die."""
        self.world.turns += 1
        if self.world.turns == self.world.dies_at:
            self.dead = True
            self.died.set()
        if self.dead:
            await asyncio.Event().wait()
        await asyncio.sleep(0)

    # -- bus

    @property
    def connected(self) -> bool:
        return True

    def on_change(self, heard: Callable[[bool], None]) -> Callable[[], None]:
        self.changed.append(heard)
        return lambda: self.changed.remove(heard)

    async def publish(self, fact: AnyFact) -> None:
        await self.turn()
        self.world.put_fact(fact)
        await self.turn()

    async def send(self, topic: str, signal: Signal) -> None:
        await self.turn()
        self.sent.append((topic, signal))

    async def listen(self, topics: Sequence[str], heard: Callable[[Signal], None]) -> Process:
        self.heard = heard
        return self

    async def consume(self, durable: str, kinds: Sequence[str], heard: Callable[[Delivery], None]) -> Process:
        await self.turn()
        self.world.consumers.append((self, tuple(kinds), heard))
        for fact in self.world.stream:
            if fact.kind in kinds and fact.key not in self.world.acknowledged:
                heard(self.world.delivery(self, fact, heard))
        return self

    async def stop(self) -> None:
        self.world.consumers = [one for one in self.world.consumers if one[0] is not self]

    async def ask(self, topic: str, question: Signal, timeout_s: float) -> Signal:
        reply = self.replies(topic, question)
        if reply is None:
            raise UnavailableError(f"{topic}: no answer")
        return reply

    async def answer(self, topic: str, answer: Callable[[Signal], Awaitable[Signal]]) -> Process:
        return self

    # -- store

    def _up(self) -> None:
        if self.world.store_down:
            raise UnavailableError("the store is down")

    async def get(self, key: str) -> Row | None:
        await self.turn()
        self._up()
        found = self.world.rows.get(key)
        return None if found is None else Row(key, *found)

    async def put(self, key: str, value: bytes, expected: int | None) -> int:
        await self.turn()
        self._compare(key, expected)
        self.world.revision += 1
        self.world.rows[key] = (value, self.world.revision)
        revision = self.world.revision
        await self._answer()
        return revision

    async def delete(self, key: str, expected: int | None) -> None:
        await self.turn()
        self._compare(key, expected)
        self.world.rows.pop(key, None)
        await self._answer()

    def _compare(self, key: str, expected: int | None) -> None:
        self._up()
        at = self.world.rows[key][1] if key in self.world.rows else 0
        if expected is not None and expected != at:
            raise ConflictError(f"{key} is at {at}")

    async def _answer(self) -> None:
        self.world.writes += 1
        lost = self.world.writes == self.world.answer_lost_at
        await self.turn()
        if lost:
            raise UnavailableError("the answer was lost")

    async def scan(self, prefix: str) -> list[Row]:
        await self.turn()
        self._up()
        return [Row(key, *self.world.rows[key]) for key in sorted(self.world.rows) if key.startswith(prefix)]


class Held:
    """Leadership as a test sets it."""

    def __init__(self, token: int | None = None) -> None:
        self._token, self._held = token, token is not None
        self._changed: list[Callable[[], None]] = []

    @property
    def token(self) -> int | None:
        return self._token

    def unseen_s(self) -> float:
        return 0.0

    def held(self) -> bool:
        return self._held

    def on_change(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def become(self, token: int | None, *, held: bool = True) -> None:
        """Another term, or (held=False) the same whose validity ran out, or (None) somebody else's."""
        self._token, self._held = token, held and token is not None
        for changed in self._changed:
            changed()
