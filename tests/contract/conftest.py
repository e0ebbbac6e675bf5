"""Two worlds behind one bench: a real nats-server, and the simulator's twins. The same tests run in both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Protocol

import pytest
from nats.js.api import StreamConfig

from libs.core.clock import SystemClock
from libs.core.ports import Bus, Clock, Row, Store
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.schema import Names, ensure
from libs.jetstream.server import EmbeddedServer
from libs.jetstream.store import JetStreamStore
from libs.sim.broker import Broker
from libs.sim.bus import SimBus, SimStore
from libs.sim.loop import Process, SimClock, SimLoop
from libs.sim.network import Network
from tests.simulated import play_simulated

POOL = "contract"


class Expiring(Protocol):
    """A store in a bucket whose rows may have a time to live."""

    async def get(self, key: str) -> Row | None: ...

    async def put(self, key: str, value: bytes, expected: int | None, *, ttl_s: int | None = None) -> int: ...


class Bench(Protocol):
    """What a contract test needs of a world."""

    @property
    def clock(self) -> Clock: ...

    async def bus(self, service: str) -> Bus:
        """A connection of its own."""

    def store(self, bus: Bus, bucket: str) -> Store: ...

    async def expiring(self, bus: Bus) -> Expiring:
        """In a bucket of its own: none of a pool's allows it."""

    async def shorten_dedupe(self, window_s: float) -> None:
        """For how long the server knows the key of a fact."""


class RealBench:
    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self.clock = SystemClock()
        self.opened: list[NatsBus] = []

    async def bus(self, service: str) -> NatsBus:
        async def closed() -> None:
            return None

        name = f"{service}-{len(self.opened)}"
        bus = await open_bus([self._server.url], POOL, service, self.clock, name, closed=closed)
        await ensure(bus.client.jetstream(timeout=5), POOL)
        self.opened.append(bus)
        return bus

    def store(self, bus: Bus, bucket: str) -> JetStreamStore:
        assert isinstance(bus, NatsBus)
        return JetStreamStore(bus.client, Names(POOL), bucket)

    async def expiring(self, bus: Bus) -> JetStreamStore:
        assert isinstance(bus, NatsBus)
        config = StreamConfig(
            name=f"KV_{Names(POOL).bucket('expiring')}",
            subjects=[f"$KV.{Names(POOL).bucket('expiring')}.>"],
            max_msgs_per_subject=1,
            allow_msg_ttl=True,
        )
        await bus.client.jetstream().add_stream(config)
        return self.store(bus, "expiring")

    async def shorten_dedupe(self, window_s: float) -> None:
        js = self.opened[0].client.jetstream()
        config = (await js.stream_info(Names(POOL).events)).config
        await js.update_stream(config.evolve(duplicate_window=window_s))


class SimBench:
    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.clock = SimClock(loop)
        self.broker = Broker(loop, Network(Random(1), Random(3)), Random(2), nodes=3)

    async def bus(self, service: str) -> SimBus:
        return SimBus(self.broker, Process(self._loop, service, f"machine-of-{service}"), service)

    def store(self, bus: Bus, bucket: str) -> SimStore:
        assert isinstance(bus, SimBus)
        return SimStore(bus, bucket)

    async def expiring(self, bus: Bus) -> SimStore:
        return self.store(bus, "expiring")

    async def shorten_dedupe(self, window_s: float) -> None:
        self.broker.dedupe_s = window_s


Body = Callable[[Bench], Awaitable[None]]
Play = Callable[[Body], None]


@asynccontextmanager
async def _real(directory: Path) -> AsyncIterator[RealBench]:
    server = EmbeddedServer(directory / "nats")
    await server.start()
    bench = RealBench(server)
    try:
        yield bench
    finally:
        for bus in bench.opened:
            await bus.client.close()
        await server.stop()


@pytest.fixture(params=["sim", "real"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Runs a test's body in one of the worlds."""

    async def real(body: Body) -> None:
        async with _real(tmp_path) as bench:
            await body(bench)

    def run(body: Body) -> None:
        if request.param == "real":
            asyncio.run(real(body))
            return
        play_simulated(lambda loop: body(SimBench(loop)))

    return run
