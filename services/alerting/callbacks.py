"""Answers to scale-out requests over HTTP: signed, fresh, and each taken once. What is refused is told."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from standardwebhooks.webhooks import Webhook as Signer
from standardwebhooks.webhooks import WebhookVerificationError

from libs.config.scaleout import Callbacks
from libs.config.serving import HttpServer
from libs.config.yamlfile import BadInputError
from libs.core.ports import Bus, Clock, ConflictError, Store, UnavailableError
from libs.events.scaleout import CallbackRefused, ScaleOutAnswered
from services.alerting.scaleout import CALLBACK

BODY_MOST = 64 * 1024
FRESH_S = 300.0
"""How old or new a signature may be by our wall clock: what the reference library holds to."""
FORGET_S = 2 * FRESH_S
SEEN = "callbacks"
PLAIN = HttpServer()
log = structlog.get_logger()


class Answer(BaseModel):
    """The body of a callback."""

    model_config = ConfigDict(extra="ignore")
    status: Literal["accepted", "refused", "progress"]
    detail: str = Field("", max_length=500)
    host: str = Field("", max_length=63)


@dataclass(frozen=True, slots=True)
class Desk:
    """Takes answers in, on any replica of alerting: each becomes an event."""

    keys: Sequence[str]
    bus: Bus
    store: Store
    clock: Clock

    async def take(self, request: web.Request) -> web.Response:
        """202 taken, 401 not signed by a key of ours or stale, 409 sent before, 400 not understood, 503 later."""
        body = await request.read()
        if len(body) > BODY_MOST:
            return web.json_response({"error": f"longer than {BODY_MOST} bytes"}, status=413)
        if not signed(self.keys, body, dict(request.headers)):
            return await refused(
                self.bus, self.clock, request, 401, "no valid signature, or older than five minutes"
            )
        name = hashlib.sha256(request.headers["webhook-id"].encode()).hexdigest()[:32]
        try:
            answer = Answer.model_validate_json(body)
        except ValidationError as error:
            return web.json_response({"error": str(error.errors()[0]["msg"])}, status=400)
        try:
            await self.store.put(f"{SEEN}.{name}", self.clock.wall().isoformat().encode(), 0)
        except ConflictError:
            return await refused(self.bus, self.clock, request, 409, "it was sent before")
        except UnavailableError:
            return web.json_response({"error": "the bus is away, try again"}, status=503)
        fact = ScaleOutAnswered(
            request=request.match_info["request"],
            answer=name,
            status=answer.status,
            detail=answer.detail,
            host=answer.host,
        )
        try:
            await self.bus.publish(fact)
        except UnavailableError:
            return await self._undone(name)
        return web.json_response({"taken": True}, status=202)

    async def _undone(self, name: str) -> web.Response:
        """It may be in the stream or not; under the same id it may come again, and is the same event."""
        try:
            await self.store.delete(f"{SEEN}.{name}", None)
        except UnavailableError:
            log.warning("an answer could not be taken, and will be refused when it comes again", answer=name)
        return web.json_response({"error": "the bus is away, try again"}, status=503)

    async def forget_on(self) -> None:
        """Forget ids that are too old to be taken for fresh, for ever."""
        while True:
            await asyncio.sleep(FORGET_S)
            try:
                for row in await self.store.scan(f"{SEEN}."):
                    age_s = (self.clock.wall() - datetime.fromisoformat(row.value.decode())).total_seconds()
                    if age_s > FORGET_S:
                        await self.store.delete(row.key, row.revision)
            except (UnavailableError, ConflictError) as error:
                log.info("seen callbacks not forgotten yet", reason=str(error))


def signed(keys: Sequence[str], body: bytes, headers: dict[str, str]) -> bool:
    """By one of these keys, and fresh."""
    for key in keys:
        try:
            Signer(key).verify(body, headers, json_parse=False)
            return True
        except (WebhookVerificationError, ValueError):
            continue  # not by this key, or not a signature at all
    return False


async def refused(bus: Bus, clock: Clock, request: web.Request, status: int, reason: str) -> web.Response:
    """Told to people, once a minute."""
    peer = request.remote or "unknown"
    log.warning("callback refused", peer=peer, reason=reason, path=request.path[:200])
    minute = int(clock.wall().timestamp() // 60)
    try:
        await bus.publish(CallbackRefused(peer=peer, reason=reason, minute=minute))
    except UnavailableError:
        log.warning("nobody could be told of a refused callback", peer=peer)
    return web.json_response({"error": reason}, status=status)


@asynccontextmanager
async def serving(callbacks: Callbacks, desk: Desk) -> AsyncIterator[int]:
    """Listen for answers, and say on which port. Raises BadInputError where that cannot be."""
    routes = [web.post(f"{CALLBACK}{{request}}", desk.take)]
    async with listening(callbacks.listen, "alerts.scale_out.callbacks.listen", routes) as port:
        forgetting = asyncio.create_task(desk.forget_on())
        try:
            yield port
        finally:
            forgetting.cancel()


@asynccontextmanager
async def listening(
    listen: str,
    where: str,
    routes: Sequence[web.RouteDef],
    most: int = BODY_MOST,
    http: HttpServer = PLAIN,
) -> AsyncIterator[int]:
    """Serve these on host:port, and say on which port; a certificate that is replaced is shown to who comes then. Raises
    BadInputError naming the setting where that cannot be."""
    tls = http.tls("alerts.http")
    application = web.Application(client_max_size=most)
    application.router.add_routes(routes)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    following: asyncio.Task[None] | None = None
    host, _, port = listen.rpartition(":")
    try:
        try:
            secure = None if tls is None else tls.context
            await web.TCPSite(runner, host, int(port), ssl_context=secure).start()
        except (OSError, OverflowError) as error:
            raise BadInputError(f"{where}: {listen}: cannot be listened on: {error}") from error
        if tls is not None:
            following = asyncio.create_task(tls.follow())
        yield runner.addresses[0][1]
    finally:
        if following is not None:
            following.cancel()
        await runner.cleanup()
