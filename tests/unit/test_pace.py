"""How many starts at once a host and a datastore take follows from how long starts take there."""

from __future__ import annotations

from typing import Any

import pytest
from rpds import HashTrieMap

from libs.config.settings import Restart
from services.executor import pace
from services.executor.orders import Attempted, Result
from services.executor.pace import FIRST, Paces
from tests.unit.made import boot
from tests.unit.test_executor import Desk, order, plan

pytestmark = pytest.mark.fast
SETTINGS = Restart(parallel_per_host=8, parallel_per_datastore=16)
H = "host/h2"


def after(*took: float, told: bool = True, paces: Paces | None = None, at: float = 100.0) -> Paces:
    """Starts on one host, one after the other, that took so long."""
    paces = HashTrieMap() if paces is None else paces
    for seconds in took:
        paces = pace.ended(paces, SETTINGS, (H,), at, at + seconds, told=told)
        at += seconds
    return paces


def test_quick_starts_let_more_begin_up_to_the_settings() -> None:
    assert pace.allowed(HashTrieMap(), SETTINGS, H) == FIRST
    assert pace.allowed(after(*[0.5] * 6), SETTINGS, H) == 5
    assert pace.allowed(after(*[0.5] * 200), SETTINGS, H) == 8


def test_a_slow_start_halves_the_number_and_never_below_one() -> None:
    slow = after(0.5, 9.0)
    assert pace.allowed(slow, SETTINGS, H) == 2
    assert pace.allowed(after(*[9.0] * 6, paces=slow, at=200.0), SETTINGS, H) >= 1


def test_a_start_of_which_nobody_can_tell_is_slow() -> None:
    assert pace.allowed(after(30.0, told=False), SETTINGS, H) == 2


def test_starts_that_were_under_way_when_it_was_halved_halve_it_no_more() -> None:
    paces = after(0.5)
    for ends in (110.0, 110.2, 110.4):
        paces = pace.ended(paces, SETTINGS, (H,), 101.0, ends, told=True)
    assert pace.allowed(paces, SETTINGS, H) == 2


def test_it_recovers_once_starts_are_quick_again() -> None:
    paces = after(*[0.5] * 40, paces=after(0.5, 9.0), at=300.0)
    assert pace.allowed(paces, SETTINGS, H) == 8


def test_slow_is_against_the_quickest_and_not_against_a_fixed_time() -> None:
    assert pace.allowed(after(*[12.0] * 6), SETTINGS, H) == 5, "all starts of this pool take so long"


def begun(desk: Desk) -> list[str]:
    return [one.start.vm for one in desk.asked]


def ends(desk: Desk, vm: str) -> None:
    request = next(one for one in desk.asked if one.start.vm == vm)
    desk.hear(Attempted(key=request.key, start=request.start, result=Result.STARTED, token=1))


def test_a_host_whose_starts_take_long_gets_fewer_at_once() -> None:
    desk = Desk()
    desk.hear(plan(*(order(f"v{number:02}") for number in range(12))))
    assert len(begun(desk)) == FIRST
    desk.now += 0.5
    ends(desk, "v00")
    desk.now += 20.0
    before = len(begun(desk))
    for vm in ("v01", "v02", "v03", "v04"):
        ends(desk, vm)
    assert len(begun(desk)) - before == 2, "two and no more are under way"


def test_a_datastore_bounds_starts_on_all_hosts_together() -> None:
    desk = Desk(parallel_per_datastore=3)
    more: dict[str, Any] = {"datastores": ("nfs",)}
    orders = [order(f"v{number}", boot(f"h{2 + number}"), **more) for number in range(6)]
    desk.hear(plan(*orders))
    assert len(begun(desk)) == 3
