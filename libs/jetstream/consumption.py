"""A durable consumer that is kept: made where it is not there, and again where somebody deleted it meanwhile.

A server does not miss a consumer: pulls for one that is gone are answered as if there were no leader, for ever. So it is
looked at every few seconds. What this process knows to be acknowledged is not delivered once more by the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from libs.jetstream.puller import Puller
from libs.jetstream.schema import Names

CALL_S = 1.0
CHECK_S = 2.0
ACK_WAIT_S = 2.0  # what is not acknowledged comes again after this; a repeat is harmless
PENDING_MOST = 256
NO_CONSUMER = 10014
log = structlog.get_logger()


class Consumption:
    """Calls `handler` with each message of the kinds that are wanted; see ports.Bus.consume. `mended` is called when what
    was lost is there again."""

    def __init__(
        self,
        client: Client,
        names: Names,
        durable: str,
        kinds: Sequence[str],
        handler: Callable[[Msg], None],
        mended: Callable[[str], None],
    ) -> None:
        self._client, self._stream, self._durable, self._mended = client, names.events, durable, mended
        self._js = client.jetstream(timeout=CALL_S)
        self._floor = 0
        """All up to it is acknowledged, as far as the server has told."""
        self._wanted = ConsumerConfig(
            durable_name=durable,
            filter_subjects=[f"{names.prefix}.event.{kind}.>" for kind in kinds],
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=PENDING_MOST,
            max_deliver=-1,
        )
        self._puller = Puller(client, self._stream, durable, handler, lambda: mended(f"inbox of {durable}"))
        self._watching: asyncio.Task[None] | None = None

    async def make(self) -> None:
        """Have it there, and as it is wanted. Raises what the client raises."""
        found = await self._found()
        if found is not None:
            # where it began cannot be changed any more, and does not matter: it goes on where it is
            kept = found.config
            wanted = replace(
                self._wanted, deliver_policy=kept.deliver_policy, opt_start_seq=kept.opt_start_seq
            )
        else:
            last = (await self._js.stream_info(self._stream)).state.last_seq
            begun = self._floor and self._floor <= last  # else it is another stream of that name
            wanted = self._wanted if not begun else replace(
                self._wanted, deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=self._floor + 1
            )  # fmt: skip
        await self._js.add_consumer(self._stream, wanted)

    async def start(self) -> None:
        """Pull from now on, and watch over it. What somebody else had in hand comes to us now."""
        await self._take_over()
        await self._puller.start()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """What was delivered and not acknowledged comes again, to whoever pulls next."""
        if self._watching is not None:
            self._watching.cancel()
        await self._puller.stop()

    async def _take_over(self) -> None:
        """Whoever pulled before is dead, or leads no more: what it did not acknowledge need not wait for its time. Where
        the server refuses or is away, that time is waited for as ever."""
        try:
            found = await self._found()
            if found is not None and found.num_ack_pending:
                await self._client.request(
                    f"$JS.API.CONSUMER.RESET.{self._stream}.{self._durable}", timeout=CALL_S
                )
        except (TimeoutError, nats.errors.Error) as error:
            log.info("what was in hand is not taken over", durable=self._durable, reason=repr(error))

    async def _found(self) -> ConsumerInfo | None:
        """As the server has it; None where it has none."""
        try:
            found: ConsumerInfo = await self._js.consumer_info(self._stream, self._durable)
        except nats.js.errors.NotFoundError as error:
            if error.err_code != NO_CONSUMER:
                raise
            return None
        if found.ack_floor is not None:
            self._floor = max(self._floor, found.ack_floor.stream_seq)
        return found

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            if not self._client.is_connected:
                continue
            try:
                found = await self._found()
                if found is None:
                    await self.make()
                    self._mended(f"consumer {self._durable}")
                elif sorted(found.config.filter_subjects or ()) != sorted(self._wanted.filter_subjects or ()):
                    await self.make()
                    self._mended(f"what consumer {self._durable} hears")
            except (TimeoutError, nats.errors.Error) as error:
                log.debug("a consumer cannot be looked at", durable=self._durable, reason=repr(error))
