"""Subscriptions to signals that are kept: looked at every few seconds, and made anew where they were lost.

That one is lost on the client's side is seen on it. That the server has forgotten one is seen nowhere; but then nothing comes
by it. So one on which nothing came for a while is made anew, which costs a line on the wire and loses nothing: the new
one is there before the old one goes. A signal that comes by both is heard twice, which everybody expects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import uniform

import nats.errors
from nats.aio.subscription import Subscription

from libs.jetstream.connection import SafeClient
from libs.jetstream.parsing import Heard

CHECK_S = 2.0
QUIET_S = 30.0
"""Nothing for so long, and it is made anew."""


@dataclass(slots=True)
class _Topic:
    subject: str
    heard_at: float
    subscription: Subscription = field(init=False)


@dataclass(slots=True)
class Listening:
    """Calls `on` for each message of these subjects until it is stopped. `mended` is called when one that was lost on our
    side is there again; of one that was only quiet it is not known that it was lost."""

    client: SafeClient
    on: Heard
    mended: Callable[[str], None]
    _topics: list[_Topic] = field(default_factory=list)
    _watching: asyncio.Task[None] | None = None

    async def start(self, subjects: list[str]) -> None:
        """From its return on everything is heard."""
        for subject in subjects:
            topic = _Topic(subject, self._now())
            topic.subscription = await self._subscribed(topic)
            self._topics.append(topic)
        await self.client.flush(timeout=5)
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Hear nothing any more."""
        if self._watching is not None:
            self._watching.cancel()
        for topic in self._topics:
            await _dropped(topic.subscription)

    async def _subscribed(self, topic: _Topic) -> Subscription:
        def heard(subject: str, reply: str, data: bytes, headers: bytes) -> None:
            topic.heard_at = self._now()
            self.on(subject, reply, data, headers)

        return await self.client.listen(topic.subject, heard)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S * uniform(0.8, 1.2))  # not all agents of a pool in one moment
            for topic in self._topics:
                lost = self._lost(topic.subscription)
                if (lost or self._now() - topic.heard_at > QUIET_S) and self.client.is_connected:
                    await self._renew(topic)
                    if lost:
                        self.mended(topic.subject)

    def _lost(self, subscription: Subscription) -> bool:
        task = subscription._wait_for_msgs_task
        known = subscription._id in self.client._subs
        return subscription._closed or not known or task is None or task.done()

    async def _renew(self, topic: _Topic) -> None:
        before = topic.subscription
        try:
            topic.subscription = await self._subscribed(topic)
        except (nats.errors.Error, OSError):
            return  # the connection is gone: once it is back it is looked at again
        topic.heard_at = self._now()
        await _dropped(before)


async def _dropped(subscription: Subscription) -> None:
    try:
        await subscription.unsubscribe()
    except (nats.errors.Error, OSError):
        return  # the connection is gone, and with it the subscription
