"""A real Alertmanager tells Rekindle of an alert; and what is posted to alerting's own process without a key is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from libs.jetstream.server import EmbeddedServer, free_port
from tests.integration import test_alerts
from tests.integration.conftest import OpenBus
from tests.waiting import eventually

TOKEN = "a-token-of-a-good-length"


def pool(directory: Path, server: EmbeddedServer, listen: int) -> Path:
    (directory / "token").write_text(TOKEN)
    incoming = {
        "listen": f"127.0.0.1:{listen}",
        "tokens": [{"file": str(directory / "token")}],
        "rules": [{"source": "alertmanager", "name": "Disk*", "do": "mark_suspect"}],
    }
    path = directory / "pool.yaml"
    path.write_text(
        f"pool: p\ndata_dir: {directory}\nbus: {{url_file: {server.directory / 'url'}}}\n"
        f"hosts: [{{name: h1, uri: 'test:///default'}}]\nalerts: {{incoming: {json.dumps(incoming)}}}\n"
    )
    return path


async def events(config: Path, kind: str) -> list[dict[str, Any]]:
    done = await test_alerts.run(config, "events", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [one["data"] for one in found if one["data"]["kind"] == kind]


@pytest.mark.skipif(
    shutil.which("prometheus-alertmanager") is None, reason="no prometheus-alertmanager is installed"
)
async def test_a_real_alertmanagers_notification_becomes_a_fact(
    server: EmbeddedServer, open_as: OpenBus, tmp_path: Path
) -> None:
    listen, manager_at = free_port(), free_port()
    config = pool(tmp_path, server, listen)
    (tmp_path / "am.yml").write_text(
        "route: {receiver: rekindle, group_wait: 0s, group_interval: 1s}\n"
        "receivers:\n  - name: rekindle\n    webhook_configs:\n"
        f"      - url: http://127.0.0.1:{listen}/v1/alertmanager\n"
        f"        http_config: {{authorization: {{credentials_file: {tmp_path}/token}}}}\n"
    )
    command = ["prometheus-alertmanager", f"--config.file={tmp_path}/am.yml", f"--storage.path={tmp_path}/am"]
    command += [f"--web.listen-address=127.0.0.1:{manager_at}", "--cluster.listen-address="]
    manager = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await open_as("detector")
    process = test_alerts.start(config)
    url = f"http://127.0.0.1:{manager_at}"
    alert = (
        "alertname=DiskFailing",
        "instance=h1:9100",
        "severity=critical",
        "--annotation=summary=sector 7",
    )

    async def added() -> bool:
        words = ["amtool", "alert", "add", f"--alertmanager.url={url}", *alert]
        done = await asyncio.to_thread(subprocess.run, words, capture_output=True, check=False)
        return done.returncode == 0

    async def told() -> list[dict[str, Any]]:
        return await events(config, "outside.told")

    try:
        await eventually(added, "amtool adds an alert", within_s=30, every_s=0.5)
        found = await eventually(told, "Rekindle has heard of it", within_s=60, every_s=1.0)
        (one,) = found
        assert (one["source"], one["host"], one["name"]) == ("alertmanager", "h1", "DiskFailing")
        assert (one["action"], one["text"]) == ("mark_suspect", "sector 7")
    finally:
        process.terminate()
        manager.terminate()
        await asyncio.to_thread(process.wait, 15)
        manager.wait()


async def test_what_has_no_token_is_refused_and_the_schemas_are_there_for_anybody(
    server: EmbeddedServer, open_as: OpenBus, tmp_path: Path
) -> None:
    listen = free_port()
    config = pool(tmp_path, server, listen)
    await open_as("detector")
    process = test_alerts.start(config)

    async def status(method: str, path: str, **more: Any) -> int:
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{listen}") as session,
            session.request(method, path, **more) as response,
        ):
            return response.status

    async def up() -> bool:
        try:
            return await status("GET", "/schemas/rekindle.host.failed.v1.json") == 200
        except aiohttp.ClientError:
            return False

    async def told() -> list[dict[str, Any]]:
        return await events(config, "callback.refused")

    try:
        await eventually(up, "the schemas are served", within_s=60, every_s=0.3)
        assert await status("POST", "/v1/alertmanager", json={}) == 401
        assert await status("POST", "/v1/events", json={}) == 404, "no keys are configured for it"
        await eventually(told, "people are told", within_s=30, every_s=1.0)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 15)
