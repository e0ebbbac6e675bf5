"""Random worlds: none breaks a rule; each is the same again; and the rules notice what is broken on purpose.

REKINDLE_SEEDS says how many seeds are run: 200 by default (make check), 2000 in make test.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from libs.core.decider import Step
from libs.scenario.model import Scenario
from libs.sim.random_world import draw
from libs.sim.run import run
from services.cli.mutations import MUTATIONS, Mutation
from services.cli.simplane import PLANE
from services.detector import storms

SEEDS = int(os.environ.get("REKINDLE_SEEDS", "200"))
BLOCK = 25
CAUGHT = (
    "fence skipped",
    "token stays",
    "storm guard off",
    "new boot is the old",
    "silence is proof",
    "evict skipped",
    "evict adopted as purpose",
    "agentless judged",
    "peers not asked",
    "last level skipped",
    "nobody minds who leads",
    "waits without a reason",
    "timed by the wall",
)
PROGRAM = """
import hashlib
from libs.sim.random_world import draw
from libs.sim.run import run
from services.cli.simplane import PLANE
for seed in {seeds}:
    log = run(draw(seed), seed, PLANE, liveness=True).log
    print(seed, hashlib.sha256("\\n".join(log).encode()).hexdigest())
"""


def broken(seed: int) -> list[str]:
    result = run(draw(seed), seed, PLANE, liveness=True)
    return [f"seed {seed}: rule {one.rule} at {one.at_s} s: {one.detail}" for one in result.violations]


@pytest.mark.fast
@pytest.mark.parametrize("block", range(0, SEEDS, BLOCK))
def test_no_world_breaks_a_rule(block: int) -> None:
    assert [line for seed in range(block, min(block + BLOCK, SEEDS)) for line in broken(seed)] == []


def test_a_seed_is_the_same_in_every_process() -> None:
    seeds = list(range(500, 506))

    def elsewhere(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        program = PROGRAM.format(seeds=seeds)
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    told = [elsewhere(hash_seed) for hash_seed in ("0", "1", "4711")]
    assert told[0] == told[1] == told[2]
    here = [run(draw(seed), seed, PLANE, liveness=True).log for seed in seeds]
    mine = [f"{seed} {_digest(log)}" for seed, log in zip(seeds, here, strict=True)]
    assert told[0].splitlines() == mine
    assert all(here)


def _digest(log: list[str]) -> str:
    return hashlib.sha256("\n".join(log).encode()).hexdigest()


@pytest.mark.parametrize("name", CAUGHT)
def test_a_deliberate_fault_is_caught(name: str) -> None:
    mutation = next(one for one in MUTATIONS if one.name == name)
    with mutation.applied():
        assert any(broken(seed) for seed in range(80))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_no_deliberate_fault_fails_by_itself(mutation: Mutation) -> None:
    """An error of its own would pass for one that was caught."""
    with mutation.applied():
        rules = {
            one.rule for seed in (0, 4) for one in run(draw(seed), seed, PLANE, liveness=True).violations
        }
    assert mutation.crashes or "crash" not in rules


@pytest.mark.fast
@pytest.mark.parametrize(("ends", "rules"), [(True, []), (False, ["7"])])
def test_a_storm_that_does_not_end_in_a_healed_world_breaks_a_rule(
    monkeypatch: pytest.MonkeyPatch, ends: bool, rules: list[str]
) -> None:
    hosts = ["h1", "h2", "h3", "h4"]
    scenario = Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "a storm",
            "duration_s": 60,
            "healed": True,
            "settings": {"detection": {"quiet_after_start_s": 2}},
            "hosts": [{"name": host} for host in hosts],
            "steps": [
                {"at_s": 3, "do": "partition", "groups": [["h1", "h2", "h3"], ["bus", "h4"]]},
                *({"at_s": 3, "do": "break_fencing", "host": host, "how": "dead"} for host in hosts[:3]),
                {"at_s": 9, "do": "heal"},
            ],
        }
    )
    if not ends:
        watch = storms.watch
        monkeypatch.setattr(
            storms, "watch", lambda state, *rest: Step(state) if state.storm else watch(state, *rest)
        )
    result = run(scenario, 1, PLANE)
    assert any("storm.held" in line for line in result.log)
    assert [one.rule for one in result.violations] == rules


@pytest.mark.fast
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_every_deliberate_fault_finds_what_it_breaks(mutation: Mutation) -> None:
    """One whose target was renamed breaks nothing, and would only be missed in the table."""
    with mutation.applied():
        pass
