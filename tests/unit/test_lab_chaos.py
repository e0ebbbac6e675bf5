"""A bad day for a lab as it is drawn, and what is made of what the observer saw. No lab is made here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.lab import steps
from infra.lab.chaos import Chaos, Result, VmTold
from infra.lab.chaosdraw import BY_HAND, GENTLE, MAKERS, Round, draw
from infra.lab.observations import VmChange
from libs.scenario.files import misgiven
from libs.scenario.model import StepEntry

pytestmark = pytest.mark.fast
HOSTS = [f"h{number}" for number in range(1, 6)]
VMS = [f"vm{number}" for number in range(1, 9)]
ALL = frozenset(["network", "datastores"])
MENDED_BY = {
    "power_off": {"power_on"},
    "crash": {"reboot"},
    "hang": {"reboot"},
    "kill_agent": {"start_agent"},
    "hang_libvirt": {"resume_libvirt"},
    "break_fencing": {"mend_fencing"},
    "partition": {"heal"},
    "stall_storage": {"restore_storage"},
    "destroy_vm": {"start_vm"},
}
MENDED_S = 25.0
ZERO = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def drawn(seed: int = 1, faults: int = 400, has: frozenset[str] = ALL) -> list[Round]:
    return draw(seed, faults, HOSTS, VMS, has)


def test_a_seed_draws_the_same_day_and_another_one_another() -> None:
    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)
    assert sum(len(one.faults) for one in drawn(7, 13)) == 13


def test_each_kind_comes_some_come_together_and_each_step_can_be_done_here() -> None:
    rounds = drawn()
    assert {fault.kind for one in rounds for fault in one.faults} == set(MAKERS)
    assert {len(one.faults) for one in rounds} == {1, 2, 3}
    for step in (step for one in rounds for step in one.steps):
        assert misgiven(step) is None
        assert step.do in steps.POSSIBLE


def test_what_is_broken_is_mended_in_the_same_round_and_soon() -> None:
    for fault in (fault for one in drawn() for fault in one.faults):
        for step in fault.steps:
            wanted = MENDED_BY.get(step.do)
            if wanted is None:
                continue
            mends = [later for later in fault.steps if later.do in wanted and later.at_s >= step.at_s]
            assert mends, f"{fault.kind}: nothing mends {step.do}"
            assert mends[0].at_s - step.at_s < MENDED_S


def test_no_person_starts_a_vm_while_a_host_fails() -> None:
    for kinds in ({fault.kind for fault in one.faults} for one in drawn()):
        assert not kinds & set(BY_HAND) or kinds <= set(GENTLE)


def test_a_machine_without_bridges_or_fuse_draws_nothing_that_needs_them() -> None:
    dos = {step.do for one in drawn(has=frozenset()) for step in one.steps}
    assert not dos & {"partition", "heal", "stall_storage", "restore_storage"}
    assert "power_off" in dos


def test_what_the_observer_had_on_two_hosts_in_a_round_is_found(tmp_path: Path) -> None:
    day = Chaos(tmp_path, faults=1, seed=1)
    day.run.zero = ZERO

    def change(at_s: float, host: str, active: bool) -> VmChange:
        return VmChange(ZERO + timedelta(seconds=at_s), at_s, "u", "vm1", host, active, "domains")

    moved = [change(-5, "h1", True), change(2, "h1", False), change(3, "h2", True)]
    assert day._twice(moved) == []
    before = [change(-9, "h1", True), change(-8, "h2", True), change(-7, "h1", False)]
    assert day._twice(before) == [], "told with the round before"
    twice = [change(-5, "h1", True), change(2.5, "h2", True), change(3, "h1", False)]
    assert day._twice(twice) == ["vm1 was on h1 and h2 at 2.5 s"]


def test_a_round_is_written_as_a_file_that_the_lab_takes(tmp_path: Path) -> None:
    day = Chaos(tmp_path, faults=3, seed=4)
    day.run.zero = datetime.now(UTC)
    homes = {vm.name: "h2" for vm in day.run.scenario.vms}
    done = [
        StepEntry(at_s=0.31, do="power_off", host="h2"),
        StepEntry(at_s=6.1, do="power_on", host="h2"),
    ]
    file = tmp_path / "round.yaml"
    file.write_text(day._as_scenario(3, homes, Round(()), done))
    read = steps.load(file)
    assert {vm.host for vm in read.vms} == {"h2"}
    assert [(step.at_s, step.do) for step in read.steps] == [(0.31, "power_off"), (6.1, "power_on")]
    assert len(read.expect) == len(read.vms)


def test_the_document_says_what_was_drawn_and_that_it_failed() -> None:
    result = Result(
        seed=3, hosts=5, bus_nodes=1, lock_manager="", autostart=True, vms={"vm1": VmTold(0.2, 3, 4.5)}
    )
    assert result.document()["passed"] is True
    result.found.append("observer: VMs ran twice, for 0.2 s")
    told = result.document()
    assert (told["schema"], told["passed"], told["seed"]) == ("rekindle.chaos.v1", False, 3)
    assert told["vms"]["vm1"] == {"double_s": 0.2, "restarts": 3, "longest_downtime_s": 4.5}
