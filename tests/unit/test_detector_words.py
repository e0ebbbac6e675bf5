"""What hosts, people and other systems say to the detector, and what storage slots show it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs.core.decider import Input
from libs.events.hosts import HostFailed
from libs.events.outside import OutsideTold
from libs.events.signals import Goodbye, SlotSeen
from libs.model import Answer, PowerState
from libs.promises import SlotBeat
from services.detector.asks import Answered, AskPeer, Disconnected, Panicked
from services.detector.evidence import order
from tests.unit.made import (
    beat,
    boot,
)
from tests.unit.watch import DEFAULT, S, pool

pytestmark = pytest.mark.fast


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


def outside(action: str = "mark_suspect", host: str = "h1") -> OutsideTold:
    said = {"source": "monitoring", "id": "1", "name": "DiskFailing", "host": host, "action": action}
    return OutsideTold.model_validate(said)


def test_a_host_that_others_speak_against_is_asked_after_and_its_heartbeat_ends_that() -> None:
    watch = pool()
    watch.silent.add("h1")  # until its next beat
    watch.hear(outside())
    assert watch.after(0.1) == ["host.suspected"], "though it has beaten a moment ago"
    watch.silent.clear()
    assert watch.told[-1].rule == "told by monitoring: DiskFailing"
    assert {request.kind for request in watch.asked} == {"ask_power", "ask_libvirt", "ask_peer"}
    assert watch.hear(beat("h1")) == ["host.refuted"]
    assert watch.after(5.0) == []


def test_what_others_say_of_a_host_is_no_evidence() -> None:
    watch = pool()
    watch.silent.add("h1")
    watch.hear(outside())
    watch.after(0.1)
    watch.nobody_sees("h1", "h2", "h3")
    assert watch.after(0.5) == []
    assert watch.is_("h1") is S.SUSPECT


def test_a_note_and_a_word_on_another_host_ask_nobody() -> None:
    watch = pool()
    for word in (outside("note"), outside("drain"), outside(host="h99")):
        watch.hear(word)
    assert watch.after(3.0) == []
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
