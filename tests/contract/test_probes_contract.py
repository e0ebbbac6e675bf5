"""What every Probes promises: an agent asked over TCP, and the simulator's twin of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from libs.config.entries import HostEntry
from libs.core.clock import SystemClock
from libs.core.ports import Clock, Probes
from libs.model import Answer, Incarnation
from libs.probe import DirectProbes, ProbeServer
from libs.scenario.model import Scenario
from libs.sim.loop import Process, SimClock, SimLoop
from libs.sim.probes import SimProbes
from libs.sim.world import World
from services.cli.simplane import PLANE
from tests.simulated import play_simulated

TIMEOUT_S = 0.5
SCENARIO = Scenario.model_validate(
    {"schema": "rekindle.scenario.v1", "name": "probes", "hosts": [{"name": "h1"}, {"name": "h2"}]}
)


class Ground(Protocol):
    """Host h1 asks host h2, whose agent runs at first."""

    @property
    def clock(self) -> Clock: ...

    @property
    def probes(self) -> Probes:
        """As h1's agent asks."""

    async def stop_agent(self) -> None: ...

    async def start_agent(self) -> None: ...

    async def hang(self) -> None:
        """The host's processes stand still, its kernel does not."""

    async def vanish(self) -> None:
        """No power, or no way there: packets are answered by nobody."""


class RealGround:
    def __init__(self) -> None:
        self.clock = SystemClock()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = ("127.0.0.1", int(free.getsockname()[1]))
        self._server: ProbeServer | None = None
        self._open = contextlib.ExitStack()
        probe = f"{self.address[0]}:{self.address[1]}"
        entry = HostEntry.model_validate({"name": "h2", "uri": "qemu:///system", "probe": probe})
        self.probes = DirectProbes({"h2": entry}.get)

    async def start_agent(self) -> None:
        self._server = ProbeServer(Incarnation(host="h2", boot="boot-of-h2"))
        await self._server.start(f"{self.address[0]}:{self.address[1]}")

    async def stop_agent(self) -> None:
        assert self._server is not None
        await self._server.stop()
        self._server = None

    def _listen(self, backlog: int) -> None:
        listening = self._open.enter_context(socket.socket())
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(self.address)
        listening.listen(backlog)

    async def hang(self) -> None:
        """Whoever listened is there and takes nothing."""
        await self.stop_agent()
        self._listen(64)

    async def vanish(self) -> None:
        """A kernel whose queue is full drops what comes, as a host without power does."""
        await self.stop_agent()
        self._listen(0)
        for _ in range(4):
            queued = self._open.enter_context(socket.socket())
            queued.setblocking(False)
            queued.connect_ex(self.address)

    async def close(self) -> None:
        self._open.close()
        if self._server is not None:
            await self.stop_agent()
        # it listens to whoever asked until that one is gone
        answering = asyncio.all_tasks() - {asyncio.current_task()}
        if answering:
            await asyncio.wait(answering, timeout=5.0)
        for _ in range(3):  # a transport that is closed is gone a turn later
            await asyncio.sleep(0)


class SimGround:
    def __init__(self, loop: SimLoop) -> None:
        self.clock = SimClock(loop)
        self._world = World(SCENARIO, 1, PLANE, loop)
        self._agents = {"h1", "h2"}
        process = Process(loop, "heartbeat@h1", "h1")
        self.probes = SimProbes(self._world.virt, process, self._agents.__contains__)

    async def start_agent(self) -> None:
        self._agents.add("h2")

    async def stop_agent(self) -> None:
        self._agents.discard("h2")

    async def hang(self) -> None:
        self._world.machines.hang(self._world.machines.hosts["h2"])

    async def vanish(self) -> None:
        self._world.machines.power_off(self._world.machines.hosts["h2"])


Body = Callable[[Ground], Awaitable[None]]
Play = Callable[[Body], None]


@pytest.fixture(params=["sim", "real"])
def play(request: pytest.FixtureRequest) -> Play:
    """Runs a test's body in one of the worlds."""

    async def real(body: Body) -> None:
        ground = RealGround()
        await ground.start_agent()
        try:
            await body(ground)
        finally:
            await ground.close()

    def run(body: Body) -> None:
        if request.param == "real":
            asyncio.run(real(body))
            return
        play_simulated(lambda loop: body(SimGround(loop)))

    return run


async def asked(ground: Ground, host: str = "h2") -> tuple[Answer, float]:
    """The answer, and after how many seconds."""
    began = ground.clock.monotonic()
    answer, said = await ground.probes.ask(host, TIMEOUT_S)
    assert said, "a detail for people"
    return answer, ground.clock.monotonic() - began


def test_an_agent_answers_at_once_and_a_kernel_refuses_for_one_that_is_away(play: Play) -> None:
    async def body(ground: Ground) -> None:
        answer, took_s = await asked(ground)
        assert (answer, took_s < TIMEOUT_S) == (Answer.UP, True)
        await ground.stop_agent()
        answer, took_s = await asked(ground)
        assert (answer, took_s < TIMEOUT_S) == (Answer.REFUSED, True)
        await ground.start_agent()
        assert (await asked(ground))[0] is Answer.UP

    play(body)


def test_a_host_that_hangs_takes_the_connection_and_that_is_told_in_time(play: Play) -> None:
    async def body(ground: Ground) -> None:
        await ground.hang()
        answer, took_s = await asked(ground)
        assert answer is Answer.HANGS
        assert TIMEOUT_S * 0.9 < took_s < TIMEOUT_S + 1.0

    play(body)


def test_of_a_host_that_is_not_there_nothing_is_heard_and_that_is_told_in_time(play: Play) -> None:
    async def body(ground: Ground) -> None:
        await ground.vanish()
        answer, took_s = await asked(ground)
        assert answer is Answer.SILENT
        assert took_s < TIMEOUT_S + 1.0

    play(body)


def test_whom_nobody_knows_is_unknown_and_no_error(play: Play) -> None:
    async def body(ground: Ground) -> None:
        assert (await asked(ground, "h9"))[0] is Answer.UNKNOWN

    play(body)
