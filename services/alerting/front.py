"""Alerting's own HTTP endpoints put together: answers to scale-out requests, what other systems tell, and the published schemas.

Settings that name the same address share it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from libs.config.alerts import Alerts
from libs.config.incoming import Incoming
from libs.config.serving import HttpServer
from libs.contract.asyncapi import asyncapi
from libs.contract.documents import schemas
from libs.jetstream.inbound import take_in
from libs.operator import Operator
from libs.poolview import PoolView
from libs.service import Context
from services.alerting.callbacks import Desk, listening
from services.alerting.intake import ALERTMANAGER, EVENTS, Intake
from services.alerting.scaleout import CALLBACK

NOTIFICATION_MOST = 1024 * 1024
"""Bytes of an Alertmanager's notification: two hundred alerts with all their labels."""
CALLBACKS_AT, INCOMING_AT = "alerts.scale_out.callbacks", "alerts.incoming"


class Published:
    """The schemas of this version, made when they are first asked for."""

    def __init__(self) -> None:
        self._made: asyncio.Future[tuple[dict[str, Any], dict[str, Any]]] | None = None

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/asyncapi.json", self.asyncapi),
            web.get("/schemas/", self.names),
            web.get("/schemas/{name}", self.one),
        ]

    async def _documents(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if self._made is None:  # a second of CPU: not where deliveries wait for it
            made = asyncio.to_thread(lambda: (schemas(), asyncapi()))
            self._made = asyncio.ensure_future(made)
        return await asyncio.shield(self._made)

    async def asyncapi(self, _: web.Request) -> web.Response:
        return web.json_response((await self._documents())[1])

    async def names(self, _: web.Request) -> web.Response:
        found = [f"{name}.json" for name in (await self._documents())[0]]
        return web.json_response({"schema": "rekindle.schemas.v1", "schemas": found})

    async def one(self, request: web.Request) -> web.Response:
        """By its name, with .json behind it or not."""
        name = request.match_info["name"].removesuffix(".json")
        found = (await self._documents())[0].get(name)
        if found is None:
            return web.json_response({"error": "there is no such schema: see /schemas/"}, status=404)
        return web.json_response(found)


def fronts(context: Context) -> list[Coroutine[Any, Any, None]]:
    """What is to run for them, beside all else. Raises BadInputError for keys that cannot be read."""
    alerts: Alerts = context.settings.alerts
    store, work = context.store("state"), list[Coroutine[Any, Any, None]]()
    places: dict[str, tuple[str, list[web.RouteDef]]] = {}
    callbacks = None if alerts.scale_out is None else alerts.scale_out.callbacks
    desk = Desk((), context.bus, store, context.clock)
    if callbacks is not None:
        desk = Desk(callbacks.keys(CALLBACKS_AT), context.bus, store, context.clock)
        places[callbacks.listen] = (CALLBACKS_AT, [web.post(f"{CALLBACK}{{request}}", desk.take)])
    if alerts.incoming is not None:
        intake = _intake(context)
        if alerts.incoming.listen is not None:
            _, routes = places.setdefault(alerts.incoming.listen, (INCOMING_AT, []))
            if alerts.incoming.secrets:
                routes.append(web.post(EVENTS, intake.event))
            if alerts.incoming.tokens:
                routes.append(web.post(ALERTMANAGER, intake.alertmanager))
    else:
        intake = None
    if intake is not None or alerts.scale_out is not None:
        heard = intake or _intake(context)
        work.append(take_in(context.bus, context.settings.pool, heard.heard))
    if places:
        work.append(desk.forget_on())
    published = Published()
    for listen, (where, routes) in places.items():
        work.append(_serve(listen, f"{where}.listen", [*routes, *published.routes()], alerts.http))
    return work


def _intake(context: Context) -> Intake:
    incoming = context.settings.alerts.incoming or Incoming()
    view = PoolView(context.settings, context.store)
    return Intake(
        incoming=incoming,
        keys=incoming.keys(INCOMING_AT),
        tokens=incoming.bearers(INCOMING_AT),
        hosts=[host.name for host in context.settings.hosts],
        bus=context.bus,
        store=context.store("state"),
        clock=context.clock,
        operator=Operator(view, context.bus, context.clock, "another system (alerts.incoming)"),
    )


async def _serve(listen: str, where: str, routes: list[web.RouteDef], http: HttpServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(listening(listen, where, routes, NOTIFICATION_MOST, http))
        await asyncio.Event().wait()
