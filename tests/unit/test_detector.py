"""Silence to suspicion to verdict: what each piece of evidence leads to, and what is never concluded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from libs.config.settings import Detection
from libs.model import Answer, HostState, PowerState, VmPolicy
from services.detector.verdict import RULES, Evidence, judge, storm_limit
from tests.unit.made import (
    beat,
    boot,
    crashed,
    seen,
    vm,
)
from tests.unit.watch import DEFAULT, S, Watch, pool

pytestmark = pytest.mark.fast


# -- the table of rules

NOTHING = Evidence(silent_s=9, quiet_s=0)
SILENT = {"unreachable": True}
WITNESSED = {**SILENT, "votes": 2, "domains": 2, "slot_still": True, "quiet_s": 2.5}
OUTVOTED = {**WITNESSED, "lives_elsewhere": True, "lone": True}
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
        ({**OUTVOTED, "lone_s": 8.0}, "outvoted", S.FAILED),
        ({**OUTVOTED, "lone_s": 7.99}, "answers-elsewhere", S.AGENT_DOWN),
        ({**OUTVOTED, "lone_s": 8.0, "lone": False}, "answers-elsewhere", S.AGENT_DOWN),
        ({**OUTVOTED, "lone_s": 8.0, "votes": 1, "domains": 1}, "answers-elsewhere", S.AGENT_DOWN),
        ({**OUTVOTED, "lone_s": 8.0, "domains": 1}, "answers-elsewhere", S.AGENT_DOWN),
        ({**OUTVOTED, "lone_s": 8.0, "slot_still": False}, "answers-elsewhere", S.AGENT_DOWN),
        ({**OUTVOTED, "lone_s": 8.0, "unreachable": False}, "answers-elsewhere", S.AGENT_DOWN),
        ({**OUTVOTED, "lone_s": 8.0, "hangs": True}, "answers-elsewhere", S.AGENT_DOWN),
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
