"""Placement of single VMs: crashes, what could not be stopped, and what people do meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from libs.core.decider import TableRead
from libs.events.hosts import (
    HostAgentDown,
    HostIsolated,
    HostJoined,
    HostObeyed,
    HostRecovered,
    HostRefuted,
    HostSuspected,
)
from libs.events.vms import VmStopFailed
from libs.model import Incarnation, LeaseState, ProofMethod, StopReason, VmReport, VmState
from tests.unit.made import (
    beat,
    boot,
    crashed,
    failed,
    fenced,
    lease,
    proof,
    seen,
    stored,
    vm,
)
from tests.unit.placing import H1, H2, Desk

pytestmark = pytest.mark.fast


# -- a VM


def test_a_crashed_vm_is_restarted_in_place_first() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    assert desk.crashes("a") == ["failover.planned"]
    start = desk.last()
    assert (start.to, start.origin, start.run, start.proofs) == (H1, H1, 1, ())
    assert desk.starts() == ["failover.completed"]
    assert desk.open() == []


def test_a_crash_told_again_after_the_restart_changes_nothing_and_hides_no_later_crash() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.crashes("a", run=1)
    desk.starts()
    desk.show("h1", vm("a", run=2))
    for _ in range(10):
        assert desk.hear(desk.crash("a", H1, 1)) == []
    assert desk.open() == []
    assert desk.crashes("a", run=2) == ["failover.planned"]
    assert desk.last().run == 2
    assert desk.last().to == H1, "repeats do not eat the budget"


def test_a_crash_that_the_detector_has_not_told_is_told_before_its_restart_is() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.show("h1", crashed("a"))
    assert desk.hear(TableRead("leases", (lease("a", H1),))) == ["vm.failed", "failover.planned"]
    assert desk.last().to == H1
    assert desk.hear(desk.crash("a", H1, 1)) == [], "told by the detector after all"
    assert desk.starts() == ["failover.completed"]
    assert desk.hear(TableRead("leases", (lease("a", H1),))) == []


def test_a_vm_that_keeps_crashing_is_tried_in_place_then_elsewhere_then_given_up() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    at, where = H1, []
    for run in range(1, 7):
        assert desk.crashes("a", at, run) == ["failover.planned"]
        desk.show(at.host)
        at = desk.last().to
        where.append(at.host)
        desk.starts()
        desk.show(at.host, vm("a", run=run + 1))
    assert where[:3] == ["h1", "h1", "h1"]
    assert all(one != other for one, other in zip(["h1", *where[3:]], where[3:], strict=False))
    assert desk.crashes("a", at, 7) == ["vm.given_up"]
    assert desk.told[-1].failures == 7
    assert desk.after(600) == []
    assert desk.crashes("a", at, 7) == [], "told again"


def test_a_vm_given_up_stays_down_though_its_crash_is_told_again_much_later() -> None:
    """A detector that takes over tells all crashes that it sees; the server has forgotten the first telling."""
    desk = Desk()
    desk.runs("h1", "a")
    for run in range(1, 7):
        desk.crashes("a", H1, run)
        start = desk.last()
        desk.starts(start.model_copy(update={"to": H1}))
    assert desk.crashes("a", H1, 7) == ["vm.given_up"]
    desk.now += 7200
    assert desk.hear(desk.crash("a", H1, 7)) == []


def test_vms_with_uuids_that_begin_alike_have_incidents_of_their_own() -> None:
    desk = Desk()
    one, other = (f"52540000-0000-0000-0000-{number:012}" for number in (1, 2))
    desk.runs("h1", one, other)
    desk.crashes(one)
    desk.crashes(other)
    assert {start.vm for plan in desk.plans() for start in plan.starts} == {one, other}
    assert len(desk.open()) == 2


def test_crashes_far_apart_never_use_the_budget_up() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    for run in range(1, 12):
        assert desk.crashes("a", H1, run) == ["failover.planned"]
        assert desk.last().to == H1
        desk.starts()
        desk.show("h1", vm("a", run=run + 1))
        desk.now += 3700


def ordered(uuid: str, **more: Any) -> VmReport:
    return vm(uuid, VmState.STOPPED, stop_reason=StopReason.ORDERED, **more)


def rescan(desk: Desk) -> list[str]:
    return desk.hear(TableRead(table="leases", rows=()))


def test_what_an_order_stopped_is_started_though_nobody_waits_for_its_hosts_word_any_more() -> None:
    desk = Desk()
    desk.runs("h1", "a", "b")
    desk.leased("b", H1, LeaseState.STOPPED, seq=9)
    desk.show("h1", ordered("a", run=3), ordered("b"))
    assert rescan(desk) == ["failover.planned"]
    assert list(desk.where()) == ["a"]
    assert (desk.last().run, desk.last().evict, desk.last().proofs) == (3, False, ())
    assert desk.last().to != H1
    assert rescan(desk) == []
    desk.starts()
    assert rescan(desk) == []


def test_what_was_stopped_by_order_before_it_was_started_there_again_is_history() -> None:
    desk = Desk()
    desk.show("h1", ordered("a", run=3, token=1))
    desk.leased("a", H1, token=2, start_key="x/a/1")
    assert rescan(desk) == []


def test_a_crash_of_a_vm_that_has_moved_on_is_history() -> None:
    desk = Desk()
    desk.leased("a", H2)
    assert desk.hear(desk.crash("a", H1, 1)) == []
    desk.leased("b", H1, LeaseState.STOPPED)
    assert desk.hear(desk.crash("b", H1, 1)) == []


def test_a_crashed_vm_on_a_host_in_doubt_waits_for_the_doubt_to_end() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.hear(HostSuspected(at=H1, number=1, silent_s=1.5))
    assert desk.crashes("a") == []
    assert desk.after(5) == []
    desk.hear(HostRefuted(at=H1, number=1))
    assert desk.after(1) == ["failover.planned"]
    assert desk.last().to == H1


def test_a_host_that_recovered_is_in_no_doubt_though_its_verdict_is_heard_after_that() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    suspected = HostSuspected(at=H1, number=3, silent_s=1.5)
    desk.hear(suspected)
    desk.hear(HostRecovered(at=H1, incident="h1-b1-1", epoch=1, suspicion=3))
    desk.hear(HostIsolated(at=H1, incident="h1-b1-1", epoch=1))
    desk.hear(suspected)
    assert "failover.planned" in [*desk.crashes("a"), *desk.after(1)]
    assert desk.last().to == H1


def test_a_verdict_that_is_over_leaves_the_doubt_that_it_left_its_host_in() -> None:
    """Isolated, and a network reaches it again, but not its agent."""
    desk = Desk()
    desk.runs("h1", "a")
    desk.hear(HostSuspected(at=H1, number=3, silent_s=1.5))
    desk.hear(HostIsolated(at=H1, incident="h1-b1-1", epoch=1))
    desk.hear(HostRecovered(at=H1, incident="h1-b1-1", epoch=1))
    desk.hear(HostAgentDown(at=H1, number=3))
    assert desk.crashes("a") == []
    assert desk.after(5) == []


def test_a_crashed_vm_is_not_restarted_in_place_on_another_boot_of_its_host() -> None:
    """The host came back before we heard that its former boot is over."""
    desk = Desk()
    desk.runs("h1", "a")
    desk.off.add("h1")
    desk.hear(HostSuspected(at=H1, number=1, silent_s=1.5))
    desk.crashes("a")
    again = boot("h1", 2)
    desk.hear(HostJoined(at=again))
    for _ in range(3):
        desk.hear(beat("h1", 2))
        desk.hear(seen(again))
        desk.after(1.0)
    assert desk.plans() == []


def test_a_crashed_vm_whose_host_then_fails_is_restarted_elsewhere() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.hear(HostSuspected(at=H1, number=1, silent_s=1.5))
    desk.crashes("a")
    desk.dies("h1")
    desk.after(1)
    assert desk.last().vm == "a"
    assert desk.last().to.host in ("h2", "h3")
    assert [one.of for one in desk.last().proofs] == [H1]


def test_a_crashed_vm_that_a_person_started_again_is_left_alone_and_its_incident_ends() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.crashes("a", run=1)
    desk.show("h1", vm("a", run=2))
    desk.refuses(reason="h1 says that it is running")
    assert desk.after(1) == ["failover.completed"]
    assert desk.open() == []
    assert desk.after(300) == []


def test_a_vm_that_crashed_while_another_host_was_to_take_it_in_waits_until_that_shows_it_no_more() -> None:
    """A migration that was refused there, or ended with its source."""
    desk = Desk()
    desk.runs("h1", "a")
    desk.show("h3", vm("a", VmState.PAUSED, migrated=True, run=0))
    desk.crashes("a")
    assert desk.plans() == []
    [incident] = desk.open()
    desk.show("h3")
    desk.after(1)
    assert [desk.last().vm, desk.last().to] == ["a", H1]
    assert desk.open() == [incident]


def test_a_vm_that_crashed_once_it_had_been_handed_over_is_left_where_it_runs_on() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.show("h3", vm("a", VmState.PAUSED, migrated=True, run=0))
    desk.crashes("a")
    desk.show("h3", vm("a", migrated=True))
    desk.after(1)
    assert (desk.plans(), desk.open()) == ([], [])


def test_a_vm_whose_lease_a_fenced_host_holds_by_now_is_started_on_the_strength_of_that_proof() -> None:
    desk = Desk()
    desk.dies("h1")
    desk.runs("h2", "a")
    desk.crashes("a", at=H2)
    desk.leased("a", H1, token=3)
    desk.refuses(reason="still held by h1/h1boot1 with token 3")
    desk.after(5)
    assert [one.of for one in desk.last().proofs] == [H1]


# -- a VM that could not be stopped


def stop_failed(uuid: str, at: Incarnation) -> VmStopFailed:
    return VmStopFailed(vm=uuid, name=uuid.upper(), at=at, holder=H1, reason="busy")


def clings(desk: Desk) -> Incarnation:
    """h1 is back with a VM that runs there, may not, and does not let itself be stopped."""
    desk.runs("h1", "a", "b")
    desk.off.add("h1")
    desk.now += 3.0
    again = boot("h1", 2)
    desk.hear(stop_failed("a", again))
    desk.hear(failed(H1, *desk.vms["h1"]))
    desk.hear(HostJoined(at=again, epoch=1))
    for host in ("h2", "h3"):
        desk.hear(beat(host))
    desk.hear(fenced(H1, *desk.vms["h1"]))
    desk.hear(beat("h1", 2))
    desk.hear(seen(again, vm("a"), condemned=("a",)))
    return again


def waits(desk: Desk) -> dict[str, str]:
    return {
        item.vm: item.reason
        for inc in desk.state.incidents()
        for item in inc.items
        if item.phase == "waiting"
    }


def test_what_clung_to_a_boot_that_nobody_heard_join_is_let_go_when_the_next_one_joins() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.hear(stop_failed("a", boot("h1", 2)))
    desk.hear(HostJoined(at=boot("h1", 3), epoch=1))
    assert desk.state.held_at("a") is None


def test_what_could_not_be_stopped_is_started_nowhere_and_says_why() -> None:
    desk = Desk()
    clings(desk)
    assert desk.where() == {"b": "h2"} or desk.where() == {"b": "h3"}
    desk.starts()
    assert "a" not in {start.vm for plan in desk.plans() for start in plan.starts}
    assert desk.after(5) == []
    assert waits(desk) == {"a": "its stop failed on h1/h1boot2: it may run there"}
    records = stored(desk.state.records)
    desk.take(desk.decider.resume(desk.state, records, desk.now))
    assert desk.after(5) == [], "another process knows it, too"


def test_once_it_is_stopped_it_is_started_and_the_late_word_on_its_failed_stop_is_void() -> None:
    desk = Desk()
    again = clings(desk)
    desk.starts()
    desk.hear(beat("h1", 2))
    desk.hear(seen(again, vm("a", VmState.STOPPED, stop_reason=StopReason.ON_PURPOSE)))
    desk.hear(stop_failed("a", again))
    desk.after(1)
    assert desk.last().vm == "a"


def test_once_the_host_that_it_clings_to_is_fenced_it_is_started() -> None:
    desk = Desk()
    again = clings(desk)
    desk.starts()
    desk.hear(failed(again, epoch=2))
    desk.hear(fenced(again, epoch=2))
    desk.hear(stop_failed("a", again))
    desk.after(1)
    assert desk.last().vm == "a"


# -- what people and late words change


def test_a_vm_that_a_person_migrated_starts_again_though_its_lease_had_not_followed() -> None:
    """The bus took no writes; where it was taken failed before anybody could write that it is there."""
    desk = Desk()
    desk.runs("h1", "a")
    gone = vm("a", VmState.STOPPED, stop_reason=StopReason.MIGRATED)
    desk.show("h1", gone)
    desk.show("h2", vm("a"))
    desk.dies("h2")
    start = desk.last()
    assert (start.vm, start.origin, start.run) == ("a", H1, 1), "its holder is asked"
    assert [one.of for one in start.proofs] == [H2]


def test_a_vm_that_crashed_where_its_lease_is_starts_by_no_proof_about_another_host() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.show("h1", vm("a", VmState.STOPPED, stop_reason=StopReason.ON_PURPOSE))
    desk.show("h2", vm("a"))
    assert desk.dies("h2") == ["failover.completed"]
    assert desk.plans() == []


def test_nothing_is_planned_to_a_host_that_says_that_its_inventory_is_old() -> None:
    """Cut off for a while, it beats again before it tells what a person brought there meanwhile."""
    desk = Desk(2)
    desk.runs("h1", "a", memory_mib=600)
    desk.show("h2")
    desk.off.add("h2")
    later = beat("h2").model_copy(update={"inventory_rev": 2})
    desk.hear(later)
    told = desk.dies("h1")
    desk.hear(later)
    told += desk.after(0.5)
    assert desk.plans()[-1].starts == ()
    desk.hear(seen(H2, rev=2, memory_mib=1000))
    desk.hear(later)
    desk.now += 0.3
    desk.take(desk.decider.step(desk.state, None, desk.now))
    assert desk.where() == {"a": "h2"}


def obeyed(*vms: VmReport) -> HostObeyed:
    stopped = proof(H1, ProofMethod.OBEYED).model_copy(update={"vms": tuple(one.uuid for one in vms)})
    return HostObeyed(at=H1, incident="h1-1", epoch=1, proof=stopped, vms=vms)


def test_what_an_isolated_host_stopped_starts_elsewhere_on_its_word() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.show("h1", vm("a", VmState.STOPPED, stop_reason=StopReason.ORDERED))
    assert "failover.planned" in desk.hear(obeyed(vm("a")))
    assert desk.last().to != H1


@pytest.mark.parametrize(
    "more", [{"token": 2, "start_key": "k", "seq": 2}, {}], ids=["by us", "by a person's hand"]
)
def test_an_isolated_hosts_word_told_late_proves_nothing_of_what_was_started_since(
    more: dict[str, Any],
) -> None:
    """The host is not heard at that moment, so that nothing else would say that it runs there again."""
    desk = Desk()
    desk.runs("h1", "a")
    desk.show("h1", vm("a", run=2, token=more.get("token", 0)))
    if more:
        desk.leased("a", H1, **more)
    desk.off.add("h1")
    desk.after(4.0)
    desk.hear(obeyed(vm("a")))
    desk.after(4.0)
    assert desk.plans() == []
