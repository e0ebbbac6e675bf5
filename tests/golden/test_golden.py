"""Named stories: the whole log of each is kept, so that a change of behaviour shows as a diff.

REKINDLE_UPDATE_GOLDEN=1 writes the logs anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from libs.sim.run import run
from services.cli.simplane import PLANE
from services.cli.simulate import load

HERE = Path(__file__).parent
PLACES = (HERE, HERE.parent / "scenarios")
"""A story that the lab plays too stands with the others of that kind."""
STORIES = sorted({path.stem for end in ("yaml", "log") for path in HERE.glob(f"*.{end}")})

EVERY = 4
"""One of so many is played in `make check` as well, all of them in `make test`."""


def _case(number: int) -> Any:
    return pytest.param(STORIES[number], marks=[pytest.mark.long] if number % EVERY else [])


def test_there_are_twenty_stories() -> None:
    assert len(STORIES) >= 20


@pytest.mark.fast
@pytest.mark.parametrize("name", [_case(number) for number in range(len(STORIES))])
def test_story(name: str) -> None:
    file = next(path for place in PLACES if (path := place / f"{name}.yaml").exists())
    scenario = load(file)
    result = run(scenario, scenario.seed, PLANE, stop_at_first=False)
    told = "\n".join([f"# {scenario.name}", *result.log, ""])
    path = HERE / f"{name}.log"
    if os.environ.get("REKINDLE_UPDATE_GOLDEN"):
        path.write_text(told)
    assert result.outcome.passed, result.outcome.violations
    assert told == path.read_text()
