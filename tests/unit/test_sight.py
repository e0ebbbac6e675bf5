"""What is found once for all suspects of a tick is what each would have found for itself."""

from __future__ import annotations

import random
from typing import Any

import pytest

from libs.config.settings import Detection
from libs.events.signals import Canary, Heartbeat
from libs.model import Answer, Incarnation
from services.detector.asks import Answered, Disconnected
from services.detector.decide import Detector
from services.detector.sight import Sight
from services.detector.state import DetectorState

pytestmark = pytest.mark.fast
HOSTS = tuple(f"h{number}" for number in range(12))
RACKS = {host: f"r{number // 3}" for number, host in enumerate(HOSTS[:9])}


def forgetful(sight: Sight, *_: Any) -> None:
    """Whatever a look has changed, all is found anew."""
    sight._peers = sight._apart = sight._living = None
    sight._orders.clear()


def input_of(chance: random.Random, boots: dict[str, int], state: DetectorState, now: float) -> Any:
    """Of a pool in which now these hosts are silent, now those."""
    silent = int(now / 2) % 4
    host, draw = chance.choice(HOSTS), chance.random()
    if draw < 0.15:
        return Canary(replica="detector", seq=state.canary.seq, sent_at=now)
    if draw < 0.25:
        return Disconnected(key="notice", host=host)
    if draw < 0.55:
        channel = chance.choice(["libvirt", "peer:h1", "peer:h5", "power"])
        answer = chance.choice(list(Answer))
        number = state.record(host).number
        return Answered(key="k", host=host, number=number, channel=channel, answer=answer)
    if HOSTS.index(host) % 4 == silent or HOSTS.index(host) % 3 == silent:
        return Canary(replica="detector", seq=state.canary.seq, sent_at=now)
    if chance.random() < 0.03:
        boots[host] += 1
    return Heartbeat(
        at=Incarnation(host=host, boot=f"{host}-boot{boots[host]}"), agent="life", seq=1, clock_s=now
    )


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_a_tick_sees_what_each_of_its_suspects_would_see_alone(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, boots = random.Random(seed), dict.fromkeys(HOSTS, 1)
    settings = Detection(quiet_after_start_s=1.0, suspect_after_s=1.0)
    detector = Detector(HOSTS, settings, domains=RACKS, beat_interval_s=0.2)
    state, now, pursued = detector.initial(100.0), 100.0, 0
    for _ in range(2500):
        tick_at = detector.wake_at(state)
        assert tick_at is not None
        if chance.random() < 0.7:
            now = min(now + chance.uniform(0.0, 0.04), tick_at)
            state = detector.step(state, input_of(chance, boots, state, now), now).state
            continue
        now = tick_at
        pursued += sum(state.view(host).suspicion is not None for host in HOSTS) > 1
        found = detector.step(state, None, now)
        with monkeypatch.context() as patched:
            patched.setattr(Sight, "looked_at", forgetful)
            alone = detector.step(state, None, now)
        assert found == alone
        state = found.state
    assert pursued > 40, "several were pursued at once"


def test_many_that_fall_silent_at_once_are_pursued_with_one_walk_over_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rack of a large pool: a walk for each of its hosts took longer than its verdict may."""
    hosts = tuple(f"h{number}" for number in range(60))
    detector = Detector(hosts, Detection(quiet_after_start_s=0.0))
    state = detector.initial(100.0)
    asked = 0
    is_peer = Sight._is_peer

    def counted(sight: Sight, state: DetectorState, host: str) -> bool:
        nonlocal asked
        asked += 1
        return is_peer(sight, state, host)

    monkeypatch.setattr(Sight, "_is_peer", counted)
    for turn in range(40):
        for host in hosts if turn < 10 else hosts[30:]:
            at = Incarnation(host=host, boot=f"{host}-boot")
            state = detector.step(state, Heartbeat(at=at, agent="life", seq=1), state.tick_at).state
        back = Canary(replica="detector", seq=state.canary.seq, sent_at=state.tick_at)
        state = detector.step(state, back, state.tick_at).state
        asked = 0
        state = detector.step(state, None, state.tick_at).state
        assert asked <= 7 * len(hosts)
    assert sum(state.view(host).suspicion is not None for host in hosts) == 30
