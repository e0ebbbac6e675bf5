"""Detectors on a real NATS: a takeover suspects nobody who beats and finds who does not (S25), and so does a detector
whose server comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from libs.events.facts import AnyFact
from libs.events.hosts import HostJoined, HostSuspected
from libs.events.signals import Heartbeat
from libs.jetstream.bus import NatsBus
from libs.jetstream.reader import events
from libs.jetstream.schema import Names
from libs.jetstream.server import EmbeddedServer
from libs.jetstream.store import JetStreamStore
from libs.model import Incarnation
from tests.integration.conftest import OpenBus
from tests.integration.test_cli import REPOSITORY, environment, rekindle
from tests.waiting import eventually

NAMES = Names("p")
EVERY_S = 0.5


@dataclass
class Detectors:
    """Detector processes of one pool, by the name under which each would lead."""

    config: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, holder: str) -> None:
        with self.config.with_suffix(".log").open("ab") as log:
            self.running[holder] = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "service", "detector", "--config", str(self.config)],
                cwd=REPOSITORY,
                env={**environment(), "REKINDLE_HOLDER": holder},
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        return self.config.with_suffix(".log").read_text()

    async def status(self) -> Any:
        """`rekindle status`, while the hosts beat on."""
        done = await asyncio.to_thread(rekindle, "status", "--json", "--config", str(self.config))
        return json.loads(done.stdout)

    def signal(self, holder: str, number: int) -> None:
        os.kill(self.running[holder].pid, number)


@dataclass
class Pool:
    """Hosts that beat, each over a connection of its own, and who looks on."""

    onlooker: NatsBus
    beating: dict[str, asyncio.Task[None]]

    async def told(self) -> list[AnyFact]:
        return [stored.envelope.data async for stored in events(self.onlooker, NAMES, follow=False, after=0)]

    async def suspected(self) -> list[str]:
        return [fact.at.host for fact in await self.told() if isinstance(fact, HostSuspected)]

    async def joined(self) -> bool:
        return {fact.at.host for fact in await self.told() if isinstance(fact, HostJoined)} == set(
            self.beating
        )

    async def leader(self) -> str:
        row = await JetStreamStore(self.onlooker.client, NAMES, "leaders").get("detector")
        return str(json.loads(row.value)["holder"]) if row is not None else ""

    def falls_silent(self, host: str) -> None:
        self.beating[host].cancel()


async def beat(bus: NatsBus, host: str) -> None:
    at = Incarnation(host=host, boot=f"boot-of-{host}")
    for number in range(1_000_000):
        await bus.send(f"heartbeat.{host}", Heartbeat(at=at, agent="life", seq=number))
        await asyncio.sleep(EVERY_S)


@contextlib.asynccontextmanager
async def pool_of(count: int, open_as: OpenBus) -> AsyncIterator[Pool]:
    hosts = [f"h{number + 1}" for number in range(count)]
    buses = {host: await open_as(f"heartbeat-{host}") for host in hosts}
    beating = {host: asyncio.create_task(beat(bus, host)) for host, bus in buses.items()}
    try:
        yield Pool(await open_as("onlooker"), beating)
    finally:
        for task in beating.values():
            task.cancel()
        await asyncio.gather(*beating.values(), return_exceptions=True)


@pytest.fixture
def detectors(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Detectors]:
    config = tmp_path / "pool.yaml"
    lines = [f"pool: p\ndata_dir: {tmp_path}\nhosts:"]
    uri = "qemu+unix:///system?socket=/no/such/socket"
    lines += [f'  - {{name: h{number + 1}, uri: "{uri}", agent: true}}' for number in range(request.param)]
    config.write_text("\n".join([*lines, "detection: {quiet_after_start_s: 2}", ""]))
    found = Detectors(config)
    yield found
    for process in found.running.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("detectors", [4], indirect=True)
@pytest.mark.parametrize("how", ["killed", "stopped for 8 s"])
async def test_s25_a_takeover_suspects_nobody_who_beats_and_finds_who_falls_silent(
    detectors: Detectors, server: EmbeddedServer, open_as: OpenBus, how: str
) -> None:
    async with pool_of(4, open_as) as pool:
        detectors.start("one")
        await eventually(pool.joined, "all have joined", within_s=40.0, every_s=0.2)
        detectors.start("two")
        await eventually(
            lambda: detectors.log().count("service runs") == 2, "the standby runs", within_s=40.0
        )
        await asyncio.sleep(
            2 * EVERY_S
        )  # by then it has heard everybody; nothing tells an onlooker that it has
        assert await pool.leader() == "one"
        pool.falls_silent("h2")
        began = time.monotonic()
        detectors.signal("one", signal.SIGKILL if how == "killed" else signal.SIGSTOP)

        async def found() -> bool:
            return "h2" in await pool.suspected()

        await eventually(found, "h2 is found", within_s=12.0, every_s=0.1)
        took_s = time.monotonic() - began
        assert await pool.leader() == "two"
        if how != "killed":
            await asyncio.sleep(max(0.0, 8.0 - took_s))
            detectors.signal("one", signal.SIGCONT)
        await asyncio.sleep(5.0)
        assert set(await pool.suspected()) == {"h2"}
        assert took_s < 8.0
        assert (await detectors.status())["detector"]["state"] == "ok"


@pytest.mark.parametrize("detectors", [20], indirect=True)
async def test_s25_a_server_that_is_restarted_again_and_again_makes_nobody_suspect(
    detectors: Detectors, server: EmbeddedServer, open_as: OpenBus
) -> None:
    async with pool_of(20, open_as) as pool:
        detectors.start("one")
        await eventually(pool.joined, "all have joined", within_s=40.0, every_s=0.2)
        for _ in range(8):
            began = time.monotonic()
            await server.stop()
            await server.start()
            await asyncio.sleep(max(0.0, 5.0 - (time.monotonic() - began)))
        await asyncio.sleep(3.0)
        assert detectors.running["one"].poll() is None, detectors.log()[-3000:]
        assert await pool.suspected() == []
        pool.falls_silent("h7")

        async def found() -> bool:
            return await pool.suspected() == ["h7"]

        await eventually(found, "and who falls silent after that is found", within_s=12.0, every_s=0.2)


@pytest.mark.parametrize("detectors", [2], indirect=True)
async def test_a_detector_that_stands_still_shows_as_degraded(
    detectors: Detectors, server: EmbeddedServer, open_as: OpenBus
) -> None:
    async with pool_of(2, open_as) as pool:
        detectors.start("one")
        await eventually(pool.joined, "all have joined", within_s=40.0, every_s=0.2)
        status = await detectors.status()
        assert status["detector"]["state"] == "ok"
        assert status["detector"]["round_trip_ms"] < 500
        detectors.signal("one", signal.SIGSTOP)
        status = await detectors.status()
        detectors.signal("one", signal.SIGCONT)
        assert (status["ok"], status["detector"]["state"]) == (False, "degraded")
        assert "not heard" in status["detector"]["reason"]
