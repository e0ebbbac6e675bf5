"""What the fencer owes beside a proof: to say in time what is missing, and to fence for a test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from libs.config.settings import FencingSettings, Settings
from libs.core.clock import SystemClock
from libs.core.decider import Expired
from libs.core.ports import Reading
from libs.events.hosts import HostFenceFailed, HostFenceTested, LevelTested
from libs.events.words import HostFenceTestOrdered
from libs.model import PowerState, ProofMethod, VmState
from libs.poolview import PoolView
from services.fencer.decide import Fencer
from services.fencer.paths import Paths
from services.fencer.state import (
    Explained,
    Fenced,
    FencerState,
    FenceTest,
    Looked,
    LookFirst,
    ProvedLevels,
    Stage,
    SwitchedOn,
)
from services.fencer.testing import FENCED_S, Times
from tests.unit import desk
from tests.unit.made import boot, failed, inventory, lease, proof, stored, vm
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast


class Desk(desk.Desk[FencerState]):
    """A fencer that leads, whose hosts have devices."""

    def __init__(self, *hosts: str, **settings: Any) -> None:
        given = FencingSettings.model_validate({"retry_first_s": 1.0, "drill_every_s": 0.0, **settings})
        times = {host: 5.0 for host in hosts or ("h1",)}
        super().__init__(Fencer(given, {"h1": 200.0}, times, Times(times, times)), 100.0)
        self.lead()

    def lead(self) -> list[str]:
        return self.take(self.decider.resume(self.state, stored(self.state.records), self.now))

    def after(self, wait_s: float) -> list[str]:
        """What is said and asked for in that time."""
        until, said = self.now + wait_s, []
        while (wake_at := self.decider.wake_at(self.state)) is not None and wake_at <= until:
            said += self.wait()
        self.now = until
        return said

    def explains(self, *missing: str) -> list[str]:
        return self.hear(Explained(key=self.asked[-1].key, incident="h1-1", missing=missing))


# -- what is missing


def test_s07_an_attempt_that_takes_long_is_told_of_while_it_goes_on() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    assert desk.after(44.9) == []
    assert desk.after(0.2) == ["explain/h1-1/1"]
    assert desk.explains("level 1: bmc: status: no answer for 45 s") == ["host.fence_failed"]
    fact = desk.told[-1]
    assert isinstance(fact, HostFenceFailed)
    assert (fact.under_way, fact.missing) == (True, ("level 1: bmc: status: no answer for 45 s",))
    end = Fenced(key="fence/h1-1/1", incident="h1-1", missing=("level 1: bmc: no answer by its deadline",))
    assert desk.hear(end) == ["host.fence_failed"]
    assert desk.told[-1].key != fact.key, "the server would drop it as a repeat"
    assert desk.after(600.0)[0] == "fence/h1-1/2", "and is tried again"


def test_an_attempt_that_has_failed_in_time_is_told_of_once() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    desk.hear(Fenced(key="fence/h1-1/1", incident="h1-1", missing=("level 1: refused",)))
    assert [said for said in desk.after(120.0) if said != "fence/h1-1/2"] == []


def test_one_that_was_proven_in_time_is_not() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    desk.hear(Fenced(key="fence/h1-1/1", incident="h1-1", proof=proof(boot("h1"))))
    assert desk.after(120.0) == []
    assert desk.hear(Explained(key="explain/h1-1/1", incident="h1-1", missing=("late",))) == []


def test_a_fencer_that_took_over_says_so_soon_as_it_cannot_know_how_long_it_has_been() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    desk.after(40.0)
    desk.lead()
    assert desk.after(12.1) == ["explain/h1-1/1"]
    late = Expired(key="explain/h1-1/1", request="explain", reason="no end in 5 s")
    assert desk.hear(late) == ["host.fence_failed"]
    assert desk.told[-1].missing == ("not known: no end in 5 s",)
    desk.lead()
    assert desk.after(50.0) == [], "told already"


class Devices:
    """Two devices, read at once."""

    def __init__(self, *states: PowerState) -> None:
        self.states = states

    def missing(self, host: str) -> tuple[str, ...]:
        return (f"level 1: {host}: no answer",)

    async def read(self, host: str) -> list[Reading]:
        return [
            Reading(f"d{n}", n, state, f"d{n} reads {state.value}") for n, state in enumerate(self.states, 1)
        ]

    async def test(self, host: str, off_seen: object) -> list[LevelTested]:
        return []

    async def switch_on(self, host: str) -> tuple[bool, str]:
        return True, ""


# -- a test of a host


def order(number: int = 1, **more: Any) -> HostFenceTestOrdered:
    return HostFenceTestOrdered(
        host="h1", number=number, at=boot("h1"), by="ann@desk", said_at="2026-11-29T02:00:00+00:00", **more
    )


def level(number: int, proven: bool = True) -> LevelTested:
    return LevelTested(level=number, devices=("bmc",), proven=proven, found_off=False, took_s=1.0)


class Test(Desk):
    __test__ = False

    def ordered(self, **more: Any) -> None:
        assert self.hear(order(**more)) == ["look_first/h1/1"]
        assert self.hear(Looked(key="look_first/h1/1", host="h1")) == ["prove_levels/h1/1"]

    def proves(self, *levels: LevelTested) -> list[str]:
        return self.hear(ProvedLevels(key="prove_levels/h1/1", host="h1", levels=levels))

    def comes_on(self) -> HostFenceTested:
        assert self.hear(SwitchedOn(key="switch_on/h1/1", host="h1", done=True)) == ["host.fence_tested"]
        fact = self.told[-1]
        assert isinstance(fact, HostFenceTested)
        return fact

    @property
    def stage(self) -> Stage:
        found = self.state.records["test.h1"]
        assert isinstance(found, FenceTest)
        return found.stage


def test_a_host_is_switched_on_only_once_it_counts_as_fenced() -> None:
    desk = Test()
    desk.ordered()
    assert desk.proves(level(1), level(2)) == []
    assert desk.stage is Stage.OFF
    assert desk.hear(failed(boot("h1"))) == ["fence/h1-1/1"]
    fenced = Fenced(key="fence/h1-1/1", incident="h1-1", proof=proof(boot("h1"), ProofMethod.POWER_OFF))
    assert desk.hear(fenced) == ["host.fenced", "switch_on/h1/1"]
    fact = desk.comes_on()
    assert (fact.passed, fact.switched_on, len(fact.levels), fact.cause) == (True, True, 2, order().key)


def test_one_that_is_never_held_failed_is_switched_on_after_a_while() -> None:
    desk = Test()
    desk.ordered()
    desk.proves(level(1), level(2, proven=False))
    desk.lead()
    assert desk.after(FENCED_S + 1.0) == ["switch_on/h1/1"]
    assert not desk.comes_on().passed, "a level that proves nothing"


def test_where_nothing_was_proven_it_is_switched_on_at_once_as_half_of_it_may_be_off() -> None:
    desk = Test()
    desk.ordered()
    assert desk.proves(level(1, proven=False)) == ["switch_on/h1/1"]
    assert not desk.comes_on().passed


def test_it_stays_off_where_that_was_asked_for() -> None:
    desk = Test()
    desk.ordered(switch_on=False)
    desk.proves(level(1))
    desk.hear(failed(boot("h1")))
    said = desk.hear(Fenced(key="fence/h1-1/1", incident="h1-1", proof=proof(boot("h1"))))
    assert said == ["host.fenced", "host.fence_tested"]
    assert (desk.told[-1].passed, desk.told[-1].switched_on) == (True, False)


def test_fifty_tellings_of_an_order_are_one_and_an_older_one_is_none() -> None:
    desk = Test()
    desk.ordered()
    assert [desk.hear(order()) for _ in range(50)] == [[]] * 50
    assert desk.hear(order(number=2)) == [], "while one is under way"
    desk.proves(level(1, proven=False))
    desk.comes_on()
    assert desk.hear(order()) == []
    assert desk.hear(order(number=2)) == ["look_first/h1/2"]


def test_what_may_not_be_tested_is_refused_and_nothing_is_switched() -> None:
    desk = Test()
    desk.hear(order())
    said = desk.hear(Looked(key="look_first/h1/1", host="h1", refused="VMs run on h1: A"))
    assert said == ["host.fence_tested"]
    assert (desk.told[-1].refused, desk.told[-1].passed) == ("VMs run on h1: A", False)
    other = Test()
    other.hear(failed(boot("h1")))
    other.hear(order())
    assert other.hear(Looked(key="look_first/h1/1", host="h1")) == ["host.fence_tested"]
    assert "is being fenced" in other.told[-1].refused


def test_every_act_of_a_test_has_an_end() -> None:
    desk = Test()
    desk.hear(order())
    assert desk.hear(Expired(key="look_first/h1/1", request="look_first", reason="no bus")) == [
        "host.fence_tested"
    ]
    desk = Test()
    desk.ordered()
    late = Expired(key="prove_levels/h1/1", request="prove_levels", reason="no end")
    assert desk.hear(late) == ["switch_on/h1/1"]
    late = Expired(key="switch_on/h1/1", request="switch_on", reason="no end")
    assert desk.hear(late) == ["host.fence_tested"]
    assert (desk.told[-1].switched_on, desk.told[-1].detail) == (False, "no end")


class View(PoolView):
    """A pool whose host is as the test says."""

    def __init__(self, row: dict[str, Any], *running: str) -> None:
        self.row, self.found = row, running

    async def hosts(self) -> list[dict[str, Any]]:
        return [self.row]

    async def running(self, at: Any) -> dict[str, Any]:
        return dict.fromkeys(self.found)


ROW = {"host": "h1", "incarnation": boot("h1").boot, "maintenance": True, "state": "healthy"}


@pytest.mark.parametrize(
    ("row", "running", "more", "refused"),
    [
        ({}, (), {}, ""),
        ({"state": "agent_down"}, (), {}, ""),
        ({"maintenance": False}, (), {}, "not in maintenance"),
        ({"incarnation": "another"}, (), {}, "another boot"),
        ({"state": "suspect"}, (), {}, "held to be suspect"),
        ({}, ("A", "B"), {}, "VMs run on h1: A, B"),
        ({}, ("A",), {"forced": True}, ""),
        ({}, (), {"said_at": "2020-01-01T00:00:00+00:00"}, "s old"),
    ],
)
async def test_the_fencer_looks_for_itself_before_it_switches_a_host_off(
    row: dict[str, Any], running: tuple[str, ...], more: dict[str, Any], refused: str
) -> None:
    """An order may come late, to a host that has been given VMs again."""
    now = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
    word = order().model_copy(update={"said_at": now, **more})
    paths = Paths(Devices(), Process(World()), SystemClock(), View({**ROW, **row}, *running))
    done = await paths.perform(LookFirst(key="k", deadline_s=1.0, order=word))
    assert isinstance(done, Looked)
    assert (refused in done.refused, bool(done.refused)) == (True, bool(refused))


async def test_what_runs_on_a_boot_is_what_it_tells_and_what_it_has_a_lease_for() -> None:
    rows = Process(World())
    view = PoolView(
        Settings.model_validate({"hosts": [{"name": "h1", "uri": "test:///default"}]}), lambda _: rows
    )
    told = inventory(boot("h1"), vm("a"), vm("b", VmState.STOPPED), vm("c", VmState.UNKNOWN))
    held, elsewhere = lease("d", boot("h1")), lease("e", boot("h2"))

    class Two(PoolView):
        async def inventories(self) -> dict[str, Any]:
            return {"h1": told}

        async def leases(self) -> list[Any]:
            return [held, elsewhere]

    assert sorted(await Two(view.settings, view.store).running(boot("h1"))) == ["A", "C", "D"]
    assert sorted(await Two(view.settings, view.store).running(boot("h1", 2))) == []
