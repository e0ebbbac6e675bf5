"""Reading the stream of facts as an onlooker: all of it, or as it comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from libs.core.ports import UnavailableError
from libs.events.envelope import Envelope, UnreadableError, unwrap
from libs.jetstream.bus import NatsBus
from libs.jetstream.schema import Names

QUIET_S = 3.0
BEAT_S = 1.0
"""A consumer that is followed says so often that it is there."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One fact with its place in the stream."""

    sequence: int
    envelope: Envelope


async def events(
    bus: NatsBus, names: Names, *, follow: bool = False, after: int = 0
) -> AsyncIterator[Stored]:
    """Facts after a sequence, in order; with `follow` for ever, over restarts of the server. Unreadable ones are
    passed over: the services report them. Raises UnavailableError."""
    while True:
        async for stored in _consumed(bus, names, follow=follow, after=after):
            after = stored.sequence
            yield stored
        if not follow:
            return


async def _consumed(bus: NatsBus, names: Names, *, follow: bool, after: int) -> AsyncIterator[Stored]:
    """Facts from one consumer; with `follow` until the server has forgotten it."""
    js = bus.client.jetstream(timeout=5)
    inbox, queue = bus.client.new_inbox(), asyncio.Queue[Msg]()

    async def on(message: Msg) -> None:
        if follow or message.subject != inbox:
            queue.put_nowait(message)

    subscription = await bus.client.subscribe(inbox, cb=on)
    config = ConsumerConfig(
        deliver_subject=inbox,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE if after else DeliverPolicy.ALL,
        opt_start_seq=after + 1 if after else None,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=30.0,
        idle_heartbeat=BEAT_S if follow else None,
        mem_storage=True,
        num_replicas=1,
    )
    try:
        info = await js.add_consumer(names.events, config)
        delivered = info.delivered.consumer_seq if info.delivered else 0
        left = (info.num_pending or 0) + delivered
        while follow or left > 0:
            try:
                message = await asyncio.wait_for(queue.get(), QUIET_S)
            except TimeoutError as error:
                if follow:  # not even the consumer's heartbeat: the server was restarted and knows it no more
                    return
                raise UnavailableError(f"the stream stopped with {left} facts left") from error
            if message.subject == inbox:
                continue
            left -= 1
            try:
                yield Stored(message.metadata.sequence.stream, unwrap(message.data))
            except UnreadableError:
                continue
    except (nats.errors.Error, TimeoutError) as error:
        raise UnavailableError(f"events: {error!r}") from error
    finally:
        with contextlib.suppress(nats.errors.Error, OSError):  # the connection may be gone, and it with it
            await subscription.unsubscribe()
