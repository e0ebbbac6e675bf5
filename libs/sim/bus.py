"""The bus and the buckets as one simulated process sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from libs.core.ports import Delivery, Row, Subscription, UnavailableError
from libs.events.facts import AnyFact
from libs.events.signals import Canary, MarkAsked, MarkTold, Signal
from libs.restored.mark import BUCKET
from libs.sim.broker import STALE_READS_S, Broker, Consumer, Puller
from libs.sim.loop import Process
from libs.sim.network import BUS

PUBLISH_BUDGET_S = 20.0
CALL_S, STORE_CALL_S, SCAN_S = 1.0, 1.5, 5.0
LOSS_NOTICED_S = (1.0, 2.0)
BACK_S = (0.05, 0.6)


@dataclass(eq=False, slots=True)
class _Listener:
    client: SimBus
    pattern: str
    heard: Callable[[Signal], None]
    family: str = field(init=False)
    """What all its topics begin with; "" where the pattern is one topic."""

    def __post_init__(self) -> None:
        self.family = self.pattern.removesuffix("*") if self.pattern.endswith(".*") else ""

    def matches(self, topic: str) -> bool:
        if self.family:
            return topic.startswith(self.family)
        return topic == self.pattern

    async def stop(self) -> None:
        if self in self.client.listeners:
            self.client.listeners.remove(self)


@dataclass(slots=True)
class _Stop:
    stops: Callable[[], None]

    async def stop(self) -> None:
        self.stops()


class SimBus:
    """Bus of one process. A dead process's bus does nothing."""

    def __init__(self, broker: Broker, process: Process, service: str) -> None:
        self.broker, self.process, self.service = broker, process, service
        self.listeners: list[_Listener] = []
        self._answers: dict[str, Callable[[Signal], Awaitable[Signal]]] = {}
        self._changed: list[Callable[[bool], None]] = []
        self.node = broker.chance.randrange(len(broker.up))
        self.connected = self.linked = True
        self.minority_since: float | None = None
        """Attached to a server that its peers have lost, since then."""
        self._latest = self._own_latest = 0.0
        process.unread = [self._hear, self.take]
        broker.clients.append(self)
        if not self._attached():
            self.connected = self.linked = False
            self.look()

    # -- the connection

    @property
    def reaches_server(self) -> bool:
        return self.linked and self.broker.network.reaches(self.process.node, BUS)

    @property
    def hears_server(self) -> bool:
        return self.linked and self.broker.network.reaches(BUS, self.process.node)

    @property
    def served(self) -> bool:
        """Its pull requests reach a server that has the stream."""
        alive = self.process.alive and self.connected and self.linked
        return alive and self.minority_since is None

    def _attached(self) -> bool:
        """A connection needs both ways and a server that runs; a client moves to another by itself."""
        up = self.broker.up
        if not up[self.node] and any(up):
            return False
        return up[self.node] and self.broker.network.both_ways(self.process.node, BUS)

    def look(self) -> None:
        """Called where links or servers changed: a loss is noticed late, and mended a little later."""
        if not self.process.alive:
            return
        loop, chance = self.broker.loop, self.broker.chance
        attached = self._attached()
        if not attached:
            self.linked = False
            if self.connected:
                loop.call_later(chance.uniform(*LOSS_NOTICED_S), self._notice, context=self.process.context)
            else:
                loop.call_later(chance.uniform(*BACK_S), self._reconnect, context=self.process.context)
        elif not self.linked:
            self.linked = True
            if not self.connected:
                loop.call_later(chance.uniform(*BACK_S), self._reconnect, context=self.process.context)

    def _notice(self) -> None:
        if self.process.alive and not self.linked and self.connected:
            self.connected = False
            self._tell(False)
            self.broker.loop.call_later(
                self.broker.chance.uniform(*BACK_S), self._reconnect, context=self.process.context
            )

    def _reconnect(self) -> None:
        if not self.process.alive or self.connected:
            return
        up = self.broker.up
        if not up[self.node] and any(up):
            self.node = self.broker.chance.choice([n for n, runs in enumerate(up) if runs])
        if not self._attached():
            return  # `look` is called again when something changes
        self.linked = self.connected = True
        self._tell(True)
        self.broker.pump_all()

    def _tell(self, connected: bool) -> None:
        for heard in list(self._changed):
            heard(connected)

    def evict(self) -> None:
        """The server drops a client that has not answered its pings; the client sees it when it goes on."""
        if self.linked and self.process.alive:
            self.linked = False
            self.broker.loop.call_later(0.05, self._notice, context=self.process.context)

    def isolate(self, isolated: bool) -> None:
        """Attach to, or leave, a server that has lost its peers."""
        self.minority_since = self.broker.loop.now if isolated else None
        if not isolated:
            self.broker.pump_all()

    def on_change(self, heard: Callable[[bool], None]) -> Callable[[], None]:
        self._changed.append(heard)
        return lambda: self._changed.remove(heard)

    # -- facts

    async def publish(self, fact: AnyFact) -> None:
        """Again and again with the same key, until the server says that it has it."""
        loop = self.broker.loop
        until, delay_s = loop.now + PUBLISH_BUDGET_S, 0.05
        while True:
            try:
                await self.broker.call(
                    self,
                    f"publish {fact.key}",
                    lambda: self.broker.store(fact, self.service, self.process),
                    CALL_S,
                )
                return
            except UnavailableError:
                if loop.now > until:
                    raise
            await loop.nap(delay_s)
            delay_s = min(delay_s * 1.5, 0.5)

    async def consume(
        self, durable: str, kinds: Sequence[str], heard: Callable[[Delivery], None]
    ) -> Subscription:
        until = self.broker.loop.now + PUBLISH_BUDGET_S
        while True:
            try:
                consumer = await self.broker.call(
                    self, f"consumer {durable}", lambda: self.broker.consumer(durable, kinds), CALL_S
                )
                break
            except UnavailableError:
                if self.broker.loop.now > until:
                    raise
            await asyncio.sleep(0.2)
        puller = Puller(self, heard)
        consumer.pullers.append(puller)
        self.broker.pump(consumer)
        return _Stop(lambda: consumer.pullers.remove(puller))

    def take(self, puller: Puller, delivery: Delivery) -> None:
        if self.process.alive and self.linked:
            puller.heard(delivery)

    def delivery(self, broker: Broker, consumer: Consumer, index: int, number: int) -> Delivery:
        """An acknowledgement has no answer: where it is lost, the fact comes again."""

        async def ack() -> None:
            self.process.enter()
            if not self.connected:
                raise UnavailableError("not connected")
            if self._arrives():
                broker.loop.world_later(broker.network.latency(), broker.settle, consumer, index)

        async def nak(delay_s: float) -> None:
            self.process.enter()
            if not self.connected:
                raise UnavailableError("not connected")
            if self._arrives():
                broker.give_back(consumer, index, number, delay_s)

        return Delivery(broker.facts[index].fact, ack, nak)

    def _arrives(self) -> bool:
        lost = self.broker.network.lost()
        return self.reaches_server and self.broker.answers and self.minority_since is None and not lost

    # -- signals

    async def send(self, topic: str, signal: Signal) -> None:
        self.process.enter(routine=True)
        network, loop = self.broker.network, self.broker.loop
        for told in self.broker.on_send:
            told(self, signal)
        own, aside = isinstance(signal, Canary), isinstance(signal, MarkTold | MarkAsked)
        luck = network.own if own else network.aside if aside else None
        if not self.connected or not self.reaches_server or network.lost(luck):
            return
        if own:
            self._send_to_itself(topic, signal)
            return
        for client in self.broker.clients:
            if not client.listeners or client.minority_since != self.minority_since:
                continue
            if not client.hears_server or not client.connected:
                continue
            for listener in client.listeners:
                if aside and listener.matches(topic) and not network.lost(luck):
                    at = loop.now + network.latency(luck)
                    loop.call_at(at, client._hear, listener, signal, context=client.process.context)
                elif not aside and listener.matches(topic) and not network.lost():
                    # one connection delivers in the order in which it was sent
                    client._latest = max(client._latest, loop.now + network.latency())
                    loop.call_at(
                        client._latest, client._hear, listener, signal, context=client.process.context
                    )

    def _send_to_itself(self, topic: str, signal: Signal) -> None:
        """As to others, behind what is under way; with luck of its own, and nothing waits behind it."""
        network, loop = self.broker.network, self.broker.loop
        if not self.hears_server or network.lost(network.own):
            return
        at = self._own_latest = max(
            self._latest,
            self._own_latest,
            loop.now + network.latency(network.own) + network.latency(network.own),
        )
        for listener in self.listeners:
            if listener.matches(topic):
                loop.call_at(at, self._hear, listener, signal, context=self.process.context)

    def _hear(self, listener: _Listener, signal: Signal) -> None:
        if self.process.alive and listener in self.listeners:
            listener.heard(signal)

    async def listen(self, topics: Sequence[str], heard: Callable[[Signal], None]) -> Subscription:
        self.process.enter(routine=all(topic.startswith("mark") for topic in topics))
        made = [_Listener(self, topic, heard) for topic in topics]
        self.listeners.extend(made)

        def stop() -> None:
            self.listeners = [one for one in self.listeners if one not in made]

        return _Stop(stop)

    async def ask(self, topic: str, question: Signal, timeout_s: float) -> Signal:
        """Raises UnavailableError: at once where nobody listens, or when the time is over."""
        self.process.enter()
        loop, network = self.broker.loop, self.broker.network
        peer = next((c for c in self.broker.clients if topic in c._answers and c.process.alive), None)
        reply: asyncio.Future[Signal] = loop.create_future()
        if self.connected and self.reaches_server and not network.lost():
            if peer is None:
                await loop.nap(network.latency())
                raise UnavailableError(f"{topic}: no responder")
            if peer.hears_server and peer.minority_since == self.minority_since:
                loop.call_later(
                    network.latency(), peer._asked, topic, question, self, reply, context=peer.process.context
                )
        try:
            async with asyncio.timeout(timeout_s):
                return await reply
        except TimeoutError as error:
            raise UnavailableError(f"{topic}: no answer in {timeout_s} s") from error

    def _asked(self, topic: str, question: Signal, asker: SimBus, reply: asyncio.Future[Signal]) -> None:
        answer = self._answers.get(topic)
        if answer is None or not self.process.alive:
            return

        async def work() -> None:
            said = await answer(question)
            network = self.broker.network
            if self.reaches_server and asker.hears_server and not network.lost():
                self.broker.loop.call_later(
                    network.latency(), _resolve, reply, said, context=asker.process.context
                )

        self.process.spawn(work())

    async def answer(self, topic: str, answer: Callable[[Signal], Awaitable[Signal]]) -> Subscription:
        self.process.enter()
        self._answers[topic] = answer
        return _Stop(lambda: _pop(self._answers, topic))


def _pop(answers: dict[str, Callable[[Signal], Awaitable[Signal]]], topic: str) -> None:
    answers.pop(topic, None)


def _resolve(reply: asyncio.Future[Signal], said: Signal) -> None:
    if not reply.done():
        reply.set_result(said)


class SimStore:
    """One bucket as one process sees it."""

    def __init__(self, bus: SimBus, bucket: str) -> None:
        self._bus, self._broker, self._bucket = bus, bus.broker, bucket
        self._aside = bucket == BUCKET
        self._routine = bucket == "leaders" or self._aside

    async def get(self, key: str) -> Row | None:
        at = None if self._bus.minority_since is None else await self._stale(f"get {key}")
        if at is not None:
            return self._row(key, at)
        return await self._broker.call(
            self._bus,
            f"get {key}",
            lambda: self._row(key, None),
            STORE_CALL_S,
            routine=self._routine,
            aside=self._aside,
        )

    def _row(self, key: str, at: float | None) -> Row | None:
        found = self._broker.read(self._bucket, key, at)
        if found is None or found.value is None:
            return None
        return Row(key, found.value, found.revision)

    async def _stale(self, what: str) -> float | None:
        """A server that lost its peers answers reads for a while, with what it last knew."""
        since = self._bus.minority_since
        if since is None or not self._bus.linked:
            return None
        self._bus.process.enter()
        await self._broker.loop.nap(self._broker.network.latency())
        if self._broker.loop.now - since > STALE_READS_S:
            raise UnavailableError(f"{what}: no answer")
        return since

    async def put(self, key: str, value: bytes, expected: int | None, *, ttl_s: int | None = None) -> int:
        return await self._write(key, value, expected, ttl_s)

    async def delete(self, key: str, expected: int | None) -> None:
        await self._write(key, None, expected)

    async def _write(
        self, key: str, value: bytes | None, expected: int | None, ttl_s: int | None = None
    ) -> int:
        process = self._bus.process
        for told in self._broker.on_put:
            told(self._bucket, key, value, process)
        return await self._broker.call(
            self._bus,
            f"put {key}",
            lambda: self._broker.write(self._bucket, key, value, expected, process, ttl_s),
            STORE_CALL_S,
            routine=self._routine,
            aside=self._aside,
        )

    async def scan(self, prefix: str) -> list[Row]:
        assert prefix == "" or prefix.endswith("."), prefix
        at = await self._stale(f"scan {prefix}")
        if at is not None:
            return self._broker.scan(self._bucket, prefix, at)
        return await self._broker.call(
            self._bus,
            f"scan {prefix}",
            lambda: self._broker.scan(self._bucket, prefix),
            SCAN_S,
            routine=not prefix,
        )
