"""Named stories: the whole log of each is kept, so that a change of behaviour shows as a diff.

REKINDLE_UPDATE_GOLDEN=1 writes the logs anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from libs.sim.run import run
from services.cli.simplane import PLANE
from services.cli.simulate import load

HERE = Path(__file__).parent
STORIES = sorted(path.stem for path in HERE.glob("*.yaml"))


def test_there_are_twenty_stories() -> None:
    assert len(STORIES) >= 20


@pytest.mark.fast
@pytest.mark.parametrize("name", STORIES)
def test_story(name: str) -> None:
    scenario = load(HERE / f"{name}.yaml")
    result = run(scenario, scenario.seed, PLANE, stop_at_first=False)
    told = "\n".join([f"# {scenario.name}", *result.log, ""])
    path = HERE / f"{name}.log"
    if os.environ.get("REKINDLE_UPDATE_GOLDEN"):
        path.write_text(told)
    assert result.outcome.passed, result.outcome.violations
    assert told == path.read_text()
