"""S06: the plane wakes up on an old copy of its own data. It reads only, until every host has told what it runs."""

from __future__ import annotations

from typing import Any

import pytest

from libs.sim.run import Result
from services.cli import faults
from tests.simulation.test_stories import played, really, told

pytestmark = [pytest.mark.fast, pytest.mark.long]
VMS = [
    {"name": "db", "host": "h1"},
    {"name": "mail", "host": "h1"},
    {"name": "web", "host": "h2"},
    {"name": "wiki", "host": "h3"},
]
COPIED_S = 7.0
"""When the copy is made that is put back later."""
DAY: list[dict[str, Any]] = [
    {"at_s": 9, "do": "migrate_vm", "vm": "db", "host": "h2", "seconds": 1},
    {"at_s": 10, "do": "shutdown_guest", "vm": "mail"},
    {"at_s": 11, "do": "crash_vm", "vm": "web"},
]


def put_back(at_s: float, copied_s: float = COPIED_S) -> dict[str, Any]:
    return {"at_s": at_s, "do": "restore_state", "seconds": at_s - copied_s}


def line_of(result: Result, what: str) -> int:
    return next(index for index, line in enumerate(result.log) if what in line)


def after(result: Result, step: str) -> list[str]:
    """What happened in the world after that step."""
    at = line_of(result, step)
    return [line for line in really(result, "") if result.log.index(line) > at]


def test_s06_on_an_old_copy_nothing_is_done_until_all_hosts_have_told_and_then_all_is_as_it_was() -> None:
    result = played(
        duration_s=150,
        vms=VMS,
        settings={"detection": {"quiet_after_start_s": 5}},
        steps=[*DAY, put_back(40), {"at_s": 80, "do": "power_off", "host": "h2", "how": "for_good"}],
        expect=[
            {"event": "state.restored", "by_s": 50},
            {"event": "state.reconciled", "by_s": 60},
            {"vm": "mail", "state": "stopped"},
            {"vm": "wiki", "state": "running", "host": "h3"},
            {"vm": "db", "state": "running", "host_not": "h2", "by_s": 140},
            {"never": "vm.runs_twice"},
        ],
    )
    restored, lost = line_of(result, "step.restore_state"), line_of(result, "step.power_off")
    assert [line for line in result.log[restored:lost] if "(really)" in line] == [], "nothing was touched"
    assert [line for line in result.log[restored:lost] if " host." in line] == [], "nobody was judged"
    assert line_of(result, "state.restored") < line_of(result, "state.reconciled") < lost
    assert result.outcome.double_running_s == 0
    assert [line for line in after(result, "step.power_off") if "db on" in line and "starts" in line]


def test_s06_a_host_that_does_not_tell_needs_an_operators_word_and_nothing_starts_meanwhile() -> None:
    result = played(
        duration_s=170,
        vms=VMS,
        settings={"detection": {"quiet_after_start_s": 5}},
        steps=[
            *DAY,
            {"at_s": 15, "do": "power_off", "host": "h3", "how": "for_good"},
            put_back(40),
            {"at_s": 50, "do": "power_off", "host": "h1", "how": "for_good"},
            {"at_s": 85, "do": "confirm_absent", "host": "h3"},
            {"at_s": 90, "do": "confirm_absent", "host": "h1"},
        ],
        expect=[
            {"event": "state.reconciled", "by_s": 110},
            {"vm": "db", "state": "running", "host": "h2"},
            {"vm": "mail", "state": "stopped"},
            {"vm": "wiki", "state": "stopped"},
            {"never": "vm.start_uncertain"},
        ],
    )
    restored, word = line_of(result, "step.restore_state"), line_of(result, "step.confirm_absent")
    between = result.log[restored:word]
    assert not [line for line in between if " starts" in line], "it was started while nobody knew what runs"
    assert not [line for line in between if "host.failed" in line or "host.fenced" in line]
    assert line_of(result, "state.reconciled") > line_of(result, "confirm_absent  h1")
    assert "down: mail, wiki" in result.log[line_of(result, "state.reconciled")]
    assert result.outcome.double_running_s == 0


def test_s06_a_fence_and_starts_that_were_owed_when_the_copy_was_made_are_owed_no_more() -> None:
    """The copy is of the midst of a failover. That host has booted since, and its VM has gone back to it."""
    result = played(
        duration_s=120,
        vms=VMS,
        settings={"detection": {"quiet_after_start_s": 5}},
        steps=[
            {"at_s": 5, "do": "crash", "host": "h1", "how": "for_good"},
            {"at_s": 30, "do": "power_on", "host": "h1"},
            {"at_s": 45, "do": "migrate_vm", "vm": "db", "host": "h1", "seconds": 1},
            put_back(60, COPIED_AT),
        ],
        expect=[
            {"event": "state.reconciled", "by_s": 90},
            {"vm": "db", "state": "running", "host": "h1"},
            {"vm": "mail", "state": "running", "host_not": "h1"},
        ],
    )
    assert after(result, "step.restore_state") == []
    assert result.outcome.double_running_s == 0


COPIED_AT = 8.9


def test_s06_the_rules_notice_a_plane_that_believes_an_old_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name, instead in faults.old_copy_believed():
        monkeypatch.setattr(owner, name, instead)
    with pytest.raises(AssertionError):
        test_s06_a_fence_and_starts_that_were_owed_when_the_copy_was_made_are_owed_no_more()


def test_a_plane_that_starts_anew_on_its_own_data_waits_for_nobody() -> None:
    result = played(
        duration_s=60,
        vms=VMS,
        settings={"detection": {"quiet_after_start_s": 5}},
        steps=[
            {"at_s": 5, "do": "kill_service", "service": "plane", "seconds": 3},
            *({"at_s": 20, "do": "kill_bus", "node": node} for node in (0, 1, 2)),
            *({"at_s": 24, "do": "start_bus", "node": node} for node in (0, 1, 2)),
        ],
        expect=[{"never": "state.restored"}, {"never": "host.suspected"}],
    )
    assert told(result, "state.") == []


def test_s06_an_agent_that_begins_again_on_the_old_copy_stops_nothing_there() -> None:
    """Its host has booted since the copy was made, and a VM has come to it: the copy knows neither."""
    result = played(
        duration_s=110,
        vms=VMS,
        settings={"detection": {"quiet_after_start_s": 5}},
        steps=[
            {"at_s": 9, "do": "reboot", "host": "h2", "how": "fast"},
            {"at_s": 35, "do": "migrate_vm", "vm": "db", "host": "h2", "seconds": 1},
            put_back(60),
            {"at_s": 60.2, "do": "kill_agent", "host": "h2"},
            {"at_s": 60.6, "do": "start_agent", "host": "h2"},
        ],
        expect=[
            {"event": "state.reconciled", "by_s": 90},
            {"vm": "db", "state": "running", "host": "h2"},
            {"never": "vm.stopped_by_gate"},
        ],
    )
    assert after(result, "step.restore_state") == []
    assert result.outcome.double_running_s == 0
