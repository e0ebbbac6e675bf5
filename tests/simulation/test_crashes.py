"""One failover, played once for each call of each service: killed at that very call, it comes out the same.

Random worlds kill at calls that are drawn; here none is left out. Routine calls (a heartbeat, a look at a lease) are made
whether anything happens or not, and count no more than any moment between two calls.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.scenario.model import Expectation, Scenario, StepEntry
from libs.sim.loop import Process
from libs.sim.run import run
from services.cli.simplane import PLANE
from services.cli.simulate import load

FAILOVER = Path(__file__).parents[1] / "scenarios" / "power_loss.yaml"
SERVICES = ("detector", "fencer", "placement", "executor", "alerting")
CALLS = 79
"""Of each of both, more than it makes until room is made."""
ARMED_AT_S = 0.9
"""A moment before the host loses its power."""


def killed(service: str, call: int) -> Scenario:
    scenario = load(FAILOVER)
    step = StepEntry.model_validate(
        {"at_s": ARMED_AT_S, "do": "kill_service", "service": service, "count": call}
    )
    # for a young plane's new detector the quiet minute after a start would be all that is seen
    settings = {"detection": {"quiet_after_start_s": 5}}
    return scenario.model_copy(update={"steps": (step, *scenario.steps), "settings": settings})


@pytest.mark.parametrize("service", SERVICES)
def test_s05_killed_at_any_call_of_a_failover_it_comes_out_the_same(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck: list[str] = []
    original = Process.enter

    def enter(self: Process, *, routine: bool = False) -> None:
        armed = self.strike
        try:
            original(self, routine=routine)
        finally:
            if armed is not None and self.strike is None:
                struck.append(self.name)

    monkeypatch.setattr(Process, "enter", enter)
    call = 0
    while len(struck) == call:  # until it makes fewer calls than that
        call += 1
        outcome = run(killed(service, call), 0, PLANE, stop_at_first=False).outcome
        told = "\n".join(f"{one.at_s:8.3f} {one.event} {one.subject}" for one in outcome.timeline)
        assert outcome.passed, f"killed at call {call}: {outcome.violations}\n{told}"
        assert {name: vm.starts for name, vm in outcome.vms.items()} == {"a": 2, "b": 2, "c": 1}, call
        assert len(struck) <= call
    assert call > 3, "it was killed hardly ever"
    assert {name.split("/")[0] for name in struck} == {service}


ROOM = FAILOVER.with_name("room_is_made.yaml")


@pytest.mark.parametrize("service", ["placement", "executor"])
def test_killed_at_any_call_while_room_is_made_everybody_runs_in_the_end(service: str) -> None:
    """Killed once a plan was told and before its orders were stored, placement knew nothing of what was stopped for others,
    and that stayed down for good. What is moved, and who waits, may differ: it is planned anew."""
    story = load(ROOM)
    expect = tuple(Expectation(vm=vm.name, state="running") for vm in story.vms)
    back = StepEntry.model_validate({"at_s": 30, "do": "power_on", "host": "h1"})
    settings = {**story.settings, "detection": {"quiet_after_start_s": 5}}
    for call in range(1, CALLS + 1):
        kill = StepEntry.model_validate(
            {"at_s": 1.5, "do": "kill_service", "service": service, "count": call}
        )
        update = {"steps": (kill, story.steps[0], back), "expect": expect, "settings": settings}
        result = run(story.model_copy(update={**update, "duration_s": 120.0}), 0, PLANE, stop_at_first=False)
        told = "\n".join(result.log)
        assert not result.violations, f"killed at call {call}: {result.violations}\n{told}"
        assert result.outcome.passed, f"killed at call {call}: {result.outcome.violations}\n{told}"
