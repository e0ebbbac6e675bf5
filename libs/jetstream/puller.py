"""A pull loop over one durable consumer that does not stall when leaders change.

nats-py's `fetch` sleeps out its whole time-out when a consumer's leader moves (9.9 s measured); this one
watches idle heartbeats and asks again (0.1 s).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

EXPIRES_S = 2.0
"""A pull of a process that stands still takes messages that nobody reads, each for as long as its time to acknowledge. It is over
by the time that another leads: a lease's term less the time between two renewals (libs/jetstream/lease.py)."""
NO_MESSAGES, REQUEST_TIMEOUT = "404", "408"
DEAF_S = 3.0
"""Connected, and asked again and again, but not a word for so long, be it that there is no leader: the inbox is lost."""


class Puller:
    """Calls `handler` for each message, in order. The handler acknowledges."""

    def __init__(
        self,
        client: Client,
        stream: str,
        durable: str,
        handler: Callable[[Msg], None],
        mended: Callable[[], None] = lambda: None,
        *,
        batch: int = 32,
        expires_s: float = EXPIRES_S,
        heartbeat_s: float = 0.5,
    ) -> None:
        self._client, self._handler, self._mended = client, handler, mended
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._batch, self._expires_s, self._heartbeat_s = batch, expires_s, heartbeat_s
        self._wanted = self._generation = 0
        self._last = self._heard = 0.0

    async def start(self) -> None:
        """Subscribe and ask for the first batch."""
        await self._subscribe()
        self._watching = asyncio.create_task(self._watch())
        await self._pull()

    async def _subscribe(self) -> None:
        self._inbox = self._client.new_inbox()
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._on)
        self._heard = asyncio.get_running_loop().time()

    async def stop(self) -> None:
        """What was delivered and not acknowledged comes again, to whoever pulls next."""
        self._watching.cancel()
        await self._unsubscribe()

    async def _unsubscribe(self) -> None:
        try:
            await self._subscription.unsubscribe()
        except (nats.errors.Error, OSError):
            return  # the connection is gone, and with it the subscription

    async def _pull(self) -> None:
        self._generation += 1
        self._wanted = self._batch
        self._last = asyncio.get_running_loop().time()
        request = {
            "batch": self._batch,
            "expires": int(self._expires_s * 1e9),
            "idle_heartbeat": int(self._heartbeat_s * 1e9),
        }
        if not self._client.is_connected:
            return  # the watch asks again
        try:
            await self._client.publish(
                self._subject, json.dumps(request).encode(), f"{self._inbox}.{self._generation}"
            )
        except (nats.errors.Error, OSError):
            return  # lost on the way out: the watch asks again

    async def _on(self, message: Msg) -> None:
        self._last = self._heard = asyncio.get_running_loop().time()
        if message.reply.startswith("$JS.ACK."):  # delivered messages carry the stream's subject
            self._handler(message)
            self._wanted -= 1
            if self._wanted <= 0:
                await self._pull()
            return
        if not message.subject.startswith(self._inbox):
            return  # of an inbox that was given up
        status = (message.headers or {}).get("Status")
        stale = int(message.subject.rsplit(".", 1)[1]) != self._generation
        if stale or status in (None, "100"):
            return
        if status not in (NO_MESSAGES, REQUEST_TIMEOUT):
            await asyncio.sleep(0.05)  # 409 leadership changed, 503 no leader yet
        await self._pull()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(self._heartbeat_s / 2)
            if not self._client.is_connected or loop.time() - before > 2 * self._heartbeat_s:
                self._heard = loop.time()  # who stood still himself has heard nothing
            elif loop.time() - self._heard > DEAF_S:
                await self._renew()
            if loop.time() - self._last > 2 * self._heartbeat_s + 0.1:
                await self._pull()

    async def _renew(self) -> None:
        before = self._subscription
        try:
            await self._subscribe()
        except (nats.errors.Error, OSError):
            return  # the connection is gone
        with contextlib.suppress(nats.errors.Error, OSError):
            await before.unsubscribe()
        self._last = 0.0
        self._mended()
