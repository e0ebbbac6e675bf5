"""The shell's promises: owed is written before it is done, acknowledged after; a death at any await loses
nothing and doubles nothing; whoever is deposed does nothing more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
from pydantic import BaseModel

from libs.config.settings import FencingSettings
from libs.core import decider
from libs.core import shell as shells
from libs.core.clock import SystemClock
from libs.core.decider import Act, Input, Outcome, Paused, Publish, Records, Request, Step, TableRead
from libs.core.ports import Clock, UnavailableError
from libs.core.shell import Shell
from libs.core.wiring import Table, Wiring
from libs.events.facts import AnyFact
from libs.events.hosts import HostFailed, HostFenced, HostJoined
from libs.events.signals import Heartbeat
from services.fencer.decide import Fencer
from services.fencer.state import REQUESTS, Fence, Fenced
from tests.unit.made import beat, boot, failed, proof
from tests.unit.world import Held, Process, World
from tests.waiting import eventually

pytestmark = pytest.mark.fast
HOSTS = ("h1", "h2")
KINDS = ("host.failed", "host.joined", "host.recovered")


@dataclass
class Devices:
    """The power of all hosts: notes every attempt that was begun; the first attempts may fail."""

    begun: list[str] = field(default_factory=list)
    fails: int = 0

    def hands(self, process: Process) -> Callable[[Fence], Any]:
        async def perform(request: Fence) -> Fenced:
            await process.turn()
            self.begun.append(request.key)
            await process.turn()
            if self.fails > 0:
                self.fails -= 1
                return Fenced(key=request.key, incident=request.incident, missing=("no answer",))
            return Fenced(key=request.key, incident=request.incident, proof=proof(request.at))

        return perform


def fencer(
    world: World, devices: Devices, lease: Held | None = None
) -> tuple[Process, Shell[Any], asyncio.Task[None]]:
    process = Process(world)
    wiring = Wiring(
        service="fencer",
        bus=process,
        clock=SystemClock(),
        store=process,
        lease=lease,
        kinds=KINDS,
        perform=devices.hands(process),
        requests=REQUESTS,
    )
    settings = FencingSettings(retry_first_s=0.01, retry_max_s=0.02)
    shell = Shell(Fencer(settings, dict.fromkeys(HOSTS, 5.0)), wiring)
    return process, shell, asyncio.create_task(shell.run())


async def end(*tasks: asyncio.Task[None]) -> None:
    """End what runs, and all that it began."""
    ours = asyncio.current_task()
    for task in asyncio.all_tasks() - {ours}:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def record_is_stored(fact: AnyFact, world: World) -> bool:
    if not isinstance(fact, HostFailed):
        return True
    row = world.rows.get(f"fencer.{fact.at.host}")
    return row is not None and fact.incident.encode() in row[0]


def all_settled(world: World) -> bool:
    return all(not json.loads(value)["owed"] for value, _ in world.rows.values())


def all_fenced(world: World) -> bool:
    return all(f"host.fenced/{host}-1" in world.told() for host in HOSTS)


def finished(world: World) -> bool:
    heard = {fact.key for fact in world.stream if fact.kind in KINDS}
    return all_fenced(world) and heard <= world.acknowledged and all_settled(world)


def two_failures(world: World) -> None:
    for host in HOSTS:
        world.put_fact(failed(boot(host)))


async def lives(world: World, devices: Devices) -> int:
    """Run processes one after the other, each until it dies or all is done. Returns how many died."""
    deaths = 0
    while True:
        process, _, task = fencer(world, devices)
        dies = asyncio.create_task(process.died.wait())
        done = asyncio.create_task(eventually(lambda: finished(world), "both incidents at their end"))
        await asyncio.wait([dies, done, task], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        if done.done():
            done.result()
            await end(task)
            return deaths
        assert process.dead
        deaths += 1
        await end(task)


async def test_a_death_at_any_await_loses_nothing_and_doubles_nothing() -> None:
    whole = World()
    two_failures(whole)
    await lives(whole, Devices(fails=1))
    assert whole.turns > 20
    for turn in range(1, whole.turns + 1):
        world, devices = World(dies_at=turn), Devices(fails=1)
        world.stored_when_acknowledged = record_is_stored
        two_failures(world)
        deaths = await lives(world, devices)
        assert deaths <= 1
        told = world.told()
        assert len(told) == len(set(told)), f"death at turn {turn}"
        fenced = sorted(key for key in told if key.startswith("host.fenced"))
        assert fenced == ["host.fenced/h1-1", "host.fenced/h2-1"], f"death at turn {turn}"
        for host in HOSTS:
            assert any(key.startswith(f"fence/{host}-1/") for key in devices.begun), f"death at turn {turn}"
        assert world.acknowledged_early == [], f"death at turn {turn}"


async def test_two_deaths_in_a_row_lose_nothing_either() -> None:
    for first in range(3, 30, 4):
        world, devices = World(dies_at=first), Devices(fails=1)
        two_failures(world)
        process, _, task = fencer(world, devices)
        await process.died.wait()
        await end(task)
        world.dies_at = world.turns + first
        assert await lives(world, devices) <= 1
        assert finished(world)


async def test_a_write_whose_answer_is_lost_is_not_doubled() -> None:
    whole = World()
    two_failures(whole)
    await lives(whole, Devices())
    for write in range(1, whole.writes + 1):
        world, devices = World(answer_lost_at=write), Devices()
        two_failures(world)
        assert await lives(world, devices) == 0
        told = world.told()
        assert len(told) == len(set(told))
        assert sorted(devices.begun) == ["fence/h1-1/1", "fence/h2-1/1"], f"lost answer of write {write}"


async def test_nothing_begins_while_the_store_does_not_answer() -> None:
    world, devices = World(store_down=False), Devices()
    _, _, task = fencer(world, devices)
    await eventually(lambda: world.consumers, "the process listens")
    world.store_down = True
    world.put_fact(failed(boot("h1")))
    await asyncio.sleep(0.3)  # the time in which it must not happen
    assert devices.begun == []
    assert world.acknowledged == set()
    world.store_down = False
    await eventually(lambda: "host.fenced/h1-1" in world.told(), "fenced once the store is back")
    assert devices.begun == ["fence/h1-1/1"]
    await end(task)


async def test_a_step_whose_write_lost_the_race_is_void_and_its_message_comes_again() -> None:
    world, devices = World(stored_when_acknowledged=record_is_stored), Devices()
    _, _, task = fencer(world, devices, Held(token=1))
    await eventually(lambda: world.consumers, "the process leads")
    # another replica has written this record meanwhile: the compare-and-set fails
    world.rows["fencer.h1"] = (b'{"record": null}', 77)
    world.revision = 77
    world.put_fact(failed(boot("h1")))
    await eventually(lambda: "host.failed/h1-1" in world.acknowledged, "it is acknowledged in the end")
    assert world.acknowledged_early == [], "nothing of it was stored: the failure would be lost"
    await eventually(lambda: "host.fenced/h1-1" in world.told(), "fenced")
    await end(task)


async def test_whoever_lost_its_role_in_the_middle_of_a_write_steps_down_and_goes_on_listening() -> None:
    world, devices, role = World(), Devices(), Held(token=1)
    process, _, task = fencer(world, devices, role)
    await eventually(lambda: world.consumers, "the process leads")
    world.store_down = True
    world.put_fact(failed(boot("h1")))
    await asyncio.sleep(0.05)
    role.become(None)  # another replica holds the role now
    world.store_down = False
    world.put_fact(failed(boot("h2")))
    both = {"host.failed/h1-1", "host.failed/h2-1"}
    await eventually(lambda: both <= set(world.given_back), "both messages are left to whoever leads")
    assert world.acknowledged == set()
    assert devices.begun == []
    role.become(2)
    await eventually(lambda: all_fenced(world), "under its new token it does it all")
    assert not process.dead
    await end(task)


async def leading() -> tuple[World, Devices, Held, Shell[Any], asyncio.Task[None]]:
    """A fencer under the token 1, which a test takes from it as it likes."""
    world, devices, role = World(), Devices(), Held(token=1)
    _, shell, task = fencer(world, devices, role)
    await eventually(lambda: world.consumers, "the process leads")
    return world, devices, role, shell, task


async def test_one_that_stands_by_takes_no_facts_from_who_leads_and_pulls_again_when_it_leads_again() -> None:
    """Under its old token too, as after an old copy of the claim was read."""
    world, devices, role, _shell, task = await leading()
    role.become(None)
    await eventually(lambda: not world.consumers, "it pulls no more")
    world.put_fact(failed(boot("h1")))
    await asyncio.sleep(0.05)
    assert world.given_back == []
    assert devices.begun == []
    role.become(1)
    await eventually(lambda: "host.fenced/h1-1" in world.told(), "fenced")
    await end(task)


async def test_facts_that_come_while_validity_has_run_out_are_kept_for_when_it_is_back() -> None:
    """As in every election of the bus: to give them back would cost a second or two after it."""
    world, devices, role, shell, task = await leading()
    role.become(1, held=False)
    world.put_fact(failed(boot("h1")))
    await eventually(lambda: shell._parked, "it is heard")
    assert (world.given_back, devices.begun) == ([], [])
    role.become(1)
    await eventually(lambda: "host.fenced/h1-1" in world.told(), "fenced")
    assert world.given_back == []
    await end(task)


@pytest.mark.parametrize("seen", [True, False])
async def test_what_was_kept_is_not_taken_under_another_token(seen: bool) -> None:
    """Another has led since: it may have done all of it, and more."""
    world, devices, role, shell, task = await leading()
    role.become(1, held=False)
    world.put_fact(failed(boot("h1")))
    await eventually(lambda: shell._parked, "it is heard")
    world.acknowledged.add("host.failed/h1-1")  # by the other
    if seen:
        role.become(None)
        await eventually(lambda: not world.consumers, "it pulls no more")
    role.become(3)
    await eventually(lambda: world.consumers, "the process leads")
    await asyncio.sleep(0.05)
    assert (devices.begun, shell._parked) == ([], [])
    await end(task)


async def test_no_more_facts_are_kept_than_may_be_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shells, "PARKED_MOST", 1)
    world, _, role, shell, task = await leading()
    role.become(1, held=False)
    two_failures(world)
    await eventually(lambda: world.given_back, "one is kept, one is given back")
    assert len(shell._parked) == 1
    await end(task)


class Restored:
    """A guard that says when the stored state is another one."""

    ok, generation = True, 0

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None

    def on_change(self, changed: Callable[[], None]) -> None:
        self.changed = changed


async def test_a_write_that_waits_while_the_state_is_restored_and_another_leads_is_given_up() -> None:
    """Else it would wait for a term of ours to come, and pull and hear nothing all the time."""
    world, role, guard = World(), Held(token=1), Restored()
    process = Process(world)
    wiring = Wiring(
        service="fencer", bus=process, clock=SystemClock(), store=process, lease=role, guard=guard, kinds=KINDS,
        perform=Devices().hands(process), requests=REQUESTS,
    )  # fmt: skip
    shell = Shell(Fencer(FencingSettings(), dict.fromkeys(HOSTS, 5.0)), wiring)
    task = asyncio.create_task(shell.run())
    await eventually(lambda: world.consumers, "the process leads")
    world.store_down = True
    world.put_fact(failed(boot("h1")))
    await asyncio.sleep(0.05)
    guard.generation = 1
    guard.changed()
    role.become(None)
    world.store_down = False
    await eventually(lambda: not world.consumers, "it pulls no more", within_s=3)
    await end(task)


async def test_an_act_waits_while_validity_has_run_out_and_goes_on_under_the_same_token() -> None:
    world, devices, role, _shell, task = await leading()
    role.become(1, held=False)
    world.put_fact(failed(boot("h1")))
    await asyncio.sleep(0.1)
    assert devices.begun == []
    role.become(1)
    await eventually(lambda: "host.fenced/h1-1" in world.told(), "fenced")
    await end(task)


async def test_leadership_that_could_not_be_taken_up_is_taken_up_when_the_store_is_back() -> None:
    """Nothing rings for that: no lease changes, and no message comes."""
    world, devices = World(store_down=True), Devices()
    _, _, task = fencer(world, devices, Held(token=1))
    await asyncio.sleep(0.3)
    assert not world.consumers
    world.store_down = False
    await eventually(lambda: world.consumers, "it leads")
    await end(task)


async def test_debts_of_a_former_leader_are_paid_by_the_next() -> None:
    world, devices = World(), Devices()
    stuck = asyncio.Event()

    async def never(request: Fence) -> Fenced:
        devices.begun.append("old:" + request.key)
        await stuck.wait()
        raise AssertionError("unreachable")

    process = Process(world)
    wiring = Wiring(
        service="fencer", bus=process, clock=SystemClock(), store=process, lease=Held(1), kinds=KINDS,
        perform=never, requests=REQUESTS,
    )  # fmt: skip
    old = asyncio.create_task(Shell(Fencer(FencingSettings(), {}), wiring).run())
    world.put_fact(failed(boot("h1")))
    await eventually(lambda: devices.begun, "the old one is at it")
    await end(old)
    world.consumers.clear()
    _, _, new = fencer(world, devices, Held(2))
    await eventually(lambda: "host.fenced/h1-1" in world.told(), "fenced by the next")
    assert devices.begun == ["old:fence/h1-1/1", "fence/h1-1/1"]
    await end(new)


# -- one decider that notes what it hears


class Do(Request):
    kind: str = "do"


class Note(BaseModel):
    count: int = 0


@dataclass(frozen=True)
class Noted:
    records: Records = field(default_factory=Records)
    wake: float | None = None


@dataclass
class Notes:
    """Notes every input; performs one act for each heartbeat, publishes one fact for each host that failed."""

    heard: list[tuple[Any, float]] = field(default_factory=list)
    every_s: float | None = None
    deadline_s: float = 5.0

    @property
    def record_type(self) -> type[BaseModel]:
        return Note

    def initial(self, now: float) -> Noted:
        return Noted(wake=None if self.every_s is None else now + self.every_s)

    def resume(self, state: Noted, records: Records, now: float) -> Step[Noted]:
        return Step(Noted(records, state.wake))

    def records(self, state: Noted) -> Records:
        return state.records

    def wake_at(self, state: Noted) -> float | None:
        return state.wake

    def step(self, state: Noted, event: Input | None, now: float) -> Step[Noted]:
        self.heard.append((event, now))
        if event is None:
            assert self.every_s is not None
            return Step(Noted(state.records, now + self.every_s))
        if isinstance(event, Heartbeat):
            return Step(state, (Act(None, Do(key=f"do/{event.seq}", deadline_s=self.deadline_s)),))
        if isinstance(event, HostFailed):
            said: list[Publish] = []
            for number in range(5):
                said.append(Publish("r", HostJoined(at=event.at, epoch=number)))
            return Step(Noted(state.records.insert("r", Note(count=1)), state.wake), tuple(said))
        return Step(state)

    def of(self, kind: type) -> list[Any]:
        return [event for event, _ in self.heard if isinstance(event, kind)]


@contextlib.asynccontextmanager
async def noting(notes: Notes, world: World, perform: Any = None, **more: Any) -> AsyncIterator[Process]:
    process = Process(world)
    clock: Clock = SystemClock()
    wiring = Wiring(
        service="notes", bus=process, clock=clock, store=process, signals=("heartbeat.*",),
        kinds=("host.failed",), perform=perform, **more,
    )  # fmt: skip
    task = asyncio.create_task(Shell(notes, wiring).run())
    await eventually(lambda: world.consumers, "the process listens")
    yield process
    if task.done():
        task.result()
    await end(task)


async def test_facts_of_one_record_leave_in_the_order_in_which_they_were_decided() -> None:
    world = World()
    async with noting(Notes(), world):
        world.put_fact(failed(boot("h1")))
        await eventually(lambda: len(world.stream) == 6, "all five are published")
    assert [fact.epoch for fact in world.stream if isinstance(fact, HostJoined)] == [0, 1, 2, 3, 4]


async def test_a_slow_act_holds_up_no_other_and_ends_at_its_deadline() -> None:
    done: list[str] = []

    async def perform(request: Do) -> Outcome:
        if request.key == "do/1":
            await asyncio.Event().wait()
        done.append(request.key)
        return Outcome(key=request.key)

    notes, world = Notes(deadline_s=0.2), World()
    async with noting(notes, world, perform) as process:
        for seq in (1, 2):
            process.heard(beat("h1").model_copy(update={"seq": seq}))
        await eventually(lambda: done == ["do/2"], "the quick one is done while the slow one hangs")
        await eventually(lambda: len(notes.of(Outcome)) == 2, "the slow one has an outcome as well")
    assert [(type(o).__name__, o.key) for o in notes.of(Outcome)] == [
        ("Outcome", "do/2"),
        ("Expired", "do/1"),
    ]


async def test_an_act_that_cannot_be_known_to_have_happened_expires() -> None:
    async def perform(request: Do) -> Outcome:
        raise UnavailableError("nobody there")

    notes = Notes()
    async with noting(notes, World(), perform) as process:
        process.heard(beat("h1"))
        await eventually(lambda: notes.of(Outcome), "an outcome")
    assert notes.of(Outcome)[0].reason == "nobody there"


async def test_a_programmers_error_in_an_act_ends_the_service() -> None:
    async def perform(request: Do) -> Outcome:
        raise KeyError("oops")

    process = Process(World())
    wiring = Wiring(service="n", bus=process, clock=SystemClock(), signals=("heartbeat.*",), perform=perform)
    task = asyncio.create_task(Shell(Notes(), wiring).run())
    await eventually(lambda: process.changed, "it runs")
    await asyncio.sleep(0)
    process.heard(beat("h1"))
    with pytest.raises(KeyError):
        await asyncio.wait_for(task, 2)
    await end()


async def test_what_was_heard_counts_before_a_timer() -> None:
    notes, world = Notes(every_s=0.05), World()

    async def perform(request: Do) -> Outcome:
        return Outcome(key=request.key)

    async with noting(notes, world, perform) as process:
        await eventually(lambda: any(event is None for event, _ in notes.heard), "a first deadline")
        at = len(notes.heard)
        for seq in range(5):
            process.heard(beat("h1").model_copy(update={"seq": seq}))
        time.sleep(0.08)  # the loop stands still over the deadline
        await eventually(lambda: len(notes.heard) > at + 5, "all of it, and the deadline")
    assert [type(event).__name__ for event, _ in notes.heard[at : at + 5]] == ["Heartbeat"] * 5


async def heard_more(notes: Notes, than: int) -> None:
    await eventually(lambda: len(notes.heard) > than, "something is heard")


async def test_a_process_that_stood_still_knows_it_before_it_looks_at_the_clock() -> None:
    notes, world = Notes(every_s=0.05), World()
    async with noting(notes, world, notices_pauses=True):
        await eventually(lambda: any(event is None for event, _ in notes.heard), "a first deadline")
        for _ in range(2):
            await asyncio.sleep(0.03)
            at = len(notes.heard)
            time.sleep(0.8)  # as under SIGSTOP
            await heard_more(notes, at)
            first = notes.heard[at][0]
            assert isinstance(first, Paused), "judged by the clock before it was told that it had been deaf"
            assert first.for_s > 0.6


async def test_the_last_words_of_a_deadline_are_not_lost_when_a_process_is_cancelled_cleanly() -> None:
    world = World()
    async with noting(Notes(), world) as process:
        world.put_fact(failed(boot("h1")))
        await eventually(lambda: "host.failed/h1-1" in world.acknowledged, "acknowledged")
        assert [fact for fact in world.stream if isinstance(fact, HostFenced)] == []
    assert process.changed == [], "a process that ended is not told of the connection any more"


async def test_a_follower_hears_and_does_nothing() -> None:
    done: list[str] = []

    async def perform(request: Do) -> Outcome:
        done.append(request.key)
        return Outcome(key=request.key)

    notes, world, role = Notes(every_s=0.02), World(), Held(token=1)
    async with noting(notes, world, perform, lease=role) as process:
        role.become(None)
        await eventually(lambda: process.changed, "it runs")
        notes.heard.clear()
        process.heard(beat("h1"))
        world.put_fact(failed(boot("h1")))
        await eventually(lambda: world.given_back, "the message is left to whoever leads")
        assert [type(event).__name__ for event, _ in notes.heard] == ["Heartbeat"], "heard, and no deadline"
        assert done == []
        assert len(world.stream) == 1
        role.become(3)
        await eventually(lambda: len(world.stream) == 6, "as a leader it does what is owed")


async def test_who_overhears_is_told_each_signal_also_by_a_follower() -> None:
    overheard: list[Any] = []
    notes, world, role = Notes(), World(), Held(token=1)
    async with noting(notes, world, lease=role, overhears=overheard.append) as process:
        process.heard(beat("h1"))
        role.become(None)
        process.heard(beat("h2"))
        assert [signal.at.host for signal in overheard] == ["h1", "h2"], "at once"


async def test_a_row_that_nobody_can_read_is_passed_over_and_the_others_are_read() -> None:
    world = World()
    world.rows["t.a"] = (b'{"count": 1}', 1)
    world.rows["t.b"] = (b"of another age", 2)
    world.rows["t.c"] = (b'{"count": 3}', 3)
    world.revision = 3
    notes = Notes()
    async with noting(notes, world, tables=(Table("t", Process(world), "t.", Note),)):
        await eventually(lambda: notes.of(TableRead), "a reading")
    assert notes.of(TableRead)[0].rows == (Note(count=1), Note(count=3))


@dataclass(frozen=True)
class Telling:
    """Notes something at each deadline, once."""

    record_type = BaseModel

    def initial(self, now: float) -> float | None:
        return now

    def resume(self, state: float | None, records: Records, now: float) -> Step[float | None]:
        return Step(now)

    def records(self, state: float | None) -> Records:
        return Records()

    def step(self, state: float | None, event: Input | None, now: float) -> Step[float | None]:
        return Step(None, (decider.Note("nobody is suspected"),)) if event is None else Step(state)

    def wake_at(self, state: float | None) -> float | None:
        return state


async def test_a_note_is_a_line_in_the_log_and_is_not_owed() -> None:
    world = World()
    process = Process(world)
    with structlog.testing.capture_logs() as lines:
        wiring = Wiring(service="teller", bus=process, clock=SystemClock(), store=process)
        task = asyncio.create_task(Shell(Telling(), wiring).run())
        await eventually(lambda: "nobody is suspected" in [line["event"] for line in lines], "it is noted")
        await end(task)
    assert [line["log_level"] for line in lines if line["event"] == "nobody is suspected"] == ["warning"]
    assert world.rows == {}
