"""What is made of failovers beside a plane that is being broken."""

from __future__ import annotations

import pytest

from infra.lab.planechaos import CAME_BACK, DIED, ONE_LEADER, Failover, _beside, delays, quantile
from infra.lab.planefaults import COMES_BACK, KINDS, LEADER, SERVICE, WEIGHTS, Fault

pytestmark = pytest.mark.fast


def fault(kind: str, began: float, until: float) -> Fault:
    return Fault(kind, 0, "fencer", began, until)


def test_every_kind_of_fault_has_a_weight_and_a_bar() -> None:
    assert len(KINDS) == len(WEIGHTS)
    assert set(KINDS.values()) == {SERVICE, LEADER}
    assert {KINDS[one] for one in COMES_BACK} == {LEADER}


@pytest.mark.parametrize(
    ("faults", "bar"),
    [
        ([], "none"),
        ([fault("kill_service", 1.0, 9.0)], "none"),
        ([fault("kill_service", 1.0, 12.0)], SERVICE),
        ([fault("kill_service", 14.0, 0.0)], SERVICE),
        ([fault("kill_bus", 16.0, 17.0)], "none"),
        ([fault("pause_service", 11.0, 12.0), fault("cut_bus", 13.0, 14.0)], LEADER),
    ],
)
def test_a_failover_is_held_to_the_bar_of_the_worst_fault_that_was_there_meanwhile(
    faults: list[Fault], bar: str
) -> None:
    assert _beside(Failover("h1", ("vm1",), began=10.0, seconds=5.0), faults).bar == bar


def test_delays_are_against_the_median_of_undisturbed_failovers() -> None:
    rows = [
        Failover("h1", (), 0.0, 3.0, ("kill_service",), SERVICE),
        Failover("h1", (), 0.0, 5.0, ("kill_service",), SERVICE),
        Failover("h1", (), 0.0, 9.0, ("kill_bus", "kill_service"), LEADER),
        Failover("h1", (), 0.0, 19.0, ("kill_bus", "cut_node"), LEADER),
    ]
    found = delays([2.0, 2.0, 8.0], rows)
    assert found[SERVICE] == {"count": 2, "median": 2.0, "p95": 3.0, "worst": 3.0}
    assert (found[LEADER]["count"], found[LEADER]["worst"]) == (2, 17.0)
    assert (found[ONE_LEADER]["count"], found[ONE_LEADER]["worst"]) == (1, 7.0)
    assert (found[DIED]["count"], found[DIED]["worst"]) == (1, 7.0)
    assert (found[CAME_BACK]["count"], found[CAME_BACK]["worst"]) == (1, 17.0)
    assert "none" not in found


def test_the_95th_percentile_of_twenty_is_the_nineteenth() -> None:
    assert quantile([float(number) for number in range(1, 21)], 0.95) == 19.0
    assert quantile([1.0], 0.95) == 1.0
