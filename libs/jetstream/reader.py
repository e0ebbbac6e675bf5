"""Reading the stream of facts as an onlooker: all of it, or as it comes."""

from __future__ import annotations

import asyncio
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


@dataclass(frozen=True, slots=True)
class Stored:
    """One fact with its place in the stream."""

    sequence: int
    envelope: Envelope


async def events(
    bus: NatsBus, names: Names, *, follow: bool = False, after: int = 0
) -> AsyncIterator[Stored]:
    """Facts after a sequence, in order; with `follow` for ever. Unreadable ones are passed over: the
    services report them. Raises UnavailableError."""
    js = bus.client.jetstream(timeout=5)
    inbox, queue = bus.client.new_inbox(), asyncio.Queue[Msg]()

    async def on(message: Msg) -> None:
        if message.subject != inbox:
            queue.put_nowait(message)

    subscription = await bus.client.subscribe(inbox, cb=on)
    config = ConsumerConfig(
        deliver_subject=inbox,
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE if after else DeliverPolicy.ALL,
        opt_start_seq=after + 1 if after else None,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=30.0,
        mem_storage=True,
        num_replicas=1,
    )
    try:
        info = await js.add_consumer(names.events, config)
        delivered = info.delivered.consumer_seq if info.delivered else 0
        left = (info.num_pending or 0) + delivered
        while follow or left > 0:
            try:
                message = await asyncio.wait_for(queue.get(), None if follow else QUIET_S)
            except TimeoutError as error:
                raise UnavailableError(f"the stream stopped with {left} facts left") from error
            left -= 1
            try:
                yield Stored(message.metadata.sequence.stream, unwrap(message.data))
            except UnreadableError:
                continue
    except (nats.errors.Error, TimeoutError) as error:
        raise UnavailableError(f"events: {error!r}") from error
    finally:
        await subscription.unsubscribe()
