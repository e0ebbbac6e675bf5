"""The files of tests/scenarios, which the lab plays too: in the simulator their verdicts do not depend on luck."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.scenario.verdicts import verdicts
from libs.sim.run import run
from services.cli.simplane import PLANE
from services.cli.simulate import load

SCENARIOS = Path(__file__).parent.parent / "scenarios"
FILES = sorted(path.stem for path in SCENARIOS.glob("*.yaml"))
SEEDS = 5


@pytest.mark.parametrize("name", FILES)
def test_every_seed_gives_the_same_verdicts(name: str) -> None:
    scenario = load(SCENARIOS / f"{name}.yaml")
    first = None
    for seed in range(SEEDS):
        outcome = run(scenario, seed, PLANE, stop_at_first=False).outcome
        assert outcome.passed, (seed, outcome.violations)
        first = first or verdicts(outcome)
        assert verdicts(outcome) == first, f"seed {seed}"
