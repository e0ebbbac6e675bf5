"""The fence path drill: each path is proven before it is needed, and people are told of one that is broken."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from libs.config.settings import FencingSettings, Settings
from libs.core.clock import SystemClock
from libs.core.decider import Expired
from libs.events.signals import Heartbeat
from libs.model import PowerState
from libs.poolview import PoolView
from services.fencer.decide import Fencer
from services.fencer.paths import Paths
from services.fencer.state import (
    Fenced,
    Looked,
    PathReading,
    PathRecord,
    PathsRead,
    ProvedLevels,
    ReadPaths,
    SwitchedOn,
)
from tests.unit.made import beat, boot, failed, proof
from tests.unit.test_fencer_duties import Desk, Devices, order
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast


def reading(works: bool, name: str = "bmc", level: int = 1) -> PathReading:
    return PathReading(name=name, level=level, works=works, detail="reads on" if works else "no answer")


class Drill(Desk):
    def __init__(self, *hosts: str, **settings: Any) -> None:
        super().__init__(*hosts, **{"drill_every_s": 300.0, **settings})
        self.rounds = 0

    def brings(self, *readings: PathReading, at: str = "2026-11-29T02:00:00+00:00") -> list[str]:
        return self.hear(PathsRead(key=self.asked[-1].key, host="h1", at=at, readings=readings))

    def round(self, *readings: PathReading) -> list[str]:
        before = len(self.asked)
        while len(self.asked) == before:
            self.wait()
        return self.brings(*readings)

    @property
    def record(self) -> PathRecord:
        found = self.state.records["path.h1"]
        assert isinstance(found, PathRecord)
        return found


def test_each_path_is_read_soon_and_then_every_few_minutes() -> None:
    desk = Drill()
    times = []
    for _ in range(6):
        assert desk.round(reading(True)) == []
        times.append(desk.now)
    assert 100.0 <= times[0] <= 130.0
    assert all(270.0 <= after - before <= 330.0 for before, after in itertools.pairwise(times))
    assert len({after - before for before, after in itertools.pairwise(times)}) > 1, "not in step"
    assert desk.record.paths[0].proven_at == "2026-11-29T02:00:00+00:00"


def test_hosts_are_read_a_few_at_a_time_and_none_is_forgotten() -> None:
    desk = Drill(*(f"h{n}" for n in range(40)), parallel_max=16)
    asked: set[str] = set()
    flying: list[ReadPaths] = []
    for _ in range(200):
        if desk.decider.wake_at(desk.state) is not None and len(flying) < 4:
            before = len(desk.asked)
            desk.wait()
            flying += desk.asked[before:]
        assert len(flying) <= 4
        if flying:
            one = flying.pop(0)
            asked.add(one.host)
            before = len(desk.asked)
            desk.hear(PathsRead(key=one.key, host=one.host, at="t", readings=(reading(True),)))
            flying += desk.asked[before:]
    assert len(asked) == 40


def test_a_path_is_broken_after_two_failures_running_and_told_once_until_it_is_mended() -> None:
    desk = Drill()
    desk.round(reading(True), reading(True, "pdu", 2))
    proven_at = desk.record.paths[1].proven_at
    began = desk.now
    assert desk.round(reading(True), reading(False, "pdu", 2)) == []
    soon = desk.now
    assert desk.round(reading(True), reading(False, "pdu", 2)) == ["fence_path.broken"]
    assert desk.now - soon == pytest.approx(30.0), "a doubt is looked after soon"
    assert desk.now - began < 300.0 * 1.1 + 31.0
    fact = desk.told[-1]
    assert (fact.host, fact.device, fact.level, fact.number) == ("h1", "pdu", 2, 1)
    assert "no answer" in fact.reason
    assert desk.record.paths[1].proven_at == proven_at, "the age of the last proof goes on"
    for _ in range(3):
        assert desk.round(reading(True), reading(False, "pdu", 2)) == []
    assert desk.round(reading(True), reading(True, "pdu", 2)) == ["fence_path.mended"]
    assert desk.told[-1].number == 2
    assert desk.round(reading(False), reading(True, "pdu", 2)) == []
    assert desk.round(reading(True), reading(True, "pdu", 2)) == [], "one failure is no news"


def test_a_successor_knows_what_is_broken_and_does_not_tell_it_again() -> None:
    desk = Drill()
    for _ in range(2):
        desk.round(reading(False))
    assert desk.told[-1].kind == "fence_path.broken"
    desk.lead()
    assert desk.round(reading(False)) == []
    assert desk.round(reading(True)) == ["fence_path.mended"]


def test_a_round_costs_one_write_of_one_record() -> None:
    desk = Drill()
    names = set()
    for _ in range(30):
        desk.round(reading(True))
        names |= set(desk.state.records)
    assert names == {"path.h1"}


def test_a_host_that_is_being_fenced_is_not_drilled_and_one_without_devices_is_forgotten() -> None:
    desk = Drill(alert_after_s=60.0)
    desk.hear(failed(boot("h1")))
    said = desk.after(50.0)
    assert not any(one.startswith("paths/") for one in said)
    desk.hear(Fenced(key="fence/h1-1/1", incident="h1-1", proof=proof(boot("h1"))))
    assert any(one.startswith("paths/") for one in desk.after(40.0))
    desk.brings(reading(True))
    other = Fencer(FencingSettings(), {})
    assert list(other.resume(other.initial(0.0), desk.state.records, 0.0).state.records) == ["h1"]


def test_a_host_that_is_being_tested_is_not_drilled() -> None:
    """Its BMC may have lost its power with an outlet: that breaks no path."""
    desk = Drill()
    desk.hear(order())
    desk.hear(Looked(key="look_first/h1/1", host="h1"))
    assert not any(one.startswith("paths/") for one in desk.after(100.0))
    desk.hear(ProvedLevels(key="prove_levels/h1/1", host="h1"))
    desk.hear(SwitchedOn(key="switch_on/h1/1", host="h1", done=True))
    assert any(one.startswith("paths/") for one in desk.after(40.0))


def test_a_round_without_an_end_is_made_up_for_and_says_nothing_of_a_device() -> None:
    desk = Drill()
    desk.wait()
    assert desk.hear(Expired(key=desk.asked[-1].key, request="read_paths", reason="no end")) == []
    assert "path.h1" not in desk.state.records
    assert desk.round(reading(True)) == []
    assert desk.hear(PathsRead(key="paths/h1/1", host="h1", at="t", readings=(reading(False),))) == [], (
        "of before"
    )


def test_no_drill_where_none_is_wanted() -> None:
    assert Desk(drill_every_s=0.0).after(3600.0) == []


async def read(*states: PowerState, speaks: bool) -> tuple[PathReading, ...]:
    bus = Process(World())
    view = PoolView(
        Settings.model_validate({"hosts": [{"name": "h1", "uri": "test:///default"}]}), lambda _: bus
    )
    paths = Paths(Devices(*states), bus, SystemClock(), view)
    reading = asyncio.ensure_future(paths.perform(ReadPaths(key="k", deadline_s=9.0, host="h1")))
    while speaks and not reading.done():
        await asyncio.sleep(0.01)
        signal: Heartbeat = beat("h1")
        bus.heard(signal)
    done = await reading
    assert isinstance(done, PathsRead)
    return done.readings


async def test_a_reading_of_on_proves_a_path_and_unknown_does_not() -> None:
    found = await read(PowerState.ON, PowerState.UNKNOWN, speaks=False)
    assert [one.works for one in found] == [True, False]


async def test_a_device_that_reads_off_of_a_host_that_speaks_is_no_path() -> None:
    found = await read(PowerState.OFF, PowerState.ON, speaks=True)
    assert [one.works for one in found] == [False, True]
    assert "while its host sends heartbeats" in found[0].detail


async def test_of_a_host_that_is_off_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.fencer.paths.HEARD_S", 0.05)
    assert [one.works for one in await read(PowerState.OFF, speaks=False)] == [True]
