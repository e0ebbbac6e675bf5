"""The simulated NATS servers: one stream of facts, its consumers, the buckets; and when they do not answer.

What the real ones were measured to do (docs of the bus): facts at least once, deduplicated by key within a
window; a lost stream leader costs 4 to 9 s in which calls fail, some of them after they took effect; a server
cut off from its peers still answers reads, with what was true when it was cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, TypeVar

from libs.core.ports import ConflictError, Delivery, Row, UnavailableError
from libs.events.facts import AnyFact
from libs.events.signals import Signal
from libs.sim.loop import Process, SimLoop
from libs.sim.network import Network

if TYPE_CHECKING:
    from libs.sim.bus import SimBus

T = TypeVar("T")
ACK_WAIT_S = 2.0
DEDUPE_S = 600.0
PENDING_MOST = 256
ELECTION_S = (4.0, 9.0)
STALE_READS_S = 9.0


@dataclass(frozen=True, slots=True)
class Stored:
    """One fact in the stream, with the moment at which it was stored and who published it first."""

    sequence: int
    fact: AnyFact
    at: float
    service: str
    process: Process | None


@dataclass(slots=True)
class Consumer:
    """One durable name's place in the stream."""

    durable: str
    kinds: frozenset[str]
    next: int = 0
    pending: dict[int, int] = field(default_factory=dict)
    """Delivered and not acknowledged: index in the stream to the number of its delivery."""
    given: int = 0
    """Deliveries so far."""
    again: list[int] = field(default_factory=list)
    """To be delivered once more as soon as somebody pulls."""
    pullers: list[Puller] = field(default_factory=list)
    turn: int = 0
    latest: dict[str, float] = field(default_factory=dict)
    """Per subject the moment of its latest delivery: the order within a subject is kept."""


@dataclass(eq=False, slots=True)
class Puller:
    client: SimBus
    heard: Callable[[Delivery], None]


@dataclass(slots=True)
class Version:
    at: float
    revision: int
    value: bytes | None


class Broker:
    """All server nodes as one, with the state that a majority of them agrees on."""

    def __init__(self, loop: SimLoop, network: Network, chance: Random, nodes: int = 1) -> None:
        self.loop, self.network, self.chance = loop, network, chance
        self.up = [True] * nodes
        self.leader = 0
        self.away_until = 0.0
        """No stream leader before: an election is under way."""
        self.ambiguous = 0.0
        """Share of calls whose answer is lost although all is well otherwise."""
        self.dedupe_s = DEDUPE_S
        """For so long a key is known after it was stored."""
        self.facts: list[Stored] = []
        self._keys: dict[str, float] = {}
        self.consumers: dict[str, Consumer] = {}
        self.buckets: dict[str, dict[str, list[Version]]] = {}
        self._revisions: dict[str, int] = {}
        self.clients: list[SimBus] = []
        self.on_fact: list[Callable[[Stored], None]] = []
        self.on_send: list[Callable[[SimBus, Signal], None]] = []
        self.on_row: list[Callable[[str, str, bytes | None, Process | None], None]] = []
        self.on_put: list[Callable[[str, str, bytes | None, Process], None]] = []
        """A process calls for a write, which may fail, and be called for again."""

    # -- whether it answers

    @property
    def quorum(self) -> bool:
        return self.up.count(True) * 2 > len(self.up)

    @property
    def answers(self) -> bool:
        return self.loop.now >= self.away_until and self.quorum

    @property
    def disturbed(self) -> bool:
        return not all(self.up) or self.loop.now < self.away_until or self.ambiguous > 0

    def lose_leader(self) -> None:
        """An unclean loss of the stream leader."""
        self.away_until = self.loop.now + self.chance.uniform(*ELECTION_S)
        self.loop.world_at(self.away_until, self.pump_all)

    def kill_node(self, node: int) -> None:
        self.up[node] = False
        if self.leader == node:
            if self.quorum:
                self.leader = self.up.index(True)
                self.lose_leader()
            else:
                self.away_until = float("inf")
        elif not self.quorum:
            self.away_until = float("inf")
        self.reconsider()

    def start_node(self, node: int) -> None:
        self.up[node] = True
        if self.quorum and self.away_until == float("inf"):
            self.leader = self.up.index(True)
            self.away_until = self.loop.now + self.chance.uniform(3.5, 5.0)
            self.loop.world_at(self.away_until, self.pump_all)
        self.reconsider()

    def reconsider(self) -> None:
        """Links may have changed."""
        for client in self.clients:
            client.look()
        self.pump_all()

    async def call(
        self,
        client: SimBus,
        what: str,
        effect: Callable[[], T],
        timeout_s: float,
        *,
        routine: bool = False,
        aside: bool = False,
    ) -> T:
        """One JetStream call of a client. Raises UnavailableError, also where `effect` took place and only
        its answer was lost; what `effect` raises is an answer, too."""
        client.process.enter(routine=routine)
        network, luck = self.network, self.network.aside if aside else None
        chance = luck or self.chance
        began = self.loop.now
        await self.loop.nap(network.latency(luck))
        client.process.enter(routine=routine)
        if not client.connected:
            raise UnavailableError(f"{what}: not connected")
        fate = chance.random() if self.ambiguous else 1.0
        heard = client.reaches_server and self.answers and client.minority_since is None
        if not heard or network.lost(luck) or fate < self.ambiguous / 2:
            await self._silence(client, began, timeout_s, luck)
            raise UnavailableError(f"{what}: no answer")
        result = effect()
        if not client.hears_server or network.lost(luck) or fate < self.ambiguous:
            await self._silence(client, began, timeout_s, luck)
            raise UnavailableError(f"{what}: no answer in {timeout_s} s")
        await self.loop.nap(network.latency(luck))
        client.process.enter(routine=routine)
        return result

    async def _silence(self, client: SimBus, began: float, timeout_s: float, luck: Random | None) -> None:
        """Some failures are said at once (503, no leader), others only by the time-out."""
        quick = client.reaches_server and client.hears_server and (luck or self.chance).random() < 0.7
        wait_s = self.network.latency(luck) if quick else max(0.0, began + timeout_s - self.loop.now)
        await asyncio.sleep(wait_s)
        client.process.enter()

    def restore(self, at: float) -> None:
        """All that was stored since then is gone, as when an old copy of the data is put back; no server runs."""
        for bucket, rows in self.buckets.items():
            kept = {key: [one for one in versions if one.at <= at] for key, versions in rows.items()}
            self.buckets[bucket] = {key: versions for key, versions in kept.items() if versions}
            latest = [versions[-1].revision for versions in self.buckets[bucket].values()]
            self._revisions[bucket] = max(latest, default=0)
        self.facts = [one for one in self.facts if one.at <= at]
        self._keys = {one.fact.key: one.at for one in self.facts}
        for consumer in self.consumers.values():
            consumer.next = min(consumer.next, len(self.facts))
            consumer.pending.clear()
            consumer.again.clear()

    # -- the stream

    def store(self, fact: AnyFact, service: str, process: Process | None) -> None:
        """Append, or drop a repeat with a success, as the server does."""
        now = self.loop.now
        seen = self._keys.get(fact.key)
        if seen is not None and now - seen < self.dedupe_s:
            return
        self._keys[fact.key] = now
        stored = Stored(len(self.facts) + 1, fact, now, service, process)
        self.facts.append(stored)
        for told in self.on_fact:
            told(stored)
        for consumer in self.consumers.values():
            if fact.kind in consumer.kinds:
                self.pump(consumer)

    def consumer(self, durable: str, kinds: Sequence[str]) -> Consumer:
        """Made, or updated to these kinds. What is in anybody's hand is taken back, and all after it with it."""
        found = self.consumers.get(durable)
        if found is None:
            found = self.consumers[durable] = Consumer(durable, frozenset(kinds))
        found.kinds = frozenset(kinds)
        if found.pending:
            found.next = min(found.pending)
            found.pending.clear()
            found.again.clear()
        return found

    def pump_all(self) -> None:
        for consumer in self.consumers.values():
            self.pump(consumer)

    def pump(self, consumer: Consumer) -> None:
        """Deliver all that may be delivered now."""
        while self.answers:
            index = self._next(consumer)
            if index is None:
                return
            ready = [one for one in consumer.pullers if one.client.served]
            consumer.turn += 1
            self._deliver(consumer, index, ready[consumer.turn % len(ready)])

    def _next(self, consumer: Consumer) -> int | None:
        if not any(one.client.served for one in consumer.pullers):
            return None
        if consumer.again:
            return consumer.again.pop(0)
        while consumer.next < len(self.facts) and len(consumer.pending) < PENDING_MOST:
            consumer.next += 1
            if self.facts[consumer.next - 1].fact.kind in consumer.kinds:
                return consumer.next - 1
        return None

    def _deliver(self, consumer: Consumer, index: int, puller: Puller) -> None:
        number = consumer.given = consumer.given + 1
        consumer.pending[index] = number
        fact = self.facts[index].fact
        self.loop.world_later(ACK_WAIT_S, self._again, consumer, index, number)
        if not puller.client.hears_server or self.network.lost():
            return
        subject = f"{fact.kind}.{fact.about}"
        at = self.loop.now + self.network.latency() * self.chance.choice((1, 1, 1, 4))
        at = max(at, consumer.latest.get(subject, 0.0))
        consumer.latest[subject] = at
        delivery = puller.client.delivery(self, consumer, index, number)
        self.loop.call_at(at, puller.client.take, puller, delivery, context=puller.client.process.context)

    def _again(self, consumer: Consumer, index: int, number: int) -> None:
        """Not acknowledged in time, or given back."""
        if consumer.pending.get(index) == number:
            consumer.again.append(index)
            self.pump(consumer)

    def settle(self, consumer: Consumer, index: int) -> None:
        consumer.pending.pop(index, None)
        if consumer.next < len(self.facts):
            self.pump(consumer)

    def give_back(self, consumer: Consumer, index: int, number: int, delay_s: float) -> None:
        self.loop.world_later(delay_s, self._again, consumer, index, number)

    # -- the buckets

    def rows(self, bucket: str) -> dict[str, list[Version]]:
        return self.buckets.setdefault(bucket, {})

    def read(self, bucket: str, key: str, at: float | None = None) -> Version | None:
        """The latest version, or the latest at a moment of the past. A deletion is a version."""
        versions = self.rows(bucket).get(key, [])
        if at is not None:
            versions = [version for version in versions if version.at <= at]
        return versions[-1] if versions else None

    def write(
        self,
        bucket: str,
        key: str,
        value: bytes | None,
        expected: int | None,
        process: Process | None,
        ttl_s: int | None = None,
    ) -> int:
        """Raises ConflictError. `ttl_s`: the row is gone after so many seconds, unless it is written anew."""
        last = self.read(bucket, key)
        at = 0 if last is None else last.revision
        absent = last is None or last.value is None
        if expected is not None and expected != at and not (expected == 0 and absent):
            raise ConflictError(f"{key} is not at revision {expected}")
        revision = self._revisions.get(bucket, 0) + 1
        self._revisions[bucket] = revision
        self.rows(bucket).setdefault(key, []).append(Version(self.loop.now, revision, value))
        if ttl_s is not None:
            self.loop.world_later(ttl_s, self._expire, bucket, key, revision)
        for told in self.on_row:
            told(bucket, key, value, process)
        return revision

    def _expire(self, bucket: str, key: str, revision: int) -> None:
        """The server removes the message: nothing is left of the key, no revision either."""
        last = self.read(bucket, key)
        if last is not None and last.revision == revision:
            self.rows(bucket)[key].append(Version(self.loop.now, 0, None))

    def scan(self, bucket: str, prefix: str, at: float | None = None) -> list[Row]:
        found = []
        for key in sorted(self.rows(bucket)):
            version = self.read(bucket, key, at) if key.startswith(prefix) else None
            if version is not None and version.value is not None:
                found.append(Row(key, version.value, version.revision))
        return found
