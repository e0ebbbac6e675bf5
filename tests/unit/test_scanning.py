"""The remembered walk over the pool says at each tick just what a new walk would say."""

from __future__ import annotations

import math
import random

import pytest

from libs.config.settings import Detection
from libs.core.decider import BusChanged, Paused
from libs.core.evolve import replace
from libs.events.signals import Canary, Goodbye, Heartbeat
from libs.model import HostState, Incarnation
from services.detector import storms
from services.detector.asks import Disconnected
from services.detector.decide import Detector
from services.detector.state import UNSCANNED, DetectorState
from services.detector.verdict import storm_limit

pytestmark = pytest.mark.fast
HOSTS = tuple(f"h{number}" for number in range(7))


def input_of(chance: random.Random, boots: dict[str, int], state: DetectorState, now: float) -> object:
    if chance.random() < 0.1:  # without it the observer is deaf most of the time
        return Canary(replica="detector", seq=state.canary.seq, sent_at=now)
    host = chance.choice(HOSTS)
    if chance.random() < 0.02:
        boots[host] += 1
    at = Incarnation(host=host, boot=f"{host}-boot{boots[host]}")
    draw = chance.random()
    if draw < 0.9:
        return Heartbeat(at=at, agent="life", seq=1)
    if draw < 0.93:
        return Disconnected(key="notice", host=host)
    if draw < 0.96:
        return Goodbye(at=at, agent="life", for_good=chance.random() < 0.5)
    return chance.choice([BusChanged(False), BusChanged(True), Paused(1.0)])


@pytest.mark.parametrize("seed", range(20))
def test_a_tick_with_a_remembered_walk_is_the_tick_with_a_new_one(seed: int) -> None:
    chance, boots = random.Random(seed), dict.fromkeys(HOSTS, 1)
    detector = Detector(HOSTS, Detection(quiet_after_start_s=2.0))
    state, now, remembered = detector.initial(100.0), 100.0, 0
    for turn in range(3000):
        if turn % 1000 == 999:  # another life, which knows hosts that it has not heard yet
            state = detector.resume(detector.initial(now), state.records, now).state
        tick_at = detector.wake_at(state)
        assert tick_at is not None
        if chance.random() < 0.6:
            now = min(now + chance.uniform(0.0, 0.05), tick_at)
            state = detector.step(state, input_of(chance, boots, state, now), now).state  # type: ignore[arg-type]
            continue
        now = tick_at
        remembered += now < state.scan.until
        anew = detector.step(replace(state, scan=UNSCANNED), None, now)
        found = detector.step(state, None, now)
        assert found.effects == anew.effects
        assert replace(found.state, scan=UNSCANNED) == replace(anew.state, scan=UNSCANNED)
        state = found.state
    assert remembered > 100, "most walks are spared"


def tick(detector: Detector, state: DetectorState) -> DetectorState:
    return detector.step(state, None, state.tick_at).state


def test_hosts_that_have_not_joined_are_looked_at_by_no_tick() -> None:
    """Thousands of them were 40 ms of each, so that nothing was heard of those that would have ended it."""
    detector = Detector(HOSTS, Detection())
    state = tick(detector, detector.initial(100.0))
    assert state.scan.unwell == ()
    assert state.scan.until == math.inf


def test_a_host_that_joins_costs_no_walk_over_the_others_and_is_watched_from_then_on() -> None:
    detector = Detector(HOSTS, Detection(suspect_after_s=1.5))
    state = tick(detector, detector.initial(100.0))
    for number, host in enumerate(HOSTS):
        at = Incarnation(host=host, boot=f"{host}-boot")
        state = detector.step(state, Heartbeat(at=at, agent="life", seq=1), 101.0 + number / 100).state
        assert state.scan.until == pytest.approx(102.5), "when the first can have been silent for too long"
        assert state.scan.unwell == ()


def test_hosts_known_from_before_rest_until_their_silence_can_mean_something() -> None:
    detector = Detector(HOSTS, Detection(suspect_after_s=1.5, quiet_after_start_s=60.0))
    known = detector.initial(0.0)
    for host in HOSTS:
        at = Incarnation(host=host, boot=f"{host}-boot")
        known = detector.step(known, Heartbeat(at=at, agent="life", seq=1), 1.0).state
    state = tick(detector, detector.resume(detector.initial(100.0), known.records, 100.0).state)
    assert (state.scan.unwell, state.scan.until) == ((), 101.5)
    while state.tick_at < 102.0:  # the bus returns what the observer says to itself
        back = Canary(replica="detector", seq=state.canary.seq, sent_at=state.tick_at)
        state = tick(detector, detector.step(state, back, state.tick_at).state)
    assert {state.record(host).state for host in HOSTS} == {HostState.UNKNOWN}
    state = tick(detector, state)
    assert (state.scan.unwell, state.scan.until) == ((), 160.0)


@pytest.mark.parametrize("limited", [1, 2, 3, 9, 40])
def test_a_storm_is_told_by_as_few_hosts_as_it_takes(limited: int) -> None:
    hosts = tuple(f"h{number}" for number in range(limited))
    detector = Detector(hosts, Detection())
    state = detector.initial(0.0)
    for host in hosts:
        at = Incarnation(host=host, boot=f"{host}-boot")
        state = detector.step(state, Heartbeat(at=at, agent="life", seq=1), 1.0).state
        known = sum(state.record(one).at is not None for one in hosts)
        for silent in range(limited + 2):
            assert storms.raging(state, hosts, silent) is (silent > 0 and silent > storm_limit(known))
