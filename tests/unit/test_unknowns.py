"""What is not known of a host is told once, and its end, too: hosts that are not heard, VMs that nobody can read. S14: what
cannot be read is shown as unknown, never as stopped."""

from __future__ import annotations

import dataclasses

import pytest
from rpds import HashTrieMap

from libs.config.settings import Settings
from libs.core.decider import Expired
from libs.events.signals import Heartbeat
from libs.events.words import HostRemoved
from libs.model import HostState, VmState
from libs.poolview import PoolView
from services.alerting.texts import Severity, tell
from services.detector.state import HostRecord
from tests.unit.made import boot, inventory, seen, stored, vm
from tests.unit.test_agent import Desk as AgentDesk
from tests.unit.test_operator import Pool
from tests.unit.test_watching import Onlooker
from tests.unit.watch import Watch, pool

pytestmark = pytest.mark.fast
UNHEARD_S, UNREAD_S, QUIET_S = 8.0, 15.0, 60.0
H1 = boot("h1")


def alerting(watch: Watch) -> Watch:
    watch.decider = dataclasses.replace(watch.decider, unheard_after_s=UNHEARD_S, unread_after_s=UNREAD_S)
    return watch


def started_anew(before: Watch) -> Watch:
    """A detector that starts with the plane, on what the one before has stored."""
    watch = alerting(Watch(*before.decider.hosts, now=before.now + 1000.0))
    watch.resume(stored(before.state.records))
    return watch


# -- not heard


def test_a_known_host_that_is_not_heard_since_the_start_is_told_of_once_until_it_is_heard() -> None:
    watch = started_anew(pool("h1", "h2", "h3"))
    watch.silent = {"h1"}
    assert watch.after(UNHEARD_S - 0.5) == []
    assert watch.is_("h1") is HostState.UNKNOWN
    assert watch.after(2.0) == ["host.unknown"]
    severity, text = tell(watch.told[-1])
    assert severity is Severity.WARNING
    assert "host h1 has not been heard for 8" in text
    assert watch.after(30) == [], "once"
    assert watch.hear(watch.beat_of(H1)) == ["host.joined"]
    assert watch.told[-1].unknown == 1, "it names what is over"
    assert watch.told[-1].key.endswith("/1")


def test_the_alert_is_not_repeated_by_a_successor_and_a_second_one_has_another_number() -> None:
    watch = started_anew(pool("h1", "h2", "h3"))
    watch.silent = {"h1"}
    watch.after(20)
    again = started_anew(watch)
    again.silent = {"h1"}
    assert "host.unknown" not in again.after(30)
    assert again.hear(again.beat_of(H1)) == ["host.joined"]
    third = started_anew(again)
    third.silent = {"h1"}
    assert third.after(20) == ["host.unknown"]
    assert third.told[-1].number == 2


def test_a_host_that_goes_on_being_silent_after_the_quiet_time_is_suspected_as_before() -> None:
    watch = started_anew(pool("h1", "h2", "h3"))
    watch.silent = {"h1"}
    assert watch.after(QUIET_S + 0.5) == ["host.unknown", "host.suspected"]
    assert watch.state.record("h1").unheard == 0


@pytest.mark.long
def test_a_host_of_the_pool_file_that_nobody_ever_heard_is_told_of_after_the_quiet_time() -> None:
    watch = alerting(Watch("h1", "h2"))
    watch.resume(HashTrieMap())
    watch.hear(watch.beat_of(boot("h2")))
    watch.silent = {"h1"}
    assert watch.after(QUIET_S - 1.0) == [], "it has time to join"
    assert watch.after(3600) == ["host.unknown"]
    assert "never heard of" in watch.told[-1].rule
    assert watch.is_("h1") is HostState.UNKNOWN
    assert watch.asked == [], "and nothing is done"
    assert watch.hear(watch.beat_of(H1)) == ["host.joined"]


@pytest.mark.long
def test_a_host_that_was_removed_is_missed_by_nobody() -> None:
    watch = alerting(pool("h1", "h2"))
    watch.hear(HostRemoved(at=H1, agent="life", number=1, by="ann"))
    watch.silent = {"h1"}
    assert watch.after(3600) == []


def test_whoever_is_deaf_itself_says_of_nobody_that_it_is_not_heard() -> None:
    watch = started_anew(pool("h1", "h2"))
    watch.silent, watch.deafened = {"h1", "h2"}, True
    assert "host.unknown" not in watch.after(30)


# -- not read


def test_an_agent_says_for_how_long_it_could_not_read_its_vms() -> None:
    desk = AgentDesk().passed()
    desk.reads(vm("a"))
    desk.after(4.0)
    beats = [one for one in desk.said if isinstance(one, Heartbeat)]
    assert beats[-1].unread_s == pytest.approx(4.0, abs=0.6)
    for _ in range(8):
        desk.after(2.5)
        if desk.state.reading:
            desk.hear(Expired(key="read/1", request="read_all", reason="permission denied"))
    beats = [one for one in desk.said if isinstance(one, Heartbeat)]
    assert beats[-1].unread_s > 20.0
    assert [report.state for report in desk.state.inventory.vms] == [VmState.RUNNING], "its last word stands"  # type: ignore[union-attr]
    desk.after(1.0)
    desk.reads(vm("a"))
    desk.after(0.6)
    assert desk.said[-1].unread_s < 1.0


def unread(seconds: float) -> Heartbeat:
    return Heartbeat(at=H1, agent="life", seq=1, unread_s=seconds)


def test_vms_that_their_agent_cannot_read_are_told_of_once_and_so_is_the_end() -> None:
    watch = alerting(pool())
    assert watch.hear(unread(14.9)) == []
    assert watch.hear(unread(15.0)) == ["host.vms_unknown"]
    assert tell(watch.told[-1])[0] is Severity.WARNING
    assert watch.hear(unread(15.5)) == []
    assert watch.is_("h1") is HostState.HEALTHY, "no verdict on the host"
    successor = alerting(Watch(*watch.decider.hosts)).joined()
    successor.resume(stored(watch.state.records))
    assert successor.hear(unread(40.0)) == [], "told already"
    assert successor.hear(unread(0.2)) == ["host.vms_known"]
    assert successor.told[-1].number == 1
    assert successor.hear(unread(0.4)) == []
    assert successor.hear(unread(16.0)) == ["host.vms_unknown"]
    assert successor.told[-1].number == 2


def test_a_host_without_its_agent_at_which_nobody_can_look_is_told_of_and_so_is_the_end() -> None:
    on = Onlooker(vm("a"))
    alerting(on.watch)
    told: list[str] = []
    for _ in range(10):
        on.passes(2.2)
        asked = on.looks()[-1]
        told += on.hear(Expired(key=asked.key, request=asked.kind, reason="permission denied"))
    assert told == ["host.vms_unknown"]
    assert on.watch.told[-1].rule == "permission denied"
    assert on.shows(vm("a")) == ["host.vms_known"]


def test_a_host_without_its_agent_that_never_said_what_it_runs_is_told_of() -> None:
    on = Onlooker()
    alerting(on.watch)
    on.passes(UNREAD_S + 1.0)
    assert [fact.kind for fact in on.watch.told].count("host.vms_unknown") == 1
    on.watch.hear(seen(H1, vm("a"), agent="life"))
    assert on.shows(vm("a")) == ["host.vms_known"]


async def test_s14_vms_that_nobody_can_read_are_shown_as_unknown_and_never_as_stopped() -> None:
    shown = Pool(records={"h1": HostRecord(host="h1", state=HostState.HEALTHY, at=H1, unread=1)})
    shown.inventories["h1"] = inventory(H1, vm("a"))
    settings = Settings.model_validate({"hosts": [{"name": "h1", "uri": "test:///default"}]})
    view = PoolView(settings, shown.store)
    assert [(row["vm"], row["state"]) for row in await view.vms()] == [("A", "unknown")]
    shown.records["h1"] = HostRecord(host="h1", state=HostState.HEALTHY, at=H1)
    assert [(row["vm"], row["state"]) for row in await view.vms()] == [("A", "running")]
