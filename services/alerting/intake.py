"""Where what others tell comes in, over HTTP and over the bus. Who may is known; each is taken once; what is refused is told."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web
from pydantic import ValidationError

from libs.config.incoming import Incoming
from libs.core.ports import Bus, Clock, ConflictError, Store, UnavailableError
from libs.events.outside import OutsideTold
from libs.events.scaleout import ScaleOutAnswered
from libs.operator import Operator, RefusedError
from services.alerting.callbacks import BODY_MOST, SEEN, Answer, refused, signed
from services.alerting.meaning import AmNotification, Told, of_alerts, of_event

EVENTS, ALERTMANAGER = "/v1/events", "/v1/alertmanager"
OVER_HTTP = "events"
"""The source of what is posted: who holds a key may say it."""
log = structlog.get_logger()


class BusAnswer(Answer):
    """An answer to a scale-out request that is published on the bus."""

    request: str
    id: str


@dataclass(frozen=True, slots=True)
class Intake:
    """On any replica of alerting."""

    incoming: Incoming
    keys: Sequence[str]
    tokens: Sequence[str]
    hosts: Collection[str]
    bus: Bus
    store: Store
    clock: Clock
    operator: Operator

    # -- over HTTP

    async def event(self, request: web.Request) -> web.Response:
        """As for answers to scale-out requests: 202, 400, 401, 409, 503."""
        body = await request.read()
        if len(body) > BODY_MOST:
            return web.json_response({"error": f"longer than {BODY_MOST} bytes"}, status=413)
        if not signed(self.keys, body, dict(request.headers)):
            return await self._refuse(request, 401, "no valid signature, or older than five minutes")
        try:
            fact = of_event(Told.model_validate_json(body), OVER_HTTP, self.incoming, self.hosts)
        except ValidationError as error:
            return web.json_response({"error": _said(error)}, status=400)
        name = hashlib.sha256(request.headers["webhook-id"].encode()).hexdigest()[:32]
        try:
            await self.store.put(f"{SEEN}.{name}", self.clock.wall().isoformat().encode(), 0)
        except ConflictError:
            return await self._refuse(request, 409, "it was sent before")
        except UnavailableError:
            return _later()
        try:
            await self._act(fact)
        except UnavailableError:
            await self._undone(name)
            return _later()
        return web.json_response({"taken": True, "action": fact.action}, status=202)

    async def alertmanager(self, request: web.Request) -> web.Response:
        """A notification of an Alertmanager, with a bearer token. It repeats itself by design: a repeat is no news."""
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if not any(hmac.compare_digest(given, token.encode()) for token in self.tokens):
            return await self._refuse(request, 401, "no valid bearer token")
        try:
            notification = AmNotification.model_validate_json(await request.read())
        except ValidationError as error:
            return web.json_response({"error": _said(error)}, status=400)
        facts = list(of_alerts(notification, self.incoming, self.hosts))
        try:
            for fact in facts:
                await self._act(fact)
        except UnavailableError:
            return _later()
        return web.json_response({"taken": True, "actions": [fact.action for fact in facts]}, status=202)

    async def _refuse(self, request: web.Request, status: int, reason: str) -> web.Response:
        return await refused(self.bus, self.clock, request, status, reason)

    async def _undone(self, name: str) -> None:
        """Under the same id it may come again, and is the same event."""
        try:
            await self.store.delete(f"{SEEN}.{name}", None)
        except UnavailableError:
            log.warning("an event could not be taken, and will be refused when it comes again", event=name)

    # -- over the bus

    async def heard(self, source: str, what: str, body: bytes) -> dict[str, Any]:
        """What a user of the bus has published: the server has seen to it that only they can under this source. A
        repeat by its id is no news."""
        try:
            if what == "scaleout":
                answer = BusAnswer.model_validate_json(body)
                name = hashlib.sha256(f"{source}/{answer.id}".encode()).hexdigest()[:32]
                fields = answer.model_dump(exclude={"id"})
                await self.bus.publish(ScaleOutAnswered(**fields, answer=name))
                return {"taken": True}
            if what != "event":
                return {"error": f"{what}: there is `event` and `scaleout`"}
            fact = of_event(Told.model_validate_json(body), source, self.incoming, self.hosts)
            await self._act(fact)
        except ValidationError as error:
            return {"error": _said(error)}
        except UnavailableError:
            return {"error": "the bus is away, try again"}
        return {"taken": True, "action": fact.action}

    async def _act(self, fact: OutsideTold) -> None:
        """Raises UnavailableError: then it may be told again, and is the same."""
        if fact.action == "drain":
            try:
                await self.operator.enter_maintenance(fact.host, drain=True)
            except RefusedError as error:
                log.info("a host is not drained", host=fact.host, source=fact.source, reason=str(error))
        await self.bus.publish(fact)


def _said(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _later() -> web.Response:
    return web.json_response({"error": "the bus is away, try again"}, status=503)
