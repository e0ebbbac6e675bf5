"""The bus over NATS: facts in a JetStream stream, signals on core subjects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg

from libs.access.login import NOBODY, Login
from libs.access.subjects import API
from libs.core.ports import Clock, Delivery, Subscription, UnavailableError
from libs.events.envelope import CONTENT_TYPE, UnreadableError, subject_of, told_by, unwrap, wrap
from libs.events.facts import AnyFact, MessageUnreadable
from libs.events.signals import Signal, fits
from libs.jetstream.connection import SafeClient, connect, exit_when_closed
from libs.jetstream.consumption import Consumption
from libs.jetstream.listening import Listening
from libs.jetstream.parsing import Heard
from libs.jetstream.reading import Reader, read
from libs.jetstream.schema import Names

PUBLISH_BUDGET_S = 20.0  # an election of the stream's leader takes 4 to 9 s, and the dedupe window is 600 s
CALL_S = 1.0
DEAF_CALLS = 4

log = structlog.get_logger()


class NatsBus:
    """Bus of one service in one pool. Made by `open_bus`."""

    def __init__(self, names: Names, service: str, clock: Clock) -> None:
        self._names, self._service, self._clock = names, service, clock
        self._changed: list[Callable[[bool], None]] = []
        self._failures = 0
        self.on_mended: Callable[[], None] | None = None
        """Called when something that was to be heard was lost, and is heard again."""
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

    def _mend(self, what: str) -> None:
        log.warning("lost, and made anew", what=what)
        if self.on_mended is not None:
            self.on_mended()

    async def ping(self) -> None:
        """To the server and back. Raises UnavailableError."""
        try:
            await self.client.flush(timeout=1)
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise UnavailableError(f"the server does not answer: {error!r}") from error

    # -- facts

    async def publish(self, fact: AnyFact) -> None:
        """Store a fact, again and again with the same id until the server says that it has it."""
        envelope = wrap(fact, pool=self._names.pool, service=self._service, wall=self._clock.wall())
        payload = envelope.model_dump_json().encode()
        headers = {"Nats-Msg-Id": fact.key, "Content-Type": CONTENT_TYPE}
        if envelope.traceparent is not None:
            headers["traceparent"] = envelope.traceparent
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
        """A durable consumer under this name, made or updated to hear these kinds; again where it is lost."""
        kept = Consumption(
            self.client,
            self._names,
            durable,
            kinds,
            lambda message: self._deliver(message, heard),
            self._mend,
        )
        until = self._clock.monotonic() + PUBLISH_BUDGET_S
        while True:
            try:
                await kept.make()
                break
            except (TimeoutError, nats.errors.Error) as error:
                if self._clock.monotonic() > until:
                    raise UnavailableError(f"consumer {durable}: {error!r}") from error
                await asyncio.sleep(0.2)
        await kept.start()
        return kept

    def _deliver(self, message: Msg, heard: Callable[[Delivery], None]) -> None:
        try:
            envelope = told_by(message.subject, unwrap(message.data))
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
        reader = Reader(f"{self._names.prefix}.")

        def on(subject: str, reply: str, data: bytes, headers: bytes) -> None:
            signal = reader.fitting(subject, data)
            if signal is not None:
                heard(signal)

        return await self._kept(on, topics)

    async def _kept(self, on: Heard, topics: Sequence[str]) -> Listening:
        kept = Listening(self.client, on, self._mend)
        await kept.start([f"{self._names.prefix}.{topic}" for topic in topics])
        return kept

    async def ask(self, topic: str, question: Signal, timeout_s: float) -> Signal:
        try:
            message = await self.client.request(
                f"{self._names.prefix}.{topic}", question.model_dump_json().encode(), timeout=timeout_s
            )
        except (TimeoutError, nats.errors.Error) as error:
            raise UnavailableError(f"{topic}: no answer: {error!r}") from error
        signal = read(message.subject, message.data)
        if signal is None or not fits(topic, signal):
            raise UnavailableError(f"{topic}: the answer cannot be read, or is another's")
        return signal

    async def answer(self, topic: str, answer: Callable[[Signal], Awaitable[Signal]]) -> Subscription:
        async def respond(to: str, question: Signal) -> None:
            payload = (await answer(question)).model_dump_json().encode()
            await _told(self.client.publish(to, payload))

        def on(subject: str, reply: str, data: bytes, headers: bytes) -> None:
            question = read(subject, data)
            if question is not None and reply:
                _keep(asyncio.ensure_future(respond(reply, question)))

        return await self._kept(on, [topic])  # from here on nobody is told that nobody answers


_background: set[asyncio.Future[None]] = set()


def _keep(task: asyncio.Future[None]) -> None:
    """asyncio holds tasks weakly; hold them until they end, and let no error pass unseen."""
    _background.add(task)
    task.add_done_callback(_ended)


def _ended(task: asyncio.Future[None]) -> None:
    _background.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background work failed", error=repr(error))


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
    login: Login = NOBODY,
) -> NatsBus:
    """Connect as `name` (a replica) of `service`. Raises UnavailableError, BusRefusedError or BadInputError."""
    bus = NatsBus(Names(pool), service, clock)
    bus.client = await connect(
        servers,
        name,
        on_change=bus._change,
        closed=closed,
        wait_s=wait_s,
        login=login,
        jetstream=login.prefix == API,  # an agent has no account of JetStream's own that could be asked for
    )
    return bus
