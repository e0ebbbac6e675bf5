"""Alerting over a real NATS server to a real HTTP endpoint that fails at first."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from libs.events.hosts import HostSuspected
from libs.jetstream.server import EmbeddedServer
from libs.model import Incarnation
from tests.integration.conftest import OpenBus
from tests.waiting import eventually


class Endpoint:
    """Refuses so many deliveries, then takes them."""

    def __init__(self, refusals: int) -> None:
        self.refusals, self.refused = refusals, 0
        self.got: list[tuple[str, dict[str, Any]]] = []

    async def take(self, request: web.Request) -> web.Response:
        if self.refused < self.refusals:
            self.refused += 1
            return web.Response(status=500)
        self.got.append((request.headers["webhook-id"], await request.json()))
        return web.Response(status=204)


@pytest.fixture
async def endpoint() -> AsyncIterator[tuple[Endpoint, str]]:
    one = Endpoint(refusals=2)
    application = web.Application()
    application.router.add_post("/hook", one.take)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield one, f"http://127.0.0.1:{port}/hook"
    await runner.cleanup()


async def test_every_fact_reaches_the_webhook_though_it_fails_and_alerting_is_killed(
    server: EmbeddedServer, open_as: OpenBus, endpoint: tuple[Endpoint, str], tmp_path: Path
) -> None:
    one, url = endpoint
    config = tmp_path / "pool.yaml"
    config.write_text(
        f"pool: p\ndata_dir: {tmp_path}\nbus: {{url_file: {server.directory / 'url'}}}\n"
        f"hosts: [{{name: h1, uri: 'test:///default'}}]\nalerts: {{webhook_url: '{url}'}}\n"
    )
    bus = await open_as("detector")

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "services.cli", "service", "alerting", "--config", str(config)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)

    async def tell(number: int) -> None:
        at = Incarnation(host="h1", boot="b1")
        await bus.publish(HostSuspected(at=at, number=number, silent_s=1.5))

    process = start()
    try:
        await tell(1)
        await eventually(lambda: one.refused >= 1, "the endpoint was tried", within_s=20)
        os.kill(process.pid, signal.SIGKILL)  # the delivery is owed, and only the store knows
        process.wait()
        await tell(2)
        process = start()
        await eventually(lambda: len({i for i, _ in one.got}) == 2, "both facts arrive", within_s=30)
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, 15) == 0
    assert {name for name, _ in one.got} == {"host.suspected_h1_b1_1", "host.suspected_h1_b1_2"}
    assert one.got[0][1]["severity"] == "info"
    assert "h1 has been silent for 1.5 s" in one.got[0][1]["text"]
