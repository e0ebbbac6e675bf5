"""Alerting as its own process, over a real NATS server, to real HTTP endpoints; killed in between."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook as Reference

from libs.events.hosts import HostSuspected
from libs.jetstream.bus import NatsBus
from libs.jetstream.server import EmbeddedServer
from tests.integration.conftest import OpenBus
from tests.integration.test_alerts import placed
from tests.unit.made import boot, failed
from tests.waiting import eventually

KEY = "whsec_" + base64.b64encode(bytes(range(32))).decode()
LIVING, DEAD, EVENTS = 17, 3, 1000


class Receivers:
    """Endpoints below /NAME: each verifies what it gets with the reference library and keeps ids in order."""

    def __init__(self) -> None:
        self.got: dict[str, list[str]] = {}
        self.status: dict[str, int] = {}
        self.refused: dict[str, int] = {}

    async def take(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        status = self.status.get(name, 204)
        if status != 204:
            self.refused[name] = self.refused.get(name, 0) + 1
            return web.Response(status=status)
        event = Reference(KEY).verify(await request.read(), dict(request.headers))
        self.got.setdefault(name, []).append(event["id"])
        return web.Response(status=204)

    def ids(self, name: str) -> list[str]:
        """What came of the hosts, repeats dropped."""
        return list(dict.fromkeys(one for one in self.got.get(name, []) if one.startswith("host.")))


@pytest.fixture
async def receivers() -> AsyncIterator[tuple[Receivers, str]]:
    one = Receivers()
    application = web.Application()
    application.router.add_post("/{name}", one.take)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield one, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


Run = Callable[..., subprocess.CompletedProcess[str]]


class Alerting:
    """The process of alerting with these webhooks, and the commands beside it."""

    def __init__(self, directory: Path, server: EmbeddedServer, webhooks: list[dict[str, Any]]) -> None:
        (directory / "key").write_text(KEY)
        self.config, self.names = directory / "pool.yaml", [one["name"] for one in webhooks]
        entries = [
            {"secrets": [{"file": str(directory / "key")}], "timeout_s": 1.0, **one} for one in webhooks
        ]
        self.config.write_text(
            f"pool: p\ndata_dir: {directory}\nbus: {{url_file: {server.directory / 'url'}}}\n"
            f"hosts: [{{name: h1, uri: 'test:///default'}}]\nalerts: {{webhooks: {json.dumps(entries)}}}\n"
        )
        self.log = directory / "alerting.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "services.cli", "service", "alerting", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    async def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return await asyncio.to_thread(self.process.wait, 15)

    async def ready(self, bus: NatsBus) -> None:
        """It has a place in the stream for each endpoint, so that what is told from now on is for all."""
        await placed(bus, *(f"webhooks.place.{name}" for name in self.names))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.cli", *words, "--config", str(self.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def told(bus: NatsBus, numbers: range) -> list[str]:
    facts = [HostSuspected(at=boot("h1"), number=number, silent_s=1.5) for number in numbers]
    for start in range(0, len(facts), 50):
        await asyncio.gather(*(bus.publish(fact) for fact in facts[start : start + 50]))
    return [fact.key for fact in facts]


async def test_a_thousand_events_reach_every_living_endpoint_though_three_are_dead_and_it_is_killed(
    server: EmbeddedServer, open_as: OpenBus, receivers: tuple[Receivers, str], tmp_path: Path
) -> None:
    ends, url = receivers
    names = [f"e{number}" for number in range(LIVING)]
    webhooks = [{"name": name, "url": f"{url}/{name}"} for name in names]
    webhooks += [
        {"name": "refuses", "url": "http://127.0.0.1:9/"},
        {"name": "fails", "url": f"{url}/fails"},
        {"name": "gone", "url": f"{url}/gone"},
    ]
    ends.status = {"fails": 500, "gone": 410}
    bus = await open_as("detector")
    alerting = Alerting(tmp_path, server, webhooks)
    alerting.start()
    try:
        await alerting.ready(bus)
        wanted = await told(bus, range(EVENTS))
        began = time.monotonic()
        await eventually(lambda: len(ends.ids("e0")) > 300, "it delivers", within_s=60)
        alerting.kill()
        alerting.start()
        await eventually(
            lambda: all(len(ends.ids(name)) >= EVENTS for name in names),
            "every living endpoint has every event",
            within_s=120,
            every_s=0.1,
        )
        took_s = time.monotonic() - began
    finally:
        assert await alerting.stop() == 0
    print(f"{EVENTS} events to {LIVING} endpoints, killed once: {took_s:.1f} s")  # noqa: T201
    for name in names:
        assert set(ends.ids(name)) == set(wanted)
        repeats = len([one for one in ends.got[name] if one.startswith("host.")]) - EVENTS
        assert repeats <= 101, f"{repeats} repeats at {name}"
    assert ends.ids("e0") == ends.ids("e1"), "each in the order of the stream"
    assert ends.refused["gone"] == 1


async def test_an_operator_lists_tests_and_has_sent_again_what_was_not_taken(
    server: EmbeddedServer, open_as: OpenBus, receivers: tuple[Receivers, str], tmp_path: Path
) -> None:
    ends, url = receivers
    webhooks: list[dict[str, Any]] = [
        {"name": "a", "url": f"{url}/a?token=geheim"},
        {"name": "b", "url": f"{url}/b", "events": ["vm.*"]},
    ]
    bus = await open_as("detector")
    alerting = Alerting(tmp_path, server, webhooks)
    alerting.start()
    try:
        await alerting.ready(bus)
        ends.status["a"] = 410
        await bus.publish(failed(boot("h1")))
        await eventually(lambda: ends.refused.get("a"), "it is tried")

        async def state() -> dict[str, Any]:
            done = await asyncio.to_thread(alerting.run, "webhooks", "list", "--json")
            assert done.returncode == 0, done.stderr
            assert "geheim" not in done.stdout
            body: dict[str, Any] = json.loads(done.stdout)
            assert body["schema"] == "rekindle.webhooks.v1"
            return next(one for one in body["webhooks"] if one["name"] == "a")

        async def disabled() -> bool:
            return bool((await state())["state"] == "disabled")

        await eventually(disabled, "it is disabled", within_s=20)
        assert "HTTP 410" in (await state())["detail"]
        tested = await asyncio.to_thread(alerting.run, "webhooks", "test", "a")
        assert (tested.returncode, "HTTP 410" in tested.stderr) == (1, True)
        ends.status["a"] = 204
        tested = await asyncio.to_thread(alerting.run, "webhooks", "test", "a", "--json")
        assert (tested.returncode, json.loads(tested.stdout)["delivered"]) == (0, True)
        retried = await asyncio.to_thread(alerting.run, "webhooks", "retry", "a")
        assert retried.returncode == 0, retried.stderr
        await eventually(
            lambda: "host.failed/h1-1" in ends.ids("a"), "it is delivered after all", within_s=20
        )
        shown = await asyncio.to_thread(alerting.run, "webhooks", "list")
        assert "geheim" not in shown.stdout
        wrong = await asyncio.to_thread(alerting.run, "webhooks", "retry", "c")
        assert (wrong.returncode, "no webhook is called c" in wrong.stderr) == (2, True)
    finally:
        await alerting.stop()
    assert "b" not in ends.got


def test_a_key_that_cannot_be_read_stops_it_at_the_start_with_file_field_and_reason(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    config.write_text(
        f"pool: p\ndata_dir: {tmp_path}\nhosts: [{{name: h1, uri: 'test:///default'}}]\nalerts:\n  webhooks:\n"
        f"    - {{name: a, url: 'https://x/y', secrets: [{{file: {tmp_path}/none}}]}}\n"
    )
    for words in (["up"], ["check"], ["webhooks", "test", "a"]):
        command = [sys.executable, "-m", "services.cli", *words, "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2, words
        assert (
            f"{config}: line 6: alerts.webhooks.0.secrets.0: {tmp_path}/none: cannot be read" in done.stderr
        ), words
