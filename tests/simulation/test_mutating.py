"""`rekindle simulate --mutations`: how many worlds each deliberate fault is given, and what is said of it."""

from __future__ import annotations

import pytest

from libs.scenario.outcome import Violation
from services.cli import mutating
from services.cli.mutating import Hunt, Rules, hunted
from services.cli.mutations import MUTATIONS

MUTATION = MUTATIONS[0]


def played(hunt: Hunt, catching: dict[int, str]) -> Hunt:
    """All that it wants, with these worlds that catch it."""
    while hunt.wants:
        seeds = hunt.next()
        hunt.rules.update({seed: catching.get(seed, "") for seed in seeds})
    return hunt


def stand_in(name: str, seeds: range) -> Rules:
    """In place of worlds; processes get it by its name."""
    return {seed: "1" if name == MUTATIONS[0].name or seed == 41 else "" for seed in seeds}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("catching", "caught", "worlds", "rules", "earliest"),
    [
        ({3: "1", 7: "10", 9: "10"}, 3, 25, ["10", "1"], 3),  # in how many of the first 25
        ({27: "2", 28: "2"}, 1, 28, ["2"], 27),  # not in these: up to the one that catches it
        ({}, 0, 60, [], None),  # the world is too kind
    ],
)
def test_a_fault_gets_its_first_worlds_and_then_more_until_it_is_caught(
    catching: dict[int, str], caught: int, worlds: int, rules: list[str], earliest: int | None
) -> None:
    row = played(Hunt(MUTATION, 0, 25, 60), catching).row()
    assert (row["caught"], row["worlds"], row["rules"], row["earliest"]) == (caught, worlds, rules, earliest)


@pytest.mark.fast
def test_one_run_a_fault_stops_at_the_first_world_that_catches_it() -> None:
    hunt = played(Hunt(MUTATION, 4, 1, 60), {4: "2"})
    assert hunt.given == 1
    assert hunt.done


def test_two_processes_share_the_worlds_of_the_last_survivor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutating, "caught", stand_in)
    hunts = [Hunt(one, 0, 2, 80) for one in MUTATIONS[:2]]
    done = [hunt.mutation.name for hunt in hunted(hunts, 2)]
    assert done == [MUTATIONS[0].name, MUTATIONS[1].name]
    assert [hunt.row()["worlds"] for hunt in hunts] == [2, 42]


def test_a_fault_that_fails_by_itself_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [Violation(rule="crash", at_s=1.0, detail="a slip of the fault's own")]
    monkeypatch.setattr(mutating, "world", lambda seed: (seed, broken, 1.0))
    with pytest.raises(RuntimeError, match="fails by itself"):
        mutating.caught(MUTATION.name, range(1))
