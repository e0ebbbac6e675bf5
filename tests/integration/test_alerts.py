"""Alerting's own process tells people through apprise, and an Alertmanager; an operator says words; it is killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from libs.events.hosts import HostFenceFailed
from libs.jetstream.bus import NatsBus
from libs.jetstream.schema import Names
from libs.jetstream.server import EmbeddedServer, free_port
from libs.jetstream.store import JetStreamStore
from tests.integration.conftest import OpenBus
from tests.unit.made import boot, fenced
from tests.waiting import eventually


class World:
    """A chat that speaks JSON, and an Alertmanager that is strict about what it is shown."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.shown: list[list[dict[str, Any]]] = []
        self.chat_is_down = False

    async def chat(self, request: web.Request) -> web.Response:
        if self.chat_is_down:
            return web.Response(status=503)
        self.said.append(await request.json())
        return web.Response()

    async def alertmanager(self, request: web.Request) -> web.Response:
        body = await request.json()
        for one in body:  # as the API's own description requires it
            assert set(one) <= {"labels", "annotations", "startsAt", "endsAt", "generatorURL"}
            assert one["labels"]["alertname"]
            assert all(
                isinstance(value, str) for part in ("labels", "annotations") for value in one[part].values()
            )
            assert datetime.fromisoformat(one["startsAt"]).tzinfo is not None
            assert datetime.fromisoformat(one["endsAt"]) >= datetime.fromisoformat(one["startsAt"])
        self.shown.append(body)
        return web.Response()

    def titles(self) -> list[str]:
        return [one["title"] for one in self.said]


@pytest.fixture
async def world() -> AsyncIterator[tuple[World, int]]:
    one = World()
    application = web.Application()
    application.router.add_post("/chat", one.chat)
    application.router.add_post("/api/v2/alerts", one.alertmanager)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield one, runner.addresses[0][1]
    await runner.cleanup()


def pool(directory: Path, server: EmbeddedServer, port: int, alertmanager: int) -> Path:
    (directory / "chat.url").write_text(f"json://127.0.0.1:{port}/chat")
    path = directory / "pool.yaml"
    alerts = {
        "channels": [{"name": "chat", "url": {"file": str(directory / "chat.url")}}],
        "alertmanagers": [{"name": "am", "url": f"http://127.0.0.1:{alertmanager}"}],
        "digest_s": 1.0,
    }
    path.write_text(
        f"pool: p\ndata_dir: {directory}\nbus: {{url_file: {server.directory / 'url'}}}\n"
        f"hosts: [{{name: h1, uri: 'test:///default'}}]\nalerts: {json.dumps(alerts)}\n"
    )
    return path


def start(config: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "services.cli", "service", "alerting", "--config", str(config)]
    with (config.parent / "alerting.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


async def run(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.cli", *words, "--config", str(config)]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
    )


async def placed(bus: NatsBus, *keys: str) -> None:
    """It has these places in the stream: what is told from now on is heard."""
    state = JetStreamStore(bus.client, Names("p"), "state")
    for key in keys:
        await eventually(lambda key=key: state.get(key), f"{key} is written", within_s=40, every_s=0.1)  # type: ignore[misc]


def unfenced(host: str) -> HostFenceFailed:
    return HostFenceFailed(at=boot(host), incident=f"{host}-1", attempt=1, missing=("no answer",))


async def standing(config: Path) -> dict[str, Any]:
    done = await run(config, "alerts", "--json")
    assert done.returncode == 0, done.stderr
    body: dict[str, Any] = json.loads(done.stdout)
    return {one["key"]: one for one in body["alerts"]}


async def test_people_and_alertmanager_are_told_and_a_kill_loses_nothing(
    server: EmbeddedServer, open_as: OpenBus, world: tuple[World, int], tmp_path: Path
) -> None:
    one, port = world
    config = pool(tmp_path, server, port, port)
    bus = await open_as("fencer")
    process = start(config)
    try:
        await placed(bus, "alerts.place")
        await bus.publish(unfenced("h1"))
        await eventually(lambda: one.titles(), "the chat hears", within_s=30)
        assert one.titles() == ["[p] critical: host-unfenced/h1"]
        assert "no answer" in one.said[0]["message"]
        assert "docs/ALERTS.md#host-unfenced" in one.said[0]["message"]
        await eventually(lambda: any(one.shown), "the Alertmanager is shown it", within_s=30)
        assert next(filter(None, one.shown))[0]["labels"]["key"] == "host-unfenced/h1"
        one.chat_is_down = True
        await bus.publish(unfenced("h2"))

        async def h2_stands() -> bool:
            return "host-unfenced/h2" in await standing(config)

        await eventually(h2_stands, "it stands", within_s=20)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        await bus.publish(unfenced("h3"))
        one.chat_is_down = False
        process = start(config)
        await eventually(
            lambda: all(
                any(h in said["title"] + said["message"] for said in one.said) for h in ("/h2", "/h3")
            ),
            "what was owed and what came meanwhile is told",
            within_s=60,
        )
        done = await run(config, "alerts", "ack", "host-unfenced/h1")
        assert done.returncode == 0, done.stderr

        async def minded() -> bool:
            return bool((await standing(config))["host-unfenced/h1"]["acknowledged_by"])

        await eventually(minded, "somebody minds it", within_s=20)
        await bus.publish(fenced(boot("h1")))
        await eventually(
            lambda: any("resolved" in said["title"] + said["message"] for said in one.said),
            "it is over",
            within_s=30,
        )
        await eventually(
            lambda: (
                any(
                    shown["labels"]["key"] == "host-unfenced/h1"
                    and shown["endsAt"] < datetime.now().astimezone().isoformat()
                    for shown in one.shown[-1]
                )
                or all(shown["labels"]["key"] != "host-unfenced/h1" for shown in one.shown[-1])
            ),
            "the Alertmanager, too",
            within_s=30,
        )
        silenced = await run(config, "alerts", "silence", "*/h4", "--for", "1h", "--json")
        assert json.loads(silenced.stdout)["for_s"] == 3600
        wrong = await run(config, "alerts", "ack", "host-unfenced/h9")
        assert (wrong.returncode, "no alert is called host-unfenced/h9" in wrong.stderr) == (2, True)
        wrong = await run(config, "alerts", "silence", "x", "--for", "soon")
        assert (wrong.returncode, "--for: 'soon' is no time" in wrong.stderr) == (2, True)
        tested = await run(config, "alerts", "test", "chat")
        assert tested.returncode == 0, tested.stderr
        assert any("a test of channel chat" in title for title in one.titles())
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, 15) == 0


@pytest.mark.skipif(
    shutil.which("prometheus-alertmanager") is None, reason="no prometheus-alertmanager is installed"
)
async def test_a_real_alertmanager_takes_it_and_lets_go_of_it(
    server: EmbeddedServer, open_as: OpenBus, world: tuple[World, int], tmp_path: Path
) -> None:
    _, port = world
    listen = free_port()
    (tmp_path / "am.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    command = ["prometheus-alertmanager", f"--config.file={tmp_path}/am.yml", f"--storage.path={tmp_path}/am"]
    command += [f"--web.listen-address=127.0.0.1:{listen}", "--cluster.listen-address="]
    manager = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    config = pool(tmp_path, server, port, listen)
    bus = await open_as("fencer")
    process = start(config)

    async def keys() -> list[str]:
        try:
            url = f"http://127.0.0.1:{listen}/api/v2/alerts"
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                return [one["labels"]["key"] for one in await response.json()]
        except aiohttp.ClientError:
            return ["?"]

    async def there() -> bool:
        return await keys() == ["host-unfenced/h1"]

    async def gone() -> bool:
        return await keys() == []

    try:
        await placed(bus, "alerts.place")
        await eventually(gone, "it is up", within_s=20)
        await bus.publish(unfenced("h1"))
        await eventually(there, "it has the alert", within_s=30)
        shown = await asyncio.to_thread(
            subprocess.check_output,
            ["amtool", "alert", "query", "-o", "json", f"--alertmanager.url=http://127.0.0.1:{listen}"],
        )
        assert [one["labels"]["alertname"] for one in json.loads(shown)] == ["host-unfenced"], (
            "by its own tool"
        )
        await bus.publish(fenced(boot("h1")))
        await eventually(gone, "it has let go of it", within_s=30)
    finally:
        process.terminate()
        manager.terminate()
        await asyncio.to_thread(process.wait, 15)
        manager.wait()


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot be read: No such file"), ("nonsense://", "no address that the apprise library knows")],
)
def test_a_channel_that_cannot_be_used_is_named_with_file_field_and_reason(
    tmp_path: Path, content: str | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "url").write_text(content)
    config = tmp_path / "pool.yaml"
    config.write_text(
        "hosts: [{name: h1, uri: 'test:///default'}]\nalerts:\n  channels:\n"
        f"    - {{name: chat, url: {{file: {tmp_path}/url}}}}\n"
    )
    command = [sys.executable, "-m", "services.cli", "alerts", "test", "chat", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"{config}: line 4: alerts.channels.0.url: " in done.stderr
    assert told in done.stderr
