"""All that a pool has on its bus goes to one file and into an empty server, where the plane only reads until hosts agree."""

from __future__ import annotations

import asyncio
import gzip
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.core.clock import SystemClock
from libs.core.ports import Delivery
from libs.jetstream import backup as backups
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.reader import events
from libs.jetstream.schema import ensure
from libs.jetstream.server import EmbeddedServer
from libs.jetstream.store import JetStreamStore
from libs.model import LeaseState
from services.executor import wiring as executor
from tests.integration.conftest import OpenBus
from tests.integration.services import NAMES, Agent, Ports, lease_of, running
from tests.integration.test_cli import rekindle
from tests.integration.test_restored import H1, H2, H3, Hosts, eventually, marked, quick, reconciled
from tests.integration.test_selfcheck import fact
from tests.unit.made import vm

__all__ = ["quick"]
POOL = """\
pool: p
data_dir: {data}
bus: {{url: "{url}"}}
hosts: [{{name: h1, uri: "test:///default"}}, {{name: h2, uri: "test:///default"}}, {{name: h3, uri: "test:///default"}}]
"""


async def closed() -> None:
    return None


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A server with nothing in it."""
    one = EmbeddedServer(tmp_path / "other")
    await one.start()
    yield one
    await one.stop()


def config(directory: Path, server: EmbeddedServer, name: str) -> str:
    path = directory / f"{name}.yaml"
    path.write_text(POOL.format(data=directory / name, url=server.url))
    return str(path)


async def said(*words: str) -> tuple[int, str]:
    done = await asyncio.to_thread(rekindle, *words)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.usefixtures("quick")
async def test_a_backup_is_restored_into_an_empty_server_and_only_read_until_every_host_has_told(
    server: EmbeddedServer, other: EmbeddedServer, open_as: OpenBus, tmp_path: Path
) -> None:
    ports, hosts = Ports(await open_as("executor"), "executor"), Hosts()
    hosts.away = False
    told = await open_as("onlooker")
    agents = [Agent(await open_as(f"agent-{at.host}"), at) for at in (H1, H2, H3)]
    agents[0].shows(vm("db"))
    file = tmp_path / "pool.backup"
    async with running(executor.shell(ports, hosts).run(), *(one.run() for one in agents), *ports.works):

        async def adopted() -> bool:
            lease = await lease_of(told, "db")
            return lease is not None and lease.state is LeaseState.RUNNING and lease.holder == H1

        await eventually(adopted, "db has its lease")
        # the oldest facts are gone, as after thirty days: what is left keeps its number
        for number in range(1, 8):
            await told.publish(fact(number))
        await told.client.jetstream().purge_stream(NAMES.events, seq=5)
        heard: list[Delivery] = []
        consumption = await told.consume("fencer", ["host.suspected"], heard.append)

        async def all_heard() -> bool:
            return len(heard) >= 3

        await eventually(all_heard, "the fencer has heard them")
        for delivery in heard[:2]:
            await delivery.ack()
        await told.client.flush()
        await consumption.stop()
        assert await said("backup", str(file), "--config", config(tmp_path, server, "first")) == (
            0,
            f"{file}: {len(written(file)) - 2 - places(file)} messages and {places(file)} places written\n",
        )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    later = config(tmp_path, other, "other")
    assert (await said("restore", str(file), "--config", later))[0] == 0
    bus = await open_bus([other.url], "p", "executor", SystemClock(), "x", closed=closed)
    try:
        await same(told, bus)
        await read_only_until_told(bus, hosts)
        status, why = await said("restore", str(file), "--config", later)
        assert (status, "is not empty" in why) == (1, True)
    finally:
        await bus.client.close()


def written(file: Path) -> list[dict[str, object]]:
    with gzip.open(file, "rt") as given:
        return [json.loads(line) for line in given]


def places(file: Path) -> int:
    return sum(line["kind"] == "place" for line in written(file))


async def same(was: NatsBus, now: NatsBus) -> None:
    """Every fact has its number, every bucket its rows, the consumer its place."""
    before = [(one.sequence, one.envelope) async for one in events(was, NAMES) if one.sequence < 8]
    after = [(one.sequence, one.envelope) async for one in events(now, NAMES) if one.sequence < 8]
    assert after == before
    assert [number for number, _ in after][:1] == [5]
    for bucket in ("leases", "definitions", "inventory", "state"):
        rows = [
            {row.key: row.value for row in await JetStreamStore(bus.client, NAMES, bucket).scan("")}
            for bus in (was, now)
        ]
        assert rows[0] == rows[1], bucket
    again: list[Delivery] = []
    consumption = await now.consume("fencer", ["host.suspected"], again.append)

    async def heard() -> bool:
        return bool(again)

    await eventually(heard, "what was not acknowledged comes again")
    assert [one.fact.number for one in again] == [7]  # type: ignore[attr-defined]
    await consumption.stop()


async def read_only_until_told(bus: NatsBus, hosts: Hosts) -> None:
    """The plane begins on what was restored: db has been moved meanwhile, and h3 is late."""
    ports = Ports(bus, "executor", me="later")
    await ensure(bus.client.jetstream(), "p")
    agents = [Agent(bus, at, rev=10) for at in (H1, H2, H3)]
    agents[1].shows(vm("db"))
    agents[2].silent = True
    async with running(executor.shell(ports, hosts).run(), *(one.run() for one in agents), *ports.works):

        async def waits() -> bool:
            restoring = (await marked(bus)).restoring
            return restoring is not None and restoring.missing == ("h3",)

        await eventually(waits, "it waits for h3", within_s=30)
        lease = await lease_of(bus, "db")
        assert lease is not None
        assert lease.holder == H1, "nothing is written meanwhile"
        agents[2].silent = False

        async def held() -> bool:
            lease = await lease_of(bus, "db")
            return lease is not None and lease.holder == H2

        await eventually(held, "the lease is where db runs", within_s=30)
        await eventually(lambda: reconciled(bus), "it is told that the state is right", within_s=30)


async def test_a_file_that_is_torn_or_of_another_pool_is_refused_by_name(
    server: EmbeddedServer, open_as: OpenBus, tmp_path: Path
) -> None:
    bus, file = await open_as("cli"), tmp_path / "pool.backup"
    await backups.write(bus.client, "p", file, SystemClock().wall())
    pool = config(tmp_path, server, "p")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    status, why = await said("restore", str(file), "--config", pool)
    assert (status, str(file) in why) == (2, True)
    with gzip.open(file, "wt") as out:
        out.writelines(json.dumps(line) + "\n" for line in written_of(whole, tmp_path)[:-1])
    status, why = await said("restore", str(file), "--config", pool)
    assert (status, "torn" in why) == (2, True)
    file.write_bytes(whole)
    other = tmp_path / "q.yaml"
    other.write_text(Path(pool).read_text().replace("pool: p", "pool: q"))
    status, why = await said("restore", str(file), "--config", str(other))
    assert (status, "pool: is of p, and the pool file's is q" in why) == (2, True)
    file.write_text("no backup")
    assert (await said("restore", str(file), "--config", pool))[0] == 2


def written_of(raw: bytes, directory: Path) -> list[dict[str, object]]:
    copy = directory / "copy"
    copy.write_bytes(raw)
    return written(copy)
