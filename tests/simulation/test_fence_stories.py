"""S07, S08 and S09 of docs/STORIES.md in the simulator, and what else fence levels owe: the whole chain is production code,
the devices' faults and the waiting are simulated."""

from __future__ import annotations

from typing import Any

import pytest

from libs.scenario.model import Scenario
from libs.sim.random_world import draw, parts
from libs.sim.run import Result
from tests.simulation.test_stories import played, really, told

SLOW_S = 20.0
"""What one call of a device may take by default in a pool file."""


def armed(*names: str, host: str = "h1") -> dict[str, Any]:
    """A host with these devices, each on a level of its own."""
    fencing = [
        {"method": "power", "name": name, "level": level, "timeout_s": SLOW_S}
        for level, name in enumerate(names, 1)
    ]
    return {"name": host, "fencing": fencing}


def at(result: Result, event: str, subject: str = "h1") -> float:
    """When this was first said of it; seconds."""
    lines = [line.split(None, 2) for line in result.log]
    return next(float(line[0]) for line in lines if line[1] == event and line[2].startswith(subject))


def down(result: Result, host: str = "h1") -> float:
    """When it really lost its power."""
    return next(float(line.split()[0]) for line in really(result, f"{host} down"))


HOSTS = [{"name": "h2"}, {"name": "h3"}]


def test_s07_a_bmc_that_dies_with_its_host_leads_to_the_next_level_within_the_stated_bound() -> None:
    result = played(
        duration_s=60,
        pool=[armed("bmc", "pdu"), *HOSTS],
        steps=[
            {"at_s": 5, "do": "break_fencing", "host": "h1", "method": "bmc", "how": "shared_power"},
            {"at_s": 6, "do": "power_off", "host": "h1", "how": "for_good"},
        ],
        expect=[{"vm": "vm1", "state": "running", "host_not": "h1"}, {"never": "host.fence_failed"}],
    )
    took_s = at(result, "host.fenced") - at(result, "host.failed")
    # fencing.next_level_after_s, and one level of a device that works
    assert took_s < 10.0 + 3.0, result.log


@pytest.mark.parametrize("restarted", [False, True], ids=["", "and the fencer is killed meanwhile"])
def test_s07_without_any_proof_people_know_within_a_minute_what_is_missing_and_it_is_tried_for_ever(
    restarted: bool,
) -> None:
    """Each of four levels hangs for longer than the minute. Mended after ten minutes, one proves it."""
    killed = [{"at_s": 30, "do": "kill_service", "service": "fencer"}] if restarted else []
    result = played(
        duration_s=900,
        pool=[armed("bmc", "pdu", "ups", "breaker"), *HOSTS],
        steps=[
            {"at_s": 5, "do": "break_fencing", "host": "h1", "how": "hang"},
            {"at_s": 6, "do": "crash", "host": "h1", "how": "for_good"},
            *killed,
            {"at_s": 600, "do": "mend_fencing", "host": "h1", "method": "pdu"},
        ],
        expect=[{"vm": "vm1", "state": "running", "host_not": "h1"}],
    )
    waited_s = at(result, "host.fence_failed") - at(result, "host.failed")
    assert waited_s <= 60.0, result.log
    first = told(result, "host.fence_failed", "h1")[0]
    for level, name in enumerate(("bmc", "pdu", "ups", "breaker"), 1):
        assert f"level {level}: {name}: " in first, "each level and device by name, and why"
    assert at(result, "vm.restarted", "vm1") > 600.0, "nothing starts without a proof"
    assert 600.0 < at(result, "host.fenced") < 600.0 + 30.0 + 3 * SLOW_S
    assert told(result, "host.fence_failed", "h1")[-1] != told(result, "host.fenced", "h1")[-1]


def test_s08_a_host_that_is_off_already_is_fenced_though_its_device_refuses_every_command() -> None:
    result = played(
        duration_s=40,
        pool=[armed("bmc"), *HOSTS],
        steps=[
            {"at_s": 5, "do": "break_fencing", "host": "h1", "how": "refuse"},
            {"at_s": 6, "do": "power_off", "host": "h1", "how": "for_good"},
        ],
        expect=[
            {"vm": "vm1", "state": "running", "host_not": "h1", "by_s": 15},
            {"never": "host.fence_failed"},
        ],
    )
    assert at(result, "host.fenced") - at(result, "host.failed") < 2.0


def test_s09_a_device_that_says_off_five_seconds_before_its_host_dies_proves_nothing_until_then() -> None:
    """Cut off from all networks it goes on writing its slot: that is what tells."""
    result = played(
        duration_s=60,
        pool=[armed("bmc"), *HOSTS],
        steps=[
            {"at_s": 5, "do": "break_fencing", "host": "h1", "how": "lie"},
            {"at_s": 6, "do": "partition", "groups": [["h1"], ["bus", "management", "h2", "h3"]]},
            {"at_s": 14, "do": "power_off", "host": "h1", "how": "for_good"},
        ],
        expect=[{"vm": "vm1", "state": "running", "host_not": "h1"}],
    )
    assert at(result, "host.failed") < 9.0, "its device said off, so it is held failed at once"
    assert down(result) == 14.0, "a device that says off has not switched it off"
    assert at(result, "host.fenced") > 14.0
    assert "wrote to its slot" in told(result, "host.fence_failed", "h1")[0]


def test_one_of_two_power_supplies_that_stays_on_is_no_proof() -> None:
    feeds = [{"method": "power", "name": name, "timeout_s": 2.0} for name in ("psu-a", "psu-b")]
    result = played(
        duration_s=60,
        pool=[{"name": "h1", "fencing": feeds}, *HOSTS],
        steps=[
            {"at_s": 5, "do": "break_fencing", "host": "h1", "method": "psu-b", "how": "refuse"},
            {"at_s": 6, "do": "hang", "host": "h1", "how": "for_good"},
            {"at_s": 48, "do": "mend_fencing", "host": "h1"},
        ],
        expect=[{"vm": "vm1", "state": "running", "host_not": "h1"}],
    )
    assert "psu-b: off: exit 1: refused" in told(result, "host.fence_failed", "h1")[0]
    assert "psu-a" not in told(result, "host.fence_failed", "h1")[0]
    assert 48.0 < down(result) <= at(result, "host.fenced")


def test_a_broken_path_is_told_before_it_is_needed_and_once() -> None:
    result = played(
        duration_s=120,
        settings={"fencing": {"drill_every_s": 10}},
        pool=[armed("bmc", "pdu"), *HOSTS],
        steps=[
            {"at_s": 20, "do": "break_fencing", "host": "h1", "method": "pdu", "how": "dead"},
            {"at_s": 90, "do": "mend_fencing", "host": "h1"},
        ],
        expect=[
            {"event": "fence_path.broken", "subject": "h1"},
            {"event": "fence_path.mended", "subject": "h1"},
        ],
    )
    # two rounds that fail, the second soon after the first
    assert 20.0 < at(result, "fence_path.broken") < 20.0 + 11.0 + 1.0 + 2 * SLOW_S + 6.0
    assert 90.0 < at(result, "fence_path.mended") < 90.0 + 11.0 + SLOW_S
    assert len(told(result, "fence_path.broken")) == 1
    assert "pdu" in told(result, "fence_path.broken")[0]


def test_a_device_that_reads_off_of_a_host_that_speaks_is_a_broken_path() -> None:
    """Of the two ways to be broken the dangerous one: it would pass for a proof."""
    result = played(
        duration_s=60,
        settings={"fencing": {"drill_every_s": 10}},
        steps=[{"at_s": 10, "do": "break_fencing", "host": "h1", "how": "lie"}],
        expect=[{"event": "fence_path.broken", "subject": "h1"}, {"never": "host.suspected"}],
    )
    assert "sends heartbeats" in told(result, "fence_path.broken")[0]


# -- an operator's test


@pytest.mark.parametrize(
    "strikes", [0, 3, 9, 15, 24], ids=lambda n: f"fencer killed at call {n}" if n else ""
)
def test_a_host_that_an_operator_tests_goes_off_through_each_level_and_comes_back(strikes: int) -> None:
    struck = [{"at_s": 9.9, "do": "kill_service", "service": "fencer", "count": strikes}] if strikes else []
    result = played(
        duration_s=120,
        pool=[armed("bmc", "pdu"), *HOSTS],
        vms=[{"name": "vm2", "host": "h2"}],
        steps=[*struck, {"at_s": 10, "do": "fence_test", "host": "h1"}],
        expect=[
            {"event": "host.fence_tested", "subject": "h1"},
            {"event": "host.maintenance_exited", "subject": "h1"},
            {"vm": "vm2", "state": "running", "host": "h2"},
        ],
    )
    assert len(really(result, "h1 down")) == 1, "once, and its new boot is left alone"
    assert len(really(result, "h1 up")) == 1
    assert at(result, "host.fenced") <= at(result, "host.fence_tested")
    assert at(result, "host.joined", "h1/02") < at(result, "host.maintenance_exited")


def test_a_host_that_runs_vms_is_not_tested_unless_forced_and_then_they_run_elsewhere() -> None:
    step = {"at_s": 10, "do": "fence_test", "host": "h1"}
    refused = played(
        duration_s=30,
        steps=[step],
        expect=[{"vm": "vm1", "state": "running", "host": "h1"}, {"never": "host.fence_tested"}],
    )
    assert really(refused, "h1 down") == []
    assert "protected VMs run there: vm1" in really(refused, "fence-test h1 is refused")[0]
    assert told(refused, "host.maintenance_exited", "h1"), "it takes VMs again"
    forced = played(
        duration_s=120,
        steps=[{**step, "how": "force"}],
        expect=[
            {"vm": "vm1", "state": "running", "host_not": "h1"},
            {"event": "host.fence_tested", "subject": "h1"},
        ],
    )
    assert forced.outcome.double_running_s == 0


def test_a_host_that_is_to_be_drained_first_is_not_tested_where_one_vm_has_to_stay() -> None:
    vms = [
        {"name": "vm1", "host": "h1", "memory_mib": 256},
        {"name": "huge", "host": "h1", "memory_mib": 3072},
    ]
    small = [{"name": name, "memory_mib": 2048} for name in ("h2", "h3")]
    result = played(
        duration_s=60,
        pool=[{"name": "h1", "memory_mib": 8192}, *small],
        vms=vms,
        steps=[{"at_s": 5, "do": "fence_test", "host": "h1", "how": "drain"}],
        expect=[
            {"vm": "vm1", "state": "running", "host_not": "h1"},
            {"vm": "huge", "state": "running", "host": "h1"},
            {"event": "host.drain_stuck", "subject": "h1"},
            {"never": "host.fence_tested"},
        ],
    )
    assert really(result, "h1 down") == []
    [refused] = really(result, "fence-test h1 is refused")
    assert "protected VMs run there: huge; huge is not moved away: " in refused
    assert told(result, "host.maintenance_exited", "h1"), "it takes VMs again"


@pytest.mark.fast
def test_random_worlds_have_levels_of_several_devices_of_which_one_alone_may_break() -> None:
    worlds = [draw(seed) for seed in range(60)]
    hosts = [world.hosts[0] for world in worlds]
    assert any(len([one for one in host.fencing if one.level == 2]) == 2 for host in hosts)
    assert any(step.method == "bmc" for world in worlds for step in world.steps)
    assert any(step.do == "fence_test" for world in worlds for step in world.steps)
    again: list[Scenario] = [draw(seed) for seed in range(60)]
    assert worlds == again
    assert all(parts(world)[0]["hosts"][0]["fencing"] for world in worlds if world.hosts[0].fencing[0].name)
