"""How many tests with real hosts a machine bears."""

from __future__ import annotations

import pytest

from infra.workers import BEARS, LEAST, workers

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("took_s", "number"),
    [(0.25, 5), (0.4, 4), (0.45, 4), (0.55, 3), (0.65, 3), (0.7, 3), (0.9, 2), (60.0, 2)],
)
def test_the_slower_the_machine_the_fewer_share_it(took_s: float, number: int) -> None:
    assert workers(took_s) == number
    assert [most_s for most_s, _ in BEARS] == sorted(most_s for most_s, _ in BEARS)
    assert min(number for _, number in BEARS) > LEAST
