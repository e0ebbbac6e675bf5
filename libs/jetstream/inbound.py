"""What others publish to a pool: core NATS, subject `rekindle.<pool>.in.<source>.<what>`. Who may publish under which source
is in the rights of their user; each message is answered where it asks for that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
import structlog
from nats.aio.msg import Msg

from libs.jetstream.bus import NatsBus
from libs.jetstream.schema import Names

TOPIC = "in"
MOST = 64 * 1024
Take = Callable[[str, str, bytes], Awaitable[dict[str, Any]]]
log = structlog.get_logger()


async def take_in(bus: NatsBus, pool: str, take: Take) -> None:
    """Until cancelled. Replicas share the work: each message is one's."""
    pending: set[asyncio.Task[None]] = set()

    async def one(message: Msg) -> None:
        source, _, what = message.subject.removeprefix(f"{Names(pool).prefix}.{TOPIC}.").partition(".")
        answer: dict[str, Any] = {"error": f"longer than {MOST} bytes"}
        if len(message.data) <= MOST:
            answer = await take(source, what, message.data)
        if "error" in answer:
            log.warning("a message from outside is not taken", source=source, reason=answer["error"])
        if message.reply:
            try:
                await message.respond(json.dumps(answer).encode())
            except (nats.errors.Error, OSError) as error:
                log.info("an answer was not sent", source=source, reason=repr(error))

    async def on(message: Msg) -> None:
        task = asyncio.create_task(one(message))
        pending.add(task)
        task.add_done_callback(pending.discard)

    subscription = await bus.client.subscribe(f"{Names(pool).prefix}.{TOPIC}.*.*", queue="alerting", cb=on)
    try:
        await asyncio.Event().wait()
    finally:
        for task in list(pending):
            task.cancel()
        await subscription.unsubscribe()
