"""What every GuestProbes promises: real sockets on loopback, and the simulator's twin."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from libs.core.clock import SystemClock
from libs.core.ports import Clock, GuestProbes
from libs.guestprobes import NetworkGuestProbes
from libs.model import Health
from libs.readiness import Target
from libs.scenario.model import Scenario
from libs.sim.guestprobes import SimGuestProbes
from libs.sim.loop import Process, SimClock, SimLoop
from libs.sim.virt import SimHypervisors
from libs.sim.world import World, vm_uuid
from services.cli.simplane import PLANE
from tests.simulated import play_simulated

TIMEOUT_S = 0.5
SCENARIO = Scenario.model_validate(
    {
        "schema": "rekindle.scenario.v1",
        "name": "guests",
        "hosts": [{"name": "h1"}],
        "vms": [{"name": "db", "host": "h1"}],
    }
)


class Ground(Protocol):
    """A guest with one service, which does not run at first."""

    @property
    def clock(self) -> Clock: ...

    @property
    def probes(self) -> GuestProbes: ...

    address: str
    port: int

    async def serve(self) -> None:
        """It takes connections, and says 204 of the page /health."""

    async def hang(self) -> None:
        """Who serves it stands still, or its guest does."""

    async def close(self) -> None: ...


class RealGround:
    def __init__(self) -> None:
        self.clock, self.probes = SystemClock(), NetworkGuestProbes()
        self.address, self.port = "127.0.0.1", 0
        self._server: asyncio.Server | None = None
        self._says = b"HTTP/1.1 204 No Content\r\n\r\n"
        self._paths: list[str] = []

    async def open(self) -> RealGround:
        await self.serve()
        await self.close()
        return self

    async def serve(self) -> None:
        self._server = await asyncio.start_server(self._answer, self.address, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self._paths.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if self._says:
                writer.write(self._says)
                await writer.drain()
            else:
                await reader.read()  # until whoever asked is gone
        writer.close()

    async def hang(self) -> None:
        self._says = b""

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self._server = None


class SimGround:
    def __init__(self, loop: SimLoop) -> None:
        self.clock = SimClock(loop)
        self._world = World(SCENARIO, 1, PLANE, loop)
        self.probes = SimGuestProbes(SimHypervisors(self._world.virt, Process(loop, "executor", "m0")))
        self.connections = SimHypervisors(self._world.virt, Process(loop, "executor", "m0"))
        self.address, self.port = "db", 5432
        self._host = self._world.machines.hosts["h1"]

    async def serve(self) -> None:
        self._world.machines.begin(self._host, self._world.machines.specs[vm_uuid("db")], 1)
        await asyncio.sleep(5.0)
        known = await (await self.connections.at(self._host.at, 5.0)).addresses(vm_uuid("db"))
        assert known
        assert (await self.probes.ask(Target("", 5432), known[0], TIMEOUT_S))[0], "as its libvirt tells it"

    async def hang(self) -> None:
        self._host.domains[vm_uuid("db")].health = Health.SILENT

    async def close(self) -> None:
        return None


Body = Callable[[Ground], Awaitable[None]]


@pytest.fixture(params=["sim", "real"])
def play(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    async def real(body: Body) -> None:
        ground = await RealGround().open()
        try:
            await body(ground)
        finally:
            await ground.close()

    def run(body: Body) -> None:
        if request.param == "real":
            asyncio.run(real(body))
        else:
            play_simulated(lambda loop: body(SimGround(loop)))

    return run


Play = Callable[[Body], None]


async def ask(ground: Ground, path: str = "") -> bool:
    """Told in its time, whatever comes."""
    began = ground.clock.monotonic()
    answers, detail = await ground.probes.ask(Target("", ground.port, path), ground.address, TIMEOUT_S)
    assert detail
    assert ground.clock.monotonic() - began < TIMEOUT_S + 2.0
    return answers


def test_a_guest_that_is_not_up_is_not_ready(play: Play) -> None:
    async def body(ground: Ground) -> None:
        assert not await ask(ground)
        assert not await ask(ground, "/health")

    play(body)


def test_a_guest_that_serves_is_ready(play: Play) -> None:
    async def body(ground: Ground) -> None:
        await ground.serve()
        assert await ask(ground)
        assert await ask(ground, "/health")

    play(body)


def test_a_guest_that_hangs_has_no_page_and_that_is_told_in_time(play: Play) -> None:
    async def body(ground: Ground) -> None:
        await ground.serve()
        await ground.hang()
        assert not await ask(ground, "/health")

    play(body)


def test_an_address_that_is_none_is_no_error(play: Play) -> None:
    async def body(ground: Ground) -> None:
        answers, detail = await ground.probes.ask(Target("", 1), "no such place.invalid", TIMEOUT_S)
        assert (answers, bool(detail)) == (False, True)

    play(body)


@pytest.mark.parametrize(
    ("says", "ready", "detail"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True, "status 200"),
        (b"HTTP/1.0 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", True, "status 302"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "status 404"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False, "status 503"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False, "no answer of HTTP"),
        (b"HTTP/1.1 fine\r\n\r\n", False, "no answer of HTTP"),
        (b"x" * 200_000, False, ""),
        (b"\n", False, "no answer of HTTP"),
    ],
)
def test_a_page_is_there_by_its_status_alone(says: bytes, ready: bool, detail: str) -> None:
    async def body() -> None:
        ground = await RealGround().open()
        ground._says = says
        await ground.serve()
        try:
            target = Target("", ground.port, "/health?deep=1")
            found, why = await ground.probes.ask(target, ground.address, 5.0)
            assert (found, why) == (ready, detail or why)
            assert ground._paths[-1].splitlines()[:2] == [
                "GET /health?deep=1 HTTP/1.1",
                f"Host: 127.0.0.1:{ground.port}",
            ]
        finally:
            await ground.close()

    asyncio.run(body())
