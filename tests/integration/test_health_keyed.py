"""Each service and each agent is well by its own word, with its own key and no more rights than that has."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from libs.access.rights import SERVICES, agent_user
from libs.jetstream.server import free_port
from tests.integration.keyed import POOL, keyed
from tests.waiting import eventually

RUN = [role.name for role in SERVICES if role.name != "operator"]


def told(port: int) -> tuple[int, dict[str, Any]]:
    """What /healthz says. Raises OSError."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("name", [*RUN, agent_user("h1")])
async def test_who_has_a_key_of_its_own_is_healthy_and_is_refused_nothing(tmp_path: Path, name: str) -> None:
    service = "heartbeat" if name == agent_user("h1") else name
    words = ["--host", "h1"] if name == agent_user("h1") else []
    port = free_port()
    async with keyed(tmp_path) as ground:
        await ground.owner()
        config = tmp_path / "pool.yaml"
        config.write_text(
            f"pool: {POOL}\ndata_dir: {tmp_path / 'data'}\nbus: {{url: '{ground.address}'}}\n"
            f"health: {{ports: {{{service}: {port}}}}}\nhosts:\n"
            "  - {name: h1, uri: 'test:///default', local_uri: 'test:///default', agent: true}\n"
            "  - {name: h3, uri: 'test:///default'}\n"
        )
        environment = {**os.environ, "REKINDLE_BUS__KEY_FILE": str(ground.login(name).key)}
        command = [sys.executable, "-m", "services.cli", "service", service, "--config", str(config), *words]
        log = tmp_path / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        said: tuple[int, dict[str, Any]] = (0, {})

        async def well() -> bool:
            nonlocal said
            with contextlib.suppress(OSError):
                said = await asyncio.to_thread(told, port)
            return said[0] == 200 and said[1]["bus"] == "connected"

        try:
            await eventually(well, f"{name} is healthy", within_s=40, every_s=0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}: {said}\n{log.read_text()[-2000:]}") from None
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 15)
        assert "permissions violation" not in log.read_text()
