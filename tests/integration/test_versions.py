"""Two versions of the detector side by side on one bus: the next one has more fields in its records, events and heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest

from libs.core.ports import Delivery, UnavailableError
from libs.events.hosts import HostRefuted, HostSuspected
from libs.jetstream.bus import NatsBus
from libs.jetstream.server import EmbeddedServer
from libs.jetstream.store import JetStreamStore
from tests.integration.conftest import OpenBus
from tests.integration.services import NAMES
from tests.integration.test_cli import REPOSITORY, environment
from tests.unit.made import beat
from tests.waiting import eventually

HOSTS = ("h1", "h2", "h3")
PATCHES = (
    ("services/detector/state.py", "    undecided: int = 0\n", '    added: str = "by the next version"\n    undecided: int = 0\n'),
    ("libs/events/hosts.py", "    silent_s: float\n", '    silent_s: float\n    added: str = "by the next version"\n'),
    ("libs/events/signals.py", "    watchdog_s: float | None", "    added: int = 7\n    watchdog_s: float | None"),
)  # fmt: skip


@pytest.fixture(scope="module")
def following(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next version: this one, with a field more here and there."""
    tree = tmp_path_factory.mktemp("next")
    for package in ("libs", "services"):
        shutil.copytree(REPOSITORY / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, after in PATCHES:
        file = tree / name
        text = file.read_text()
        assert before in text, name
        file.write_text(text.replace(before, after))
    return tree


class Detectors:
    """Detector processes by name, each of one version."""

    def __init__(self, config: Path) -> None:
        self.config, self.running = config, dict[str, subprocess.Popen[bytes]]()

    def start(self, name: str, tree: Path) -> None:
        with self.config.with_name(f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "service", "detector", "--config", str(self.config)],
                cwd=tree,
                env={**environment(), "PYTHONPATH": str(tree), "REKINDLE_HOLDER": name},
                stdout=log,
                stderr=log,
            )

    def end(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def runs(self, name: str) -> int:
        """How often it was started so far, and ran: it is subscribed by then."""
        return self.config.with_name(f"{name}.log").read_text().count('"service runs"')

    def stop(self, name: str) -> None:
        """As an upgrade does: it gives its role up."""
        process = self.running.pop(name)
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture
def detectors(tmp_path: Path) -> Iterator[Detectors]:
    config = tmp_path / "pool.yaml"
    hosts = ", ".join(f'{{name: {host}, uri: "test:///default", agent: true}}' for host in HOSTS)
    config.write_text(f"pool: p\ndata_dir: {tmp_path}\nhosts: [{hosts}]\n")
    found = Detectors(config)
    yield found
    for name in list(found.running):
        found.end(name)


class Pool:
    """Hosts whose agents are of the next version: their heartbeats have a field more."""

    def __init__(self, bus: NatsBus) -> None:
        self.bus, self.silent, self.facts = bus, set[str](), list[Any]()
        self.rounds = 0

    async def beat(self) -> None:
        while True:
            for host in sorted(set(HOSTS) - self.silent):
                document = {**json.loads(beat(host).model_dump_json()), "added": 7}
                with contextlib.suppress(nats.errors.Error):  # dropped, as an agent's
                    topic = f"{NAMES.prefix}.heartbeat.{host}"
                    await self.bus.client.publish(topic, json.dumps(document).encode())
            self.rounds += 1
            await asyncio.sleep(0.3)

    def hear(self, delivery: Delivery) -> None:
        self.facts.append(delivery.fact)

    async def row(self, bucket: str, key: str) -> dict[str, Any]:
        try:
            row = await JetStreamStore(self.bus.client, NAMES, bucket).get(key)
        except UnavailableError:  # the machine is busy
            return {"record": {}}
        found: dict[str, Any] = {} if row is None else json.loads(row.value)
        return found

    async def has_added(self) -> None:
        record: dict[str, Any] = {}
        while not record:
            record = (await self.row("state", "detector.h3"))["record"]
        assert record["added"] == "by the next version"

    async def leads(self, name: str) -> None:
        async def there() -> bool:
            return (await self.row("leaders", "detector")).get("holder") == name

        await eventually(there, f"{name} leads", within_s=40.0)

    async def told(self, kind: type[HostSuspected | HostRefuted], number: int) -> None:
        async def there() -> bool:
            return number in [one.number for one in self.facts if isinstance(one, kind)]

        await eventually(there, f"{kind.__name__} {number}; so far {self.facts}", within_s=60.0)


async def test_a_record_of_the_next_version_survives_a_takeover_by_this_one_and_back(
    server: EmbeddedServer, open_as: OpenBus, detectors: Detectors, following: Path
) -> None:
    pool = Pool(await open_as("agents"))
    beating = asyncio.create_task(pool.beat())
    await pool.bus.consume("onlooker", ("host.suspected", "host.refuted", "host.joined"), pool.hear)
    try:
        detectors.start("next", following)
        await pool.leads("next")

        async def joined() -> bool:
            return len([one for one in pool.facts if one.kind == "host.joined"]) == len(HOSTS)

        await eventually(joined, "all have joined", within_s=40.0)
        await pool.has_added()
        detectors.start("this", REPOSITORY)
        pool.silent.add("h3")
        await pool.told(HostSuspected, 1)  # read by this version, with a field that it does not know
        detectors.stop("next")
        await pool.leads("this")
        pool.silent.clear()
        await pool.told(HostRefuted, 1)

        async def refuted() -> bool:
            record: dict[str, Any] = (await pool.row("state", "detector.h3"))["record"]
            return record.get("state") == "healthy"

        await eventually(refuted, "this version has written the record")
        await pool.has_added()
        detectors.start("next", following)
        await eventually(lambda: detectors.runs("next") == 2, "it runs, and hears", within_s=40.0)
        heard = (
            pool.rounds + 4
        )  # a standby that has heard h3 finds it silent at once; one that has not waits a minute
        await eventually(lambda: pool.rounds >= heard, "it has heard all hosts", within_s=40.0)
        detectors.stop("this")
        await pool.leads("next")
        pool.silent.add("h3")
        await pool.told(HostSuspected, 2)
    finally:
        beating.cancel()
