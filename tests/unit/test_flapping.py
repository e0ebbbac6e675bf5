"""Hosts that fail again and again: counted, kept out, let in; and what placement makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from libs.events.hosts import HostQuarantined, HostReadmitted
from libs.events.words import HostReadmitOrdered, HostRemoved
from libs.model import HostState, PowerState
from tests.unit.made import beat, boot, fenced, stored
from tests.unit.placing import Desk
from tests.unit.test_words import entered, exited
from tests.unit.watch import Watch, pool

pytestmark = pytest.mark.fast
S = HostState
FLAP = {"failures_max": 3, "failures_window_s": 360.0, "quarantine_s": 720.0}
"""Minutes instead of the defaults' hours: each second is ten ticks of the detector."""


def reboots(watch: Watch, times: int, every_s: float = 60.0, host: str = "h1") -> list[str]:
    """The host is heard from another boot, again and again: a reboot that was noticed is a failure."""
    told: list[str] = []
    for _ in range(times):
        at = watch.state.record(host).at
        assert at is not None
        told += watch.hear(beat(host, int(at.boot.removeprefix(f"{host}boot")) + 1))
        told += watch.after(every_s)
    return told


def flapper(**more: Any) -> Watch:
    """Three hosts of which h1 fails three times within minutes."""
    watch = pool("h1", "h2", "h3", **{**FLAP, **more})
    reboots(watch, 3)
    return watch


def word(watch: Watch, number: int | None = None) -> HostReadmitOrdered:
    of = number if number is not None else watch.state.record("h1").quarantine
    return HostReadmitOrdered(host="h1", number=of, by="ann@desk")


def kinds(watch: Watch) -> list[str]:
    return [fact.kind for fact in watch.told if "quarantine" in fact.kind or "readmit" in fact.kind]


# -- the detector


def test_the_third_failure_within_the_window_quarantines_and_names_the_times() -> None:
    watch = pool("h1", "h2", "h3", **FLAP)
    assert "host.quarantined" not in reboots(watch, 2)
    told = reboots(watch, 1)
    assert told[:3] == ["host.failed", "host.quarantined", "host.joined"], "known before the host is back"
    fact = next(fact for fact in watch.told if isinstance(fact, HostQuarantined))
    assert (fact.host, fact.number) == ("h1", watch.state.record("h1").epoch)
    assert fact.failed_ago_s == pytest.approx((120.0, 60.0, 0.0), abs=0.5)
    assert watch.is_("h1") is S.HEALTHY, "it is watched as any other"


def test_a_verdict_of_failure_counts_as_a_reboot_does() -> None:
    watch = pool("h1", "h2", "h3", **FLAP)
    reboots(watch, 2)
    watch.gone("h1")
    at = watch.state.record("h1").at
    assert watch.answer("h1", "power", power=PowerState.OFF) == ["host.failed", "host.quarantined"]
    watch.hear(beat("h1", 9))
    assert at is not None
    assert watch.state.record("h1").quarantine == 3, "the next boot of a failed host is no failure more"
    assert len(watch.state.record("h1").failures) == 3


def test_failures_that_are_spread_over_more_than_the_window_do_not_count_together() -> None:
    watch = pool("h1", "h2", "h3", **FLAP)
    reboots(watch, 6, every_s=181.0)
    assert kinds(watch) == []
    assert len(watch.state.record("h1").failures) <= 3


def test_each_host_is_counted_by_itself() -> None:
    watch = pool("h1", "h2", "h3", **FLAP)
    for host in ("h1", "h2", "h3"):
        reboots(watch, 2, host=host)
    assert kinds(watch) == []


def test_it_fails_on_in_quarantine_and_that_is_told_once_and_its_quiet_time_begins_anew() -> None:
    watch = flapper()
    watch.after(640.0)
    reboots(watch, 1)
    assert kinds(watch) == ["host.quarantined"]
    watch.after(640.0)
    assert kinds(watch) == ["host.quarantined"]
    watch.after(60.0)
    assert kinds(watch) == ["host.quarantined", "host.readmitted"]


def test_a_quiet_time_lets_it_in_and_its_failures_are_forgotten() -> None:
    watch = flapper()
    watch.after(720.0)
    fact = watch.told[-1]
    assert isinstance(fact, HostReadmitted)
    assert (fact.number, fact.by) == (3, "")
    assert reboots(watch, 2).count("host.quarantined") == 0
    assert reboots(watch, 1).count("host.quarantined") == 1
    numbers = [fact.number for fact in watch.told if isinstance(fact, HostQuarantined)]
    assert numbers == [3, 6]


def test_an_operator_lets_it_in_and_a_word_on_another_quarantine_is_void() -> None:
    watch = flapper()
    assert watch.hear(word(watch, 2)) == []
    first = word(watch)
    assert watch.hear(first) == ["host.readmitted"]
    assert watch.told[-1].by == "ann@desk"
    assert watch.hear(first) == []
    reboots(watch, 3)
    assert watch.hear(first) == [], "told again, of a quarantine that is over"
    assert watch.state.record("h1").quarantine == 6


def test_a_host_that_was_removed_comes_back_without_its_past() -> None:
    watch = flapper()
    at = watch.state.record("h1").at
    assert at is not None
    watch.hear(HostRemoved(at=at, agent="life", by="ann@desk"))
    assert (watch.state.record("h1").quarantine, watch.state.record("h1").failures) == (0, ())


def successor(watch: Watch, now: float) -> Watch:
    """Another life of the detector, by a clock that shows `now`."""
    after = Watch("h1", "h2", "h3", now=now, **FLAP)
    after.resume(stored(watch.state.records))
    for host in ("h1", "h2", "h3"):
        at = watch.state.record(host).at
        assert at is not None
        after.hear(beat(host, int(at.boot.removeprefix(f"{host}boot"))))
    return after


def test_a_restart_of_the_detector_changes_nothing() -> None:
    watch = pool("h1", "h2", "h3", **FLAP)
    reboots(watch, 2)
    after = successor(watch, watch.now + 5.0)
    assert "host.quarantined" in reboots(after, 1)
    last = successor(after, after.now + 5.0)
    assert last.state.record("h1").quarantine == 3
    last.after(640.0)
    assert kinds(last) == []
    last.after(30.0)
    assert kinds(last) == ["host.readmitted"]


def test_after_a_reboot_of_the_management_machine_a_quarantine_begins_anew_and_no_failure_counts() -> None:
    watch = pool("h1", "h2", "h3", **FLAP)
    reboots(watch, 2)
    after = successor(watch, now=10.0)
    assert after.state.record("h1").failures == ()
    assert "host.quarantined" not in reboots(after, 2)
    quarantined = successor(flapper(), now=10.0)
    quarantined.after(710.0)
    assert kinds(quarantined) == []
    quarantined.after(20.0)
    assert kinds(quarantined) == ["host.readmitted"]


def test_what_a_host_fails_with_while_it_is_fenced_counts_once() -> None:
    watch = pool("h1", "h2", "h3", **FLAP).gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    incident = watch.state.record("h1").incident
    watch.hear(fenced(boot("h1")).model_copy(update={"incident": incident}))
    watch.hear(beat("h1", 2))
    assert len(watch.state.record("h1").failures) == 1


# -- placement


def closed(host: str, number: int = 3) -> HostQuarantined:
    return HostQuarantined(host=host, number=number, failed_ago_s=(2.0, 1.0, 0.0), window_s=1.0, quiet_s=1.0)


def opened(host: str, number: int = 3) -> HostReadmitted:
    return HostReadmitted(host=host, number=number)


def test_nothing_is_planned_onto_a_quarantined_host() -> None:
    desk = Desk()
    desk.runs("h1", "a", "b")
    desk.hear(closed("h3"))
    desk.dies("h1")
    assert desk.where() == {"a": "h2", "b": "h2"}


def test_what_runs_there_is_still_protected() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.hear(closed("h1"))
    assert desk.told == []
    desk.dies("h1")
    assert set(desk.where()) == {"a"}


def test_what_waits_is_planned_when_the_host_is_let_in() -> None:
    desk = Desk(hosts=2)
    desk.runs("h1", "a")
    desk.hear(closed("h2"))
    desk.dies("h1")
    assert desk.plans()[-1].starts == ()
    desk.after(30.0)
    assert "failover.planned" in [*desk.hear(opened("h2")), *desk.after(1.0)]
    assert desk.where() == {"a": "h2"}


@pytest.mark.parametrize("late", [False, True])
def test_the_words_may_come_in_any_order_and_again(late: bool) -> None:
    desk = Desk()
    facts: list[HostQuarantined | HostReadmitted] = [closed("h3"), opened("h3")]
    for fact in [*(facts[::-1] if late else facts), closed("h3")]:
        desk.hear(fact)
    assert not desk.state.words_on("h3").closed
    desk.hear(closed("h3", 6))
    desk.hear(opened("h3", 3))
    assert desk.state.words_on("h3").closed


def test_maintenance_and_quarantine_do_not_lift_each_other() -> None:
    desk = Desk()
    desk.hear(closed("h3"))
    desk.hear(entered("h3"))
    desk.hear(opened("h3"))
    assert desk.state.words_on("h3").closed
    desk.hear(closed("h3", 6))
    desk.hear(exited("h3"))
    assert desk.state.words_on("h3").closed
