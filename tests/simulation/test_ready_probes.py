"""Starts that wait for another VM's port, the whole chain simulated: by priority they would come first."""

from __future__ import annotations

from libs.sim.run import Result
from tests.simulation.test_stories import played as story
from tests.simulation.test_stories import really, told


def failing(wait_s: int, ready: str) -> Result:
    return story(
        duration_s=90,
        pool=[{"name": f"h{n}"} for n in (1, 2, 3)],
        vms=[
            {"name": "app", "host": "h1", "priority": "highest", "after": f"db running {wait_s}"},
            {"name": "alone", "host": "h1", "priority": "lowest"},
            {"name": "db", "host": "h1", "priority": "low", "ready": ready},
        ],
        steps=[{"at_s": 15, "do": "power_off", "host": "h1"}],
        expect=[{"vm": name, "state": "running", "host_not": "h1"} for name in ("app", "db", "alone")],
    )


def starts(result: Result, vm: str) -> float:
    """When it really did, elsewhere."""
    return float(next(line for line in really(result, f"{vm} on") if line.endswith("starts")).split()[0])


def test_an_app_starts_once_the_port_of_its_database_answers_and_nobody_else_waits_for_that() -> None:
    result = failing(60, "tcp:5432")
    assert starts(result, "app") > starts(result, "db") + 2.0, "its guest takes two seconds to boot"
    assert starts(result, "alone") < starts(result, "app") - 1.0
    assert told(result, "vm.waited_in_vain") == []


def test_an_app_starts_all_the_same_when_its_database_is_never_ready() -> None:
    result = failing(10, "http:nowhere:8080/health")
    [vain] = told(result, "vm.waited_in_vain")
    assert "app" in vain
    assert starts(result, "app") > starts(result, "db") + 9.0
    assert starts(result, "alone") < starts(result, "app") - 9.0
