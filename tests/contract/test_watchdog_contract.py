"""What a watchdog promises: the simulator's, and the lab's behind its socket. The kernel's cannot be let go off here; how it is
spoken to is in tests/unit/test_watchdog_device.py."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Protocol

import pytest

from infra.lab.dog import Dog
from libs.core.ports import Watchdog, WatchdogError
from libs.sim.hosts import SimHost
from libs.sim.loop import Process, SimLoop
from libs.sim.machines import Machines
from libs.sim.watchdogs import SimWatchdog, Watchdogs
from libs.watchdogs import SocketWatchdog

TIMEOUT_S = 0.5


class World(Protocol):
    def user(self) -> Watchdog:
        """A process's hold on the one device."""

    def user_dies(self) -> None:
        """That process ends at once."""

    @property
    def resets(self) -> int:
        """How often the host was reset."""


class Simulated:
    def __init__(self, loop: SimLoop) -> None:
        self._loop, self._machines = loop, Machines(loop, Random(1))
        self._machines.hosts["h1"] = SimHost("h1", 1024, 0, 1)
        self._device = Watchdogs(loop, self._machines).put_into("h1", 1.0, 0.0)
        self._process = Process(loop, "agent", "h1")

    def user(self) -> SimWatchdog:
        self._process = Process(self._loop, "agent", "h1")
        return SimWatchdog(self._device, self._process)

    def user_dies(self) -> None:
        self._process.kill()

    @property
    def resets(self) -> int:
        return self._machines.hosts["h1"].boots - 1


class Behind:
    """A watchdog of the lab, behind its socket."""

    def __init__(self, path: Path) -> None:
        self._path, self._count = path, 0
        self._dog = Dog(self._reset)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(4)
        threading.Thread(target=self._dog.serve, args=(listener,), daemon=True).start()
        self._user = SocketWatchdog(path)

    def _reset(self) -> None:
        self._count += 1

    def user(self) -> SocketWatchdog:
        self._user = SocketWatchdog(self._path)
        return self._user

    def user_dies(self) -> None:
        self._user._drop()

    @property
    def resets(self) -> int:
        return self._count


Body = Callable[[World], Awaitable[None]]


@pytest.fixture(params=["sim", "lab"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Body], None]:
    def run(body: Body) -> None:
        if request.param == "lab":
            asyncio.run(_awaited(body(Behind(tmp_path / "dog.sock"))))
            return
        loop = SimLoop()
        loop.run_until_complete(_awaited(body(Simulated(loop))))
        loop.close()

    return run


async def _awaited(work: Awaitable[None]) -> None:
    await work


def test_who_is_fed_in_time_lives_and_who_is_not_is_reset(play: Callable[[Body], None]) -> None:
    async def body(world: World) -> None:
        user = world.user()
        assert await user.arm(TIMEOUT_S) == TIMEOUT_S
        for _ in range(6):
            await asyncio.sleep(TIMEOUT_S / 3)
            user.feed()
        assert world.resets == 0
        await asyncio.sleep(TIMEOUT_S + 0.2)
        assert world.resets == 1

    play(body)


def test_it_outlives_who_armed_it(play: Callable[[Body], None]) -> None:
    async def body(world: World) -> None:
        await world.user().arm(TIMEOUT_S)
        world.user_dies()
        await asyncio.sleep(TIMEOUT_S + 0.2)
        assert world.resets == 1

    play(body)


def test_the_next_user_takes_it_over(play: Callable[[Body], None]) -> None:
    async def body(world: World) -> None:
        await world.user().arm(TIMEOUT_S)
        world.user_dies()
        await asyncio.sleep(TIMEOUT_S / 2)
        second = world.user()
        assert await second.arm(2 * TIMEOUT_S) == 2 * TIMEOUT_S
        await asyncio.sleep(1.5 * TIMEOUT_S)
        assert world.resets == 0
        await second.disarm()
        await asyncio.sleep(2 * TIMEOUT_S)
        assert world.resets == 0

    play(body)


def test_a_device_that_is_not_there_says_so(tmp_path: Path) -> None:
    async def body() -> None:
        with pytest.raises(WatchdogError, match=r"none\.sock"):
            await SocketWatchdog(tmp_path / "none.sock").arm(TIMEOUT_S)
        with pytest.raises(WatchdogError):
            SocketWatchdog(tmp_path / "none.sock").feed()

    asyncio.run(body())


def test_what_waited_in_a_socket_feeds_no_later_than_it_was_meant() -> None:
    resets: list[int] = []
    dog = Dog(lambda: resets.append(1))
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    dog.answer({"do": "arm", "timeout_s": TIMEOUT_S, "at": now})
    dog.answer({"do": "feed", "at": now + 100})
    assert dog._due <= time.clock_gettime(time.CLOCK_BOOTTIME) + TIMEOUT_S, "nobody feeds from the future"
    before = dog._due
    dog.answer({"do": "feed", "at": now - 100})
    assert dog._due == before
    dog.stop()
