"""What every Slots promises: files on a datastore that answers or hangs, and the simulator's twin of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest

from libs.core.clock import SystemClock
from libs.core.ports import Clock, Slots, UnavailableError
from libs.promises import SlotBeat, SlotOrder
from libs.sim.loop import Process, SimClock, SimLoop
from libs.sim.storage import Datastore, SimSlots
from libs.storage.slots import THREADS, Place, SlotFiles
from tests.simulated import play_simulated

TIMEOUT_S = 0.5
HOSTS = ("h1", "h2")
ORDER = SlotOrder(boot="b1", number=3, vms=("a", "b"))


def beat(seq: int, host: str = "h1") -> SlotBeat:
    return SlotBeat(host=host, boot="b1", seq=seq)


class Ground(Protocol):
    """One datastore that two hosts share."""

    @property
    def clock(self) -> Clock: ...

    def at(self, host: str) -> Slots:
        """As the agent of this host reaches it; the same one each time."""

    def stall(self, host: str) -> None: ...

    def restore(self, host: str) -> None: ...


class _Gated(SlotFiles):
    """A datastore that can stand still: whoever reads or writes hangs in its thread, as in the kernel."""

    def __init__(self, places: dict[str, Place]) -> None:
        super().__init__("nfs", places, TIMEOUT_S)
        self.answers = threading.Event()
        self.answers.set()

    def _io(
        self, place: Place, *, write: bytes | None = None, write_at: int = 0, read_at: int | None = None
    ) -> bytes:
        self.answers.wait()
        return super()._io(place, write=write, write_at=write_at, read_at=read_at)


class RealGround:
    def __init__(self, directory: Path) -> None:
        self.clock = SystemClock()
        places = {host: Place(directory / ".rekindle" / f"{host}.slot") for host in HOSTS}
        self.hosts = {host: _Gated(places) for host in HOSTS}

    def at(self, host: str) -> SlotFiles:
        return self.hosts[host]

    def stall(self, host: str) -> None:
        self.hosts[host].answers.clear()

    def restore(self, host: str) -> None:
        self.hosts[host].answers.set()


class SimGround:
    def __init__(self, loop: SimLoop) -> None:
        self.clock = SimClock(loop)
        self.datastore = Datastore(loop)
        self.hosts = {
            host: SimSlots(self.datastore, "nfs", Process(loop, "heartbeat", host), loop, TIMEOUT_S, HOSTS)
            for host in HOSTS
        }

    def at(self, host: str) -> SimSlots:
        return self.hosts[host]

    def stall(self, host: str) -> None:
        self.datastore.stall(host)

    def restore(self, host: str) -> None:
        self.datastore.restore(host)


Play = Callable[[Callable[[Ground], Awaitable[None]]], None]


@pytest.fixture(params=["sim", "real"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Play:
    """Runs a test's body in one of the worlds."""

    async def real(body: Callable[[Ground], Awaitable[None]]) -> None:
        ground = RealGround(tmp_path)
        try:
            await body(ground)
        finally:
            for host in HOSTS:
                ground.restore(host)

    def run(body: Callable[[Ground], Awaitable[None]]) -> None:
        if request.param == "real":
            asyncio.run(real(body))
            return
        play_simulated(lambda loop: body(SimGround(loop)))

    return run


async def until_answers(ground: Ground, host: str) -> None:
    """A thread that hung needs a moment until it is free."""
    async with asyncio.timeout(10.0):
        while True:
            try:
                await ground.at(host).read(host)
            except UnavailableError:
                await asyncio.sleep(0.02)
            else:
                return


def test_a_beat_is_read_by_others_and_the_latest_counts(play: Play) -> None:
    async def body(ground: Ground) -> None:
        assert await ground.at("h2").read("h1") is None, "it never wrote"
        assert await ground.at("h1").beat(beat(1)) is None
        assert await ground.at("h1").beat(beat(2)) is None
        await ground.at("h2").beat(beat(9, "h2"))
        assert await ground.at("h2").read("h1") == beat(2)

    play(body)


def test_an_order_is_read_with_each_beat_until_another_takes_its_place(play: Play) -> None:
    async def body(ground: Ground) -> None:
        await ground.at("h2").order("h1", ORDER)
        assert await ground.at("h1").beat(beat(1)) == ORDER
        assert await ground.at("h1").beat(beat(2)) == ORDER
        later = ORDER.model_copy(update={"number": 4, "vms": ()})
        await ground.at("h2").order("h1", later)
        assert await ground.at("h1").beat(beat(3)) == later
        assert await ground.at("h2").read("h1") == beat(3), "an order does not touch the beat beside it"

    play(body)


def test_of_a_host_that_has_no_slot_there_nothing_is_known(play: Play) -> None:
    async def body(ground: Ground) -> None:
        with pytest.raises(UnavailableError, match="h9 has no slot there"):
            await ground.at("h1").read("h9")
        with pytest.raises(UnavailableError, match="h9 has no slot there"):
            await ground.at("h1").order("h9", ORDER)

    play(body)


def test_a_datastore_that_stalls_on_one_host_costs_its_time_there_and_nobody_else(play: Play) -> None:
    async def body(ground: Ground) -> None:
        await ground.at("h1").beat(beat(1))
        ground.stall("h1")
        for _ in range(3):
            began = ground.clock.monotonic()
            with pytest.raises(UnavailableError, match="no answer in"):
                await ground.at("h1").read("h2")
            assert TIMEOUT_S * 0.9 < ground.clock.monotonic() - began < TIMEOUT_S + 1.0
        assert await ground.at("h2").read("h1") == beat(1)
        await ground.at("h2").beat(beat(5, "h2"))
        ground.restore("h1")
        await until_answers(ground, "h1")
        assert await ground.at("h1").read("h2") == beat(5, "h2")

    play(body)


def test_what_hung_is_done_as_soon_as_the_datastore_is_back_and_what_waited_behind_it_never(
    play: Play,
) -> None:
    """Whoever asked has given it up long ago: an order that was written so is obeyed all the same."""

    async def body(ground: Ground) -> None:
        await ground.at("h2").beat(beat(1, "h2"))
        ground.stall("h1")
        with pytest.raises(UnavailableError):
            await ground.at("h1").order("h2", ORDER)
        for _ in range(THREADS - 1):
            with pytest.raises(UnavailableError):
                await ground.at("h1").read("h2")
        with pytest.raises(UnavailableError):
            await ground.at("h1").beat(beat(7))
        assert await ground.at("h2").beat(beat(2, "h2")) is None
        ground.restore("h1")
        await until_answers(ground, "h1")
        assert await ground.at("h2").beat(beat(3, "h2")) == ORDER
        assert await ground.at("h2").read("h1") is None

    play(body)


def test_whoever_waits_gets_his_answer_when_it_comes_in_time(play: Play) -> None:
    async def body(ground: Ground) -> None:
        ground.stall("h1")
        asked = asyncio.ensure_future(ground.at("h1").beat(beat(1)))
        await asyncio.sleep(TIMEOUT_S / 4)
        ground.restore("h1")
        assert await asked is None
        assert await ground.at("h2").read("h1") == beat(1)

    play(body)
