"""Since when a host is known to be in its boot, for detectors that begin on another machine: by the clocks of other hosts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from libs.core.decider import TableRead
from libs.events.signals import Heartbeat
from libs.model import Answer, HostState, Incarnation
from services.detector.asks import Looked, LookOverLibvirt
from services.detector.clocks import ANEW_S, KEPT
from services.detector.state import DetectorState, Heard, HostRecord
from services.detector.watching import EVERY_S
from tests.unit.made import boot, inventory, seen, stored, vm
from tests.unit.watch import Watch

pytestmark = pytest.mark.fast
H1 = boot("h1")
HOSTS = ("h1", "h2", "h3", "h4", "h5", "h6", "h7")
BEGAN = 1000.0
LIFE = "life"


class Clocked(Watch):
    """A detector on a machine of its own, whose clock shows something else than any host's."""

    def __init__(self, machine: str, now: float = BEGAN, ahead: float = 0.0) -> None:
        super().__init__(*HOSTS, now=now + ahead)
        self.decider = dataclasses.replace(self.decider, machine=machine)
        self.state: DetectorState = self.decider.initial(self.now)
        self.ahead = ahead
        self.off: dict[str, float] = {}
        """By host how far its clock is off."""
        self.boots: dict[str, int] = {}
        """By host the boot that it speaks from, where not from the one that is known."""

    def beat_of(self, at: Incarnation) -> Heartbeat:
        at = boot(at.host, self.boots[at.host]) if at.host in self.boots else at
        zero = 1e4 * HOSTS.index(at.host)
        shown = self.now - self.ahead + zero + self.off.get(at.host, 0.0)
        return Heartbeat(at=at, agent=LIFE, seq=1, clock_s=shown)

    def joined(self) -> Clocked:
        for host in HOSTS:
            self.hear(self.beat_of(boot(host)))
        return self

    def agent_down(self, host: str) -> Clocked:
        self.gone(host)
        assert self.answer(host, "libvirt", Answer.UP) == ["host.agent_down"]
        return self

    def known(self) -> HostRecord:
        return self.state.record("h1")

    def heard(self) -> Heard:
        found = self.known().heard
        assert found is not None
        return found

    def looks(self) -> list[LookOverLibvirt]:
        return [one for one in self.asked if isinstance(one, LookOverLibvirt)]


def first() -> Clocked:
    """The detector that has heard h1 to the end, and its record of it."""
    before = Clocked("m1").joined()
    before.hear(seen(H1, vm("a"), agent=LIFE))
    before.after(3.0)
    return before.agent_down("h1")


def cold(before: Clocked, later_s: float, *, machine: str = "m2", **more: Any) -> Clocked:
    """A detector that begins so much later, and has nothing but what is stored."""
    after = Clocked(machine, before.now - before.ahead + later_s, ahead=77_000.0)
    after.off = more.get("off", {})
    after.silent.add("h1")
    after.boots = more.get("boots", {})
    for host in HOSTS[1:]:
        after.hear(after.beat_of(boot(host)))
    after.resume(stored(before.state.records))
    after.hear(TableRead("inventory", (inventory(H1, vm("a"), agent=LIFE, rev=3),)))
    after.after(0.5)
    return after


def test_a_detector_on_another_machine_reads_on_other_hosts_clocks_how_long_ago_it_was_heard() -> None:
    before = first()
    silent_s = before.now - (before.state.view("h1").heard_at or 0.0)
    [look] = cold(before, 40.0).looks()
    assert look.known_s == pytest.approx(40.0 + silent_s, abs=0.7)


def test_so_does_a_third_that_begins_after_the_second_has_looked() -> None:
    """What the second has seen is stored, by its own clock and the hosts'."""
    second = cold(first(), 40.0)
    [asked] = second.looks()
    second.after(2 * ANEW_S)
    asked = second.looks()[-1]
    second.hear(Looked(key=asked.key, at=H1, agent=asked.agent, rev=asked.rev, reports=(vm("a"),)))
    [look] = cold(second, 30.0, machine="m3").looks()
    assert look.known_s is not None
    assert 30.0 < look.known_s < 30.0 + ANEW_S


def test_a_host_that_rebooted_meanwhile_has_another_clock() -> None:
    boots = dict.fromkeys(HOSTS, 2)
    assert [look.known_s for look in cold(first(), 40.0, boots=boots).looks()] == [None]
    boots.pop("h3")
    [look] = cold(first(), 40.0, boots=boots).looks()
    assert look.known_s == pytest.approx(42.0, abs=0.7), "one clock that goes on is enough"


def test_a_clock_that_stood_still_is_outvoted_and_one_that_went_back_makes_all_doubtful() -> None:
    [look] = cold(first(), 40.0, off={"h2": -35.0}).looks()
    assert look.known_s == pytest.approx(42.0, abs=0.7)
    assert [look.known_s for look in cold(first(), 40.0, off={"h2": -500.0}).looks()] == [None]


def test_a_process_that_beats_for_a_host_from_elsewhere_shows_no_clock_of_that_host() -> None:
    before = Clocked("m1")
    before.decider = dataclasses.replace(before.decider, agentless=frozenset(HOSTS[1:]))
    before.joined().after(1.0)
    assert before.heard().clocks == {}
    assert len(first().heard().clocks) == KEPT


@pytest.mark.long
def test_what_is_stored_of_a_host_that_is_well_is_never_much_older_than_half_of_what_is_known() -> None:
    """Its agent may die while nobody listens: then a kernel that has run for longer than that is ago must be one that
    ran before."""
    watch = Clocked("m1").joined()
    written, last = 0, watch.heard()
    for _ in range(150):
        watch.after(40.0)
        known = watch.heard()
        assert watch.now - known.at < max(2 * ANEW_S, 0.55 * (watch.now - BEGAN))
        written += known != last
        last = known
    assert written <= 8, "the longer it is known, the rarer"


def test_a_boot_that_follows_is_known_from_its_own_beginning() -> None:
    watch = Clocked("m1").joined()
    watch.after(400.0)
    assert watch.heard().span_s > 100.0
    watch.hear(watch.beat_of(boot("h1", 2)))
    assert watch.heard().span_s == 0.0
    assert watch.known().state is HostState.HEALTHY


def test_an_agent_that_died_while_nobody_listened_is_found_and_its_vms_are_watched() -> None:
    """The plane is away, and the agent dies meanwhile: the next plane, elsewhere, never hears it."""
    before = Clocked("m1").joined()
    before.hear(seen(H1, vm("a"), agent=LIFE))
    before.after(300.0)
    after = cold(before, 3600.0)
    assert after.looks() == []
    after.until(after.now + after.decider.settings.quiet_after_start_s + 1.0)
    assert after.state.record("h1").state is HostState.SUSPECT
    assert after.answer("h1", "libvirt", Answer.UP) == ["host.agent_down"]
    after.after(EVERY_S)
    [look] = after.looks()
    assert look.known_s is not None
    assert 3600.0 < look.known_s < 3600.0 + 0.55 * 300.0 + 100.0
