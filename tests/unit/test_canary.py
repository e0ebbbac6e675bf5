"""An observer that does not hear itself suspects nobody, says so, and begins anew; and what a takeover may conclude."""

from __future__ import annotations

import math

import pytest

from libs.config.settings import PROFILES, Heartbeats
from libs.core.decider import BusChanged, Note, Paused, Send
from libs.events.hosts import DetectorDegraded
from libs.events.signals import Canary
from libs.model import HostState
from services.detector import canary
from services.detector.state import CanaryState
from tests.unit.made import beat, stored
from tests.unit.watch import Watch, pool

pytestmark = pytest.mark.fast
S = HostState
HOSTS = ("h1", "h2", "h3", "h4", "h5")


def degraded(watch: Watch) -> list[DetectorDegraded]:
    return [fact for fact in watch.told if isinstance(fact, DetectorDegraded)]


def deafened(watch: Watch) -> Watch:
    """From now on nothing comes through: no heartbeat, and not the detector's own canary."""
    watch.deafened = True
    watch.silent = set(watch.decider.hosts)
    return watch


# -- the canary by itself


def test_it_is_sent_every_half_second_and_its_way_is_timed() -> None:
    bird = canary.begun(CanaryState(), 10.0)
    sent_at: list[float] = []
    for tick in range(21):
        now = 10.0 + tick / 10
        bird, effects = canary.flown(bird, "me", now)
        for effect in effects:
            assert isinstance(effect, Send)
            assert effect.topic == "canary.me"
            sent_at.append(now)
            assert isinstance(effect.signal, Canary)
            bird = canary.heard(bird, effect.signal, "me", now + 0.004)
    assert sent_at == pytest.approx([10.0, 10.5, 11.0, 11.5, 12.0])
    assert bird.round_trip_s == pytest.approx(0.004)


def test_another_ones_canary_and_one_of_the_future_are_nothing() -> None:
    bird, _ = canary.flown(canary.begun(CanaryState(), 0.0), "me", 0.0)
    for signal in (Canary(replica="other", seq=1, sent_at=0.0), Canary(replica="me", seq=9, sent_at=0.0)):
        assert canary.heard(bird, signal, "me", 0.1) is bird


def test_with_the_connection_lost_it_stays_at_home_and_is_not_missed() -> None:
    bird = canary.cut(canary.begun(CanaryState(), 0.0))
    for now in (1.0, 10.0, 100.0):
        bird, effects = canary.flown(bird, "me", now)
        assert effects == ()
    assert bird.deaf_since is None


def test_where_each_is_late_by_a_constant_time_none_is_missed() -> None:
    """0.8 s on its way: slow, and everything is heard."""
    bird = canary.begun(CanaryState(), 0.0)
    under_way: list[tuple[float, Canary]] = []
    for tick in range(200):
        now = tick / 10
        for at, signal in list(under_way):
            if at <= now:
                bird = canary.heard(bird, signal, "me", now)
                under_way.remove((at, signal))
        bird, effects = canary.flown(bird, "me", now)
        under_way += [
            (now + 0.8, e.signal) for e in effects if isinstance(e, Send) and isinstance(e.signal, Canary)
        ]
        assert not any(isinstance(effect, Note) for effect in effects)
        assert now < 2.0 or not canary.overdue(bird, now)


# -- the detector with it


def test_nobody_is_suspected_by_an_observer_that_hears_nothing_and_that_is_told_afterwards() -> None:
    watch = deafened(pool(*HOSTS))
    assert watch.after(60.0) == []
    assert {watch.is_(host) for host in HOSTS} == {S.HEALTHY}
    watch.deafened = False
    watch.silent.clear()
    assert watch.after(0.6) == ["detector.degraded"]
    (fact,) = degraded(watch)
    assert fact.deaf_s == pytest.approx(60.0, abs=1.0)
    assert watch.after(10.0) == []
    assert len(degraded(watch)) == 1


@pytest.mark.parametrize("lead_s", [0.0, 0.1, 0.2, 0.3, 0.4, 0.49])
def test_no_moment_of_deafness_is_soon_enough_for_a_suspicion(lead_s: float) -> None:
    """Whenever it begins, between which beats: what is not heard back keeps everybody from being suspected."""
    watch = pool(*HOSTS)
    watch.after(3.0 + lead_s)
    watch.deafened = True
    watch.silent = {"h1"}
    watch.after(lead_s)
    deafened(watch)
    assert watch.after(5.0) == []


@pytest.mark.parametrize("profile", ["fast", "balanced", "careful"])
def test_in_no_profile_is_a_moment_of_deafness_soon_enough_for_a_suspicion(profile: str) -> None:
    values = PROFILES[profile]
    given = values.get("detection", {})
    interval_s = Heartbeats(**values.get("heartbeats", {})).interval_s
    for moment in range(20):
        watch = Watch(*HOSTS, interval_s=interval_s, **given).joined()
        watch.after(3.0 + moment / 20 * interval_s)
        deafened(watch)
        assert watch.after(5.0) == [], f"{moment}/20 of an interval after a beat"


def test_the_log_says_once_that_it_is_deaf() -> None:
    bird, notes = canary.begun(CanaryState(), 0.0), 0
    for tick in range(600):
        bird, effects = canary.flown(bird, "me", tick / 10)
        notes += sum(isinstance(effect, Note) for effect in effects)
    assert notes == 1
    assert bird.deaf_since == 0.0


def test_after_deafness_a_host_must_be_silent_for_a_full_period() -> None:
    watch = deafened(pool(*HOSTS))
    watch.after(30.0)
    watch.deafened = False
    watch.silent = {"h1"}
    watch.after(0.6)  # it hears itself
    assert len(degraded(watch)) == 1
    assert watch.after(0.8) == []
    assert watch.after(0.8) == ["host.suspected"]


def test_a_pause_does_not_make_a_deaf_observer_hear() -> None:
    watch = deafened(pool(*HOSTS))
    watch.after(5.0)
    watch.hear(Paused(5.0))
    assert math.isinf(watch.state.listening_since)
    assert watch.after(30.0) == []


def test_another_connection_ends_deafness_and_must_be_heard_through_before_anybody_is_suspected() -> None:
    watch = deafened(pool(*HOSTS))
    watch.after(5.0)
    watch.hear(BusChanged(False))
    assert watch.hear(BusChanged(True)) == ["detector.degraded"]
    assert watch.after(30.0) == [], "it is as deaf as the one before"
    watch.hear(BusChanged(True))
    watch.deafened, watch.silent = False, {"h1"}
    told = watch.after(1.3)
    assert "host.suspected" not in told
    assert watch.after(0.5) == ["host.suspected"]


@pytest.mark.parametrize("gap_s", [0.3, 0.6, 0.9, 1.1])
@pytest.mark.parametrize("lead_s", [0.0, 0.13, 0.26, 0.39, 0.49])
def test_a_gap_too_short_for_deafness_makes_nobody_suspect(gap_s: float, lead_s: float) -> None:
    """All that was said in it is lost; the hosts' next beats come up to an interval after our own."""
    watch = pool(*HOSTS)
    watch.after(3.0 + lead_s)
    deafened(watch)
    told = watch.after(gap_s)
    watch.deafened = False
    told += watch.after(0.01)
    for late in range(5):  # the detector hears itself, and each host a tenth later than the one before
        told += watch.after(0.1)
        watch.silent.discard(HOSTS[late])
        told += watch.hear(beat(HOSTS[late]))
    told += watch.after(3.0)
    assert "host.suspected" not in told


def test_a_pause_without_a_connection_does_not_make_anybody_suspect() -> None:
    watch = pool(*HOSTS)
    watch.hear(BusChanged(False))
    deafened(watch)
    watch.hear(Paused(3.0))
    assert watch.after(30.0) == []


def test_a_single_host_is_suspected_as_soon_as_ever() -> None:
    watch = pool(*HOSTS)
    watch.after(5.0)
    watch.silent = {"h1"}
    last = watch.state.view("h1").heard_at
    assert last is not None
    while "host.suspected" not in watch.after(0.05):
        assert watch.now < last + 2.0
    assert watch.now - last <= 1.5 + 0.1 + 0.05


# -- a takeover


def follower_of(leader: Watch) -> Watch:
    """A standby that has heard what its leader heard, for ten seconds."""
    follower = Watch(*leader.decider.hosts, now=leader.now)
    for _ in range(20):
        for host in leader.decider.hosts:
            if host not in leader.silent:
                follower.state = follower.decider.step(follower.state, beat(host), follower.now).state
        follower.now += 0.5
    return follower


def test_a_takeover_suspects_nobody_who_beats() -> None:
    leader = pool(*HOSTS)
    follower = follower_of(leader)
    follower.resume(stored(leader.state.records))
    assert follower.after(120.0) == []


def test_a_takeover_finds_who_fell_silent_meanwhile() -> None:
    leader = pool(*HOSTS)
    follower = follower_of(leader)
    follower.now += 1.4  # all had their chance: h1 has not beaten since, the others do so now
    for host in HOSTS[1:]:
        follower.state = follower.decider.step(follower.state, beat(host), follower.now).state
    follower.silent = {"h1"}
    follower.resume(stored(leader.state.records))
    assert follower.after(0.3) == ["host.suspected"]
    assert follower.told[-1].at.host == "h1"


def test_a_takeover_by_one_who_cannot_hear_suspects_nobody() -> None:
    leader = pool(*HOSTS)
    follower = follower_of(leader)
    follower.now += 1.45
    deafened(follower).resume(stored(leader.state.records))
    assert follower.after(30.0) == []
