"""A workflow engine in small, beside a lab: it is asked for a host by a signed webhook, answers by signed callbacks, and
switches the host on. Real HTTP; both signatures by the reference library."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import tempfile
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from libs.jetstream.server import free_port
from libs.scenario.workflow import Workflow

NAME = "workflow"


class WorkflowServer:
    """Serves while it is entered. `bring` switches a host on; `heard` is told each word that is said of a request."""

    def __init__(
        self,
        workflow: Workflow,
        bring: Callable[[str], Awaitable[None]],
        heard: Callable[[str, str], None] = lambda event, request: None,
    ) -> None:
        self._workflow, self._bring, self._heard = workflow, bring, heard
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._seen: set[str] = set()
        self._keys: list[Path] = []
        self._port, self._callback_port = 0, free_port()
        self.errors: list[str] = []
        """What it could not do: nobody else would tell."""

    async def __aenter__(self) -> Self:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rekindle-workflow-")))
        for name in ("events.key", "answers.key"):
            path = folder / name
            path.touch(mode=0o600)
            path.write_text("whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
            self._keys.append(path)
        self._session = await self._stack.enter_async_context(aiohttp.ClientSession())
        application = web.Application()
        application.router.add_post("/events", self._take)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port = runner.addresses[0][1]
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    def laid_over(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The parts of a pool file, with this server as who is asked."""
        events, answers = self._keys
        alerts: dict[str, Any] = dict(settings.get("alerts", {}))
        webhook = {
            "name": NAME,
            "url": f"http://127.0.0.1:{self._port}/events",
            "secrets": [{"file": str(events)}],
            "events": ["scaleout.*"],
        }
        base = f"127.0.0.1:{self._callback_port}"
        callbacks = {"listen": base, "url": f"http://{base}", "secrets": [{"file": str(answers)}]}
        alerts["webhooks"] = [*alerts.get("webhooks", ()), webhook]
        alerts["scale_out"] = {**alerts.get("scale_out", {}), "callbacks": callbacks}
        return {**settings, "alerts": alerts}

    async def _take(self, request: web.Request) -> web.Response:
        """401 where it is not signed. A repeat is taken and does nothing."""
        try:
            event = Webhook(self._keys[0].read_text()).verify(await request.read(), dict(request.headers))
        except WebhookVerificationError as error:
            self.errors.append(f"not signed: {error}")
            return web.Response(status=401)
        if event["id"] not in self._seen:
            self._seen.add(event["id"])
            data = event["data"]
            self._heard(data["kind"].removeprefix("scaleout."), data["request"])
            if data["kind"] == "scaleout.requested":
                self._tasks.append(asyncio.create_task(self._provide(data["callback"])))
        return web.Response(status=204)

    async def _provide(self, callback: str) -> None:
        host = self._workflow.brings
        try:
            await self._answer(callback, status="accepted", detail=f"{host} is being made")
            await asyncio.sleep(self._workflow.after_s)
            await self._bring(host)
            await self._answer(callback, status="progress", detail="its power is on", host=host)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            self.errors.append(repr(error))

    async def _answer(self, url: str, **body: str) -> None:
        name, now, text = f"msg_{uuid.uuid4().hex}", datetime.now(UTC), json.dumps(body)
        headers = {
            "webhook-id": name,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(self._keys[1].read_text()).sign(name, now, text),
        }
        async with self._session.post(url, data=text, headers=headers) as response:
            response.raise_for_status()
