"""Silence to suspicion to verdict: what each piece of evidence leads to, and what is never concluded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rpds import HashTrieMap

from libs import lifecycle
from libs.config.settings import Detection
from libs.core.decider import BusChanged, Expired, Input, Paused, Step, TableRead
from libs.events.hosts import HostFailed
from libs.events.signals import Goodbye, Heartbeat, SlotSeen
from libs.events.vms import VmFailed
from libs.model import Answer, HostState, Incarnation, PowerState, ProofMethod, SlotBeat, VmPolicy
from services.detector.asks import Answered, AskPeer, Disconnected, Panicked
from services.detector.decide import ECHO_S, Detector
from services.detector.evidence import order
from services.detector.state import DetectorState, HostRecord
from services.detector.verdict import RULES, Evidence, judge, storm_limit
from tests.unit.made import (
    beat,
    boot,
    crashed,
    facts,
    fenced,
    inventory,
    kinds,
    requests,
    seen,
    sent,
    stored,
    vm,
)

pytestmark = pytest.mark.fast
S = HostState
DEFAULT = Detection()


class Watch:
    """A detector, driven by hand: time, heartbeats, answers; all facts it ever published."""

    def __init__(self, *hosts: str, now: float = 1000.0, interval_s: float = 0.5, **more: Any) -> None:
        self.decider = Detector(
            hosts=hosts,
            settings=Detection(**more),
            beat_interval_s=interval_s,
        )
        self.now = now
        self.state: DetectorState = self.decider.initial(now)
        self.told: list[Any] = []
        self.asked: list[Any] = []
        self.silent: set[str] = set()
        self.deafened = False
        """The detector's own canaries do not come back to it."""

    def take(self, step: Step[DetectorState]) -> list[str]:
        self.state = step.state
        self.told += facts(step.effects)
        self.asked += requests(step.effects)
        told = kinds(step.effects)
        for signal in [] if self.deafened else sent(step.effects):
            told += self.hear(signal)
        return told

    def hear(self, event: Input) -> list[str]:
        return self.take(self.decider.step(self.state, event, self.now))

    def resume(self, records: Any) -> list[str]:
        return self.take(self.decider.resume(self.state, records, self.now))

    def beat_of(self, at: Incarnation) -> Heartbeat:
        return Heartbeat(at=at, agent="life", seq=1)

    def until(self, at: float) -> list[str]:
        """Let time pass; hosts that are not silent go on beating. What was told meanwhile."""
        told: list[str] = []
        beats = self.now
        while self.now < at:
            self.now = min(at, self.decider.wake_at(self.state) or at)
            if self.now >= beats:
                beats = self.now + self.decider.beat_interval_s
                for host in self.decider.hosts:
                    known = self.state.record(host).at
                    if host not in self.silent and known is not None:
                        told += self.hear(self.beat_of(known))
            told += self.take(self.decider.step(self.state, None, self.now))
        return told

    def after(self, seconds: float) -> list[str]:
        return self.until(self.now + seconds)

    def joined(self) -> Watch:
        for host in self.decider.hosts:
            self.hear(beat(host))
        return self

    def gone(self, *hosts: str) -> Watch:
        """These fall silent, and are suspected."""
        self.silent |= set(hosts)
        self.after(1.7)
        return self

    def answer(self, host: str, channel: str, answer: Answer = Answer.UNKNOWN, **more: Any) -> list[str]:
        number = self.state.record(host).number
        return self.hear(Answered(key="a", host=host, number=number, channel=channel, answer=answer, **more))

    def nobody_sees(self, host: str, *peers: str, slot: int | None = 7) -> list[str]:
        """All channels say silent, the peers too; its slot shows the same write each time, if there is one."""
        told = self.answer(host, "power", power=PowerState.UNKNOWN)
        told += self.answer(host, "libvirt", Answer.SILENT)
        slots = () if slot is None else (self.slot(host, slot),)
        for peer in peers:
            told += self.answer(host, f"peer:{peer}", Answer.SILENT, slots=slots)
        return told

    def slot(self, host: str, seq: int, store: str = "nfs") -> SlotSeen:
        """What a peer reads in the slot of the host's present boot."""
        at = self.state.record(host).at
        assert at is not None
        return SlotSeen(datastore=store, beat=SlotBeat(host=host, boot=at.boot, seq=seq))

    def is_(self, host: str) -> HostState:
        return self.state.record(host).state


def pool(*hosts: str, **more: Any) -> Watch:
    return Watch(*(hosts or ("h1", "h2", "h3", "h4", "h5")), **more).joined()


# -- the table of rules

NOTHING = Evidence(silent_s=9, quiet_s=0)
SILENT = {"unreachable": True}
WITNESSED = {**SILENT, "votes": 2, "domains": 2, "slot_still": True, "quiet_s": 2.5}
HUNG = {**SILENT, "hangs": True, "hung_s": 30.0}


@pytest.mark.parametrize(
    ("evidence", "rule", "verdict"),
    [
        ({}, None, None),
        ({"power_off": True}, "power-off", S.FAILED),
        ({"power_off": True, "lives_elsewhere": True}, "power-off", S.FAILED),
        ({"power_off": True, "slot_moves": True}, "power-off", S.FAILED),
        ({"lives_elsewhere": True}, "answers-elsewhere", S.AGENT_DOWN),
        ({"lives_elsewhere": True, **WITNESSED}, "answers-elsewhere", S.AGENT_DOWN),
        ({"lives_elsewhere": True, "last_word": True}, "answers-elsewhere", S.AGENT_DOWN),
        ({**SILENT, "last_word": True}, "last-word", S.FAILED),
        ({"last_word": True}, None, None),
        ({"last_word": True, "slot_moves": True}, None, None),
        ({**SILENT, "last_word": True, "slot_moves": True}, "slot-moves", S.ISOLATED),
        ({**SILENT, "slot_moves": True}, "slot-moves", S.ISOLATED),
        ({**WITNESSED, "slot_still": False, "slot_moves": True}, "slot-moves", S.ISOLATED),
        ({**SILENT, "slot_moves": True, "quiet_s": 1e6}, "slot-moves", S.ISOLATED),
        ({"slot_moves": True, "quiet_s": 1e6}, None, None),
        (WITNESSED, "witnessed", S.FAILED),
        ({**WITNESSED, "quiet_s": 2.49}, None, None),
        ({**WITNESSED, "votes": 1, "domains": 1}, None, None),
        ({**WITNESSED, "domains": 1}, None, None),
        ({**WITNESSED, "domains": 1, "domains_known": 1}, "witnessed", S.FAILED),
        ({**WITNESSED, "domains": 0, "domains_known": 0, "votes": 0}, None, None),
        ({**WITNESSED, "slot_still": False}, None, None),
        ({**WITNESSED, "unreachable": False, "quiet_s": 1e6}, None, None),
        ({**SILENT, "quiet_s": 8.0}, "silence-only", S.FAILED),
        ({**WITNESSED, "slot_still": False, "quiet_s": 8.0}, "silence-only", S.FAILED),
        ({**SILENT, "quiet_s": 7.99}, None, None),
        ({"quiet_s": 1e6}, None, None),
        ({"quiet_s": 1e6, "votes": 9, "domains": 9, "slot_still": True}, None, None),
        (HUNG, "hung", S.FAILED),
        ({**HUNG, "slot_still": True, "quiet_s": 1e6}, "hung", S.FAILED),
        ({**HUNG, "hung_s": 29.99, "quiet_s": 1e6}, None, None),
        ({**HUNG, "unreachable": False, "hung_s": 1e6}, None, None),
        ({**HUNG, "hangs": False, "hung_s": 1e6}, None, None),
        ({**HUNG, **WITNESSED, "hung_s": 29.99, "quiet_s": 1e6}, None, None),
        ({**HUNG, "slot_moves": True}, "slot-moves", S.ISOLATED),
        ({**HUNG, "lives_elsewhere": True}, "answers-elsewhere", S.AGENT_DOWN),
        ({**HUNG, "hung_s": 0.0, "power_off": True}, "power-off", S.FAILED),
        ({**HUNG, "hung_s": 0.0, "last_word": True}, "last-word", S.FAILED),
    ],
)
def test_every_row_of_the_rules(
    evidence: dict[str, Any], rule: str | None, verdict: HostState | None
) -> None:
    found = judge(Evidence(**{**{f: getattr(NOTHING, f) for f in NOTHING.__slots__}, **evidence}), DEFAULT)
    assert (found and found.name, found and found.verdict) == (rule, verdict)


@pytest.mark.parametrize("neighbour", [True, False])
def test_what_stands_on_its_own_in_a_storm_is_a_power_reading_or_a_neighbours_vote_beside_a_still_slot(
    neighbour: bool,
) -> None:
    seen = Evidence(silent_s=9, quiet_s=9, neighbour=neighbour)
    standing = {rule.name for rule in RULES if rule.verdict is S.FAILED and rule.stands(seen)}
    assert standing == ({"power-off", "witnessed"} if neighbour else {"power-off"})


@pytest.mark.parametrize(
    ("hosts", "limit"),
    [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (8, 2), (11, 2), (12, 3), (100, 25)],
)
def test_how_many_silent_hosts_are_believable(hosts: int, limit: int) -> None:
    assert storm_limit(hosts) == limit


# -- suspicion


def test_a_host_silent_for_one_and_a_half_seconds_is_suspected_and_everyone_is_asked() -> None:
    watch = pool()
    watch.silent = {"h1"}
    assert watch.after(1.4) == []
    assert watch.after(0.2) == ["host.suspected"]
    assert watch.told[-1].at == boot("h1")
    assert watch.told[-1].silent_s == pytest.approx(1.5, abs=0.11)
    assert sorted(ask.kind for ask in watch.asked) == ["ask_libvirt", *["ask_peer"] * 3, "ask_power"]
    assert {ask.host for ask in watch.asked} == {"h1"}
    assert len({ask.key for ask in watch.asked}) == 5


def test_a_heartbeat_in_time_refutes() -> None:
    watch = pool().gone("h1")
    assert watch.is_("h1") is S.SUSPECT
    assert watch.hear(beat("h1")) == ["host.refuted"]
    assert watch.told[-1].was is S.SUSPECT
    assert watch.is_("h1") is S.HEALTHY
    # an answer about the suspicion that is over changes nothing
    assert watch.answer("h1", "power", power=PowerState.OFF) == []
    assert watch.is_("h1") is S.HEALTHY


def test_a_second_suspicion_has_another_key() -> None:
    watch = pool().gone("h1")
    watch.hear(beat("h1"))
    watch.after(1.7)
    keys = [fact.key for fact in watch.told if fact.kind == "host.suspected"]
    assert len(keys) == len(set(keys)) == 2


def test_a_host_that_reads_off_is_failed_at_once() -> None:
    watch = pool().gone("h1")
    watch.hear(seen(boot("h1"), vm("a"), crashed("b", policy=VmPolicy(protection="none"))))
    assert watch.answer("h1", "power", power=PowerState.OFF) == ["host.failed"]
    fact = watch.told[-1]
    assert (fact.rule, fact.epoch, fact.at, fact.proof) == ("power-off", 1, boot("h1"), None)
    assert [report.uuid for report in fact.vms] == ["a"]
    assert fact.cause == next(f.key for f in watch.told if f.kind == "host.suspected")
    assert ("power", "off") in [(e.channel, e.said) for e in fact.evidence]


def test_a_host_whose_libvirt_answers_has_lost_its_agent_and_is_not_failed_over() -> None:
    watch = pool().gone("h1")
    assert watch.answer("h1", "libvirt", Answer.UP) == ["host.agent_down"]
    for _ in range(60):  # a minute of answering libvirt and silent agent
        assert watch.after(1.0) == []
        assert watch.answer("h1", "libvirt", Answer.UP) == []
    assert watch.is_("h1") is S.AGENT_DOWN
    assert watch.hear(beat("h1")) == ["host.refuted"]
    assert watch.told[-1].was is S.AGENT_DOWN


@pytest.mark.parametrize("channel", ["libvirt", "peer:h3"])
@pytest.mark.parametrize("answer", [Answer.UP, Answer.REFUSED])
def test_one_channel_that_sees_it_alive_outweighs_all_that_do_not(channel: str, answer: Answer) -> None:
    watch = pool().gone("h1")
    watch.nobody_sees("h1", "h2", "h3", "h4")
    assert watch.answer("h1", channel, answer) == ["host.agent_down"]
    for _ in range(10):
        watch.after(1.0)
        watch.answer("h1", "libvirt", Answer.SILENT)
        watch.answer("h1", channel, answer)
    assert "host.failed" not in [fact.kind for fact in watch.told]


def test_a_host_without_agent_whose_libvirt_dies_too_is_failed() -> None:
    watch = pool().gone("h1")
    watch.answer("h1", "libvirt", Answer.UP)
    told: list[str] = []
    for _ in range(10):
        watch.nobody_sees("h1", "h2", "h3")
        told += watch.after(1.0)
    assert told == ["host.failed"]
    assert watch.told[-1].rule == "witnessed"


def test_witnessed_silence_is_a_verdict_after_two_and_a_half_seconds() -> None:
    watch = pool().gone("h1")
    suspected_at = watch.now - 0.2
    told: list[str] = []
    while not told:
        watch.nobody_sees("h1", "h2", "h3")
        told = watch.after(0.1)
    assert told == ["host.failed"]
    assert watch.told[-1].rule == "witnessed"
    assert 2.4 <= watch.now - suspected_at <= 2.9


def test_silence_that_nobody_witnesses_takes_eight_seconds() -> None:
    watch = pool().gone("h1")
    suspected_at = watch.now - 0.2
    told: list[str] = []
    while not told:
        watch.nobody_sees("h1", "h2")  # one vote is too few
        told = watch.after(0.1)
    assert watch.told[-1].rule == "silence-only"
    assert 7.9 <= watch.now - suspected_at <= 8.4


def hangs(watch: Watch, host: str, seconds: float, *peers: str) -> list[str]:
    """So long its kernel takes every connection, and nothing answers on them; its slot stands still."""
    told: list[str] = []
    until = watch.now + seconds
    while watch.now < until and not told:
        watch.answer(host, "power", power=PowerState.UNKNOWN)
        watch.answer(host, "libvirt", Answer.HANGS)
        for peer in peers:
            watch.answer(host, f"peer:{peer}", Answer.HANGS, slots=(watch.slot(host, 7),))
        told += watch.after(0.5)
    return told


def test_a_host_that_thrashes_for_twenty_seconds_is_suspected_and_left_alone() -> None:
    watch = pool().gone("h1")
    assert hangs(watch, "h1", 20.0, "h2", "h3", "h4") == []
    assert watch.hear(beat("h1")) == ["host.refuted"]


def test_a_host_that_hangs_for_good_is_failed_after_thirty_seconds_and_the_evidence_says_why() -> None:
    watch = pool().gone("h1")
    suspected_at = watch.now - 0.2
    assert hangs(watch, "h1", 60.0, "h2", "h3") == ["host.failed"]
    assert watch.told[-1].rule == "hung"
    assert 29.9 <= watch.now - suspected_at <= 30.9
    said = {kept.channel: kept.said for kept in watch.told[-1].evidence}
    assert said["libvirt"] == said["peer:h2"] == said["peer:h3"] == "hangs"
    assert said["slot:nfs"].startswith("write 7, unchanged for ")


@pytest.mark.parametrize("channel", ["libvirt", "peer:h4"])
def test_one_kernels_answer_keeps_all_silent_witnesses_from_a_quick_verdict(channel: str) -> None:
    watch = pool().gone("h1")
    for _ in range(24):
        watch.nobody_sees("h1", "h2", "h3")
        watch.answer("h1", channel, Answer.HANGS)
        assert watch.after(1.0) == []


def test_a_peer_that_sees_a_kernel_answer_has_not_voted() -> None:
    watch = pool().gone("h1")
    watch.nobody_sees("h1", "h2", "h3")
    watch.answer("h1", "peer:h3", Answer.HANGS)
    watch.after(DEFAULT.confirm_witnessed_s)
    told = [fact for fact in watch.told if fact.kind == "host.failed"]
    assert told == []


def test_where_the_kernel_falls_silent_too_a_whole_confirmation_begins() -> None:
    """Twenty seconds of hanging are not counted as silence: a connection that is lost in a long thrash is no verdict."""
    watch = pool().gone("h1")
    hangs(watch, "h1", 20.0, "h2", "h3")
    last = watch.now - 0.5
    told: list[str] = []
    while not told:
        watch.nobody_sees("h1", "h2", "h3")
        told = watch.after(0.1)
    assert (told, watch.told[-1].rule) == (["host.failed"], "witnessed")
    assert DEFAULT.confirm_witnessed_s <= watch.now - last <= DEFAULT.confirm_witnessed_s + 0.3


def test_a_process_that_answers_begins_the_long_wait_anew() -> None:
    watch = pool().gone("h1")
    hangs(watch, "h1", 25.0, "h2", "h3")
    assert watch.answer("h1", "libvirt", Answer.UP) == ["host.agent_down"]
    answered_at = watch.now
    assert hangs(watch, "h1", 60.0, "h2", "h3") == ["host.failed"]
    assert watch.now - answered_at >= DEFAULT.confirm_hung_s


def test_a_kernel_that_answers_only_now_and_then_does_not_put_a_verdict_off_for_ever() -> None:
    watch = pool().gone("h1")
    suspected_at = watch.now - 0.2
    told: list[str] = []
    for second in range(60):
        watch.nobody_sees("h1", "h2")
        if second % 6 == 0:
            watch.answer("h1", "libvirt", Answer.HANGS)
        told += watch.after(1.0)
        if told:
            break
    assert (told, watch.told[-1].rule) == (["host.failed"], "hung")
    assert watch.now - suspected_at <= DEFAULT.confirm_hung_s + 7.0


def test_the_wait_for_a_hung_host_is_never_shorter_than_that_for_a_silent_one() -> None:
    settings = Detection(confirm_silence_s=40.0)
    hung = Evidence(silent_s=99, quiet_s=0, unreachable=True, hangs=True, hung_s=39.9)
    assert judge(hung, settings) is None
    assert judge(replace(hung, hung_s=40.0), settings) is not None


# -- nobody else is heard


def fenced_but_one() -> Watch:
    """Two hosts, one of them fenced: of the other's silence nobody else can tell."""
    watch = pool("h1", "h2").gone("h2")
    watch.answer("h2", "power", power=PowerState.OFF)
    watch.hear(fenced(boot("h2")))
    watch.after(10.0)
    return watch.gone("h1")


def test_the_last_host_that_is_heard_is_not_failed_by_its_silence_alone_since_it_may_be_us_who_are_cut_off() -> (
    None
):
    watch = fenced_but_one()
    for _ in range(120):
        watch.nobody_sees("h1")
        watch.after(1.0)
    assert watch.is_("h1") is S.SUSPECT
    assert watch.hear(beat("h1")) == ["host.refuted"], "it was our own network"


def undecided(watch: Watch, *hosts: str, seconds: float) -> list[tuple[str, int, float]]:
    """Let the time pass in which no channel brings anything of these. Of whom it was told that they wait: host, number
    of the suspicion, and after how long."""
    before, began = len(watch.told), watch.now
    found: list[tuple[str, int, float]] = []
    while watch.now - began < seconds:
        for host in hosts:
            watch.nobody_sees(host)
        watch.after(0.1)
        said = [fact for fact in watch.told[before:] if fact.kind == "host.undecided"]
        found += [(one.at.host, one.number, watch.now - began) for one in said[len(found) :]]
    return found


def test_a_suspect_that_waits_since_nobody_else_is_heard_is_told_of_once() -> None:
    watch = fenced_but_one()
    suspected = watch.told[-1]
    assert len(undecided(watch, "h1", seconds=120)) == 1
    fact = watch.told[-1]
    assert (fact.at, fact.number, fact.cause) == (boot("h1"), suspected.number, suspected.key)
    waited_s = fact.silent_s - suspected.silent_s
    assert DEFAULT.confirm_silence_s <= waited_s <= DEFAULT.confirm_silence_s + 0.2
    assert watch.is_("h1") is S.SUSPECT, "it is no verdict"
    assert watch.hear(beat("h1")) == ["host.refuted"]


def test_each_suspicion_that_waits_is_told_of() -> None:
    watch = fenced_but_one()
    first = undecided(watch, "h1", seconds=30)
    watch.silent.discard("h1")
    watch.after(5.0)
    watch.gone("h1")
    again = undecided(watch, "h1", seconds=30)
    assert [number for _, number, _ in first + again] == [1, 2]


def test_while_another_host_is_heard_nobody_waits_for_company() -> None:
    watch = pool("h1", "h2").gone("h1")
    watch.answer("h1", "libvirt", Answer.UNKNOWN)
    assert "host.undecided" not in watch.after(120)
    assert watch.is_("h1") is S.SUSPECT, "its libvirt could not be asked"


def test_another_host_that_is_heard_in_between_begins_the_wait_anew() -> None:
    watch = fenced_but_one()
    assert undecided(watch, "h1", seconds=DEFAULT.confirm_silence_s - 1.0) == []
    watch.hear(beat("h2", 2))
    assert undecided(watch, "h1", seconds=DEFAULT.confirm_silence_s - 1.0) == []


def test_a_restarted_detector_and_another_replica_do_not_tell_it_again() -> None:
    watch = fenced_but_one()
    assert len(undecided(watch, "h1", seconds=15)) == 1
    after = Watch("h1", "h2", now=5000.0)
    after.silent = {"h1", "h2"}
    after.resume(records_of(watch))
    assert after.is_("h1") is S.SUSPECT
    assert undecided(after, "h1", seconds=120) == []


def test_a_restarted_detector_tells_what_its_predecessor_had_not_told_yet() -> None:
    watch = fenced_but_one()
    after = Watch("h1", "h2", now=5000.0)
    after.silent = {"h1", "h2"}
    after.resume(records_of(watch))
    assert [(host, number) for host, number, _ in undecided(after, "h1", seconds=120)] == [("h1", 1)]


def test_while_the_detector_is_deaf_it_does_not_say_that_nobody_is_heard() -> None:
    watch = fenced_but_one()
    watch.hear(BusChanged(False))
    assert undecided(watch, "h1", seconds=60) == []
    watch.hear(BusChanged(True))
    assert len(undecided(watch, "h1", seconds=60)) == 1


def test_hosts_of_a_storm_that_is_held_were_told_of_with_it_and_wait_anew_once_it_is_over() -> None:
    watch = pool("h1", "h2").gone("h1", "h2")
    assert watch.told[-1].kind == "storm.held"
    assert undecided(watch, "h1", "h2", seconds=60) == []
    watch.answer("h2", "power", power=PowerState.OFF)
    watch.hear(fenced(boot("h2")))
    ((host, _, after_s),) = undecided(watch, "h1", seconds=60)
    assert (host, watch.state.storm) == ("h1", None)
    assert after_s >= DEFAULT.confirm_silence_s


def test_a_host_that_fell_silent_after_the_storm_was_told_is_told_of_by_itself() -> None:
    watch = pool("h1", "h2", "h3").gone("h1", "h2")
    assert watch.told[-1].kind == "storm.held"
    watch.gone("h3")
    assert [host for host, _, _ in undecided(watch, "h1", "h2", "h3", seconds=60)] == ["h3"]


def test_a_host_whose_agent_was_down_and_that_nothing_answers_for_any_more_is_told_of() -> None:
    """It was told of as one that answers: that nothing does now must not pass unsaid."""
    watch = fenced_but_one()
    assert watch.answer("h1", "libvirt", Answer.UP) == ["host.agent_down"]
    for _ in range(30):
        watch.answer("h1", "libvirt", Answer.UP)
        assert "host.undecided" not in watch.after(1.0)
    assert [host for host, _, _ in undecided(watch, "h1", seconds=60)] == ["h1"]
    assert watch.is_("h1") is S.AGENT_DOWN


def test_once_somebody_is_heard_again_its_silence_counts_from_then_on() -> None:
    watch = fenced_but_one()
    for _ in range(60):
        watch.nobody_sees("h1")
        watch.after(1.0)
    assert watch.hear(beat("h2", 2)) == ["host.joined"]
    watch.silent.discard("h2")
    heard_at, told = watch.now, list[str]()
    while not told and watch.now - heard_at < 60:
        watch.nobody_sees("h1", "h2")
        told = watch.after(0.1)
    assert (told, watch.told[-1].rule) == (["host.failed"], "silence-only")
    assert DEFAULT.confirm_silence_s <= watch.now - heard_at <= DEFAULT.confirm_silence_s + 0.5


def test_a_proof_by_power_needs_no_company() -> None:
    assert fenced_but_one().answer("h1", "power", power=PowerState.OFF) == ["host.failed"]


def test_a_host_without_its_agent_that_answers_is_company() -> None:
    """It is not heard on the bus and answers all the same: the way from us to the hosts works."""
    watch = pool("h1", "h2").gone("h2")
    assert watch.answer("h2", "libvirt", Answer.UP) == ["host.agent_down"]
    watch.gone("h1")
    told: list[str] = []
    for _ in range(12):
        watch.nobody_sees("h1")
        watch.answer("h2", "libvirt", Answer.UP)
        told += watch.after(1.0)
    assert (told, watch.told[-1].rule) == (["host.failed"], "silence-only")


@pytest.mark.parametrize("said", [Answer.UNKNOWN, None])
def test_a_question_that_could_not_be_asked_is_evidence_of_nothing(said: Answer | None) -> None:
    watch = pool().gone("h1")
    for _ in range(120):
        if said is not None:
            watch.answer("h1", "libvirt", said)
            for peer in ("h2", "h3", "h4"):
                watch.answer("h1", f"peer:{peer}", said)
        watch.hear(Expired(key="x", request="ask_power", reason="late"))
        watch.after(1.0)
    assert watch.is_("h1") is S.SUSPECT


def test_old_answers_count_for_nothing() -> None:
    watch = pool().gone("h1")
    watch.nobody_sees("h1", "h2", "h3")
    assert watch.after(1.0) == []
    # from now on nobody answers anything: after a while nothing is known any more
    watch.after(4.0)
    watch.answer("h1", "peer:h2", Answer.SILENT)
    watch.answer("h1", "peer:h3", Answer.SILENT)
    watch.after(20.0)
    fails = [fact for fact in watch.told if fact.kind == "host.failed"]
    assert all(fact.rule == "witnessed" for fact in fails)
    watch2 = pool().gone("h1")
    watch2.answer("h1", "libvirt", Answer.SILENT)
    watch2.after(6.0)
    watch2.after(60.0)
    assert watch2.is_("h1") is S.SUSPECT


def test_only_healthy_hosts_heard_just_now_are_asked_as_peers() -> None:
    watch = pool("h1", "h2", "h3").gone("h1", "h2")
    peers = {ask.peer for ask in watch.asked if ask.kind == "ask_peer"}
    assert peers <= {"h2", "h3"}
    watch.asked.clear()
    watch.after(3.0)
    assert {ask.peer for ask in watch.asked if ask.kind == "ask_peer"} == {"h3"}


# -- boots


def test_a_new_boot_proves_that_the_old_one_is_over() -> None:
    watch = pool()
    watch.hear(seen(boot("h1"), vm("a")))
    assert watch.hear(beat("h1", 2)) == ["host.failed", "host.joined"]
    failed, joined = watch.told[-2:]
    assert isinstance(failed, HostFailed)
    assert failed.at == boot("h1")
    assert failed.proof is not None
    assert (failed.proof.method, failed.proof.of) == (ProofMethod.NEW_BOOT, boot("h1"))
    assert [report.uuid for report in failed.vms] == ["a"]
    assert joined.at == boot("h1", 2)
    assert watch.is_("h1") is S.HEALTHY


def test_what_an_old_boot_still_says_is_an_echo() -> None:
    watch = pool()
    watch.hear(beat("h1", 2))
    assert watch.hear(beat("h1", 1)) == []
    assert watch.hear(seen(boot("h1"), crashed("a"))) == []
    assert watch.state.record("h1").at == boot("h1", 2)


def test_a_failed_host_that_boots_again_joins_without_a_second_verdict() -> None:
    watch = pool().gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    assert watch.hear(beat("h1", 2)) == ["host.joined"]
    assert watch.told[-1].cause == watch.state.record("h1").incident


def test_a_fenced_boot_that_still_speaks_is_not_believed() -> None:
    watch = pool().gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    watch.hear(fenced(boot("h1")))
    assert watch.is_("h1") is S.FENCED
    assert watch.hear(beat("h1")) == []
    assert watch.is_("h1") is S.FENCED
    assert watch.hear(beat("h1", 2)) == ["host.joined"]
    assert watch.is_("h1") is S.HEALTHY


def test_a_fenced_boot_that_goes_on_speaking_refutes_its_proof_and_that_is_told_once() -> None:
    watch = pool().gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    watch.hear(fenced(boot("h1")))
    watch.after(ECHO_S - 0.1)
    assert watch.hear(beat("h1")) == [], "an echo of what it said before"
    watch.after(0.2)
    assert watch.hear(beat("h1")) == ["host.fence_refuted"]
    assert watch.told[-1].incident == watch.state.record("h1").incident
    assert watch.hear(beat("h1")) == []
    assert watch.is_("h1") is S.FENCED, "its VMs were started elsewhere: it is not to be used"
    # the next detector knows that it was told
    watch.resume(stored(watch.state.records))
    watch.after(2 * ECHO_S)
    assert watch.hear(beat("h1")) == []


def test_a_failed_host_that_speaks_again_before_any_proof_has_recovered() -> None:
    watch = pool().gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    assert watch.hear(beat("h1")) == ["host.recovered"]
    assert watch.told[-1].incident == watch.told[-2].incident
    watch.gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    incidents = [fact.incident for fact in watch.told if fact.kind == "host.failed"]
    assert len(set(incidents)) == 2, "two verdicts are two incidents"
    assert [fact.epoch for fact in watch.told if fact.kind == "host.failed"] == [1, 2]


def test_a_fence_proof_of_another_boot_changes_nothing() -> None:
    watch = pool().gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    watch.hear(fenced(boot("h1", 9)))
    assert watch.is_("h1") is S.FAILED


def test_hosts_that_are_not_in_the_pool_are_not_listened_to() -> None:
    watch = pool("h1")
    assert watch.hear(beat("stranger")) == []
    assert watch.hear(seen(boot("stranger"), crashed("a"))) == []
    assert "stranger" not in watch.state.records


# -- after a start


def records_of(watch: Watch) -> Any:
    return stored(watch.state.records)


def test_a_host_that_was_never_heard_of_stays_unknown_for_ever() -> None:
    watch = Watch("h1", "h2")
    watch.resume(HashTrieMap())
    watch.hear(beat("h2"))
    watch.silent.add("h1")
    watch.after(3600)
    assert watch.is_("h1") is S.UNKNOWN
    assert [fact.kind for fact in watch.told] == ["host.joined"]
    assert watch.asked == []


def test_a_host_known_from_before_is_unknown_until_the_quiet_time_is_over_and_then_suspected() -> None:
    before = pool("h1", "h2", "h3")
    watch = Watch("h1", "h2", "h3", now=5000.0)
    watch.resume(records_of(before))
    watch.silent.add("h1")
    assert watch.after(2.0) == []
    assert watch.is_("h1") is S.UNKNOWN
    assert watch.until(5059.9) == []
    assert watch.asked == []
    assert watch.until(5060.3) == ["host.suspected"]
    assert watch.hear(beat("h1")) == ["host.refuted"]


def test_a_host_known_from_before_that_speaks_in_the_quiet_time_is_simply_there() -> None:
    watch = Watch("h1", "h2", now=5000.0)
    watch.resume(records_of(pool("h1", "h2")))
    watch.silent = {"h1"}
    watch.after(10)
    assert watch.hear(beat("h1")) == ["host.joined"]
    assert watch.is_("h1") is S.HEALTHY


def test_a_detector_that_starts_long_after_the_plane_has_no_quiet_time() -> None:
    watch = Watch("h1", "h2", now=5000.0)
    watch.decider = Detector(("h1", "h2"), DEFAULT, plane_started=1000.0)
    watch.state = watch.decider.initial(5000.0)
    watch.resume(records_of(pool("h1", "h2")))
    watch.silent.add("h1")
    assert watch.after(1.8) == ["host.suspected"]


def test_a_successor_pursues_what_its_predecessor_suspected_and_asks_anew() -> None:
    before = pool().gone("h1")
    before.nobody_sees("h1", "h2", "h3")
    watch = Watch(*before.decider.hosts, now=7000.0)
    for host in ("h2", "h3", "h4", "h5"):
        watch.hear(beat(host))
    watch.resume(records_of(before))
    assert watch.is_("h1") is S.SUSPECT
    watch.silent.add("h1")
    watch.after(0.3)
    assert {ask.kind for ask in watch.asked} == {"ask_power", "ask_libvirt", "ask_peer"}
    assert watch.answer("h1", "power", power=PowerState.OFF) == ["host.failed"]


def test_a_follower_hears_and_takes_over_with_warm_views() -> None:
    leader, follower = pool("h1", "h2"), Watch("h1", "h2")
    for host in ("h1", "h2"):
        follower.state = follower.decider.step(follower.state, beat(host), follower.now).state
    follower.now += 1.0
    assert follower.resume(records_of(leader)) == []
    follower.silent.add("h1")
    # heard as a follower: no quiet time for it, since it had its chance
    assert follower.after(1.0) == ["host.suspected"]


# -- deaf


@pytest.mark.parametrize("deafness", [Paused(5.0), BusChanged(True)])
def test_whoever_was_deaf_discards_its_evidence_and_listens_for_a_full_period(deafness: Input) -> None:
    watch = pool().gone("h1")
    watch.nobody_sees("h1", "h2", "h3")
    watch.after(1.0)
    watch.now += 5.0
    watch.hear(deafness)
    deaf_at = watch.now
    watch.silent |= {"h2", "h3"}
    assert watch.after(1.3) == []
    assert watch.is_("h2") is S.HEALTHY
    # what comes in is not judged before the period is over, even if it is a proof
    assert watch.answer("h1", "power", power=PowerState.OFF) == []
    watch.until(deaf_at + 1.95)
    assert watch.is_("h1") is S.SUSPECT
    assert "host.failed" in watch.after(0.3)


def test_while_the_bus_is_away_nobody_is_suspected() -> None:
    watch = pool()
    watch.hear(BusChanged(False))
    watch.silent = set(watch.decider.hosts)
    assert watch.after(60.0) == []
    watch.hear(BusChanged(True))
    watch.silent = {"h1"}
    assert watch.after(1.3) == []
    assert watch.after(0.4) == ["host.suspected"]


def test_a_suspect_is_not_judged_while_the_bus_is_away() -> None:
    watch = pool().gone("h1")
    watch.hear(BusChanged(False))
    for _ in range(20):
        watch.nobody_sees("h1", "h2", "h3")
        watch.answer("h1", "power", power=PowerState.OFF)
        assert watch.after(1.0) == []
    assert watch.is_("h1") is S.SUSPECT


def test_a_goodbye_makes_silence_mean_nothing_for_its_grace() -> None:
    watch = pool()
    watch.hear(Goodbye(at=boot("h1"), agent="life", grace_s=10.0))
    watch.silent.add("h1")
    assert watch.after(9.8) == []
    assert watch.after(0.4) == ["host.suspected"]
    watch.hear(beat("h1"))
    assert watch.after(1.7) == ["host.suspected"], "the grace ended with the next heartbeat"


# -- storms


def test_more_suspects_than_believable_hold_the_verdict_and_alert_once() -> None:
    watch = pool().gone("h1", "h2", "h3")
    for _ in range(30):
        for host in ("h1", "h2", "h3"):
            watch.nobody_sees(host, "h4", "h5")
        watch.after(1.0)
    told = [fact.kind for fact in watch.told]
    assert told.count("storm.held") == 1
    assert "host.failed" not in told
    held = next(fact for fact in watch.told if fact.kind == "storm.held")
    assert (held.suspects, held.limit) == (("h1", "h2", "h3"), 2)


def test_a_proof_passes_the_hold_and_the_rest_stay_held() -> None:
    watch = pool().gone("h1", "h2", "h3")
    assert watch.answer("h1", "power", power=PowerState.OFF) == ["host.failed"]
    for _ in range(20):
        watch.nobody_sees("h2", "h4", "h5")
        watch.after(1.0)
    assert watch.is_("h2") is S.SUSPECT, "the failed one still counts as long as it is not fenced"


def test_the_hold_ends_when_the_number_is_believable_again() -> None:
    watch = pool().gone("h1", "h2", "h3")
    watch.after(0.5)
    for host in ("h1", "h2"):
        watch.silent.discard(host)
        watch.hear(beat(host))
    assert watch.after(0.2) == ["storm.released"]
    for _ in range(4):
        watch.nobody_sees("h3", "h4", "h5")
        watch.after(1.0)
    assert watch.is_("h3") is S.FAILED


# -- VMs that crash


def test_a_vm_that_its_own_hypervisor_calls_crashed_is_told_once() -> None:
    watch = pool("h1", "h2")
    watch.hear(seen(boot("h1"), vm("a", run=4)))
    assert watch.hear(seen(boot("h1"), crashed("a", run=4), rev=2)) == ["vm.failed"]
    fact = watch.told[-1]
    assert isinstance(fact, VmFailed)
    assert (fact.vm, fact.run, fact.at) == ("a", 4, boot("h1"))
    assert watch.hear(seen(boot("h1"), crashed("a", run=4), rev=2)) == []
    assert watch.hear(seen(boot("h1"), crashed("a", run=4), vm("b"), rev=3)) == []


def test_an_unprotected_vm_may_crash() -> None:
    watch = pool("h1", "h2")
    assert watch.hear(seen(boot("h1"), crashed("a", policy=VmPolicy(protection="none")))) == []


def test_a_crash_that_only_the_stored_inventory_tells_of_is_told() -> None:
    """The agent stored it and said it while no detector was there; what it says from now on is no news."""
    watch = Watch("h1", "h2")
    watch.resume(records_of(pool("h1", "h2")))
    row = inventory(boot("h1"), crashed("a"), rev=7)
    told = watch.hear(TableRead("inventory", (row,)))
    told += watch.hear(seen(boot("h1"), crashed("a"), rev=7))
    assert told == ["vm.failed"]


def test_a_crash_seen_as_a_follower_is_told_on_taking_over() -> None:
    watch = Watch("h1", "h2")
    event = seen(boot("h1"), crashed("a"))
    watch.state = watch.decider.step(watch.state, event, watch.now).state
    assert watch.resume(HashTrieMap()) == ["vm.failed"]


def test_an_older_inventory_of_the_same_agent_is_not_believed() -> None:
    watch = pool("h1", "h2")
    watch.hear(seen(boot("h1"), vm("a"), rev=5))
    assert watch.hear(seen(boot("h1"), crashed("a"), rev=4)) == []
    watch.gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    assert [report.uuid for report in watch.told[-1].vms] == ["a"]


# -- any walk at all

HOSTS = ("h1", "h2", "h3")
events = st.one_of(
    st.builds(lambda h, n: beat(h, n), st.sampled_from(HOSTS), st.integers(1, 3)),
    st.builds(lambda h, n: fenced(boot(h, n)), st.sampled_from(HOSTS), st.integers(1, 3)),
    st.builds(
        lambda h, n: seen(boot(h, n), vm("a"), crashed("b")), st.sampled_from(HOSTS), st.integers(1, 3)
    ),
    st.builds(
        lambda h, c, a, p, n: Answered(key="k", host=h, number=n, channel=c, answer=a, power=p),
        st.sampled_from(HOSTS),
        st.sampled_from(["power", "libvirt", "peer:h1", "peer:h2", "peer:h3"]),
        st.sampled_from(list(Answer)),
        st.sampled_from(list(PowerState)),
        st.integers(0, 3),
    ),
    st.builds(lambda h: Goodbye(at=boot(h), agent="x"), st.sampled_from(HOSTS)),
    st.sampled_from([Paused(2.0), BusChanged(True), BusChanged(False)]),
    st.just("tick"),
    st.just("restart"),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(events, st.floats(0.0, 5.0)), max_size=40))
def test_on_any_walk_hosts_move_only_along_the_table_and_nothing_fails_unheard_of(
    walk: Iterable[tuple[Any, float]],
) -> None:
    watch = Watch(*HOSTS, quiet_after_start_s=4.0)
    watch.resume(HashTrieMap())
    heard: set[Incarnation] = set()
    for event, wait_s in walk:
        before = {host: watch.state.record(host) for host in HOSTS}
        told = len(watch.told)
        if event == "tick":
            watch.now = max(watch.now + wait_s, watch.decider.wake_at(watch.state) or 0.0)
            watch.take(watch.decider.step(watch.state, None, watch.now))
            wake_at = watch.decider.wake_at(watch.state)
            assert wake_at is not None
            assert wake_at > watch.now
        elif event == "restart":
            records = records_of(watch)
            watch.state = watch.decider.initial(watch.now)
            watch.resume(records)
        else:
            watch.now += wait_s / 10
            watch.hear(event)
        if isinstance(event, Heartbeat):
            heard.add(event.at)
        for host in HOSTS:
            check_move(before[host], watch.state.record(host))
        for fact in watch.told[told:]:
            if fact.kind == "host.failed":
                assert fact.at in heard
                assert fact.epoch == before[fact.at.host].epoch + 1
    keys = [fact.key for fact in watch.told if fact.kind == "host.failed"]
    assert len(keys) == len(set(keys)), "one verdict, one incident"


def check_move(before: HostRecord, after: HostRecord) -> None:
    assert lifecycle.allowed(before.state, after.state), f"{before.state} to {after.state}"
    assert after.epoch >= before.epoch
    assert after.number >= before.number
    if before.at is not None and after.at != before.at:
        assert before.at.boot in after.former


def test_the_table_as_a_diagram_names_every_state() -> None:
    drawn = lifecycle.as_mermaid()
    assert drawn.startswith("stateDiagram-v2")
    assert all(state.value in drawn for state in HostState if state is not HostState.ISOLATED)


# -- hints and last words


def test_an_ended_connection_is_asked_after_at_once_and_is_no_verdict() -> None:
    watch = pool()
    watch.after(0.3)
    watch.silent.add("h1")
    watch.hear(Disconnected(key="n", host="h1"))
    assert watch.after(0.6) == ["host.suspected"], (
        "one missing beat is enough, and not silence for suspect_after_s"
    )
    assert {request.kind for request in watch.asked} == {"ask_power", "ask_libvirt", "ask_peer"}
    watch.nobody_sees("h1", "h2", "h3")
    assert watch.after(0.5) == []
    assert watch.is_("h1") is S.SUSPECT


def test_power_that_reads_off_after_an_ended_connection_is_a_verdict_before_silence_would_have_been_noticed() -> (
    None
):
    watch = pool()
    watch.silent.add("h1")
    watch.hear(Disconnected(key="n", host="h1"))
    watch.after(0.7)
    assert watch.answer("h1", "power", power=PowerState.OFF) == ["host.failed"]


def test_an_agent_that_connects_anew_is_not_called_down() -> None:
    watch = pool()
    watch.hear(Disconnected(key="n", host="h1"))
    watch.silent.add("h1")
    watch.after(0.7)
    assert watch.answer("h1", "libvirt", Answer.UP) == []
    watch.silent.clear()
    assert watch.hear(beat("h1")) == ["host.refuted"]
    assert watch.after(5.0) == []


def test_a_notice_that_comes_late_of_a_life_of_its_agent_that_is_over_asks_nobody() -> None:
    watch = pool()
    watch.hear(Disconnected(key="n", host="h1"))
    assert watch.after(5.0) == []
    assert watch.asked == []


def test_an_ended_connection_after_a_goodbye_is_none() -> None:
    watch = pool()
    watch.silent.add("h1")
    watch.hear(Goodbye(at=boot("h1"), agent="life", grace_s=10.0))
    watch.hear(Disconnected(key="n", host="h1"))
    assert watch.after(5.0) == []


@pytest.mark.parametrize(
    "word", [Goodbye(at=boot("h1"), agent="life", for_good=True), Panicked(key="k", host="h1")]
)
def test_a_last_word_is_a_verdict_once_nothing_answers_and_not_before(word: Input) -> None:
    watch = pool()
    watch.silent.add("h1")
    watch.hear(word)
    watch.after(0.3)
    assert watch.is_("h1") is S.SUSPECT, "it was asked, and nothing has come yet"
    watch.answer("h1", "libvirt", Answer.SILENT)
    watch.after(0.1)
    assert watch.is_("h1") is S.FAILED
    failed = next(fact for fact in watch.told if isinstance(fact, HostFailed))
    assert failed.rule == "last-word"
    assert any(kept.channel == "last word" for kept in failed.evidence)


def test_a_crash_kernels_word_of_a_host_that_lives_is_a_question_and_no_verdict() -> None:
    """It is one packet that nobody signs: a person may have tried it out, a stranger may have sent it."""
    watch = pool()
    watch.silent.add("h1")
    watch.hear(Panicked(key="k", host="h1"))
    assert watch.after(0.3) == ["host.suspected"]
    watch.silent.discard("h1")
    assert watch.after(5.0) == ["host.refuted"]


def test_who_could_not_read_which_slot_is_kept_until_somebody_reads_it() -> None:
    watch = pool().gone("h1")
    trouble = SlotSeen(datastore="nfs", trouble="Stale file handle")
    for _ in range(9):
        watch.nobody_sees("h1", "h2", "h3", slot=None)
        watch.answer("h1", "peer:h4", Answer.SILENT, slots=(trouble,))
        watch.after(1.0)
    failed = next(fact for fact in watch.told if isinstance(fact, HostFailed))
    assert failed.rule == "silence-only"
    (kept,) = [one for one in failed.evidence if one.channel == "slot:nfs"]
    assert (kept.said, kept.detail) == ("could not be read", "h4: Stale file handle")

    watch = pool().gone("h1")
    watch.answer("h1", "peer:h4", Answer.SILENT, slots=(trouble,))
    for _ in range(9):
        watch.nobody_sees("h1", "h2", "h3", slot=7)
        watch.after(1.0)
    failed = next(fact for fact in watch.told if isinstance(fact, HostFailed))
    assert failed.rule == "witnessed"
    assert [one.said[:7] for one in failed.evidence if one.channel == "slot:nfs"] == ["write 7"]


def test_hosts_that_are_watched_from_the_management_side_are_no_witnesses() -> None:
    """They are asked where we are: two such votes are our own look, twice."""
    watch = pool()
    watch.decider = replace(watch.decider, agentless=frozenset(["h2", "h3"]))
    watch.gone("h1")
    asked = {request.peer for request in watch.asked if isinstance(request, AskPeer)}
    assert asked == {"h4", "h5"}


def test_a_last_word_of_a_host_that_speaks_on_is_void() -> None:
    watch = pool()
    watch.hear(Panicked(key="k", host="h1"))
    watch.hear(beat("h1"))
    assert watch.after(5.0) == []


def test_a_last_word_of_a_host_whose_libvirt_answers_waits_until_it_does_not() -> None:
    watch = pool()
    watch.silent.add("h1")
    watch.now += 0.01
    watch.hear(Goodbye(at=boot("h1"), agent="life", for_good=True))
    assert watch.hear(Answered(key="a", host="h1", number=1, channel="libvirt", answer=Answer.UP)) == []


# -- storage slots and isolation


def test_a_host_whose_slot_moves_is_isolated_and_not_failed_however_long() -> None:
    watch = pool().gone("h1")
    for seq in range(1, 15):
        watch.nobody_sees("h1", "h2", "h3", slot=seq)
        watch.after(1.0)
    assert watch.is_("h1") is S.ISOLATED
    kinds_ = [fact.kind for fact in watch.told]
    assert kinds_.count("host.isolated") == 1
    assert "host.failed" not in kinds_


def test_an_isolated_host_that_dies_is_failed_by_its_witnesses() -> None:
    watch = pool().gone("h1")
    for seq in (1, 2):
        watch.nobody_sees("h1", "h2", "h3", slot=seq)
        watch.after(1.0)
    assert watch.is_("h1") is S.ISOLATED
    for _ in range(8):
        watch.nobody_sees("h1", "h2", "h3", slot=2)
        watch.after(1.0)
    assert watch.is_("h1") is S.FAILED
    failed = next(fact for fact in watch.told if isinstance(fact, HostFailed))
    assert (failed.rule, failed.epoch) == ("witnessed", 2)


def test_an_isolated_host_that_is_heard_again_recovers() -> None:
    watch = pool().gone("h1")
    for seq in (1, 2):
        watch.nobody_sees("h1", "h2", "h3", slot=seq)
        watch.after(1.0)
    assert watch.hear(beat("h1")) == ["host.recovered"]
    assert watch.is_("h1") is S.HEALTHY
    suspected = [fact.number for fact in watch.told if fact.kind == "host.suspected"]
    assert watch.told[-1].suspicion == suspected[-1]


def test_without_a_slot_that_can_be_read_only_silence_speaks() -> None:
    watch = pool().gone("h1")
    at = watch.now
    while watch.is_("h1") is S.SUSPECT:
        watch.nobody_sees("h1", "h2", "h3", slot=None)
        watch.after(0.5)
    failed = next(fact for fact in watch.told if isinstance(fact, HostFailed))
    assert failed.rule == "silence-only"
    assert watch.now - at >= DEFAULT.confirm_silence_s - 0.7


def test_a_slot_of_another_boot_says_nothing_of_this_one() -> None:
    watch = pool().gone("h1")
    for seq in range(1, 6):
        old = SlotSeen(datastore="nfs", beat=SlotBeat(host="h1", boot="other", seq=seq))
        watch.answer("h1", "libvirt", Answer.SILENT)
        watch.answer("h1", "peer:h2", Answer.SILENT, slots=(old,))
        watch.after(0.5)
    assert watch.is_("h1") is S.SUSPECT


def test_witnesses_of_one_failure_domain_are_one_witness() -> None:
    labels = {"h1": "a", "h2": "b", "h3": "b", "h4": "a", "h5": "c"}
    watch = pool()
    watch.decider = replace(watch.decider, domains=labels)
    watch.gone("h1")
    for _ in range(6):
        watch.nobody_sees("h1", "h2", "h3")
        watch.after(0.5)
    assert watch.is_("h1") is S.SUSPECT
    for _ in range(2):
        watch.nobody_sees("h1", "h2", "h4")
        watch.after(0.5)
    assert watch.is_("h1") is S.FAILED


def test_peers_are_asked_a_neighbour_first_and_then_of_each_domain_in_turn() -> None:
    domains = {"h1": "a", "h2": "a", "h3": "b", "h4": "b", "h5": "c", "h6": "a"}
    assert order("h1", ["h2", "h3", "h4", "h5", "h6"], domains) == ["h2", "h3", "h5", "h4", "h6"]
    assert order("h1", ["h2", "h3"], {}) == ["h2", "h3"]
