"""Hosts without an agent in the simulated world: they are watched over libvirt, and their boots are named from outside."""

from __future__ import annotations

from typing import Any

from libs.scenario.model import Scenario
from libs.sim.run import Result, run
from services.cli.simplane import PLANE


def played(*steps: dict[str, Any], **vm: Any) -> Result:
    story = Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "a host without an agent",
            "duration_s": 60,
            "settings": {"detection": {"quiet_after_start_s": 5}},
            "hosts": [{"name": "h1", "agent": False}, {"name": "h2"}, {"name": "h3"}],
            "vms": [{"name": "a", "host": "h1", **vm}],
            "steps": list(steps),
        }
    )
    result = run(story, 1, PLANE, stop_at_first=False)
    assert result.violations == [], "\n".join(result.log)
    return result


def told(result: Result, event: str) -> list[str]:
    return [line.split(None, 2)[2] for line in result.log if line.split(None, 2)[1] == event]


def test_one_that_loses_its_power_is_fenced_and_its_vm_runs_elsewhere() -> None:
    result = played({"at_s": 5, "do": "power_off", "host": "h1"})
    assert len(told(result, "host.fenced")) == 1
    assert result.outcome.vms["a"].host in ("h2", "h3")


def test_the_end_of_what_watches_it_is_no_failure_of_the_host_and_names_no_new_boot() -> None:
    result = played(
        {"at_s": 5, "do": "kill_agent", "host": "h1"}, {"at_s": 20, "do": "start_agent", "host": "h1"}
    )
    assert not told(result, "host.failed")
    assert len(told(result, "host.agent_down")) == 1
    assert len(told(result, "host.refuted")) == 1
    assert result.outcome.vms["a"].host == "h1"


def test_one_without_a_running_vm_gets_another_name_for_the_same_boot_and_nobody_is_hurt() -> None:
    """Nothing shows that it is the same: that costs a look, and a join."""
    result = played(
        {"at_s": 5, "do": "shutdown_guest", "vm": "a"},
        {"at_s": 10, "do": "kill_agent", "host": "h1"},
        {"at_s": 20, "do": "start_agent", "host": "h1"},
    )
    assert len(told(result, "host.joined")) == 1
    assert result.outcome.vms["a"].state == "stopped"


def test_what_autostart_begins_is_leased_to_the_new_boot() -> None:
    result = played(
        {"at_s": 5, "do": "reboot", "host": "h1", "how": "fast"},
        {"at_s": 20, "do": "crash_vm", "vm": "a"},
        autostart=True,
    )
    assert len(told(result, "host.fenced")) == 1
    assert [line.split()[0:3] for line in told(result, "vm.restarted")] == [["a", "on", "h1"]]
    assert result.outcome.vms["a"].state == "running"


def test_one_that_is_shut_down_while_nobody_watches_its_host_stays_down() -> None:
    """Its host gets another name for the same boot, and says itself that a person stopped it."""
    result = played(
        {"at_s": 5, "do": "kill_agent", "host": "h1"},
        {"at_s": 8, "do": "shutdown_guest", "vm": "a"},
        {"at_s": 20, "do": "start_agent", "host": "h1"},
    )
    assert len(told(result, "host.joined")) == 1
    assert not told(result, "vm.restarted")
    assert result.outcome.vms["a"].state == "stopped"


def test_new_names_alone_put_nobody_in_quarantine() -> None:
    steps = []
    for number in range(4):
        steps += [
            {"at_s": 10 + 10 * number, "do": "kill_agent", "host": "h1"},
            {"at_s": 14 + 10 * number, "do": "start_agent", "host": "h1"},
        ]
    result = played({"at_s": 5, "do": "shutdown_guest", "vm": "a"}, *steps)
    assert len(told(result, "host.joined")) == 4
    assert not told(result, "host.quarantined")
