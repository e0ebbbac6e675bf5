"""Deadlines and what is heard both get their turn in a shell, however slow the one and however many the other."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel

from libs.core.clock import SystemClock
from libs.core.decider import Input, Publish, Records, Step
from libs.core.inbox import FAIR_MOST_S, LATE_MOST_S, MANY, TOGETHER
from libs.core.shell import Shell
from libs.core.wiring import Wiring
from libs.events.facts import AnyFact
from libs.events.hosts import HostJoined
from libs.events.signals import Heartbeat
from tests.unit.made import beat
from tests.unit.world import Held, Process, World
from tests.waiting import eventually

pytestmark = pytest.mark.fast
NO_RECORDS = Records()


@dataclass
class Ticking:
    """Wakes every `every_s`, each of which takes `takes_s`. Its state is when it wakes next."""

    every_s: float
    takes_s: float = 0.0
    beats: int = 0
    woken: list[tuple[float, float, float, int]] = field(default_factory=list)
    """When it was due, began and ended, and how many heartbeats had been taken by then."""

    @property
    def record_type(self) -> type[BaseModel]:
        return Kept

    def initial(self, now: float) -> float:
        return now + self.every_s

    def resume(self, state: float, records: Records, now: float) -> Step[float]:
        return Step(state)

    def records(self, state: float) -> Records:
        return NO_RECORDS

    def wake_at(self, state: float) -> float | None:
        return state

    def step(self, state: float, event: Input | None, now: float) -> Step[float]:
        if isinstance(event, Heartbeat):
            self.beats += 1
        if event is not None:
            return Step(state)
        began = SystemClock().monotonic()
        if self.takes_s:
            time.sleep(self.takes_s)
        self.woken.append((state, began, SystemClock().monotonic(), self.beats))
        return Step(now + self.every_s)


@contextlib.asynccontextmanager
async def running(ticking: Ticking, source: Callable[[Process], object]) -> AsyncIterator[None]:
    process = Process(World())
    wiring = Wiring(service="ticking", bus=process, clock=SystemClock(), signals=("heartbeat.*",))
    tasks = [asyncio.create_task(Shell(ticking, wiring).run()), asyncio.create_task(source(process))]  # type: ignore[arg-type]
    yield
    for task in tasks:
        if task.done():
            task.result()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_timers_that_take_longer_than_their_interval_leave_what_is_heard_as_much_time() -> None:
    """A message takes some turns of the loop from the socket to the shell. With a tick due at each turn none came through,
    and none of 10,000 hosts joined."""

    async def from_a_socket(process: Process) -> None:
        seq = 0
        while True:
            for _ in range(5):
                await asyncio.sleep(0)
            seq += 1
            process.heard(beat("h1").model_copy(update={"seq": seq}))

    ticking = Ticking(every_s=0.01, takes_s=0.03)
    async with running(ticking, from_a_socket):
        await eventually(lambda: len(ticking.woken) > 10, "deadlines have their turn as well", within_s=20)
    heard = ticking.woken[-1][3] - ticking.woken[0][3]
    assert heard > 10 * len(ticking.woken)
    gaps = [after[1] - before[2] for before, after in pairwise(ticking.woken)]
    assert min(gaps) > 0.02, "as long as the one before it took"


@pytest.mark.long
async def test_a_very_slow_timer_puts_the_next_one_off_for_a_moment_only() -> None:
    async def silence(process: Process) -> None:
        await asyncio.Event().wait()

    ticking = Ticking(every_s=0.05, takes_s=3 * FAIR_MOST_S)
    async with running(ticking, silence):
        await eventually(lambda: len(ticking.woken) > 4, "the fifth", within_s=20)
    gaps = [after[1] - before[2] for before, after in pairwise(ticking.woken)]
    assert FAIR_MOST_S - 0.01 < statistics.median(gaps) < 3 * FAIR_MOST_S, "not as long as it took"


@pytest.mark.long
async def test_a_flood_of_what_is_heard_does_not_starve_a_deadline_and_what_had_come_counts_before_it() -> (
    None
):
    clock, heard_at = SystemClock(), list[float]()
    known: list[tuple[int, int]] = []

    async def flood(process: Process) -> None:
        while True:
            process.heard(beat("h1"))
            heard_at.append(clock.monotonic())
            await asyncio.sleep(0)

    class Watched(Ticking):
        def step(self, state: float, event: Input | None, now: float) -> Step[float]:
            # `now` is an earlier moment where it comes too late to wait for all that is heard
            if event is None:
                known.append((bisect.bisect_right(heard_at, now), self.beats))
            return super().step(state, event, now)

    ticking = Watched(every_s=0.02)
    async with running(ticking, flood):
        await eventually(lambda: len(ticking.woken) > 10, "deadlines have their turn", within_s=20)
    late = [began - due for due, began, _, _ in ticking.woken]
    assert statistics.median(late) < 5 * LATE_MOST_S
    assert all(said == taken for said, taken in known), "all that had been heard by then was taken first"
    assert known[-1][0] > 100


@pytest.mark.long
async def test_while_a_long_inbox_is_taken_others_have_their_turn_and_deadlines_too() -> None:
    """Fifteen seconds of heartbeats that had waited were taken in one go: the server ended the connection of who answered
    no ping meanwhile, and all fell silent."""
    times: list[tuple[float, bool]] = []

    class Slow(Ticking):
        def step(self, state: float, event: Input | None, now: float) -> Step[float]:
            times.append((now, event is None))
            time.sleep(0.0002 if event is not None else 0.0)
            return super().step(state, event, now)

    turns: list[int] = []

    async def backlog(process: Process) -> None:
        sent = 4000
        for _ in range(sent):
            process.heard(beat("h1"))
        while True:
            for _ in range(40 if sent < 8000 else 0):
                process.heard(beat("h1"))
                sent += 1
            turns.append(ticking.beats)
            await asyncio.sleep(0)

    ticking = Slow(every_s=0.05)
    async with running(ticking, backlog):
        await eventually(lambda: ticking.beats == 8000, "all is taken", within_s=20)
    gaps = [after - before for before, after in pairwise(turns)]
    assert max(gaps) <= TOGETHER + MANY, "the loop never stands still for long"
    woken = [at for at, (_, deadline) in enumerate(times) if deadline]
    assert 4000 <= woken[0] < 7000, "deadlines wait for what was heard before them, and no longer"
    assert [now for now, _ in times] == sorted(now for now, _ in times), (
        "as of a moment: what came later counts later"
    )


async def test_who_leads_no_more_goes_on_taking_what_is_heard() -> None:
    """Also where a deadline was about to come before it, which is nobody's now."""
    lease, process, ticking = Held(1), Process(World()), Ticking(every_s=0.02, takes_s=0.15)
    wiring = Wiring(
        service="ticking", bus=process, clock=SystemClock(), lease=lease, signals=("heartbeat.*",)
    )
    task = asyncio.create_task(Shell(ticking, wiring).run())
    await eventually(lambda: ticking.woken, "it leads", within_s=20)
    for _ in range(20):
        for _ in range(200):
            process.heard(beat("h1"))
        await asyncio.sleep(0.02)
    lease.become(2, held=False)
    before = ticking.beats
    for _ in range(200):
        process.heard(beat("h1"))
    await eventually(
        lambda: ticking.beats == 4200, f"all of it, of which {before} had been taken", within_s=20
    )
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@dataclass
class Joining(Ticking):
    """Each heartbeat makes a record and a fact; its state is its records."""

    def initial(self, now: float) -> Any:
        return Records()

    def resume(self, state: Any, records: Records, now: float) -> Step[Any]:
        return Step(records)

    def records(self, state: Any) -> Records:
        records: Records = state
        return records

    def wake_at(self, state: Any) -> float | None:
        return None

    def step(self, state: Any, event: Input | None, now: float) -> Step[Any]:
        if not isinstance(event, Heartbeat):
            return Step(state)
        self.beats += 1
        host = event.at.host
        fact = Publish(host, HostJoined(at=event.at, epoch=0))
        return Step(state.insert(host, Kept(host=host)), (fact,))


class Kept(BaseModel):
    host: str


class SlowStore(Process):
    """Each write takes its time."""

    at_once = most = 0

    async def put(self, key: str, value: bytes, expected: int | None) -> int:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0.02)
        self.at_once -= 1
        return await super().put(key, value, expected)

    async def publish(self, fact: AnyFact) -> None:
        assert isinstance(fact, HostJoined)
        assert f"joining.{fact.at.host}" in self.world.rows, "written before it is told"
        await super().publish(fact)


@pytest.mark.long
async def test_thousands_that_join_do_not_wait_for_the_store_one_after_the_other() -> None:
    world = World()
    process, joining = SlowStore(world), Joining(every_s=1.0)
    wiring = Wiring(
        service="joining", bus=process, clock=SystemClock(), store=process, signals=("heartbeat.*",)
    )
    task = asyncio.create_task(Shell(joining, wiring).run())
    await asyncio.sleep(0.1)
    began = time.monotonic()
    for number in range(1000):
        process.heard(beat(f"h{number}"))
    await eventually(lambda: len(world.told()) == 1000, "all are told", within_s=20)
    assert time.monotonic() - began < 10, "one after the other they take twenty seconds at least"
    assert 1 < process.most <= 64
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
