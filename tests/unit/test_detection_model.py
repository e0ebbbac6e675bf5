"""The Monte-Carlo of detection: what it draws, what each stage makes of it, and that it can be trusted to count."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from infra.detection import __main__ as command
from infra.detection.asking import (
    ANSWER_S,
    PEER_SHARE,
    PEERS_ASKED,
    REACH,
    SLOT_REST,
    UNHEARD,
    Suspect,
    Words,
)
from infra.detection.crashes import A_HOST_YEAR, POWER_ANSWER_S, Crashes, Speed, When
from infra.detection.estimators import JITTER_VAR, Chen, Fixed, Gap, Phi, PhiExponential, false_suspicions
from infra.detection.hearing import RECONNECT_S, Silence, losses_for, merged, resent, silences
from infra.detection.model import (
    CONVERGED,
    HOSTS,
    LOSS,
    RACKS,
    RATES,
    RTO_S,
    YEAR_S,
    Fault,
    Kind,
    LogNormal,
    PoolTime,
    Uniform,
    Weather,
    block_years,
    draw,
    rack_of,
    stream,
)
from infra.detection.run import profiles, run
from infra.detection.stages import (
    CANARY_S,
    CHANNELS,
    Count,
    Deaf,
    Deafness,
    Found,
    Pipeline,
    Span,
    Stage,
    cut_off,
    storms,
    worst_minute,
)
from infra.detection.table import document, faults, replaced
from infra.detection.walking import TICK_S, Channels, Profile, soonest_s, walk
from libs.model import HostState
from services.detector.verdict import Evidence, judge

FAST, BALANCED, CAREFUL = profiles()
SEPARATE, SHARED = min(set(range(HOSTS)) - CONVERGED), min(CONVERGED)
ALL, NONE = (True,) * PEERS_ASKED, (False,) * PEERS_ASKED
DOCS = Path(__file__).parents[2] / "docs" / "DETECTION.md"


def pool(*faults: Fault, host: int = SEPARATE, seconds: float = 2000.0) -> PoolTime:
    """These faults and no others; those of a host befall that one, those of a rack its rack."""
    scopes = {rate.kind: rate.scope for rate in RATES}
    of = {
        scope: tuple(fault for fault in faults if scopes[fault.kind] == scope) for scope in ("host", "rack")
    }
    shared = tuple(fault for fault in faults if scopes[fault.kind] == "pool")
    return PoolTime(
        seconds,
        tuple(of["host"] if number == host else () for number in range(HOSTS)),
        tuple(of["rack"] if number == rack_of(host) else () for number in range(RACKS)),
        tuple(fault for fault in shared if fault.kind is not Kind.OBSERVER_STALL),
        tuple(fault for fault in shared if fault.kind is Kind.OBSERVER_STALL),
    )


def counts(time: PoolTime, profile: Profile = BALANCED, seed: int = 1) -> dict[Stage, Count]:
    return Pipeline(time, profile, Random(seed)).run()


def declared(count: Count) -> int:
    return count.false + count.cut


# -- drawing


@pytest.mark.parametrize("host_years", [2000.0, 37.5, 25.0, 0.4])
def test_blocks_add_up_to_the_host_years(host_years: float) -> None:
    assert sum(block_years(host_years)) * HOSTS == pytest.approx(host_years)


def test_rates_are_drawn_as_they_stand() -> None:
    time = draw(Random(3), Weather.STORMY, 0.05, 0.0)
    assert time.host_years == pytest.approx(5.0)
    for rate in RATES:
        if rate.scope == "host":
            many = sum(fault.kind is rate.kind for found in time.hosts for fault in found)
            expected = 3.0 * rate.a_year * 5.0
            assert abs(many - expected) < 5.0 * math.sqrt(expected), rate.kind


def test_thinning_draws_the_tail_alone() -> None:
    length = LogNormal(0.2, 1.1)
    rng = Random(5)
    drawn = [length.draw(rng, 1.0) for _ in range(4000)]
    assert min(drawn) >= 1.0
    beyond = sum(one > 3.0 for one in drawn) / len(drawn)
    assert beyond == pytest.approx(length.tail(3.0) / length.tail(1.0), abs=0.02)
    assert Uniform(3.0, 20.0).tail(11.5) == pytest.approx(0.5)


def test_hosts_are_spread_evenly() -> None:
    assert [sum(rack_of(host) == rack for host in CONVERGED) for rack in range(RACKS)] == [6] * RACKS
    assert [sum(rack_of(host) == rack for host in range(HOSTS)) for rack in range(RACKS)] == [20] * RACKS


def test_tcp_tries_again_at_doubling_pauses() -> None:
    assert resent(0.0, 0.5) == pytest.approx(3 * RTO_S)
    assert resent(0.0, 1.0) == pytest.approx(7 * RTO_S)


@pytest.mark.parametrize(("interval_s", "longer_s", "lost"), [(0.5, 1.5, 3), (0.25, 0.8, 2), (1.0, 4.0, 4)])
def test_so_many_losses_in_a_row_are_a_silence(interval_s: float, longer_s: float, lost: int) -> None:
    assert losses_for(interval_s, longer_s) == lost
    assert interval_s + RTO_S * (2**lost - 1) > longer_s >= interval_s + RTO_S * (2 ** (lost - 1) - 1)


def test_chains_of_losses_are_as_frequent_as_the_loss_says() -> None:
    """A burst so long that its ends do not count: one beginning for each heartbeat that is sent on time."""
    long = 50_000.0
    found = silences(Random(3), pool(Fault(Kind.LOSS, 0.0, long)), SEPARATE, 0.5, 1.5)
    on_time = (long - sum(one.heard - one.last for one in found)) / 0.5
    expected = on_time * LOSS**3
    assert abs(len(found) - expected) < 5.0 * math.sqrt(expected)
    assert min(one.heard - one.last for one in found) == pytest.approx(0.5 + 7 * RTO_S)
    longer = sum(one.heard - one.last > 0.5 + 8 * RTO_S for one in found)
    assert abs(longer - LOSS * len(found)) < 5.0 * math.sqrt(LOSS * len(found))


def test_silences_that_touch_are_one() -> None:
    one, other, apart = (Fault(Kind.STALL, at, at + 2.0) for at in (1.0, 2.0, 9.0))
    found = merged([Silence(9.0, 11.0, (apart,)), Silence(2.0, 4.0, (other,)), Silence(1.0, 3.0, (one,))])
    assert found == [Silence(1.0, 4.0, (one, other)), Silence(9.0, 11.0, (apart,))]


# -- asking


def suspect(*faults: Fault, since: float = 100.0, host: int = SEPARATE) -> Suspect:
    return Suspect(
        Random(1), faults, host in CONVERGED, since, since + 60.0, BALANCED.beats, BALANCED.settings
    )


def test_a_standing_connection_tries_again_and_a_new_one_does_not() -> None:
    asked = suspect(Fault(Kind.LINK, 90.0, 100.5))
    first = asked.round(0)
    assert first.own_life == pytest.approx(100.0 + 3 * RTO_S + ANSWER_S)
    assert first.words == Words(ALL, NONE, domains_known=RACKS, beside=True)
    late = suspect(Fault(Kind.LINK, 90.0, 101.5))
    assert [late.round(number).own_life is None for number in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Kind.UPLINK, Words(ALL, NONE, RACKS - 1, False)),
        (Kind.LINK, Words(ALL, NONE, RACKS, True)),
        (Kind.THRASH, Words(NONE, ALL, RACKS, True)),
        (Kind.ONEWAY, Words(NONE, NONE, RACKS, True)),
        (Kind.CORE, UNHEARD),
        (Kind.OBSERVER_CUT, UNHEARD),
    ],
)
def test_who_votes(kind: Kind, words: Words) -> None:
    one = suspect(Fault(kind, 90.0, 150.0)).round(3)
    assert one.words == words
    assert one.own_life is None
    assert one.asked == pytest.approx(100.0 + 3 * BALANCED.settings.ask_every_s)
    assert (one.peer_life is not None) == (kind is Kind.ONEWAY)


@pytest.mark.parametrize(
    ("words", "told", "untold"),
    [
        (Words(ALL, NONE, RACKS, True), (3, True), (3, True)),
        (Words(NONE, ALL, RACKS, True), (0, False), (3, True)),
        (Words((True, False, False), (False, True, False), RACKS, True), (1, True), (2, True)),
        (Words((False, True, True), (True, False, False), RACKS, True), (2, False), (3, True)),
        (Words(ALL, NONE, RACKS - 1, False), (3, False), (3, False)),
        (UNHEARD, (0, False), (0, False)),
    ],
)
def test_a_kernels_answer_is_no_vote_once_it_is_told_from_silence(
    words: Words, told: tuple[int, bool], untold: tuple[int, bool]
) -> None:
    assert (words.votes(kernel=True), words.neighbour(kernel=True)) == told
    assert (words.votes(kernel=False), words.neighbour(kernel=False)) == untold


def test_under_loss_half_of_the_connections_are_taken_whether_or_not_anything_is_answered_on_them() -> None:
    """A handshake is two segments, and what is lost of it comes too late."""
    thrash, loss = Fault(Kind.THRASH, 0.0, 1e4), Fault(Kind.LOSS, 0.0, 1e4)
    both, starved, lossy = (suspect(*faults) for faults in ((thrash, loss), (thrash,), (loss,)))
    rounds = [[one.round(number) for number in range(1000)] for one in (both, starved, lossy)]
    peers = [looks for one in rounds[0] for looks in one.words.hanging]
    assert sum(peers) / len(peers) == pytest.approx((1 - LOSS) ** 2, abs=0.03)
    assert sum(one.own_kernel for one in rounds[0]) / 1000 == pytest.approx((1 - LOSS) ** 2, abs=0.05)
    assert all(one.own_kernel and one.words.hanging == ALL for one in rounds[1][1:])
    for one in rounds[2]:
        assert not (one.own_kernel and one.own_life)
        assert not any(
            alone and hung for alone, hung in zip(one.words.silent, one.words.hanging, strict=True)
        )
    assert any(one.own_kernel for one in rounds[2])
    assert any(one.words.kernel for one in rounds[2])


def test_a_slot_moves_only_while_its_host_can_write() -> None:
    link = Fault(Kind.LINK, 90.0, 150.0)
    assert 100.0 <= suspect(link).moved_at(100.0) <= 100.0 + BALANCED.beats.slot_interval_s
    assert suspect(link, host=SHARED).moved_at(100.0) >= 150.0
    assert suspect(Fault(Kind.THRASH, 90.0, 110.0)).moved_at(100.0) >= 110.0


@pytest.mark.parametrize(
    ("kind", "host", "confirm_s"),
    [
        (Kind.LINK, SHARED, CAREFUL.settings.confirm_witnessed_s),
        (Kind.THRASH, SEPARATE, CAREFUL.settings.hung_s),
    ],
)
def test_a_life_sign_in_between_is_no_verdict_before_a_whole_confirmation(
    kind: Kind, host: int, confirm_s: float
) -> None:
    """Libvirt answers until 505 s, at least once a round, and then no process does: from the last answer it takes a whole
    confirmation, however long the heartbeat has been missing and the slot has stood still."""
    settings = CAREFUL.settings
    soonest = 505.0 - settings.ask_every_s + confirm_s
    for over, verdicts in ((soonest - 0.2, 0), (soonest + settings.ask_every_s + 3.0, 1)):
        faults = (Fault(Kind.STALL, 490.0, 506.0), Fault(kind, 505.0, over))
        pipeline = Pipeline(pool(*faults, host=host), CAREFUL, Random(1))
        assert declared(pipeline.run()[Stage.SUSPICION]) == 1
        assert len(pipeline.found(Stage.GUARD)) == verdicts
        assert all(verdict.at > soonest for verdict in pipeline.found(Stage.GUARD))


def ticked(asked: Suspect, channels: Channels, judge_from: float) -> tuple[float, str] | None:
    """The same as `walk`, the slow way: everything is weighed anew at every tick."""
    settings, beats = asked.settings, asked.beats
    rounds = [
        asked.round(number) for number in range(1 + int((asked.heard - asked.since) / settings.ask_every_s))
    ]
    own, said, read = [], [], []
    for one in rounds:
        life, hangs = one.own_life, channels.kernel and one.own_kernel
        own.append((life or one.asked + settings.ask_timeout_s, life is not None, hangs))
        life, hangs = one.peer_life, channels.kernel and one.words.kernel
        told = life or one.asked + PEER_SHARE * settings.ask_timeout_s
        said.append((told, life is not None, hangs, one.words))
        read.append((said[-1][0], one.asked, one.read))
    for tick in range(math.ceil((asked.heard - asked.since) / TICK_S)):
        now = asked.since + TICK_S * tick
        ours = [(life, hangs) for at, life, hangs in own if at <= now + 1e-7]
        words = [(life, hangs, word) for at, life, hangs, word in said if at <= now + 1e-7 and channels.peers]
        lives = [asked.since, *(min(end, now) for start, end in asked.alone() if start <= now)]
        lives += [at for at, life, _ in own if life and at <= now + 1e-7]
        lives += [at for at, life, *_ in said if life and at <= now + 1e-7 and channels.peers]
        kernels = [at for at, _, hangs in own if hangs and at <= now + 1e-7]
        kernels += [at for at, _, hangs, _ in said if hangs and at <= now + 1e-7 and channels.peers]
        seen = [asked_at for at, asked_at, was in read if was and at <= now + 1e-7 and channels.slot]
        moves = bool(seen) and asked.moved_at(seen[0]) <= seen[-1]
        word = words[-1][2] if words else UNHEARD
        votes = word.votes(channels.kernel)
        found = Evidence(
            silent_s=now - asked.since + settings.suspect_after_s,
            quiet_s=now - max([*lives, *kernels]) + 1e-6,
            hung_s=now - max(lives) + 1e-6,
            lives_elsewhere=(bool(ours) and ours[-1][0]) or (bool(words) and words[-1][0]),
            unreachable=bool(ours) and not ours[-1][0],
            hangs=(bool(ours) and ours[-1][1]) or (bool(words) and words[-1][1]),
            votes=votes,
            domains=votes,
            domains_known=word.domains_known,
            neighbour=word.neighbour(channels.kernel),
            slot_moves=moves,
            slot_still=bool(seen)
            and not moves
            and seen[-1] - seen[0] >= SLOT_REST * beats.slot_interval_s - 1e-6,
        )
        rule = judge(found, settings)
        if now >= judge_from and rule is not None and rule.verdict is HostState.FAILED:
            return now, rule.name
    return None


@pytest.mark.parametrize("profile", [FAST, BALANCED, CAREFUL], ids=lambda profile: profile.name)
def test_what_is_left_out_changes_no_verdict(profile: Profile) -> None:
    """Steps are left out where nothing new can be concluded. Held against the slow way, over random faults."""
    rng, verdicts, kept = Random(8), Counter[str](), 0
    for _ in range(60):
        since, many = 100.0, rng.choice((1, 1, 2))
        most_s = rng.choice((25.0, 25.0, 120.0))
        spans = [(since - 5.0 * rng.random(), since + most_s * rng.random() ** 2) for _ in range(many)]
        # only hangs are judged after so long
        kinds = sorted(REACH) if most_s < 100.0 else [Kind.THRASH, Kind.HUNG, Kind.LOSS, Kind.LINK]
        faults = tuple(Fault(rng.choice(kinds), *span) for span in spans)
        heard = max(fault.end for fault in faults) + 0.5 * rng.random()
        judge_from = rng.choice((-math.inf, since + 8.0 * rng.random()))
        host = rng.choice((SEPARATE, SHARED)) in CONVERGED
        asked = Suspect(rng, faults, host, since, heard, profile.beats, profile.settings)
        for channels in CHANNELS.values():
            lives = asked.kept_alive_at(soonest_s(profile.settings, channels))
            verdict = walk(asked, channels, judge_from).verdict
            slow = ticked(asked, channels, judge_from)
            assert (verdict and (verdict.at, verdict.rule.name)) == slow, (faults, channels)
            assert lives is None or slow is None
            kept += lives is not None
            verdicts[slow[1] if slow else ""] += 1
    assert kept > 20
    assert min(verdicts[name] for name in ("", "witnessed", "silence-only", "hung")) > 2, verdicts


# -- true crashes


@pytest.mark.parametrize("profile", [FAST, BALANCED, CAREFUL], ids=lambda profile: profile.name)
def test_a_crash_alone_is_found_within_the_formula(profile: Profile) -> None:
    pipeline = Pipeline(pool(seconds=YEAR_S / 4), profile, Random(2))
    assert all(declared(count) == 0 for count in pipeline.run().values())
    times = Crashes(pipeline).run()
    beats, settings = profile.beats, profile.settings
    suspect = settings.suspect_after_s
    rounds = math.ceil(SLOT_REST * beats.slot_interval_s / settings.ask_every_s)
    read_s = rounds * settings.ask_every_s + PEER_SHARE * settings.ask_timeout_s
    confirm: dict[Stage | Speed, tuple[float, float, str]] = {
        Stage.SUSPICION: (0.0, 0.0, "suspected"),
        Stage.PEERS: (settings.confirm_silence_s, settings.confirm_silence_s, "silence-only"),
        Stage.GUARD: (settings.confirm_witnessed_s, max(settings.confirm_witnessed_s, read_s), "witnessed"),
        Stage.SILENT: (settings.confirm_silence_s, settings.confirm_silence_s, "silence-only"),
        Speed.PROOF: (*POWER_ANSWER_S, "power-off"),
        Speed.HUNG: (settings.confirm_hung_s, settings.confirm_hung_s, "hung"),
    }
    for what, (least, most, rule) in confirm.items():
        found = times[When.ANYTIME, what]
        assert len(found.found_s) == A_HOST_YEAR * 25
        assert set(found.rules) == {rule}
        assert found.missed == 0
        assert suspect - beats.interval_s + least <= min(found.found_s)
        assert max(found.found_s) <= suspect + most + 2 * TICK_S
    # at a random instant the last heartbeat is of any age: half of the crashes are on either side of the middle
    found_s = times[When.ANYTIME, Stage.SUSPICION].found_s
    middle = suspect + TICK_S / 2 - beats.interval_s / 2
    assert 0.25 < bisect_right(sorted(found_s), middle) / len(found_s) < 0.75


def test_the_settings_judge() -> None:
    every = CHANNELS[Stage.SLOT]
    (slow,) = (one for one in profiles({"confirm_witnessed_s": 6.0}) if one.name == "balanced")
    assert soonest_s(slow.settings, every) - soonest_s(BALANCED.settings, every) == pytest.approx(3.5)
    times = [
        Crashes(pipeline).run()[When.ANYTIME, Stage.GUARD].found_s
        for pipeline in (Pipeline(pool(seconds=YEAR_S / 50), one, Random(2)) for one in (BALANCED, slow))
        if pipeline.run()
    ]
    assert min(times[1]) - max(times[0]) > 2.0


# -- living hosts


def test_no_fault_no_verdict_and_each_fault_its_own() -> None:
    """What 60 s of each fault lead to, at a host with separate storage: from the first stage to the last."""
    expected = {
        Kind.STALL: {Stage.SUSPICION: 1, Stage.HEALTH: 1},
        Kind.RESTART: {Stage.SUSPICION: 1, Stage.HEALTH: 1},
        Kind.THRASH: {stage: 1 for stage in Stage},
        Kind.LINK: {stage: 1 for stage in (*tuple(Stage)[:4], Stage.SILENT)},
        Kind.ONEWAY: {stage: 1 for stage in (*tuple(Stage)[:3], Stage.SILENT)},
        Kind.UPLINK: {stage: 20 if stage in (*tuple(Stage)[:4], Stage.SILENT) else 6 for stage in Stage},
        Kind.CORE: {stage: 100 for stage in tuple(Stage)[:2]},
        Kind.BUS: {Stage.SUSPICION: 100},
        Kind.OBSERVER_CUT: {stage: 100 for stage in tuple(Stage)[:2]},
        Kind.OBSERVER_STALL: {Stage.SUSPICION: 100},
    }
    assert all(declared(count) == 0 for count in counts(pool()).values())
    for kind, stages in expected.items():
        found = counts(pool(Fault(kind, 500.0, 560.0)))
        assert {stage: declared(count) for stage, count in found.items() if declared(count)} == stages, kind
    assert set(expected) | {Kind.LOSS, Kind.DEAD, Kind.HUNG} == set(Kind)
    assert set(REACH) | {Kind.OBSERVER_STALL} == set(Kind)


@pytest.mark.parametrize("kind", [Kind.LINK, Kind.UPLINK])
def test_cut_off_from_every_network_is_counted_apart(kind: Kind) -> None:
    found = counts(pool(Fault(kind, 500.0, 560.0), host=SHARED))[Stage.GUARD]
    assert (found.false, found.cut) == (0, 1 if kind is Kind.LINK else 6)


@pytest.mark.parametrize(
    ("stage", "confirm_s"),
    [
        (Stage.UNTOLD, BALANCED.settings.confirm_witnessed_s),
        (Stage.GUARD, BALANCED.settings.confirm_hung_s),
        (Stage.SILENT, BALANCED.settings.confirm_hung_s),
    ],
)
def test_a_slot_takes_long_enough_to_be_seen_still(stage: Stage, confirm_s: float) -> None:
    """A thrash that ends before the confirmation is no verdict; it is far longer where a kernel's answer is told from
    silence."""
    over = BALANCED.settings.suspect_after_s - BALANCED.beats.interval_s + confirm_s
    assert declared(counts(pool(Fault(Kind.THRASH, 500.0, 500.0 + over)))[stage]) == 0
    assert declared(counts(pool(Fault(Kind.THRASH, 500.0, 502.0 + over)))[stage]) == 1


def test_where_nobody_is_heard_the_confirmation_begins_with_the_first_who_is() -> None:
    """The whole pool is cut off for so long that it may be the observer that is, and then one host's own link is down."""
    both = (Fault(Kind.CORE, 500.0, 520.0), Fault(Kind.LINK, 500.0, 560.0))
    pipeline = Pipeline(pool(*both), BALANCED, Random(1))
    pipeline.run()
    (alone,) = pipeline.found(Stage.OWN)
    confirm_s = BALANCED.settings.confirm_silence_s
    assert 520.0 + confirm_s <= alone.at < 520.0 + confirm_s + 2 * TICK_S


def test_a_storm_takes_its_evidence_with_it() -> None:
    """All are cut off, and one whose link stays down long after: it is confirmed anew from the end of the storm."""
    both = (Fault(Kind.CORE, 500.0, 520.0), Fault(Kind.LINK, 500.0, 540.0))
    pipeline = Pipeline(pool(*both, host=SHARED), BALANCED, Random(1))
    assert declared(pipeline.run()[Stage.GUARD]) == 1
    (verdict,) = pipeline.found(Stage.GUARD)
    assert verdict.cut
    assert 520.0 + BALANCED.settings.confirm_witnessed_s < verdict.at < 526.0


def test_a_storm_that_is_over_voids_what_was_quiet_in_it() -> None:
    """The long confirmation would end after the storm: it begins anew with the storm's end."""
    both = (Fault(Kind.CORE, 500.0, 503.5), Fault(Kind.LINK, 500.0, 560.0))
    pipeline = Pipeline(pool(*both), BALANCED, Random(1))
    pipeline.run()
    (verdict,) = pipeline.found(Stage.SILENT)
    confirm_s = BALANCED.settings.confirm_silence_s
    assert 503.5 + confirm_s < verdict.at < 503.5 + RECONNECT_S + confirm_s + 1.0
    (alone,) = pipeline.found(Stage.OWN)
    assert alone.at < 503.5 + confirm_s


def test_what_deafness_leaves_of_a_suspicion() -> None:
    time = pool(Fault(Kind.OBSERVER_STALL, 100.0, 103.0), Fault(Kind.BUS, 200.0, 205.0))
    deafness = Deafness(time, 2.0)
    assert deafness.spans == [Deaf(100.0, 103.0), Deaf(200.0 + CANARY_S, 205.0)]
    fault = (Fault(Kind.THRASH, 0.0, 999.0),)
    assert list(deafness.cuts(Silence(50.0, 60.0, fault), 1.5)) == [Span(51.5, -math.inf, 60.0)]
    # suspected before it: the questions begin anew at once; not suspected: so does the silence
    both = [Span(96.5, -math.inf, 100.0), Span(103.0, 105.0, 120.0)]
    assert list(deafness.cuts(Silence(95.0, 120.0, fault), 1.5)) == both
    assert list(deafness.cuts(Silence(99.0, 120.0, fault), 1.5)) == [Span(104.5, 105.0, 120.0)]
    assert list(deafness.cuts(Silence(102.9, 103.5, fault), 1.5)) == []
    assert list(deafness.cuts(Silence(103.2, 120.0, fault), 1.5)) == [Span(104.7, 105.0, 120.0)]


def test_deafness_that_is_noticed_hides_no_crash_for_long() -> None:
    """A pause of the observer in the middle of a suspicion: it begins anew after it, and ends in a verdict."""
    time = pool(Fault(Kind.LINK, 500.0, 560.0), Fault(Kind.OBSERVER_STALL, 502.0, 505.0), host=SHARED)
    pipeline = Pipeline(time, BALANCED, Random(1))
    pipeline.run()
    (verdict,) = pipeline.found(Stage.GUARD)
    settings = BALANCED.settings
    assert 505.0 + settings.confirm_witnessed_s <= verdict.at
    assert verdict.at <= 505.0 + settings.suspect_after_s + settings.confirm_witnessed_s + 1.0


def test_a_stage_that_is_no_faster_adds_no_false_verdict() -> None:
    time = draw(stream(7, "monotone"), Weather.STORMY, 0.02, FAST.stalls_from_s)
    for profile in (FAST, BALANCED):
        many = {stage: declared(count) for stage, count in counts(time, profile).items()}
        steps = [many[stage] for stage in (Stage.SUSPICION, Stage.HEALTH, Stage.OWN, Stage.PEERS)]
        assert steps == sorted(steps, reverse=True)
        assert steps[0] > steps[1] > steps[2] > 0
        assert many[Stage.SLOT] >= many[Stage.GUARD] >= many[Stage.KERNEL]
        assert many[Stage.GUARD] > 0


def test_cut_off_means_for_the_whole_confirmation() -> None:
    link = Fault(Kind.LINK, 10.0, 20.0)
    assert cut_off(SHARED, (link,), 12.0, 19.0)
    assert not cut_off(SHARED, (link,), 12.0, 21.0)
    assert cut_off(SHARED, (link, Fault(Kind.UPLINK, 18.0, 30.0)), 12.0, 21.0)
    assert not cut_off(SHARED, (Fault(Kind.THRASH, 0.0, 99.0),), 12.0, 19.0)
    assert not cut_off(SEPARATE, (link,), 12.0, 19.0)


def test_storms_are_more_suspects_than_believable_at_once() -> None:
    spans = [(float(number), 10.0 + number) for number in range(4)]
    assert storms(spans, 2) == [(2.0, 11.0)]
    assert storms(spans, 4) == []


def test_the_worst_minute_counts_hosts() -> None:
    found = [
        Found(at, host, False, "") for at, host in ((0.0, 1), (10.0, 2), (20.0, 2), (59.0, 3), (61.0, 4))
    ]
    assert worst_minute(found) == 3
    assert worst_minute([*found, Found(60.5, 5, False, "")]) == 4
    assert worst_minute([]) == 0


# -- estimators


def test_timeouts_have_their_closed_forms() -> None:
    assert Phi(0.5, 8.0, 3.0).timeout_s() == pytest.approx(0.5 + 3.0 + 5.612 * 0.1, abs=1e-3)
    assert PhiExponential(0.5, 8.0).timeout_s() == pytest.approx(8 * math.log(10) * 0.5)
    chen, phi = Chen(0.5, 4.5), Phi(0.5, 8.0, 0.0)
    assert chen.timeout_s() == pytest.approx(5.0)
    for one in (chen, phi):
        one.learn(Gap(0, 20.5, 0))
    assert chen.timeout_s() == pytest.approx(5.0 + 20.0 / 1000)
    deviation = math.sqrt(20.0**2 / 1000 - 0.02**2 + JITTER_VAR)
    assert phi.timeout_s() == pytest.approx(0.5 + 0.02 + 5.6120 * deviation, rel=1e-4)
    for one in (chen, phi):
        one.on_time(1000)
    assert chen.timeout_s() == pytest.approx(5.0)
    assert phi.timeout_s() == pytest.approx(0.5 + 5.612 * 0.1, abs=1e-3)
    assert Fixed(5.0).timeout_s() == 5.0


def test_a_fixed_timeout_errs_as_often_as_the_stalls_say() -> None:
    drawn = draw(Random(11), Weather.STORMY, 0.02, 0.2)
    stalls = tuple(tuple(fault for fault in found if fault.kind is Kind.STALL) for found in drawn.hosts)
    time = PoolTime(drawn.seconds, stalls, ((),) * RACKS, (), ())
    found = false_suspicions(Random(1), time, 0.5)
    (rate,) = (rate for rate in RATES if rate.kind is Kind.STALL)
    # a stall is noticed by what it lacks of the heartbeat that was due first, anywhere within an interval
    share = sum(rate.length.tail(1.0 + 0.5 * (step + 0.5) / 200) for step in range(200)) / 200
    expected = 3.0 * rate.a_year * share * time.host_years
    assert expected > 900
    assert abs(found["fixed 1.5 s"] - expected) < 4.0 * math.sqrt(expected)
    assert found["Chen NFD-E, margin 1 s"] == pytest.approx(found["fixed 1.5 s"], rel=0.02)


# -- the whole


def test_the_same_seed_gives_the_same_document_whatever_the_jobs() -> None:
    told: list[tuple[int, int]] = []
    alone = run(0.2, 4, jobs=1, progress=lambda done, of: told.append((done, of)))
    shared = run(0.2, 4, jobs=2)
    other = run(0.2, 5, jobs=1)
    assert told[-1] == (6, 6)
    assert document(alone) == document(shared)
    assert document(alone) != document(other)
    assert all(tally.host_years == pytest.approx(0.2) for tally in alone.tallies.values())


def test_the_docs_tell_the_model_as_it_is() -> None:
    text = DOCS.read_text()
    assert replaced(text, "faults", faults()) == text, "python -m infra.detection --write writes it"
    assert replaced(text, "detection", "") != text
    with pytest.raises(ValueError, match="no markers"):
        replaced(text, "nowhere", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "confirm=3"], "confirm=3"),
        (["--set", "confirm_witnessed_s=soon"], "not NAME=NUMBER"),
        (["--set", "confirm_witnessed_s=3", "--write"], "--write"),
        (["--host-years", "0"], "greater than 0"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["detection", *arguments])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err
