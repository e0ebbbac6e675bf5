"""What the world notices about VMs that were migrated to where nobody shows them: each of its checks can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.core.decider import Effect, Publish
from libs.model import Inventory
from libs.scenario.model import Scenario
from libs.sim.run import run
from services.cli.simplane import PLANE
from services.cli.simulate import load
from services.executor import unseen
from services.executor.state import State

pytestmark = pytest.mark.fast
HOSTS = [{"name": "h1"}, {"name": "h2"}]
VMS = [{"name": "db", "host": "h1"}]
FOUND = Path(__file__).parent / "found" / "seed-2328-rule-10-unseen.yaml"


def test_one_of_which_nobody_is_told_breaks_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same world passes where it is told (test_found)."""
    monkeypatch.setattr(unseen, "looked", lambda state, inventory, now: (state, []))
    scenario = load(FOUND)
    result = run(scenario, scenario.seed, PLANE)
    assert [(one.rule, one.detail) for one in result.violations] == [
        ("10", "at the end VM vm1 runs nowhere and h1 has room")
    ]


def test_one_that_is_told_although_its_host_has_shown_it_for_long_breaks_a_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[float] = []

    def anything(state: State, inventory: Inventory, now: float) -> tuple[State, list[Effect]]:
        heard.append(now)
        told = [one for one in inventory.vms if one.state.active and now - heard[0] > 30.0]
        return state, [Publish(one.uuid, unseen._fact(inventory, one)) for one in told]

    monkeypatch.setattr(unseen, "looked", anything)
    body = {
        "schema": "rekindle.scenario.v1",
        "name": "all is well",
        "duration_s": 60,
        "hosts": HOSTS,
        "vms": VMS,
    }
    result = run(Scenario.model_validate(body), 1, PLANE)
    assert [(one.rule, one.detail) for one in result.violations] == [
        ("10", "VM db is told to be unseen, and h1 runs it")
    ]
