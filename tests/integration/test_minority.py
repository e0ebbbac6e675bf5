"""A server of the bus is cut off from its two peers, with the detector that led: it acts on nothing and says `degraded`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.lab.bus import NODES
from libs.core.clock import SystemClock
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.reader import events
from libs.jetstream.schema import Names, ensure
from libs.jetstream.server import free_port
from tests.contract.cluster import CuttableCluster
from tests.integration.test_cli import REPOSITORY, environment, rekindle
from tests.unit.made import beat
from tests.waiting import eventually

POOL = "p"
HOSTS = ("h1", "h2", "h3")
CUT = 0


async def closed() -> None:
    return None


class Detector:
    """A detector process that reaches some nodes only."""

    def __init__(self, directory: Path, name: str, urls: list[str]) -> None:
        self.port, self.config = free_port(), directory / f"{name}.yaml"
        url = directory / f"{name}.url"
        url.write_text(",".join(urls))
        pool = {
            "pool": POOL,
            "data_dir": str(directory),
            "hosts": [{"name": host, "uri": "test:///default", "agent": True} for host in HOSTS],
            "bus": {"url_file": str(url), "replicas": NODES},
            "health": {"ports": {"detector": self.port}},
        }
        self.config.write_text(yaml.safe_dump(pool))
        words = ["-m", "services.cli", "service", "detector", "--config", str(self.config)]
        with (directory / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words], cwd=REPOSITORY, env=environment(), stdout=log, stderr=log
            )

    async def ready(self) -> tuple[int, dict[str, Any]]:
        def ask() -> tuple[int, dict[str, Any]]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=3) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.load(error)
            except OSError:
                return 0, {}

        return await asyncio.to_thread(ask)

    async def until(self, code: int, what: str, **fields: Any) -> dict[str, Any]:
        async def there() -> dict[str, Any] | None:
            found, told = await self.ready()
            return told if found == code and fields.items() <= told.items() else None

        found: dict[str, Any] = await eventually(there, what, within_s=60.0, every_s=0.2)
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[CuttableCluster]:
    (tmp_path / "cluster").mkdir()
    one = CuttableCluster(tmp_path / "cluster", "127.0.0.1", POOL)
    await one.up()
    yield one
    await one.down()


async def beating(bus: NatsBus) -> None:
    while True:
        for host in HOSTS:
            await bus.send(f"heartbeat.{host}", beat(host))
        await asyncio.sleep(0.3)


async def test_the_minority_acts_on_nothing_and_says_degraded(
    cluster: CuttableCluster, tmp_path: Path
) -> None:
    majority = [cluster.url(node) for node in range(NODES) if node != CUT]
    bus = await open_bus(majority, POOL, "agents", SystemClock(), "agents", closed=closed, wait_s=30)
    await ensure(bus.client.jetstream(timeout=5), POOL, replicas=NODES, wait_s=40)
    agents = asyncio.create_task(beating(bus))
    running = [Detector(tmp_path, "minority", [cluster.url(CUT)])]
    try:
        tied = running[0]
        await tied.until(200, "the first leads", leading=True, status="ready")
        running.append(Detector(tmp_path, "majority", majority))
        other = running[1]
        await other.until(200, "the second stands by and sees it", leading=False)
        cluster.cut_off(CUT)
        await tied.until(503, "it has lost its role", leading=False, status="degraded")
        await other.until(200, "the other leads", leading=True)

        async def named() -> bool:
            _, told = await tied.ready()
            return {"leadership", "evidence"} <= {one.split(":")[0] for one in told.get("reasons", ())}

        await eventually(named, "it says that nobody leads and nobody is heard", within_s=40.0)
        status = await asyncio.to_thread(rekindle, "status", "--json", "--config", str(tied.config))
        assert (status.returncode, status.stderr) == (1, "")
        assert json.loads(status.stdout)["degraded"], status.stdout
        well = await asyncio.to_thread(rekindle, "status", "--json", "--config", str(other.config))
        assert json.loads(well.stdout)["degraded"] == ""
        kinds = [one.envelope.data.kind async for one in events(bus, Names(POOL), follow=False, after=0)]
        assert set(kinds) <= {"host.joined", "detector.degraded"}, "nobody was suspected on either side"
        cluster.mend()
        await tied.until(200, "it stands by again", leading=False)
    finally:
        agents.cancel()
        for one in running:
            one.end()
        await bus.client.close()
