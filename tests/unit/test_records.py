"""What differs between two states of the records is found by what was changed, and is what a comparison of all would find."""

from __future__ import annotations

import random

import pytest

from libs.core.records import REMEMBERED, Records

pytestmark = pytest.mark.fast


def compared(records: Records, stored: Records) -> set[str]:
    return {one for one in {*records, *stored} if records.get(one) is not stored.get(one)}


@pytest.mark.parametrize("seed", range(20))
def test_what_differs_is_what_a_comparison_of_all_finds(seed: int) -> None:
    """On any way from one state to another, also back, aside, and further than is remembered."""
    chance = random.Random(seed)
    states = [Records(), Records({f"h{number}": object() for number in range(5)})]
    for _ in range(3 * REMEMBERED):
        state = chance.choice(states[-3:])
        name = f"h{chance.randrange(40)}"
        if chance.random() < 0.3:
            state = state.discard(name)
        else:
            state = state.insert(name, state.get(name) if chance.random() < 0.2 else object())
        states.append(state)
        other = (
            states[chance.randrange(len(states))] if chance.random() < 0.2 else chance.choice(states[-20:])
        )
        assert state.differing(other) == compared(state, other)


def test_one_change_among_many_records_is_found_without_looking_through_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A join among 10,000 hosts must not cost what 10,000 joins cost."""
    stored = Records({f"h{number}": object() for number in range(100)})
    after = stored.insert("h7", object()).insert("new", object()).remove("h8")

    def walked(_: Records) -> None:
        pytest.fail("it went through all records")

    monkeypatch.setattr(Records, "__iter__", walked)
    assert after.differing(stored) == {"h7", "new", "h8"}
    assert stored.differing(stored) == set()


def test_what_is_remembered_is_bounded() -> None:
    """Of a follower that never stores anything, too."""
    state = Records()
    for number in range(10 * REMEMBERED):
        state = state.insert("h1", number)
    length, change = 0, state._latest
    while change.before is not None:
        length, change = length + 1, change.before
    assert length <= REMEMBERED


def test_it_is_a_map_that_stays_as_it_is() -> None:
    one = Records({"a": 1})
    two = one.insert("b", 2)
    assert (dict(one.items()), dict(two.items())) == ({"a": 1}, {"a": 1, "b": 2})
    assert two.remove("b") == one
    assert hash(two.remove("b")) == hash(one)
    assert one.discard("b") is one
    with pytest.raises(KeyError):
        one.remove("b")
    assert ("a" in one, len(two), sorted(two), two["b"], two.get("c")) == (True, 2, ["a", "b"], 2, None)
