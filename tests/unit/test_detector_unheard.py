"""Hosts that fall silent while nobody else is heard, and any walk of what can befall them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rpds import HashTrieMap

from libs import lifecycle
from libs.core.decider import BusChanged, Expired, Paused
from libs.events.signals import Goodbye, Heartbeat
from libs.model import Answer, HostState, Incarnation, PowerState
from services.detector.asks import Answered
from services.detector.state import HostRecord
from tests.unit.made import (
    beat,
    boot,
    crashed,
    fenced,
    seen,
    vm,
)
from tests.unit.watch import DEFAULT, S, Watch, pool, records_of

pytestmark = pytest.mark.fast


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


def test_a_suspicion_that_lasts_in_a_large_pool_holds_no_more_for_it() -> None:
    """Peers take turns: each answer is of use for some rounds, and is forgotten then."""
    watch = pool(*(f"h{n}" for n in range(1, 61)))
    watch.gone("h1")
    asked = set()
    for _ in range(40):
        watch.answer("h1", "libvirt", Answer.UP)
        for ask in [one for one in watch.asked if one.kind == "ask_peer"]:
            asked.add(ask.peer)
            watch.answer("h1", f"peer:{ask.peer}", Answer.UP)
        watch.asked.clear()
        watch.after(1.0)
    suspicion = watch.state.view("h1").suspicion
    assert suspicion is not None
    assert len(asked) > 50
    assert {"libvirt", "power"} < set(suspicion.channels)
    assert len(suspicion.channels) <= 13
    assert len(suspicion.signs) == 2


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
