"""Room that is made while all that is said comes late: what was read before a VM was stopped is heard after it, and a fact
before the lease that it tells of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from libs.scenario.model import Scenario
from libs.sim.run import run
from services.cli.simplane import PLANE

ROOM = Path(__file__).parents[1] / "scenarios" / "room_is_made.yaml"
SLOW: list[dict[str, Any]] = [
    {"at_s": 2, "do": "power_off", "host": "h1"},
    {"at_s": 2.5, "do": "delay", "seconds": 1.2},
    {"at_s": 40, "do": "heal"},
    {"at_s": 50, "do": "power_on", "host": "h1"},
]


@pytest.mark.parametrize("seed", [141, 170, 199, 212, 346, 379])
def test_who_gave_its_room_runs_again_and_no_room_is_given_twice(seed: int) -> None:
    """In 141 and 170 what was heard late made a stop of ours a person's will; in the others what had just been started
    had its room given to another."""
    story = yaml.safe_load(ROOM.read_text())
    expect = [{"vm": vm, "state": "running"} for vm in ("old", "batch", "app", "db")]
    played = {**story, "duration_s": 120, "steps": SLOW, "expect": expect}
    result = run(Scenario.model_validate(played), seed, PLANE, stop_at_first=False)
    assert not result.violations, "\n".join(result.log)
    assert result.outcome.passed, "\n".join([str(result.outcome.violations), *result.log])
