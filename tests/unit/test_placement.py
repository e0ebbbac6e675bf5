"""From a proof or a crash to a plan, and from a failed start to the next: for ever, and never for what runs."""

from __future__ import annotations

import pytest

from libs.core.decider import TableRead
from libs.events.hosts import (
    HostJoined,
    HostSuspected,
)
from libs.model import Incarnation, LeaseState, VmPolicy, VmState
from services.placement.decide import Placement
from tests.unit.made import (
    beat,
    boot,
    crashed,
    failed,
    fenced,
    inventory,
    lease,
    seen,
    stored,
    vm,
)
from tests.unit.placing import H1, H2, H3, SETTINGS, Desk

pytestmark = pytest.mark.fast


# -- a host


def test_every_vm_of_a_fenced_host_is_planned_elsewhere_at_once_with_the_proof() -> None:
    desk = Desk()
    desk.runs("h1", "a", "b")
    desk.runs("h2", "c")
    assert desk.dies("h1") == ["failover.planned"]
    plan = desk.plans()[-1]
    assert desk.where(plan).keys() == {"a", "b"}
    assert {start.to.host for start in plan.starts} <= {"h2", "h3"}
    assert all([one.of for one in start.proofs] == [H1] for start in plan.starts)
    assert plan.cause == fenced(H1).key
    for start in plan.starts:
        told = desk.starts(start)
    assert told == ["failover.completed"]
    assert desk.told[-1].restarted == ("A", "B")
    assert desk.open() == []


def test_nothing_is_planned_before_the_proof() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.off.add("h1")
    assert desk.hear(failed(H1, vm("a"))) == []
    assert desk.after(60) == []


def test_a_vm_that_no_lease_names_is_known_by_what_the_host_itself_reported_last() -> None:
    desk = Desk()
    desk.show("h1", vm("a"))
    assert desk.dies("h1") == ["failover.planned"]
    assert set(desk.where()) == {"a"}


@pytest.mark.parametrize(
    ("holder", "state"),
    [(H2, LeaseState.RUNNING), (H1, LeaseState.STOPPED), (boot("h1", 2), LeaseState.RUNNING)],
)
def test_a_lease_that_says_otherwise_outweighs_the_report(holder: Incarnation, state: LeaseState) -> None:
    desk = Desk()
    desk.show("h1", vm("a"))
    desk.leased("a", holder, state)
    assert desk.dies("h1") == ["failover.completed"]
    assert desk.told[-1].rule == "nothing to restart"


def test_a_lease_that_was_being_taken_is_an_orphan_too() -> None:
    desk = Desk()
    desk.leased("a", H1, LeaseState.STARTING)
    desk.leased("b", H1, LeaseState.FAILED)
    assert desk.dies("h1") == ["failover.planned"]
    assert set(desk.where()) == {"a", "b"}


def test_a_vm_without_protection_is_left() -> None:
    desk = Desk()
    desk.runs("h1", "a", policy=VmPolicy(protection="none"))
    assert desk.dies("h1") == ["failover.completed"]


def test_the_same_proof_told_fifty_times_is_one_incident() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.dies("h1")
    for _ in range(50):
        assert desk.hear(fenced(H1, vm("a"))) == []
    assert len(desk.plans()) == 1
    desk.starts()
    assert desk.hear(fenced(H1, vm("a"))) == []


def test_a_proof_of_an_older_boot_told_late_does_not_undo_that_of_the_newer() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    newer = boot("h1", 2)
    desk.off.add("h1")
    desk.hear(fenced(newer, epoch=2))
    desk.hear(fenced(H1, vm("a"), epoch=1))
    assert desk.where() == {"a": "h3"}
    assert desk.state.proof_of(newer) is not None
    assert desk.hear(fenced(H1, vm("a"), epoch=1)) == [], "and told again it is no news"


def test_the_important_go_first_and_a_suspected_host_takes_nothing() -> None:
    desk = Desk(hosts=4)
    desk.runs("h1", "a", policy=VmPolicy(priority="low"))
    desk.runs("h1", "b", policy=VmPolicy(priority="highest"))
    desk.runs("h1", "c", policy=VmPolicy(priority="highest", order=5))
    desk.hear(HostSuspected(at=H3, number=1, silent_s=1.5))
    desk.dies("h1")
    assert [(start.vm, start.wave) for start in desk.plans()[-1].starts] == [("b", 0), ("c", 1), ("a", 2)]
    assert set(desk.where().values()) <= {"h2", "h4"}


def test_room_promised_once_is_not_promised_again() -> None:
    desk = Desk(hosts=4, memory_mib=250)
    desk.runs("h1", "a", "b")
    desk.runs("h2", "c", "d")
    desk.dies("h1")
    desk.dies("h2")
    both = [start for plan in desk.plans() for start in plan.starts]
    load: dict[str, int] = {}
    for start in both:
        load[start.to.host] = load.get(start.to.host, 0) + start.memory_mib
    assert len(both) == 4
    assert all(memory <= 250 for memory in load.values())


def test_a_second_host_fenced_in_the_middle_gives_back_what_was_planned_to_it() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.dies("h1")
    first = desk.last()
    desk.hosts.append("h4")
    desk.vms["h4"] = []
    desk.show("h4")
    assert desk.dies(first.to.host) == ["failover.completed", "failover.planned"], "its own: nothing to do"
    second = desk.last()
    assert second.vm == "a"
    assert second.key != first.key
    assert second.to.host not in ("h1", first.to.host)
    assert {one.of for one in second.proofs} == {H1, first.to}
    # what the first attempt still says is about an attempt that is over
    assert desk.refuses(first) == []
    assert desk.starts(first) == []
    assert desk.open() == ["h1-1"], "the attempt that counts has not ended yet"
    assert desk.starts(second) == ["failover.completed"]


def test_a_vm_that_had_restarted_on_the_second_host_is_planned_once_more() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.runs("h1", "b")
    desk.dies("h1")
    starts = {start.vm: start for start in desk.plans()[-1].starts}
    desk.starts(starts["a"])
    at = starts["a"].to
    desk.dies(at.host)
    assert "a" in desk.where()
    waiting = [item.vm for inc in desk.state.incidents() for item in inc.items if item.phase == "planned"]
    assert sorted(waiting) == sorted(set(waiting)), "one incident deals with a VM at a time"


def test_a_vm_that_crashed_after_its_restart_belongs_to_the_crash_alone_when_its_new_host_fails_too() -> None:
    """Two incidents wanted the same VM, and placement broke down at every plan from then on."""
    desk = Desk()
    desk.runs("h1", "a")
    desk.runs("h1", "b")
    desk.dies("h1")
    starts = {start.vm: start for start in desk.plans()[-1].starts}
    at = starts["a"].to
    desk.starts(starts["a"])
    desk.crashes("a", at=at)
    desk.dies(at.host)
    busy = [
        item.vm
        for incident in desk.state.incidents()
        for item in incident.items
        if item.phase in ("planned", "waiting")
    ]
    assert sorted(busy) == ["a", "b"], "one incident deals with a VM at a time"


# -- room


def test_without_room_it_is_said_once_and_the_vm_starts_when_room_comes() -> None:
    desk = Desk(hosts=2, memory_mib=300)
    desk.runs("h1", "a", memory_mib=200)
    desk.runs("h2", "b", memory_mib=200)
    assert desk.dies("h1") == ["failover.planned", "capacity.exhausted", "failover.completed"]
    waiting = desk.plans()[-1].waiting[0]
    assert (waiting.vm, waiting.short_memory_mib, waiting.short_vcpus) == ("a", 100, 0)
    assert waiting.reason.startswith("no_room")
    assert desk.after(300) == [], "said once"
    desk.show("h2", vm("b", memory_mib=200), vm("c", memory_mib=10))
    told = desk.after(5)
    assert "failover.planned" in told, "another shortage is another plan"
    assert "capacity.exhausted" not in told, "and no other alert"
    desk.leased("b", H2, LeaseState.STOPPED, token=2)
    desk.show("h2", vm("b", VmState.STOPPED, memory_mib=200), vm("c", memory_mib=10))
    assert desk.after(1) == ["failover.planned", "capacity.relieved"]
    assert desk.where() == {"a": "h2"}
    assert desk.starts() == ["failover.completed"]
    assert desk.open() == []


def test_a_host_that_joins_is_room() -> None:
    desk = Desk(hosts=2, memory_mib=300)
    desk.runs("h1", "a", memory_mib=200)
    desk.runs("h2", "b", memory_mib=200)
    desk.dies("h1")
    desk.hosts.append("h3")
    desk.vms["h3"] = []
    desk.hear(HostJoined(at=H3))
    desk.show("h3")
    assert desk.after(1)[:1] == ["failover.planned"]
    assert desk.where() == {"a": "h3"}


def test_the_same_host_booted_again_is_room() -> None:
    desk = Desk(hosts=2, memory_mib=300)
    desk.runs("h1", "a", memory_mib=200)
    desk.runs("h2", "b", memory_mib=200)
    desk.dies("h1")
    back = boot("h1", 2)
    desk.hear(HostJoined(at=back, epoch=1))
    desk.hear(beat("h1", 2))
    desk.hear(seen(back, memory_mib=300))
    desk.hosts.remove("h1")
    desk.now += 0.5
    for event in (beat("h1", 2), beat("h2"), None):
        desk.hear(event) if event else desk.take(desk.decider.step(desk.state, None, desk.now))
    assert desk.last().to == back


def test_nothing_is_planned_to_a_boot_that_has_not_joined_for_nobody_would_say_that_it_is_over() -> None:
    desk = Desk(hosts=2)
    desk.runs("h2", "a")
    again = boot("h1", 2)
    desk.hear(beat("h1", 2))
    desk.hear(seen(again, memory_mib=1000))
    desk.hosts.remove("h1")
    assert desk.dies("h2") == ["failover.planned", "capacity.exhausted", "failover.completed"]
    desk.hear(beat("h1", 2))
    desk.hear(HostJoined(at=again, epoch=1))
    desk.now += 0.5
    assert "failover.planned" in desk.take(desk.decider.step(desk.state, None, desk.now))
    assert desk.last().to == again


def test_the_inventory_of_a_new_boot_is_news_also_where_it_shows_what_the_old_one_did() -> None:
    desk = Desk(hosts=2)
    desk.runs("h2", "a")
    desk.dies("h1")
    again = boot("h1", 2)
    desk.hear(HostJoined(at=again, epoch=1))
    desk.dies("h2")
    desk.hear(beat("h1", 2))
    desk.take(desk.decider.step(desk.state, None, desk.now))
    assert desk.decider.wake_at(desk.state) is None
    desk.hear(seen(again, memory_mib=1000))
    assert desk.decider.wake_at(desk.state) is not None


def test_while_nobody_is_usable_it_waits_and_says_what_for() -> None:
    desk = Desk(hosts=1)
    desk.runs("h1", "a")
    told = desk.dies("h1")
    assert told == ["failover.planned", "capacity.exhausted", "failover.completed"]
    assert desk.plans()[-1].waiting[0].reason.startswith("no_host")


def test_what_waits_survives_the_process() -> None:
    desk = Desk(hosts=2, memory_mib=300)
    desk.runs("h1", "a", memory_mib=200)
    desk.runs("h2", "b", memory_mib=200)
    desk.dies("h1")
    after = Desk(hosts=0)
    after.hosts, after.vms, after.memory_mib = ["h2", "h3"], {"h2": [], "h3": []}, 300
    after.take(after.decider.resume(after.state, stored(desk.state.records), after.now))
    for host in after.hosts:
        after.show(host)
    assert "failover.planned" in after.after(2)
    assert set(after.where()) == {"a"}


# -- starts that fail


def test_after_a_refusal_another_host_is_tried_at_once_and_the_round_begins_again_with_a_pause() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.dies("h1")
    first = desk.last()
    desk.refuses()
    assert desk.after(0.2) == ["failover.planned"]
    second = desk.last()
    assert {first.to.host, second.to.host} == {"h2", "h3"}
    desk.refuses()
    assert desk.after(0.9) == [], "all were tried: now it waits"
    pauses = []
    for _ in range(12):
        began = desk.now
        while not desk.after(0.25):
            assert desk.now - began < 70
        pauses.append(desk.now - began)
        desk.refuses()
    assert max(pauses) <= 61
    assert pauses[-1] > 30 or pauses[-2] > 30
    keys = [start.key for plan in desk.plans() for start in plan.starts]
    assert len(keys) == len(set(keys)), "every attempt has its own key"
    desk.after(70)
    assert desk.starts() == ["failover.completed"]


def test_a_refusal_told_again_is_not_a_second() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.dies("h1")
    first = desk.last()
    desk.refuses(first)
    desk.after(0.2)
    for _ in range(10):
        assert desk.refuses(first) == []
    assert desk.after(30) == []
    assert len(desk.plans()) == 2


def test_a_vm_that_turns_out_to_be_stopped_on_purpose_is_given_up() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.dies("h1")
    # its owner had shut it down just before; placement had not heard of it
    desk.leased("a", H1, LeaseState.STOPPED, token=2)
    desk.refuses(reason="it was stopped on purpose")
    assert desk.after(1) == ["failover.completed"]
    assert desk.told[-1].given_up == ("A",)
    assert desk.after(300) == []
    assert desk.open() == []


# -- what runs already


def test_a_vm_that_a_person_started_elsewhere_before_the_proof_is_not_started_again() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.show("h3", vm("a"))
    assert desk.dies("h1") == ["failover.completed"]
    # nor by the net under the facts: its lease is still the fenced host's
    told = desk.hear(TableRead("leases", (lease("a", H1),)))
    assert "failover.planned" not in told
    assert desk.after(60) == []


def test_a_vm_that_a_person_started_while_it_waited_for_room_is_not_started_again() -> None:
    desk = Desk(hosts=3, memory_mib=300)
    desk.runs("h1", "a", memory_mib=200)
    desk.runs("h2", "b", memory_mib=200)
    desk.runs("h3", "c", memory_mib=200)
    desk.dies("h1")
    desk.show("h3", vm("c", memory_mib=200), vm("a", memory_mib=50))
    desk.show("h2")
    desk.leased("b", H2, LeaseState.STOPPED, token=2)
    desk.after(10)
    assert [start for plan in desk.plans() for start in plan.starts] == []
    assert desk.open() == []


def test_a_lease_of_a_fenced_host_that_no_incident_deals_with_is_found() -> None:
    desk = Desk()
    desk.dies("h1")
    told = desk.hear(TableRead("leases", (lease("a", H1), lease("b", H1, LeaseState.STOPPED))))
    assert told == ["failover.planned"]
    assert set(desk.where()) == {"a"}
    assert desk.hear(TableRead("leases", (lease("a", H1),))) == []
    assert desk.starts() == ["failover.completed"]


# -- killed between two records


def test_a_crash_whose_incident_was_written_and_that_was_not_marked_is_marked_and_dealt_with_once() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.crashes("a")
    records = desk.state.records.discard("crashes.a")
    desk.take(desk.decider.resume(desk.state, stored(records), desk.now))
    assert desk.hear(desk.crash("a", H1, 1)) == [], "planned already"
    assert desk.state.records["crashes.a"].told == (desk.crash("a", H1, 1).incident,)
    assert desk.starts() == ["failover.completed"]


def test_a_proof_whose_incident_was_written_and_that_was_not_marked_opens_no_second() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.dies("h1")
    first = desk.last()
    records = desk.state.records.discard("fenced.h1")
    desk.take(desk.decider.resume(desk.state, stored(records), desk.now))
    assert desk.hear(fenced(H1, *desk.vms["h1"])) == []
    assert desk.state.proof_of(H1) is not None
    assert (desk.open(), desk.last()) == (["h1-1"], first)


# -- whose room is whose


def test_a_run_that_ended_before_anybody_saw_it_has_a_crash_of_its_own() -> None:
    """Its host still shows the number of the run before it; its token is another."""
    desk = Desk()
    desk.runs("h1", "a")
    desk.crashes("a", run=1)
    desk.starts()
    assert desk.crashes("a", run=1, token=2) == ["failover.planned"]


def test_what_a_vm_that_nobody_restarts_has_left_is_room() -> None:
    desk = Desk(hosts=2)
    desk.runs("h1", "scratch", memory_mib=800, policy=VmPolicy(protection="none"))
    desk.runs("h2", "db", memory_mib=500)
    desk.show("h1", crashed("scratch", memory_mib=800, policy=VmPolicy(protection="none")))
    assert desk.dies("h2") == ["failover.planned"]
    assert desk.where() == {"db": "h1"}


def test_a_crash_that_is_yet_to_be_dealt_with_keeps_its_room() -> None:
    desk = Desk(hosts=2)
    desk.runs("h1", "web", memory_mib=800)
    desk.runs("h2", "db", memory_mib=500)
    desk.show("h1", crashed("web", memory_mib=800))
    desk.dies("h2")
    assert desk.where() == {}


def test_a_lease_that_is_given_up_makes_room_for_what_waits() -> None:
    desk = Desk(hosts=2)
    desk.runs("h1", "web", memory_mib=800)
    desk.runs("h2", "db", memory_mib=500)
    desk.dies("h2")
    assert desk.where() == {}
    desk.vms["h1"] = []
    desk.hear(seen(H1, memory_mib=1000))
    desk.after(1)
    assert desk.where() == {}, "its lease is still there"
    desk.leased("web", H1, LeaseState.STOPPED, token=2, memory_mib=800)
    desk.after(1)
    assert desk.where() == {"db": "h1"}


# -- bounds


def test_state_does_not_grow_with_the_number_of_failures() -> None:
    desk = Desk()
    sizes = []
    for number in range(1, 40):
        desk.crashes("a", H1, number)
        if desk.plans() and desk.open():
            desk.starts()
        desk.now += 4000
        sizes.append(sum(len(r.model_dump_json()) for r in desk.state.records.values()))
    assert sizes[-1] < sizes[15] + 50


def test_a_stored_inventory_helps_where_none_was_heard() -> None:
    decider = Placement(SETTINGS)
    state = decider.initial(0.0)
    state = decider.step(state, TableRead("inventory", (inventory(H1, vm("a")),)), 0.0).state
    assert state.heard["h1"].vm("a") is not None
    state = decider.step(state, seen(H1), 1.0).state
    state = decider.step(state, TableRead("inventory", (inventory(H1, vm("a")),)), 2.0).state
    assert state.heard["h1"].vm("a") is None, "what was heard is newer"
