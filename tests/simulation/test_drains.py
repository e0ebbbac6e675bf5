"""Hosts that are drained in the simulator: faults on the way, and what the checks make of a drain that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from libs.core.decider import Step
from libs.planning.snapshot import SnapshotHostState
from libs.scenario.model import Scenario
from libs.sim.random_world import draw
from libs.sim.run import run
from services.cli.simplane import PLANE
from services.placement import draining, pool
from tests.simulation.test_stories import played, told

DRAIN = {"at_s": 5, "do": "enter_maintenance", "host": "h1", "how": "drain"}
VMS = [{"name": f"vm{n}", "host": "h1", "memory_mib": 256} for n in range(1, 5)]
GONE = [{"vm": vm["name"], "state": "running", "host_not": "h1"} for vm in VMS]


@pytest.mark.parametrize("service", ["placement", "executor"])
@pytest.mark.parametrize("count", [1, 2, 4, 7, 11, 16])
def test_a_drain_goes_on_whoever_is_killed_on_the_way(service: str, count: int) -> None:
    strike = {"at_s": 4.9, "do": "kill_service", "service": service, "count": count}
    result = played(duration_s=90, vms=VMS, steps=[strike, DRAIN], expect=GONE)
    assert result.outcome.double_running_s == 0
    assert len(told(result, "vm.moved")) >= 4
    assert told(result, "host.drained", "h1")


@pytest.mark.parametrize("host", ["h1", "h2"])
@pytest.mark.parametrize("at_s", [5.5, 6.5])
def test_a_host_that_fails_in_the_midst_of_a_drain_costs_no_vm_and_runs_none_twice(
    host: str, at_s: float
) -> None:
    off = {"at_s": at_s, "do": "power_off", "host": host}
    expect = [{"vm": vm["name"], "state": "running", "host_not": host} for vm in VMS]
    result = played(duration_s=120, vms=VMS, steps=[DRAIN, off], expect=expect)
    assert result.outcome.double_running_s == 0


def test_an_operators_word_ends_the_drain_and_the_rest_stays() -> None:
    leave = {"at_s": 6, "do": "exit_maintenance", "host": "h1"}
    result = played(duration_s=60, vms=VMS, steps=[DRAIN, leave], expect=[])
    assert 0 < len(told(result, "vm.moved")) < 4


def broken(monkeypatch: pytest.MonkeyPatch, patched: tuple[Any, str, Any], steps: list[Any]) -> set[str]:
    """The rules that this world breaks with a fault in it."""
    monkeypatch.setattr(*patched)
    world = {
        "schema": "rekindle.scenario.v1",
        "name": "a wrong drain",
        "hosts": [{"name": name} for name in ("h1", "h2", "h3")],
        "vms": VMS,
        "duration_s": 90,
        "steps": steps,
    }
    result = run(Scenario.model_validate(world), 1, PLANE, liveness=True, stop_at_first=False)
    return {one.rule for one in result.violations}


def test_a_host_that_is_drained_of_nothing_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = (draining, "looked", lambda state, means, now: Step(state))
    assert broken(monkeypatch, idle, [DRAIN]) == {"drain"}


def test_a_vm_that_is_moved_to_a_closed_host_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    shot = pool.snapshot

    def all_open(*parts: Any) -> Any:
        found = shot(*parts)
        hosts = [
            host.model_copy(update={"state": SnapshotHostState.ONLINE}) if host.name != pool.NOWHERE else host
            for host in found.hosts
        ]
        return found.model_copy(update={"hosts": tuple(hosts)})

    closed = [{"at_s": 4, "do": "enter_maintenance", "host": name} for name in ("h2", "h3")]
    assert "room" in broken(monkeypatch, (pool, "snapshot", all_open), [*closed, DRAIN])


@pytest.mark.fast
def test_random_worlds_drain_hosts_by_every_way_there_is() -> None:
    worlds = [draw(seed) for seed in range(200)]
    ways = {(step.do, step.how) for world in worlds for step in world.steps}
    assert {("enter_maintenance", "drain"), ("enter_maintenance", None), ("fence_test", "drain")} <= ways
