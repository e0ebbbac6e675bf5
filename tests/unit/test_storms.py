"""Storms: held, released by an operator for those whom he was shown, and never for anybody else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from libs.events.words import StormReleaseOrdered
from libs.model import Answer, HostState, PowerState
from services.detector.state import STORM, UNSCANNED
from tests.unit.made import beat, boot, fenced, stored
from tests.unit.watch import Watch, pool

pytestmark = pytest.mark.fast
S = HostState
SIX = ("h1", "h2", "h3", "h4", "h5", "h6")


def storm(*silent: str) -> Watch:
    """Of six hosts these fall silent, three or more: a storm is held."""
    watch = pool(*SIX).gone(*(silent or ("h1", "h2", "h3")))
    assert watch.told[-1].kind == "storm.held"
    return watch


def word(watch: Watch, *suspects: str, order: int = 1, number: int | None = None) -> StormReleaseOrdered:
    held = watch.state.storm
    of = number if number is not None else held.number if held is not None else 1
    return StormReleaseOrdered(number=of, order=order, suspects=suspects, by="ann@desk")


def nobody_answers(watch: Watch, seconds: float, *silent: str) -> list[str]:
    """Every second all channels say of these hosts that nobody sees them."""
    told: list[str] = []
    for _ in range(round(seconds)):
        for host in silent:
            told += watch.nobody_sees(host, "h5", "h6")
        told += watch.after(1.0)
    return told


def failed(watch: Watch) -> set[str]:
    return {fact.at.host for fact in watch.told if fact.kind == "host.failed"}


# -- an operator's release


def test_whom_an_operator_releases_may_be_held_failed_and_the_storm_stays_held() -> None:
    watch = storm()
    nobody_answers(watch, 5, "h1", "h2", "h3")
    assert failed(watch) == set()
    assert watch.hear(word(watch, "h1", "h2", "h3")) == []
    nobody_answers(watch, 4, "h1", "h2", "h3")
    assert failed(watch) == {"h1", "h2", "h3"}
    assert watch.state.storm is not None, "they are silent still"
    told: list[str] = []
    for host in ("h1", "h2", "h3"):
        incident = watch.state.record(host).incident
        told += watch.hear(fenced(boot(host)).model_copy(update={"incident": incident}))
    assert watch.after(0.2) == ["storm.released"]
    assert watch.state.storm is None


def test_a_release_holds_also_where_nobody_is_heard_any_more() -> None:
    """Silence in which nobody at all is heard is no verdict, unless somebody has looked."""
    watch = storm(*SIX)
    nobody_answers(watch, 12, *SIX)
    assert failed(watch) == set()
    watch.hear(word(watch, *SIX))
    nobody_answers(watch, 9, *SIX)
    assert failed(watch) == set(SIX)


def test_hosts_that_hang_all_at_once_are_a_storm_and_held() -> None:
    """A datastore that stalls for all of them: their kernels answer, and nothing stands on its own."""
    watch = storm()
    for _ in range(60):
        for host in ("h1", "h2", "h3"):
            watch.answer(host, "libvirt", Answer.HANGS)
            for peer in ("h5", "h6"):
                watch.answer(host, f"peer:{peer}", Answer.HANGS, slots=(watch.slot(host, 7),))
        watch.after(1.0)
    assert failed(watch) == set()


def test_a_suspect_more_than_the_operator_saw_is_held_and_that_is_told() -> None:
    watch = storm()
    first = watch.told[-1]
    watch.hear(word(watch, "h1", "h2", "h3"))
    watch.gone("h4")
    again = watch.told[-1]
    assert (again.kind, again.suspects) == ("storm.held", ("h1", "h2", "h3", "h4"))
    assert again.number == first.number + 1
    nobody_answers(watch, 12, "h1", "h2", "h3", "h4")
    assert failed(watch) == {"h1", "h2", "h3"}, "those go on, since the word was about them"
    watch.hear(word(watch, "h1", "h2", "h3", order=2, number=first.number))
    watch.hear(word(watch, "h4", order=1))
    nobody_answers(watch, 4, "h4")
    assert failed(watch) == {"h1", "h2", "h3"}, "a word on the storm as it was, and one told again"
    watch.hear(word(watch, "h1", "h2", "h3", "h4", order=2))
    nobody_answers(watch, 4, "h4")
    assert failed(watch) == {"h1", "h2", "h3", "h4"}


def test_a_suspect_that_was_not_named_in_the_word_is_held_and_told_of() -> None:
    watch = storm("h1", "h2", "h3", "h4")
    watch.hear(word(watch, "h1", "h2", "h3"))
    assert watch.after(0.2) == ["storm.held"]
    nobody_answers(watch, 12, "h1", "h2", "h3", "h4")
    assert failed(watch) == {"h1", "h2", "h3"}


def test_a_host_that_spoke_since_its_release_is_held_when_it_falls_silent_again() -> None:
    watch = storm("h1", "h2", "h3", "h4")
    watch.hear(word(watch, "h1", "h2", "h3", "h4"))
    watch.hear(beat("h1"))
    watch.after(0.3)
    nobody_answers(watch, 12, "h1")
    assert watch.is_("h1") is S.SUSPECT
    assert [fact.kind for fact in watch.told].count("storm.held") == 2


def test_a_release_without_a_storm_or_of_another_one_is_void() -> None:
    watch = pool(*SIX)
    watch.hear(word(watch, "h1", number=1))
    assert watch.state.records.get(STORM) is None
    watch = storm()
    watch.hear(word(watch, "h1", "h2", "h3", number=99))
    nobody_answers(watch, 12, "h1", "h2", "h3")
    assert failed(watch) == set()


def test_a_release_holds_for_a_successor_and_a_storm_too() -> None:
    watch = storm("h1", "h2", "h3", "h4")
    watch.hear(word(watch, "h1", "h2", "h3"))
    watch.after(0.2)
    after = Watch(*SIX, now=watch.now)
    after.silent = set(watch.silent)
    after.resume(stored(watch.state.records))
    for host in ("h5", "h6"):
        after.hear(beat(host))
    nobody_answers(after, 6, "h1", "h2", "h3", "h4")
    assert failed(after) == {"h1", "h2", "h3"}
    assert "storm.held" not in [fact.kind for fact in after.told], "it is held and told already"


def test_the_next_storm_knows_nothing_of_the_last_release() -> None:
    watch = storm()
    watch.hear(word(watch, "h1", "h2", "h3"))
    watch.silent.clear()
    watch.after(1.0)
    assert watch.state.storm is None
    watch.gone("h1", "h2", "h3")
    assert watch.told[-1].kind == "storm.held"
    nobody_answers(watch, 12, "h1", "h2", "h3")
    assert failed(watch) == set()
    assert len({fact.key for fact in watch.told if fact.kind == "storm.held"}) == 2


def test_a_word_makes_no_verdict_of_who_answers_elsewhere() -> None:
    watch = storm()
    watch.hear(word(watch, "h1", "h2", "h3"))
    watch.answer("h1", "libvirt", Answer.UP)
    assert watch.is_("h1") is S.AGENT_DOWN


def test_a_proof_passes_unreleased() -> None:
    watch = storm()
    assert watch.answer("h2", "power", power=PowerState.OFF) == ["host.failed"]


# -- while the set of suspects still grows


def until_failed(watch: Watch, host: str) -> float:
    """Seconds from its suspicion until it is held failed; every channel is silent at once."""
    since = next(at for at, fact in timed(watch) if fact.kind == "host.suspected" and fact.at.host == host)
    while watch.is_(host) is not S.FAILED and watch.now - since < 60:
        watch.nobody_sees(host, "h5", "h6")
        watch.after(0.1)
    return watch.now - since


def timed(watch: Watch) -> list[tuple[float, Any]]:
    return [
        (watch.state.silent_since[fact.at.host], fact) for fact in watch.told if hasattr(fact, "silent_s")
    ]


@pytest.mark.parametrize("settle_s", [0.0, 1.0, 5.0])
def test_a_single_host_is_held_failed_as_soon_as_without_settling(settle_s: float) -> None:
    watch = pool(*SIX, storm_settle_s=settle_s).gone("h1")
    assert until_failed(watch, "h1") == pytest.approx(2.55, abs=0.11)


@pytest.mark.parametrize(("later_s", "takes_s"), [(0.5, 2.5), (2.0, 3.0), (10.0, 2.5)])
def test_a_verdict_waits_while_others_fall_silent(later_s: float, takes_s: float) -> None:
    """h2 falls silent so long after h1; within settle_s of h1's verdict that waits for it."""
    watch = pool(*SIX).gone("h1")
    first = watch.state.silent_since["h1"]
    told_at: dict[str, float] = {}
    while not told_at and watch.now - first < 9:
        if watch.now - first >= later_s - 1.5:
            watch.silent.add("h2")
        watch.nobody_sees("h1", "h5", "h6")
        if "host.failed" in watch.after(0.1):
            told_at["h1"] = watch.now - first
    assert told_at["h1"] == pytest.approx(takes_s, abs=0.35)


def test_who_was_suspected_for_a_moment_delays_nobody() -> None:
    watch = pool(*SIX).gone("h1")
    first = watch.state.silent_since["h1"]
    watch.nobody_sees("h1", "h5", "h6")
    watch.until(first + 0.4)
    watch.silent.add("h2")
    watch.until(first + 2.3)
    assert watch.is_("h2") is S.SUSPECT
    watch.silent.discard("h2")
    watch.hear(beat("h2"))
    assert until_failed(watch, "h1") == pytest.approx(2.55, abs=0.2)


def witnessed(order: tuple[str, ...], until: float | None = None) -> Watch:
    """Of four hosts h1 is silent and its peers say so: until then, or until it is held failed."""
    watch = pool(*order).gone("h1")
    while watch.is_("h1") is S.SUSPECT and (until is None or watch.now + 0.1 < until - 1e-6):
        if round(watch.now * 10) % 5 == 0:
            watch.nobody_sees("h1", "h3", "h4")
        watch.after(0.1)
    return watch


@pytest.mark.parametrize("order", [("h1", "h2", "h3", "h4"), ("h2", "h1", "h3", "h4")])
def test_who_falls_silent_at_the_very_tick_of_a_verdict_makes_it_a_storm(order: tuple[str, ...]) -> None:
    """Two at once are too many of four, whoever is looked at first."""
    alone = witnessed(order)
    assert alone.is_("h1") is S.FAILED
    watch = witnessed(order, until=alone.now)
    assert watch.is_("h1") is S.SUSPECT
    tick = watch.decider.wake_at(watch.state)
    assert tick is not None
    assert tick == pytest.approx(alone.now)
    view = replace(watch.state.view("h2"), heard_at=tick - watch.decider.settings.suspect_after_s)
    watch.state = replace(watch.state, views=watch.state.views.insert("h2", view), scan=UNSCANNED)
    watch.now = tick
    told = watch.take(watch.decider.step(watch.state, None, tick))
    assert (watch.is_("h1"), watch.is_("h2")) == (S.SUSPECT, S.SUSPECT)
    assert "storm.held" in told
