"""What three bus servers promise while they lose a leader, or one of them its peers: real ones, and the simulator's.

Elections take their seconds: this is part of `make test`, not of `make check`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Protocol

import pytest

from infra.lab.bus import NODES
from libs.core.clock import SystemClock
from libs.core.ports import Bus, Clock, ConflictError, Delivery, Row, Store, UnavailableError
from libs.events.hosts import HostSuspected
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.schema import Names, ensure
from libs.jetstream.store import JetStreamStore
from libs.model import Incarnation
from libs.sim.broker import Broker
from libs.sim.bus import SimBus, SimStore
from libs.sim.loop import Process, SimClock, SimLoop
from libs.sim.network import Network
from tests.contract.cluster import CuttableCluster
from tests.contract.test_bus_contract import until
from tests.simulated import play_simulated

POOL = "contract"
BUCKET = "leases"
AT = Incarnation(host="h1", boot="boot0001")
ELECTED_S = 30.0


class Ground(Protocol):
    """Three servers; clients move between those that run, but for one that has only the server that is cut off."""

    @property
    def clock(self) -> Clock: ...

    async def bus(self, service: str) -> Bus: ...

    async def tied(self, service: str) -> Bus:
        """A client of that one server alone, which leads the bucket as long as it is not cut off."""

    def store(self, bus: Bus) -> Store: ...

    async def kill_leader(self, *, of_facts: bool = False) -> None:
        """Of the facts or of the bucket, without a word; it is started again at once."""

    async def cut_off(self) -> None:
        """That one server loses its peers, and its clients do not notice."""

    async def mend(self) -> None: ...

    async def one_away(self) -> None:
        """A server that does not lead the bucket stands still."""

    async def one_back(self) -> None:
        """It goes on, and has yet to be told what was written meanwhile."""


class RealGround:
    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.clock = SystemClock()
        self.cluster = CuttableCluster(directory, "127.0.0.1", POOL)
        self.opened: list[NatsBus] = []
        self._tied_to: int | None = None
        self._away = 0

    async def _open(self, service: str, urls: list[str]) -> NatsBus:
        async def closed() -> None:
            return None

        name = f"{service}-{len(self.opened)}"
        until = self.clock.monotonic() + ELECTED_S
        while True:  # as a service does that starts while there is no leader
            try:
                bus = await open_bus(urls, POOL, service, self.clock, name, closed=closed)
            except UnavailableError:
                if self.clock.monotonic() > until:
                    raise
            else:
                self.opened.append(bus)
                return bus

    async def start(self) -> None:
        await self.cluster.up()
        bus = await self.bus("test")
        async with asyncio.timeout(60.0):
            await ensure(bus.client.jetstream(timeout=5), POOL, replicas=NODES, wait_s=40.0)
            while (leader := await self.cluster.leader(self._stream)) is None:
                await asyncio.sleep(0.1)
        self._tied_to = leader

    @property
    def _stream(self) -> str:
        return f"KV_{Names(POOL).bucket(BUCKET)}"

    async def bus(self, service: str) -> NatsBus:
        # not by way of the one node that may be cut off: nobody behind it belongs to the majority
        nodes = (node for node in range(NODES) if node != self._tied_to)
        return await self._open(service, [self.cluster.url(node) for node in nodes])

    async def tied(self, service: str) -> NatsBus:
        assert self._tied_to is not None
        return await self._open(service, [self.cluster.url(self._tied_to)])

    def store(self, bus: Bus) -> JetStreamStore:
        assert isinstance(bus, NatsBus)
        return JetStreamStore(bus.client, Names(POOL), BUCKET)

    async def kill_leader(self, *, of_facts: bool = False) -> None:
        node = await self.cluster.leader(Names(POOL).events if of_facts else self._stream)
        assert node is not None
        await asyncio.to_thread(self.cluster.kill_node, node)
        self.cluster.start_node(node)

    async def cut_off(self) -> None:
        assert self._tied_to is not None
        self.cluster.cut_off(self._tied_to)

    async def mend(self) -> None:
        self.cluster.mend()

    async def one_away(self) -> None:
        assert self._tied_to is not None
        self._away = (self._tied_to + 1) % NODES
        self.cluster.signal_node(self._away, signal.SIGSTOP)

    async def one_back(self) -> None:
        self.cluster.signal_node(self._away, signal.SIGCONT)

    async def stop(self) -> None:
        for bus in self.opened:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(bus.client.close(), 5.0)
        await self.cluster.down()


class SimGround:
    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.clock = SimClock(loop)
        self.broker = Broker(loop, Network(Random(1), Random(3)), Random(2), nodes=NODES)
        self._tied: list[SimBus] = []

    async def bus(self, service: str) -> SimBus:
        return SimBus(self.broker, Process(self._loop, service, f"machine-of-{service}"), service)

    async def tied(self, service: str) -> SimBus:
        self._tied.append(await self.bus(service))
        return self._tied[-1]

    def store(self, bus: Bus) -> SimStore:
        assert isinstance(bus, SimBus)
        return SimStore(bus, BUCKET)

    async def kill_leader(self, *, of_facts: bool = False) -> None:
        node = self.broker.leader
        self.broker.kill_node(node)
        self._loop.world_later(0.5, self.broker.start_node, node)

    async def cut_off(self) -> None:
        for bus in self._tied:
            bus.isolate(True)
        self.broker.lose_leader()

    async def mend(self) -> None:
        for bus in self._tied:
            bus.isolate(False)

    async def one_away(self) -> None:
        self.broker.kill_node((self.broker.leader + 1) % NODES)

    async def one_back(self) -> None:
        for node in range(NODES):
            self.broker.start_node(node)


Body = Callable[[Ground], Awaitable[None]]
Play = Callable[[Body], None]


@pytest.fixture(params=["sim", "real"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Runs a test's body in one of the worlds."""

    async def real(body: Body) -> None:
        ground = RealGround(tmp_path / "cluster")
        try:
            await ground.start()
            await body(ground)
        finally:
            await ground.stop()

    def run(body: Body) -> None:
        if request.param == "real":
            asyncio.run(real(body))
            return
        play_simulated(lambda loop: body(SimGround(loop)))

    return run


def suspected(number: int) -> HostSuspected:
    return HostSuspected(at=AT, number=number, silent_s=1.5)


async def put_at_last(store: Store, key: str, value: bytes) -> int:
    """Written as soon as somebody leads again."""
    async with asyncio.timeout(ELECTED_S):
        while True:
            try:
                return await store.put(key, value, None)
            except UnavailableError:
                await asyncio.sleep(0.1)


def test_a_lost_leader_costs_seconds_without_writes_and_then_all_go_on(play: Play) -> None:
    async def body(ground: Ground) -> None:
        store = ground.store(await ground.bus("executor"))
        revision = await put_at_last(store, "a", b"0")
        await ground.kill_leader()
        began, failed = ground.clock.monotonic(), 0
        async with asyncio.timeout(ELECTED_S):
            while True:
                try:
                    later = await store.put("a", b"1", revision)
                except UnavailableError:
                    failed += 1
                except ConflictError:  # it took effect and only its answer was lost
                    row = await store.get("a")
                    assert row is not None
                    assert row.value == b"1"
                    later = row.revision
                    break
                else:
                    break
                await asyncio.sleep(0.1)
        assert failed, "no leader, no write"
        assert ground.clock.monotonic() - began > 1.0
        assert later > revision
        assert await store.put("a", b"2", later) > later

    play(body)


def test_facts_that_are_published_while_a_leader_is_lost_are_stored_once_and_heard(play: Play) -> None:
    async def body(ground: Ground) -> None:
        bus, heard = await ground.bus("detector"), list[Delivery]()
        await bus.publish(suspected(0))
        await bus.consume("placement", ["host.suspected"], heard.append)
        await until(lambda: bool(heard), ELECTED_S)
        await ground.kill_leader(of_facts=True)
        told = [suspected(number) for number in range(1, 6)]
        await asyncio.gather(*(bus.publish(fact) for fact in told))
        await until(lambda: {one.fact.key for one in heard} >= {fact.key for fact in told}, ELECTED_S)
        late = list[Delivery]()
        await (await ground.bus("alerting")).consume("alerting", ["host.suspected"], late.append)
        await until(lambda: len(late) >= 6, ELECTED_S)
        await asyncio.sleep(0.5)
        assert sorted(one.fact.key for one in late) == sorted(fact.key for fact in [suspected(0), *told])

    play(body)


def test_a_minority_writes_nothing_and_what_it_tried_does_not_come_to_light_later(play: Play) -> None:
    async def body(ground: Ground) -> None:
        alone, others = await ground.tied("executor"), await ground.bus("executor")
        mine, theirs = ground.store(alone), ground.store(others)
        revision = await put_at_last(mine, "a", b"before")
        await ground.cut_off()
        for expected in (revision, None):
            with pytest.raises(UnavailableError):
                await mine.put("a", b"of the minority", expected)
        with pytest.raises(UnavailableError):
            await mine.put("b", b"of the minority", 0)
        with contextlib.suppress(UnavailableError):
            row = await mine.get("a")  # a server without its peers answers reads for a while, with what was
            assert row is not None
            assert row.value == b"before"
        await put_at_last(theirs, "a", b"of the majority")
        await ground.mend()
        async with asyncio.timeout(ELECTED_S):
            while True:  # until the two are one again
                with contextlib.suppress(UnavailableError, ConflictError):
                    await mine.put("back", b"", 0)
                    break
                with contextlib.suppress(UnavailableError):
                    if await mine.get("back") is not None:
                        break
                await asyncio.sleep(0.1)
        rows, until = {}, asyncio.get_running_loop().time() + ELECTED_S
        while asyncio.get_running_loop().time() < until:  # it was acknowledged while the two became one
            rows = {row.key: row.value for row in await scanned(theirs)}
            if "back" in rows:
                break
            await asyncio.sleep(0.1)
        assert rows == {"a": b"of the majority", "back": b""}
        with pytest.raises(ConflictError):  # a deposed leader's late write names what it knew
            await written(mine, "a", b"late", revision)

    play(body)


def test_what_was_written_is_read_also_while_a_server_that_was_away_catches_up(play: Play) -> None:
    async def body(ground: Ground) -> None:
        store = ground.store(await ground.tied("executor"))
        await put_at_last(store, "a", b"0")
        await ground.one_away()
        for number in range(2000):
            await written(store, f"b{number % 50}", b"%d" % number, None)
        await ground.one_back()
        missed: list[tuple[bytes, bytes]] = []
        for look in range(120):
            told = b"%d" % look
            await written(store, "a", told, None)
            found = {row.key: row.value for row in await scanned(store)}
            if found.get("a") != told or len(found) != 51:
                missed.append((told, found.get("a", b"")))
            await asyncio.sleep(0.01)
        assert missed == []

    play(body)


def test_what_was_written_before_a_leader_was_lost_is_read_at_the_next(play: Play) -> None:
    async def body(ground: Ground) -> None:
        store = ground.store(await ground.bus("executor"))
        for turn in range(2):
            told = dict[str, bytes]()
            for number in range(200):
                key, value = f"c{number}", b"%d-%d" % (turn, number)
                await written(store, key, value, None)
                told[key] = value
            await ground.kill_leader()
            assert {row.key: row.value for row in await scanned(store)} == told

    play(body)


async def scanned(store: Store) -> list[Row]:
    async with asyncio.timeout(ELECTED_S):
        while True:
            with contextlib.suppress(UnavailableError):
                return await store.scan("")
            await asyncio.sleep(0.1)


async def written(store: Store, key: str, value: bytes, expected: int | None) -> int:
    async with asyncio.timeout(ELECTED_S):
        while True:
            with contextlib.suppress(UnavailableError):
                return await store.put(key, value, expected)
            await asyncio.sleep(0.1)
