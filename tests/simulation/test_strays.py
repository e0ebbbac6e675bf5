"""A VM that runs twice: it is noticed, the copy without the lease is stopped, and no other VM is ever taken for one.

What people do with virsh keeps its lease right without anyone's help: a migration, a start, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libs.model import Incarnation, StopReason
from libs.scenario.model import Scenario
from libs.sim.hosts import SimHost
from libs.sim.machines import Machines
from libs.sim.run import Result, run
from services.cli import faults
from services.cli.simplane import PLANE
from services.cli.simulate import load
from tests.simulation.test_stories import played, really, told

pytestmark = pytest.mark.fast
VMS = [{"name": "db", "host": "h1"}, {"name": "web", "host": "h2"}]


def test_a_second_copy_that_a_person_started_is_stopped_and_told() -> None:
    result = played(
        duration_s=60,
        vms=VMS,
        steps=[{"at_s": 5, "do": "start_copy", "vm": "db", "host": "h2"}],
        expect=[
            {"vm": "db", "state": "running", "host": "h1"},
            {"event": "vm.runs_twice", "subject": "db", "by_s": 9},
            {"event": "vm.stopped_by_gate", "subject": "db", "by_s": 9},
        ],
    )
    assert 0 < result.outcome.double_running_s < 4
    assert [line.split("(really)")[1].strip() for line in really(result, " ends")] == [
        "db on h2 ends (on_purpose)"
    ]
    assert told(result, "vm.failed") == [], "its stop is nobody's crash"


def test_a_second_copy_that_cannot_be_stopped_is_told_and_tried_again() -> None:
    result = played(
        duration_s=90,
        vms=VMS,
        steps=[
            {"at_s": 4, "do": "fail_stop", "vm": "db", "host": "h2", "count": 3},
            {"at_s": 5, "do": "start_copy", "vm": "db", "host": "h2"},
        ],
        expect=[
            {"vm": "db", "state": "running", "host": "h1"},
            {"event": "vm.stop_failed", "subject": "db", "by_s": 12},
            {"event": "vm.stop_settled", "subject": "db", "by_s": 40},
        ],
    )
    assert len(told(result, "vm.stop_failed")) == 1


def test_no_third_copy_is_started_while_a_second_may_run() -> None:
    """The holder crashes while the copy beside it cannot be stopped: it waits, and runs once in the end."""
    result = played(
        duration_s=150,
        vms=VMS,
        steps=[
            {"at_s": 4, "do": "fail_stop", "vm": "db", "host": "h2", "count": 8},
            {"at_s": 5, "do": "start_copy", "vm": "db", "host": "h2"},
            {"at_s": 15, "do": "power_off", "host": "h1", "how": "for_good"},
        ],
        expect=[
            {"vm": "db", "state": "running", "host_not": "h1", "by_s": 130},
            {"never": "vm.start_uncertain"},
        ],
    )
    ends = next(index for index, line in enumerate(result.log) if "db on h2 ends" in line)
    starts = [
        index
        for index, line in enumerate(result.log)
        if "(really)" in line and "db on h" in line and "starts" in line
    ]
    assert len(starts) == 2
    assert starts[0] < ends < starts[1]


@pytest.mark.parametrize("seconds", [0.05, 0.5, 2.0, 7.0])
def test_a_migration_is_followed_and_nothing_is_stopped(seconds: float) -> None:
    result = played(
        duration_s=60,
        vms=VMS,
        steps=[
            {"at_s": 5, "do": "migrate_vm", "vm": "db", "host": "h2", "seconds": seconds},
            {"at_s": 9 + seconds, "do": "migrate_vm", "vm": "db", "host": "h3", "seconds": seconds},
            {"at_s": 9.2 + 2 * seconds, "do": "migrate_vm", "vm": "db", "host": "h1", "seconds": seconds},
            {"at_s": 40, "do": "power_off", "host": "h1", "how": "for_good"},
        ],
        expect=[
            {"vm": "db", "state": "running", "host_not": "h1", "by_s": 55},
            {"never": "vm.runs_twice"},
        ],
    )
    assert told(result, "vm.stopped_by_gate") == []
    assert len(told(result, "vm.restarted", "db")) == 1, "its lease had followed it to the host that died"


def test_a_vm_that_is_migrated_to_a_host_at_its_gate_is_let_in() -> None:
    """Its agent stands at the gate, since the bus is away, while a person brings a VM to it, and has its libvirt ask nobody."""
    result = played(
        duration_s=120,
        vms=VMS,
        steps=[
            *({"at_s": 4, "do": "kill_bus", "node": node} for node in (0, 1, 2)),
            {"at_s": 5, "do": "reboot", "host": "h3", "how": "fast"},
            {"at_s": 7, "do": "migrate_vm", "vm": "db", "host": "h3", "seconds": 1, "how": "override"},
            *({"at_s": 8.2, "do": "start_bus", "node": node} for node in (0, 1, 2)),
        ],
        expect=[{"vm": "db", "state": "running", "host": "h3"}, {"never": "vm.stopped_by_gate"}],
    )
    assert result.outcome.vms["db"].starts == 2


def test_the_old_copy_of_a_vm_whose_device_lied_is_stopped_once_its_host_is_heard() -> None:
    """Nothing could have doubted that proof. Once both hosts are heard it is two copies, and not for long."""
    result = story(
        hosts=3,
        duration_s=120,
        settings={"datastores": []},
        steps=[
            {"at_s": 5, "do": "break_fencing", "host": "h1", "how": "lie"},
            {"at_s": 5, "do": "partition", "groups": [["h1"], ["bus", "management", "h2", "h3"]]},
            {"at_s": 40, "do": "heal"},
        ],
        expect=[
            {"vm": "db", "state": "running", "host_not": "h1"},
            {"event": "vm.runs_twice", "subject": "db"},
            {"event": "vm.stopped_by_gate", "subject": "db"},
        ],
    )
    assert result.outcome.passed, "\n".join([str(result.outcome.violations), *result.log])
    ended = next(line for line in really(result, "db on h1 ends"))
    assert float(ended.split()[0]) < 60


def story(**parts: Any) -> Result:
    hosts = [{"name": f"h{n}"} for n in range(1, parts.pop("hosts", 3) + 1)]
    body = {"schema": "rekindle.scenario.v1", "name": "two copies", "hosts": hosts, "vms": VMS, **parts}
    return run(Scenario.model_validate(body), 1, PLANE, stop_at_first=False)


TWICE = [{"at_s": 5, "do": "start_copy", "vm": "db", "host": "h2"}]
BACK_AND_FORTH: list[dict[str, Any]] = [
    {"at_s": 5 + 2 * n, "do": "migrate_vm", "vm": "db", "host": f"h{2 - n % 2}", "seconds": 1}
    for n in range(8)
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "steps"), [(faults.stray_unnoticed, TWICE), (faults.stray_by_hearsay, BACK_AND_FORTH)]
)
def test_the_rules_notice_where_this_is_broken(
    fault: Callable[[], list[faults.Patch]], steps: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert story(duration_s=60, steps=steps).violations == []
    for owner, name, instead in fault():
        monkeypatch.setattr(owner, name, instead)
    assert story(duration_s=60, steps=steps).violations, "nothing noticed it"


@pytest.mark.long
@pytest.mark.parametrize("call", range(1, 11))
@pytest.mark.parametrize("who", ["executor", "agent"])
def test_whoever_is_killed_at_any_call_of_it_the_second_copy_is_ended_and_the_first_goes_on(
    who: str, call: int
) -> None:
    """From the moment that it is asked about: killed at that very call, and started again."""
    kill: dict[str, Any] = {"at_s": 5.9, "do": "kill_service", "service": "executor", "count": call}
    if who == "agent":
        kill = {"at_s": 5.9, "do": "kill_agent", "host": "h2", "count": call}
    result = story(
        duration_s=60,
        steps=[*TWICE, kill],
        expect=[
            {"vm": "db", "state": "running", "host": "h1"},
            {"event": "vm.runs_twice", "subject": "db", "by_s": 40},
        ],
    )
    assert result.outcome.passed, "\n".join([str(result.outcome.violations), *result.log])
    assert len(really(result, "db on h2 ends")) == 1
    assert result.outcome.double_running_s < 30


def test_what_was_started_unseen_and_migrated_with_undefinesource_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in seed 3304, but that its source does not even know the VM any more."""
    whole = Machines._migrated

    def migrated(
        self: Machines,
        source: SimHost,
        target: SimHost,
        uuid: str,
        runs: tuple[Incarnation, int, Incarnation, int],
    ) -> None:
        whole(self, source, target, uuid, runs)
        if source.domains[uuid].stop_reason is StopReason.MIGRATED:
            del source.domains[uuid]

    monkeypatch.setattr(Machines, "_migrated", migrated)
    scenario = load(Path(__file__).parent / "found" / "seed-3304-rule-1.yaml")
    result = run(scenario, scenario.seed, PLANE)
    assert [(one.rule, one.detail) for one in result.violations] == []
    assert result.outcome.double_running_s == 0
