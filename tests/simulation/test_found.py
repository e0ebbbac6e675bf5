"""Worlds that broke a rule once: kept as files, as `rekindle simulate --runs` writes them, and played in each test run.

A file goes on to show what its seed showed, whatever random worlds are made of later. Made short where that was done
before it was mended; those of seeds that were kept by number only are kept whole.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from libs.sim.run import run
from services.cli import simulate as command
from services.cli.simplane import PLANE
from services.cli.simulate import load

FOUND = Path(__file__).parent / "found"
FILES = sorted(path.name for path in FOUND.glob("*.yaml"))
FAILED_ONCE = (
    2210, 2304, 2309, 2434, 2650, 3917, 4877, 5622, 5864, 5930, 5943,
    6083, 6196, 6372, 6429, 6676, 6737, 7708, 7880, 8164, 8341, 8363,
    8645,
)  # fmt: skip
"""Seeds that broke a rule before there were files of them."""


@pytest.mark.parametrize("name", FILES)
def test_a_world_that_broke_a_rule_once_does_so_no_more(name: str) -> None:
    scenario = load(FOUND / name)
    assert scenario.healed, "what it owes in the end counts"
    result = run(scenario, scenario.seed, PLANE)
    assert [f"rule {one.rule} at {one.at_s} s: {one.detail}" for one in result.violations] == []
    assert result.outcome.passed


@pytest.mark.fast
def test_each_says_its_seed_and_none_is_lost() -> None:
    seeds = {name: int(re.findall(r"seed-(\d+)", name)[0]) for name in FILES}
    assert set(FAILED_ONCE) <= set(seeds.values())
    for name, seed in seeds.items():
        said = (FOUND / name).read_text()
        assert said.startswith("#"), f"{name}: what it showed"
        assert f"\nseed: {seed}\n" in said


@pytest.mark.fast
def test_what_random_worlds_break_is_kept_among_these(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(FOUND.parents[2])
    assert command._place().resolve() == FOUND.resolve()
    monkeypatch.chdir(tmp_path)
    assert command._place() == Path("found")
