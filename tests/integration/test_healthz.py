"""`GET /healthz` of a real service process beside a real NATS: well, its loop blocked, its bus gone, its port taken."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from libs.jetstream.server import EmbeddedServer
from tests.integration.test_cli import REPOSITORY, environment
from tests.waiting import eventually

WINDOW_S, STOPPED_S = 4.0, 3.0
Said = tuple[int, dict[str, Any]]


@dataclass
class Detector:
    """One detector process, and who asks it how it is."""

    config: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.config.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "service", "detector", "--config", str(self.config)],
                cwd=REPOSITORY,
                env=environment(),
                stdout=log,
                stderr=log,
            )

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def log(self) -> str:
        return self.config.with_suffix(".log").read_text()

    async def health(self) -> Said | None:
        """Status and document; None where it does not answer."""

        def ask() -> Said | None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.load(error)
            except OSError:
                return None

        return await asyncio.to_thread(ask)

    async def until(self, status: int, what: str, within_s: float = 40.0, **fields: Any) -> dict[str, Any]:
        """What it says once it answers this status, and with these fields."""

        async def told() -> dict[str, Any] | None:
            said = await self.health()
            if said is None or said[0] != status or not fields.items() <= said[1].items():
                return None
            return said[1]

        found: dict[str, Any] = await eventually(told, what, within_s=within_s, every_s=0.1)
        return found


@pytest.fixture
def detector(tmp_path: Path) -> Iterator[Detector]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    config = tmp_path / "pool.yaml"
    config.write_text(f"""\
pool: p
data_dir: {tmp_path}
hosts: [{{name: h1, uri: "qemu+unix:///system?socket=/no/such/socket", agent: true}}]
health: {{ports: {{detector: {port}}}, lag_window_s: {WINDOW_S}}}
""")
    found = Detector(config, port)
    yield found
    if found.process is not None:
        found.process.kill()
        found.process.wait()


async def test_s12_healthz_is_false_when_the_loop_lags(detector: Detector, server: EmbeddedServer) -> None:
    detector.start()
    told = await detector.until(200, "it is well and leads", leading=True, bus="connected")
    assert detector.process is not None
    assert (told["status"], told["service"], told["pid"]) == ("ok", "detector", detector.process.pid)
    detector.signal(signal.SIGSTOP)
    assert await detector.health() is None, "while its loop is blocked nobody answers"
    await asyncio.sleep(STOPPED_S - 2.0)  # the question waited for two
    detector.signal(signal.SIGCONT)
    loop = asyncio.get_running_loop()
    began = loop.time()
    told = await detector.until(503, "its loop has lagged", within_s=WINDOW_S)
    assert told["status"] == "failing"
    assert STOPPED_S - 0.5 < told["loop_lag_s"] < STOPPED_S + 5.0
    assert "loop: it lagged by" in told["reasons"][0]
    told = await detector.until(200, "the window is over", within_s=WINDOW_S + 20.0)
    assert loop.time() - began > WINDOW_S - 0.5
    assert told["loop_lag_s"] < 1.0


async def test_healthz_is_false_while_the_bus_is_away(detector: Detector, server: EmbeddedServer) -> None:
    await server.stop()
    detector.start()
    told = await detector.until(503, "it waits for the bus", bus="waiting")
    assert told["reasons"] == ["bus: it is waited for since the start"]
    await server.start()
    await detector.until(200, "it is well", bus="connected")
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGKILL)
    told = await detector.until(503, "the bus is gone", within_s=10.0, bus="lost")
    assert "bus: the connection is lost" in told["reasons"]
    await server.start()
    await detector.until(200, "it is connected again")


async def test_a_port_that_is_taken_ends_the_service_with_the_reason(
    detector: Detector, server: EmbeddedServer
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", detector.port))
        taken.listen()
        detector.start()
        assert detector.process is not None
        assert await asyncio.to_thread(detector.process.wait, 40) == 1
    assert f"health.ports.detector: 127.0.0.1:{detector.port}" in detector.log()
    assert "address already in use" in detector.log()
