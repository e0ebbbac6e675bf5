"""The order of starts: whoever comes after another waits until that is ready, or has been waited for long enough."""

from __future__ import annotations

from typing import Any

import pytest

from libs.config.settings import Restart
from libs.core.decider import Input
from libs.events.failovers import AwaitedVm, FailoverPlanned, PlannedStart
from libs.events.signals import LeaseWritten
from libs.model import Health, LeaseState, VmState
from services.executor.decide import Executor
from services.executor.orders import Attempted, Result, StartVm
from services.executor.state import ExecutorState
from tests.unit.made import boot, facts, lease, policy, proof, requests, seen, vm

pytestmark = pytest.mark.fast
H1, H2 = boot("h1"), boot("h2")


def order(uuid: str, *after: AwaitedVm, delay_s: float = 0.0, **more: Any) -> PlannedStart:
    return PlannedStart(
        key=f"i/{uuid}/1",
        vm=uuid,
        name=uuid.upper(),
        origin=H1,
        to=H2,
        wave=0,
        priority_rank=2,
        memory_mib=100,
        vcpus=1,
        proofs=(proof(H1),),
        policy=policy(start_delay_s=delay_s),
        after=after,
        **more,
    )


def awaited(uuid: str, ready: str = "running", wait_s: float = 60.0, token: int = 1) -> AwaitedVm:
    return AwaitedVm.model_validate(
        {
            "vm": uuid,
            "name": uuid.upper(),
            "key": f"i/{uuid}/1",
            "token": token,
            "ready": ready,
            "wait_s": wait_s,
        }
    )


class Desk:
    """The executor, with what it was asked to start so far."""

    def __init__(self) -> None:
        self.decider = Executor(Restart())
        self.state: ExecutorState = self.decider.initial(0.0)
        self.begun: list[str] = []
        self.told: list[Any] = []

    def hear(self, one: Input | None, now: float) -> None:
        step = self.decider.step(self.state, one, now)
        self.state = step.state
        self.told += [one for one in facts(step.effects) if one.kind == "vm.waited_in_vain"]
        self.begun += [one.start.vm for one in requests(step.effects) if isinstance(one, StartVm)]

    def plan(self, *starts: PlannedStart, now: float = 0.0) -> None:
        self.hear(FailoverPlanned(incident="i", revision=1, starts=starts), now)

    def runs(self, uuid: str, now: float, token: int = 2) -> None:
        """Its start has ended well, and its lease says so."""
        record = self.state.records[uuid]
        start = record.start
        self.hear(Attempted(key=f"start/{start.key}/1", start=start, result=Result.STARTED, token=token), now)
        self.hear(
            LeaseWritten(lease=lease(uuid, H2, LeaseState.RUNNING, token=token, start_key=start.key)), now
        )


def test_a_start_waits_until_the_vm_it_comes_after_runs() -> None:
    desk = Desk()
    desk.plan(order("app", awaited("db")), order("db"), order("other"))
    assert desk.begun == ["db", "other"]
    desk.runs("other", 1.0)
    assert desk.begun == ["db", "other"]
    desk.runs("db", 2.0)
    assert desk.begun == ["db", "other", "app"]
    assert desk.decider.wake_at(desk.state) is None


def test_the_lease_of_the_run_that_ended_is_no_sign_that_it_runs() -> None:
    desk = Desk()
    desk.hear(LeaseWritten(lease=lease("db", H1, token=1)), 0.0)
    desk.plan(order("app", awaited("db")), order("db"))
    assert desk.begun == ["db"]
    desk.hear(LeaseWritten(lease=lease("db", H2, LeaseState.STARTING, token=2, start_key="i/db/1")), 1.0)
    assert desk.begun == ["db"]


def test_a_later_attempt_of_the_other_counts_too() -> None:
    desk = Desk()
    desk.plan(order("app", awaited("db")))
    desk.hear(LeaseWritten(lease=lease("db", H2, token=3, start_key="i/db/2")), 1.0)
    assert desk.begun == ["app"]


def test_it_waits_no_longer_than_its_policy_says() -> None:
    desk = Desk()
    desk.plan(order("app", awaited("db", wait_s=30.0), awaited("cache", wait_s=50.0)), now=10.0)
    assert desk.decider.wake_at(desk.state) == 60.0
    desk.hear(LeaseWritten(lease=lease("cache", H2, token=2, start_key="i/cache/1")), 11.0)
    assert desk.decider.wake_at(desk.state) == 40.0
    desk.hear(None, 39.9)
    assert desk.begun == []
    desk.hear(None, 40.0)
    assert desk.begun == ["app"]


def test_readiness_by_guest_agent_is_its_answer_in_the_new_run() -> None:
    desk = Desk()
    desk.plan(order("app", awaited("db", ready="agent")), order("db"))
    desk.runs("db", 1.0)
    for at, (token, agent, health) in enumerate(
        [(1, True, Health.OK), (2, False, Health.UNKNOWN), (2, True, Health.UNKNOWN)], 2
    ):
        desk.hear(seen(H2, vm("db", token=token, agent=agent, health=health), rev=at), float(at))
        assert desk.begun == ["db"]
    desk.hear(seen(H2, vm("db", VmState.RUNNING, token=2, agent=True, health=Health.OK), rev=9), 9.0)
    assert desk.begun == ["db", "app"]


def test_a_delay_counts_from_when_nothing_else_is_waited_for() -> None:
    desk = Desk()
    desk.plan(order("slow", delay_s=5.0), order("app", awaited("db"), delay_s=3.0), order("db"))
    assert desk.begun == ["db"]
    assert desk.decider.wake_at(desk.state) == 5.0
    desk.hear(None, 5.0)
    assert desk.begun == ["db", "slow"]
    desk.runs("db", 7.0)
    assert desk.decider.wake_at(desk.state) == 10.0
    desk.hear(None, 10.0)
    assert desk.begun == ["db", "slow", "app"]


def test_whoever_leads_next_waits_anew_and_starts_it_in_the_end() -> None:
    desk = Desk()
    desk.plan(order("app", awaited("db", wait_s=30.0)))
    heir = Desk()
    step = heir.decider.resume(heir.state, desk.state.records, 100.0)
    heir.state = step.state
    assert requests(step.effects) == []
    assert heir.decider.wake_at(heir.state) == 130.0
    heir.hear(None, 130.0)
    assert heir.begun == ["app"]


def test_a_start_that_waits_and_is_owed_no_more_is_forgotten() -> None:
    desk = Desk()
    desk.plan(order("app", awaited("db")))
    desk.hear(FailoverPlanned(incident="i", revision=2, starts=(order("app"),)), 1.0)
    assert desk.begun == ["app"]
    assert not desk.state.waits


def test_a_wait_that_ends_in_vain_is_told_once_with_whom_it_was_for() -> None:
    desk = Desk()
    desk.plan(order("a", awaited("b", wait_s=30.0), awaited("c", wait_s=10.0)), order("c"))
    desk.runs("c", 5.0)
    desk.hear(None, 29.0)
    assert desk.told == []
    desk.hear(None, 31.0)
    desk.hear(None, 32.0)
    [told] = desk.told
    assert (told.vm, told.awaited, told.waited_s) == ("a", ("B",), 31.0)


def test_a_wait_that_ends_as_it_should_is_not_told() -> None:
    desk = Desk()
    desk.plan(order("a", awaited("b", wait_s=30.0)), order("b"))
    desk.runs("b", 5.0)
    desk.hear(None, 40.0)
    assert "a" in desk.begun
    assert desk.told == []
