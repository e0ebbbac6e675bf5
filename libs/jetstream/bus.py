"""The bus over NATS: facts in a JetStream stream, signals on core subjects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from pydantic import ValidationError

from libs.core.ports import Clock, Delivery, Subscription, UnavailableError
from libs.events.envelope import CONTENT_TYPE, UnreadableError, subject_of, unwrap, wrap
from libs.events.facts import AnyFact, MessageUnreadable
from libs.events.signals import SIGNAL, Signal
from libs.jetstream.connection import SafeClient, connect, exit_when_closed
from libs.jetstream.puller import Puller
from libs.jetstream.schema import Names

PUBLISH_BUDGET_S = 20.0  # an election of the stream's leader takes 4 to 9 s, and the dedupe window is 600 s
CALL_S = 1.0
ACK_WAIT_S = 2.0  # what a killed service had in hand comes again after this; a repeat is harmless
DEAF_CALLS = 4

log = structlog.get_logger()


class NatsBus:
    """Bus of one service in one pool. Made by `open_bus`."""

    def __init__(self, names: Names, service: str, clock: Clock) -> None:
        self._names, self._service, self._clock = names, service, clock
        self._changed: list[Callable[[bool], None]] = []
        self._failures = 0
        self.client: SafeClient

    @property
    def connected(self) -> bool:
        return self.client.is_connected

    def on_change(self, heard: Callable[[bool], None]) -> Callable[[], None]:
        self._changed.append(heard)
        return lambda: self._changed.remove(heard)

    def _change(self, connected: bool) -> None:
        log.info("bus connection", connected=connected)
        for heard in self._changed:
            heard(connected)

    # -- facts

    async def publish(self, fact: AnyFact) -> None:
        """Store a fact, again and again with the same id until the server says that it has it."""
        envelope = wrap(fact, pool=self._names.pool, service=self._service, wall=self._clock.wall())
        payload = envelope.model_dump_json().encode()
        headers = {"Nats-Msg-Id": fact.key, "Content-Type": CONTENT_TYPE}
        js, subject = self.client.jetstream(timeout=CALL_S), subject_of(self._names.pool, fact)
        until, delay_s = self._clock.monotonic() + PUBLISH_BUDGET_S, 0.05
        while True:
            try:
                await js.publish(subject, payload, timeout=CALL_S, headers=dict(headers))
                self._failures = 0
                return
            except nats.js.errors.APIError as error:
                if error.code not in (408, 503):
                    raise
                reason: Exception = error
            except (TimeoutError, nats.errors.Error) as error:
                reason = error
            await self._count_failure()
            if self._clock.monotonic() > until:
                raise UnavailableError(f"publish {fact.key}: {reason!r}") from reason
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 1.5, 0.5)

    async def _count_failure(self) -> None:
        """Connected to a server whose JetStream is dead (cut off from its peers): move to another."""
        self._failures += 1
        if self._failures >= DEAF_CALLS and self.client.is_connected:
            self._failures = 0
            await self.client.force_reconnect()

    async def consume(
        self, durable: str, kinds: Sequence[str], heard: Callable[[Delivery], None]
    ) -> Subscription:
        """A durable consumer under this name, made or updated to hear these kinds."""
        wanted = ConsumerConfig(
            durable_name=durable,
            filter_subjects=[f"{self._names.prefix}.event.{kind}.*" for kind in kinds],
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=256,
            max_deliver=-1,
        )
        js = self.client.jetstream(timeout=CALL_S)
        until = self._clock.monotonic() + PUBLISH_BUDGET_S
        while True:
            try:
                await js.add_consumer(self._names.events, wanted)
                break
            except (TimeoutError, nats.errors.Error) as error:
                if self._clock.monotonic() > until:
                    raise UnavailableError(f"consumer {durable}: {error!r}") from error
                await asyncio.sleep(0.2)
        puller = Puller(
            self.client, self._names.events, durable, lambda message: self._deliver(message, heard)
        )
        await puller.start()
        return puller

    def _deliver(self, message: Msg, heard: Callable[[Delivery], None]) -> None:
        try:
            envelope = unwrap(message.data)
        except UnreadableError as error:
            task = asyncio.ensure_future(self._refuse(message, str(error)))
            _keep(task)
            return

        async def ack() -> None:
            await _told(message.ack())

        async def nak(delay_s: float) -> None:
            await _told(message.nak(delay=delay_s))

        heard(Delivery(envelope.data, ack, nak))

    async def _refuse(self, message: Msg, reason: str) -> None:
        """What cannot be read is taken out of the way and people are told; it is evidence of nothing."""
        sequence = message.metadata.sequence.stream
        log.error("unreadable fact", subject=message.subject, sequence=sequence, reason=reason)
        await self.publish(MessageUnreadable(subject=message.subject, sequence=sequence, reason=reason[:500]))
        await _told(message.term())

    # -- signals

    async def send(self, topic: str, signal: Signal) -> None:
        try:
            await self.client.publish(f"{self._names.prefix}.{topic}", signal.model_dump_json().encode())
        except (nats.errors.Error, OSError) as error:
            log.debug("signal dropped", topic=topic, reason=repr(error))

    async def listen(self, topics: Sequence[str], heard: Callable[[Signal], None]) -> Subscription:
        async def on(message: Msg) -> None:
            signal = _read(message)
            if signal is not None:
                heard(signal)

        subscriptions = [
            await self.client.subscribe(f"{self._names.prefix}.{topic}", cb=on) for topic in topics
        ]
        await self.client.flush(timeout=5)
        return _Subscriptions(subscriptions)

    async def ask(self, topic: str, question: Signal, timeout_s: float) -> Signal:
        try:
            message = await self.client.request(
                f"{self._names.prefix}.{topic}", question.model_dump_json().encode(), timeout=timeout_s
            )
        except (TimeoutError, nats.errors.Error) as error:
            raise UnavailableError(f"{topic}: no answer: {error!r}") from error
        signal = _read(message)
        if signal is None:
            raise UnavailableError(f"{topic}: the answer cannot be read")
        return signal

    async def answer(self, topic: str, answer: Callable[[Signal], Awaitable[Signal]]) -> Subscription:
        async def reply(message: Msg, question: Signal) -> None:
            payload = (await answer(question)).model_dump_json().encode()
            await _told(message.respond(payload))

        async def on(message: Msg) -> None:
            question = _read(message)
            if question is not None:
                _keep(asyncio.ensure_future(reply(message, question)))  # callbacks run one after another

        subscription = await self.client.subscribe(f"{self._names.prefix}.{topic}", cb=on)
        await self.client.flush(timeout=5)  # from here on nobody is told that nobody answers
        return _Subscriptions([subscription])


class _Subscriptions:
    def __init__(self, subscriptions: Sequence[NatsSubscription]) -> None:
        self._subscriptions = subscriptions

    async def stop(self) -> None:
        for subscription in self._subscriptions:
            try:
                await subscription.unsubscribe()
            except nats.errors.Error:
                continue  # the connection is gone, and with it the subscription


_background: set[asyncio.Future[None]] = set()


def _keep(task: asyncio.Future[None]) -> None:
    """asyncio holds tasks weakly; hold them until they end, and let no error pass unseen."""
    _background.add(task)
    task.add_done_callback(_ended)


def _ended(task: asyncio.Future[None]) -> None:
    _background.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background work failed", error=repr(error))


def _read(message: Msg) -> Signal | None:
    try:
        return SIGNAL.validate_json(message.data)
    except ValidationError as error:
        log.warning("unreadable signal", subject=message.subject, reason=str(error)[:300])
        return None


async def _told(call: Awaitable[object]) -> None:
    try:
        await call
    except (TimeoutError, nats.errors.Error, OSError) as error:
        raise UnavailableError(repr(error)) from error


async def open_bus(
    servers: Sequence[str],
    pool: str,
    service: str,
    clock: Clock,
    name: str,
    *,
    closed: Callable[[], Awaitable[None]] = exit_when_closed,
    wait_s: float = 10.0,
) -> NatsBus:
    """Connect as `name` (a replica) of `service`. Raises UnavailableError or BusRefusedError."""
    bus = NatsBus(Names(pool), service, clock)
    bus.client = await connect(servers, name, on_change=bus._change, closed=closed, wait_s=wait_s)
    return bus
