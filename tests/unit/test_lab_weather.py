"""What a wire of the lab does to frames, and how the weather of a scenario's steps adds up. No lab is made here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from infra.lab.lab import Lab
from infra.lab.plane import Plane
from infra.lab.steps import Stage
from infra.lab.weather import FAIR, Weather, netem
from infra.lab.wire import Lane
from libs.scenario.model import StepEntry

pytestmark = pytest.mark.fast


def _lane(weather: Weather, seed: str = "a") -> Lane:
    lane = Lane(seed)
    lane.weather = weather
    return lane


def _through(lane: Lane, count: int) -> list[bytes]:
    for number in range(count):
        lane.offer(b"%d" % number, now=number * 0.001)
    return lane.take(now=1e9)


def test_fair_weather_hands_on_everything_at_once_and_in_order() -> None:
    lane = _lane(FAIR)
    for number in range(3):
        lane.offer(b"%d" % number, now=5.0)
    assert lane.next_due == 5.0
    assert lane.take(now=5.0) == [b"0", b"1", b"2"]
    assert lane.next_due is None


def test_a_frame_is_late_by_the_delay_and_no_less() -> None:
    lane = _lane(Weather(delay_s=0.5))
    lane.offer(b"late", now=1.0)
    assert lane.next_due == 1.5
    assert lane.take(now=1.49) == []
    assert lane.take(now=1.5) == [b"late"]


def test_jitter_stays_within_its_bounds_and_lets_frames_overtake() -> None:
    lane = _lane(Weather(delay_s=0.1, jitter_s=0.1))
    arrived = _through(lane, 200)
    assert len(arrived) == 200
    assert arrived != sorted(arrived, key=int)
    lane.offer(b"x", now=7.0)
    assert lane.next_due is not None
    assert 7.0 <= lane.next_due <= 7.2


def test_loss_is_a_share_and_the_same_for_the_same_seed() -> None:
    kept = _through(_lane(Weather(loss_percent=30)), 2000)
    assert 1300 <= len(kept) <= 1500
    assert kept == _through(_lane(Weather(loss_percent=30)), 2000)
    assert kept != _through(_lane(Weather(loss_percent=30), seed="b"), 2000)
    assert _through(_lane(Weather(loss_percent=100)), 100) == []


def test_a_wire_holds_so_many_frames_and_no_more() -> None:
    assert len(_through(_lane(Weather(delay_s=60.0)), 10_100)) == 10_000


@pytest.mark.parametrize(
    ("weather", "words"),
    [
        (Weather(loss_percent=2.5), "netem limit 10000 loss 2.500000%"),
        (Weather(delay_s=0.1), "netem limit 10000 delay 100000us"),
        (Weather(5, 1, 0.02), "netem limit 10000 delay 1000000us 20000us loss 5.000000%"),
    ],
)
def test_netem_is_told_the_same(weather: Weather, words: str) -> None:
    assert " ".join(netem(weather)) == words


def test_loss_and_delay_of_a_link_add_up_and_heal_ends_both() -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    lab = SimpleNamespace(
        hosts=["h1", "h2"],
        weather=lambda host, **weather: told.append((host, weather)),
        cut=lambda links: None,
    )
    stage = Stage(cast(Lab, lab), cast(Plane, None))
    stage.perform(StepEntry(at_s=0, do="loss", percent=5, host="h1"))
    stage.perform(StepEntry(at_s=0, do="delay", seconds=0.2))
    fair = {"loss_percent": 0.0, "delay_s": 0.0, "jitter_s": 0.0}
    assert told == [
        ("h1", {**fair, "loss_percent": 5.0}),
        ("h1", {**fair, "loss_percent": 5.0, "delay_s": 0.2}),
        ("h2", {**fair, "delay_s": 0.2}),
    ]
    told.clear()
    stage.perform(StepEntry(at_s=0, do="heal"))
    assert told == [("h1", {}), ("h2", {})]
