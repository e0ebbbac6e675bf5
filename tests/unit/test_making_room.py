"""Room is made for what waits: healthy VMs move, or lesser ones stop, as policy allows; and nobody runs twice for it."""

from __future__ import annotations

from typing import Any

import pytest

from libs.core.decider import Expired, TableRead
from libs.core.ports import MoveRefusedError, UnavailableError
from libs.events.drains import HostDrainPlanned
from libs.events.failovers import FailoverPlanned, PlannedMove, PlannedStop
from libs.events.hosts import HostJoined
from libs.events.signals import LeaseWritten
from libs.events.vms import VmFailed, VmMoved, VmMoveFailed, VmPreempted, VmPreemptFailed
from libs.leases import moving, put_down_by_us
from libs.model import Failure, Incarnation, LeaseState, Priority, Protection, StopReason, VmReport, VmState
from libs.planning.snapshot import PoolPolicy
from services.executor.orders import MoveVm, Result, RoomMade, StopVm
from services.placement.decide import Placement
from services.placement.state import Phase
from tests.unit import placing, test_executor
from tests.unit.made import boot, crashed, fenced, lease, policy, proof, seen, vm
from tests.unit.test_executor import Host, Lab
from tests.unit.test_executor import order as start_order

pytestmark = pytest.mark.fast
H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")
HIGH, LOW = policy(priority=Priority.HIGH), policy(priority=Priority.LOW)


class Desk(placing.Desk):
    """A placement that may make room."""

    def __init__(self, *, preemption: bool = False, migrations: bool = True, hosts: int = 3) -> None:
        super().__init__(hosts)
        allowed = PoolPolicy(failures_to_tolerate=0, migrations=migrations, preemption=preemption)
        self.decider = Placement(placing.SETTINGS, policy=allowed)

    def moved(self, move: PlannedMove) -> list[str]:
        """The executor says so, and both hosts show it."""
        held = self.state.leases[move.vm]
        self.leased(move.vm, move.to, token=held.token + 1, memory_mib=move.memory_mib)
        fact = VmMoved(
            vm=move.vm, name=move.name, at=move.to, origin=move.origin, incident="h1-1", move_key=move.key,
            token=held.token + 1,
        )  # fmt: skip
        told = self.hear(fact)
        there = [one for one in self.vms[move.origin.host] if one.uuid == move.vm]
        self.show(move.to.host, *self.vms[move.to.host], *there)
        left = [one for one in self.vms[move.origin.host] if one.uuid != move.vm]
        told += self.show(move.origin.host, *left)
        return told + self.after(1.0)


def scattered(**how: bool) -> Desk:
    """big has no place on any host as they are, and has one once `web` has gone to the third."""
    desk = Desk(**how)
    desk.runs("h1", "big", memory_mib=800, policy=HIGH)
    desk.runs("h2", "web", memory_mib=400)
    desk.runs("h3", "mail", memory_mib=500)
    desk.dies("h1")
    return desk


def test_a_healthy_vm_moves_so_that_one_that_is_down_finds_room() -> None:
    desk = scattered()
    [planned] = desk.plans()
    [move] = planned.moves
    assert (move.vm, move.origin, move.to, move.makes_room_for) == ("web", H2, H3, ("BIG",))
    assert (planned.starts, planned.stops) == ((), ())
    assert [one.reason for one in planned.waiting] == ["making_room: WEB moves from h2 to h3"]
    desk.moved(move)
    assert desk.where() == {"big": "h2"}


def test_what_waits_for_a_move_is_not_called_short_of_room_nor_done() -> None:
    desk = scattered()
    assert not {"capacity.exhausted", "failover.completed"} & {one.kind for one in desk.told}


def test_no_second_move_is_ordered_while_one_is_under_way() -> None:
    desk = scattered()
    desk.show("h3", *desk.vms["h3"], vm("tiny", memory_mib=10))
    desk.after(5.0)
    assert [len(one.moves) for one in desk.plans()] == [1]


def test_where_no_vm_may_be_moved_it_waits_for_room() -> None:
    desk = scattered(migrations=False)
    [planned] = desk.plans()
    assert (planned.moves, planned.starts) == ((), ())
    assert "capacity.exhausted" in {one.kind for one in desk.told}


def test_a_move_that_fails_is_not_tried_again_for_the_same_incident() -> None:
    desk = scattered()
    [move] = desk.plans()[0].moves
    desk.hear(
        VmMoveFailed(
            vm="web",
            name="WEB",
            at=move.to,
            origin=move.origin,
            incident="h1-1",
            move_key=move.key,
            reason="no",
        )
    )
    desk.after(5.0)
    assert sum(len(one.moves) for one in desk.plans()) <= 2
    assert [one.vm for plan in desk.plans() for one in plan.moves].count("web") == 1


def test_room_that_is_made_for_one_is_not_given_to_another_that_matters_less() -> None:
    desk = scattered()
    desk.hear(fenced(boot("h9"), vm("other", memory_mib=400), epoch=7))
    last = desk.plans()[-1]
    assert desk.where(last) == {}, "on h3, 500 are taken and 400 are on their way"
    assert [one.reason for one in last.waiting] == ["making_room: room on h2 is kept for BIG"]
    desk.moved(desk.plans()[0].moves[0])
    assert "big" in {start.vm for one in desk.plans() for start in one.starts}


def test_a_move_ends_with_either_of_its_hosts() -> None:
    desk = scattered()
    desk.dies("h3", epoch=2)
    assert desk.state.rooms() == []
    assert desk.where()["mail"] == "h2"


def test_nobody_is_stopped_for_others_unless_policy_says_so() -> None:
    desk = Desk(hosts=2)
    desk.runs("h1", "db", memory_mib=800, policy=HIGH)
    desk.runs("h2", "batch", memory_mib=500, policy=LOW)
    desk.dies("h1")
    assert [one.stops for one in desk.plans()] == [()]


def preempted(victim: Any = LOW) -> Desk:
    desk = Desk(preemption=True, hosts=2)
    desk.runs("h1", "db", memory_mib=800, policy=HIGH)
    desk.runs("h2", "batch", memory_mib=500, policy=victim)
    desk.dies("h1")
    return desk


def test_a_vm_that_matters_less_is_stopped_and_starts_again_when_there_is_room() -> None:
    desk = preempted()
    [stop] = desk.plans()[0].stops
    assert (stop.vm, stop.at, stop.makes_room_for) == ("batch", H2, ("DB",))
    desk.leased("batch", H2, LeaseState.FAILED, seq=2, memory_mib=500, policy=LOW)
    desk.hear(
        VmPreempted(vm="batch", name="BATCH", at=H2, incident="h1-1", stop_key=stop.key, run=1, cause="x")
    )
    assert all(start.vm != "batch" for one in desk.plans() for start in one.starts), "not before db"
    desk.show("h2", vm("batch", VmState.STOPPED, memory_mib=500, policy=LOW))
    desk.after(1.0)
    assert "db" in {start.vm for one in desk.plans() for start in one.starts}
    assert all(start.vm != "batch" for one in desk.plans() for start in one.starts), "it has no room yet"
    desk.hosts.append("h3")
    desk.vms["h3"] = []
    desk.hear(HostJoined(at=H3))
    desk.show("h3")
    desk.after(2.0)
    assert desk.where()["batch"] == "h3"


@pytest.mark.parametrize(
    "victim", [HIGH, policy(priority=Priority.HIGHEST), policy(protection=Protection.NONE)]
)
def test_nobody_is_stopped_for_an_equal_nor_one_that_nobody_would_start_again(victim: Any) -> None:
    assert all(not one.stops for one in preempted(victim).plans())


# -- the executor


def move_order(vm: str = "a", **more: Any) -> PlannedMove:
    values: dict[str, Any] = {"origin": H2, "to": H3, "run": 1, "memory_mib": 100, "vcpus": 1, **more}
    return PlannedMove(key=f"h1-1/{vm}/room-1", vm=vm, name=vm.upper(), **values)


def moves(*orders: PlannedMove, **more: Any) -> FailoverPlanned:
    return FailoverPlanned(incident="h1-1", revision=1, moves=orders, **more)


def outcome(request: MoveVm, result: Result, **more: Any) -> RoomMade:
    return RoomMade(key=request.key, makes=request.move, result=result, **more)


def test_moves_are_bounded_in_all_and_a_host() -> None:
    desk = test_executor.Desk(parallel_moves=3, parallel_moves_per_host=2)
    desk.hear(
        moves(
            *(move_order(one) for one in "abc"), *(move_order(one, origin=H1, to=boot("h4")) for one in "de")
        )
    )
    assert [one.move.vm for one in desk.asked] == ["a", "b", "d"]
    desk.hear(outcome(desk.asked[0], Result.STARTED, token=2))
    assert desk.asked[-1].move.vm == "c"


def test_a_move_told_again_is_carried_out_once() -> None:
    desk = test_executor.Desk()
    desk.hear(moves(move_order()))
    desk.hear(moves(move_order()))
    assert len(desk.asked) == 1


def test_a_move_of_which_nobody_can_tell_is_looked_at_again() -> None:
    desk = test_executor.Desk()
    desk.hear(moves(move_order()))
    desk.hear(Expired(key=desk.asked[0].key, request="move_vm", reason="no answer"))
    assert len(desk.asked) == 1
    desk.wait()
    assert [one.move.vm for one in desk.asked] == ["a", "a"]
    assert desk.asked[0].key != desk.asked[1].key


def doubted(desk: test_executor.Desk, times: int) -> list[str]:
    """So often nobody can tell what came of the order."""
    told: list[str] = []
    for _ in range(times):
        told += desk.hear(Expired(key=desk.asked[-1].key, request="move_vm", reason="no answer"))
        desk.wait()
    return told


def test_an_order_of_which_nobody_can_tell_for_long_is_told_once_and_its_end_is_told_too() -> None:
    desk = test_executor.Desk()
    desk.hear(moves(move_order()))
    assert doubted(desk, 2) == [], "a libvirt that is slow for a moment is nobody's business"
    assert doubted(desk, 10) == ["vm.order_uncertain"]
    assert desk.hear(outcome(desk.asked[-1], Result.STARTED, token=2)) == ["vm.moved"]


@pytest.mark.parametrize("end", [H2, H3], ids=["source", "target"])
@pytest.mark.parametrize("times", [1, 5])
def test_such_an_order_ends_with_the_fencing_of_either_host(end: Incarnation, times: int) -> None:
    desk = test_executor.Desk()
    desk.hear(moves(move_order()))
    doubted(desk, times)
    ends = desk.hear(fenced(end))
    assert ("vm.move_failed" in ends) is (times == 5), "an alert that was raised is cleared"
    assert desk.decider.wake_at(desk.state) is None, "nobody is asked any more"


def test_a_second_order_for_a_vm_is_answered_though_the_first_is_under_way() -> None:
    """Whoever gave it would wait for its end for ever."""
    desk = test_executor.Desk()
    desk.hear(moves(move_order()))
    other = move_order(to=boot("h4")).model_copy(update={"key": "drain/a/drain-1"})
    drain = HostDrainPlanned(at=H2, incident="drain", mark="m", revision=1, moves=(other,))
    assert desk.hear(drain) == ["vm.move_failed"]
    assert [one.move.to for one in desk.asked] == [H3]
    assert desk.hear(drain.model_copy(update={"moves": (move_order(),)})) == [], "its own order, told again"


def test_what_a_drain_orders_is_moved_by_the_same_hands() -> None:
    desk = test_executor.Desk(parallel_moves=1)
    drain = HostDrainPlanned(
        at=H2, incident="drain", mark="m", revision=1, moves=(move_order("a"), move_order("b"))
    )
    desk.hear(drain)
    assert [one.move.vm for one in desk.asked] == ["a"]
    desk.hear(outcome(desk.asked[0], Result.STARTED, token=2))
    fact = desk.told[-1]
    assert (fact.kind, fact.incident, fact.at) == ("vm.moved", "drain", H3)
    assert [one.move.vm for one in desk.asked] == ["a", "b"]


def test_while_it_moves_nobody_concludes_from_what_two_hosts_show() -> None:
    desk = test_executor.Desk()
    desk.hear(LeaseWritten(lease=lease("a", H2)))
    desk.hear(seen(H2, vm("a")))
    desk.hear(moves(move_order()))
    desk.hear(seen(H3, vm("a")))
    desk.hear(seen(H2, rev=2))
    assert [one.kind for one in desk.asked] == ["move_vm"]


def move_of(order: PlannedMove) -> MoveVm:
    return MoveVm(key="k", deadline_s=60.0, move=order, timeout_s=30.0)


async def carried_out(lab: Lab, order: PlannedMove) -> RoomMade:
    done = await lab.hands.perform(move_of(order))
    assert isinstance(done, RoomMade)
    return done


def running(on: Incarnation = H2) -> Lab:
    lab = Lab(H2, H3, held=lease("a", on, token=4))
    lab.hosts[on].vms["a"], lab.hosts[on].tokens["a"] = VmState.RUNNING, 4
    return lab


async def test_the_lease_follows_a_move_under_a_higher_token() -> None:
    lab = running()
    done = await carried_out(lab, move_order())
    assert (done.result, done.token) == (Result.STARTED, 5)
    held = lab.lease()
    assert (held.holder, held.token, held.state, held.moving_to) == (H3, 5, LeaseState.RUNNING, None)
    again = await carried_out(lab, move_order())
    assert (again.result, again.token) == (Result.STARTED, 5), "the same order again moves nothing"


async def test_the_lease_says_where_it_may_be_before_the_move_begins() -> None:
    lab = running()
    seen_as: list[Incarnation | None] = []

    def look(host: Host, target: Host, uuid: str) -> None:
        seen_as.append(lab.lease().moving_to)
        host.carry(target, uuid)

    lab.hosts[H2].on_migrate = look
    await carried_out(lab, move_order())
    assert seen_as == [H3]


async def test_a_move_that_is_refused_leaves_it_where_it_runs() -> None:
    lab = running()

    def refuse(host: Host, target: Host, uuid: str) -> None:
        raise MoveRefusedError("unsafe")

    lab.hosts[H2].on_migrate = refuse
    done = await carried_out(lab, move_order())
    assert (done.result, done.reason) == (Result.NOT_STARTED, "unsafe")
    assert (lab.lease().holder, lab.lease().token, lab.lease().moving_to) == (H2, 4, None)


async def test_a_move_whose_end_nobody_told_is_ended_by_what_both_hosts_say() -> None:
    lab = running()

    def lost(host: Host, target: Host, uuid: str) -> None:
        host.carry(target, uuid)
        raise UnavailableError("connection closed")

    lab.hosts[H2].on_migrate = lost
    with pytest.raises(UnavailableError):
        await carried_out(lab, move_order())
    assert lab.lease().moving_to == H3
    done = await carried_out(lab, move_order())
    assert (done.result, lab.lease().holder, lab.lease().token) == (Result.STARTED, H3, 5)


async def test_nothing_is_moved_whose_lease_is_elsewhere_or_that_ended() -> None:
    for lab in (running(H3), Lab(H2, H3, held=lease("a", H2))):
        lab.hosts[H2].vms.setdefault("a", VmState.STOPPED)
        before = lab.lease()
        done = await carried_out(lab, move_order())
        assert done.result is (Result.STARTED if before.holder == H3 else Result.NOT_STARTED)
        assert lab.lease() == before


async def test_a_vm_whose_host_died_in_mid_move_starts_nowhere_before_its_target_has_answered() -> None:
    """Its source is fenced; whether the move was through only the target knows (DESIGN §4 rule 1)."""
    lab = Lab(H2, H3, held=moving(lease("a", H1, token=4), H3))
    lab.hosts[H3].vms["a"] = VmState.RUNNING
    done = await lab.start(start_order("a", H2))
    assert done.result is Result.NOT_STARTED
    assert "may have been moved" in done.reason
    lab.hosts[H3].gone = True
    assert (await lab.start(start_order("a", H2, attempt=2))).result is Result.NOT_STARTED, (
        "unknown is not stopped"
    )
    assert lab.hosts[H2].starts == []


async def test_it_starts_once_the_target_says_that_it_is_not_there_or_is_fenced() -> None:
    both: dict[str, Any] = {"proofs": (proof(H1), proof(H3))}
    for told in ({}, both):
        lab = Lab(H2, H3, held=moving(lease("a", H1, token=4), H3))
        lab.hosts[H3].gone = bool(told)
        done = await lab.start(start_order("a", H2, **told))
        assert (done.result, lab.lease().holder, lab.lease().moving_to) == (Result.STARTED, H2, None)


@pytest.mark.parametrize("end", [StopReason.ON_PURPOSE, StopReason.MIGRATED])
async def test_what_a_person_put_down_where_it_had_been_moved_starts_nowhere_else(end: StopReason) -> None:
    """World 7389: its source dies as it arrives, and its target cannot be read until the person is done."""
    lab = Lab(H2, H3, held=moving(lease("a", H1, token=4), H3))
    lab.hosts[H3].vms["a"], lab.hosts[H3].tokens["a"], lab.hosts[H3].reasons["a"] = VmState.STOPPED, 4, end
    done = await lab.start(start_order("a", H2))
    assert (done.result, lab.hosts[H2].starts) == (Result.NOT_STARTED, [])
    assert f"by a person's hand: {end.value}" in done.reason
    held = lab.lease()
    assert (held.holder, held.token, held.moving_to) == (H3, 5, None), "from here on H3's own word counts"


async def test_what_lay_there_stopped_before_the_move_is_no_persons_will_about_the_run_that_was_moved() -> (
    None
):
    """Libvirt goes on naming the reason of an earlier end: the lease notes what the move found."""
    lab = running()
    lab.hosts[H3].vms["a"], lab.hosts[H3].tokens["a"] = VmState.STOPPED, 4
    lab.hosts[H3].reasons["a"] = StopReason.ON_PURPOSE

    def lost(host: Host, target: Host, uuid: str) -> None:
        raise UnavailableError("connection closed")

    lab.hosts[H2].on_migrate = lost
    with pytest.raises(UnavailableError):
        await carried_out(lab, move_order())
    assert (lab.lease().moving_to, lab.lease().moving_found) == (H3, StopReason.ON_PURPOSE)
    lab.hosts[boot("h4")] = Host(boot("h4"))
    done = await lab.start(start_order("a", boot("h4"), origin=H2, proofs=(proof(H2),)))
    assert (done.result, lab.lease().holder) == (Result.STARTED, boot("h4"))


async def test_a_move_whose_vm_a_person_put_down_where_it_came_to_was_through() -> None:
    lab = running()

    def stopped_there(host: Host, target: Host, uuid: str) -> None:
        host.carry(target, uuid)
        target.vms[uuid], target.reasons[uuid] = VmState.STOPPED, StopReason.ON_PURPOSE

    lab.hosts[H2].on_migrate = stopped_there
    done = await carried_out(lab, move_order())
    assert (done.result, lab.lease().holder, lab.lease().moving_to) == (Result.STARTED, H3, None)


async def test_who_was_shut_down_on_its_way_has_not_arrived() -> None:
    """World 5117: the guest ends at its source, and the half copy at its target ends with it."""
    lab = running()

    def shut_down(host: Host, target: Host, uuid: str) -> None:
        for one in (host, target):
            one.vms[uuid], one.reasons[uuid], one.tokens[uuid] = VmState.STOPPED, StopReason.ON_PURPOSE, 4
        raise MoveRefusedError("the guest has ended")

    lab.hosts[H2].on_migrate = shut_down
    done = await carried_out(lab, move_order())
    assert (done.result, lab.lease().holder, lab.lease().moving_to) == (Result.NOT_STARTED, H2, None)


async def test_of_a_move_that_never_began_nothing_is_read_into_what_lies_at_its_target() -> None:
    lab = running()
    lab.hosts[H2].vms["a"], lab.hosts[H2].reasons["a"] = VmState.STOPPED, StopReason.ON_PURPOSE
    lab.hosts[H3].vms["a"], lab.hosts[H3].reasons["a"] = VmState.STOPPED, StopReason.ON_PURPOSE
    lab.hosts[H3].tokens["a"] = 4
    before = lab.lease()
    assert (await carried_out(lab, move_order())).result is Result.NOT_STARTED
    assert lab.lease() == before


REPORT: VmReport = vm("a", token=4)
STOP = PlannedStop(key="h1-1/a/room-1", vm="a", name="A", at=H2, run=1, report=REPORT)


async def test_a_stop_for_others_leaves_a_lease_that_the_next_start_may_take() -> None:
    lab = running()
    request = StopVm(key="k", deadline_s=60.0, stop=STOP)
    done = await lab.hands.perform(request)
    assert isinstance(done, RoomMade)
    assert done.result is Result.STARTED
    assert (lab.hosts[H2].vms["a"], lab.lease().state) == (VmState.STOPPED, LeaseState.FAILED)
    assert (await lab.hands.perform(request)) == done, "the same order again stops nothing"
    began = await lab.start(start_order("a", H3, origin=H2, run=1, proofs=()))
    assert (began.result, lab.lease().token) == (Result.STARTED, 5)


async def test_who_gave_its_room_and_was_started_by_a_person_starts_nowhere_else() -> None:
    """At this very moment: no inventory has told of it yet."""
    lab = running()
    await lab.hands.perform(StopVm(key="k", deadline_s=60.0, stop=STOP))
    lab.hosts[H2].vms["a"] = VmState.RUNNING
    began = await lab.start(start_order("a", H3, origin=H2, run=1, proofs=()))
    assert (began.result, began.reason) == (Result.NOT_STARTED, f"{H2} says that it is running")
    assert lab.hosts[H3].starts == []


def test_what_was_read_before_a_stop_for_others_and_heard_after_it_makes_nobody_stay_down() -> None:
    """The lease went back to running by it, and what the host showed next passed for a person's will."""
    desk = test_executor.Desk()
    desk.hear(LeaseWritten(lease=lease("a", H2)))
    desk.hear(seen(H2, REPORT))
    desk.hear(FailoverPlanned(incident="h1-1", revision=1, stops=(STOP,)))
    asked = desk.asked[-1]
    desk.hear(LeaseWritten(lease=put_down_by_us(lease("a", H2), REPORT.run)))
    desk.hear(RoomMade(key=asked.key, makes=asked.stop, result=Result.STARTED, token=1))
    desk.hear(seen(H2, REPORT, rev=2))
    ended = vm("a", VmState.STOPPED, token=4, stop_reason=StopReason.ON_PURPOSE, destroyed=True)
    desk.hear(seen(H2, ended, rev=3))
    assert [one.kind for one in desk.asked] == ["stop_vm"], "no lease is written"
    desk.hear(seen(H2, vm("a", token=4, run=2), rev=4))
    assert [one.kind for one in desk.asked] == ["stop_vm", "write_lease"], "a person's start is adopted"


def given_up() -> Desk:
    """batch was to be stopped for db; the stop failed, and its lease says that its end may be our doing all the same."""
    desk = preempted()
    [stop] = desk.plans()[0].stops
    desk.leased("batch", H2, LeaseState.EVICTING, seq=2, run=1, memory_mib=500, policy=LOW)
    key = stop.key
    desk.hear(
        VmPreemptFailed(
            vm="batch", name="BATCH", at=H2, incident="h1-1", stop_key=key, reason="busy", cause="x"
        )
    )
    return desk


def test_a_vm_that_fails_after_its_stop_was_given_up_is_restarted() -> None:
    desk = given_up()
    bad = crashed("batch", memory_mib=500, policy=LOW)
    desk.show("h2", bad)
    desk.hear(
        VmFailed(
            vm="batch", name="BATCH", at=H2, run=1, reason=bad.stop_reason, why=Failure.CRASHED, report=bad
        )
    )
    desk.after(1.0)
    assert "batch" in {item.vm for incident in desk.state.incidents() for item in incident.items}


def test_a_stop_that_comes_through_after_it_was_given_up_is_ours_to_make_good() -> None:
    desk = given_up()
    by_us = {"stop_reason": StopReason.ON_PURPOSE, "destroyed": True, "memory_mib": 500, "policy": LOW}
    desk.show("h2", vm("batch", VmState.STOPPED, **by_us))
    desk.hosts.append("h3")
    desk.vms["h3"] = []
    desk.hear(HostJoined(at=H3))
    desk.show("h3")
    desk.hear(TableRead(table="leases", rows=()))
    desk.after(2.0)
    found = [start for one in desk.plans() for start in one.starts if start.vm == "batch"]
    assert [(start.origin, start.run, start.evict) for start in found] == [(H2, 1, True)]
    assert desk.hear(TableRead(table="leases", rows=())) == [], "once"


def test_one_that_fails_as_it_gives_its_room_is_one_failovers_and_keeps_that_room_from_nobody() -> None:
    """Two incidents had it as theirs, and no plan was possible any more."""
    desk = preempted()
    [stop] = desk.plans()[0].stops
    bad = crashed("batch", memory_mib=500, policy=LOW)
    desk.show("h2", bad)
    desk.hear(
        VmFailed(
            vm="batch", name="BATCH", at=H2, run=1, reason=bad.stop_reason, why=Failure.CRASHED, report=bad
        )
    )
    desk.leased("batch", H2, LeaseState.FAILED, seq=2, run=1, memory_mib=500, policy=LOW)
    desk.hear(
        VmPreempted(vm="batch", name="BATCH", at=H2, incident="h1-1", stop_key=stop.key, run=1, cause="x")
    )
    desk.after(1.0)
    [item] = [item for incident in desk.state.incidents() for item in incident.items if item.vm == "batch"]
    assert (item.phase, item.in_place) == (Phase.WAITING, False)
    assert {start.vm for one in desk.plans() for start in one.starts} == {"db"}


def test_what_was_stopped_for_others_by_an_order_that_nobody_keeps_starts_again() -> None:
    """We told the plan and died before the order was stored: that it was stopped is no news to us."""
    desk = Desk(preemption=True, hosts=2)
    desk.leased("batch", H2, LeaseState.FAILED, seq=2, run=1, memory_mib=500, policy=LOW)
    by_us = {"stop_reason": StopReason.ON_PURPOSE, "destroyed": True, "memory_mib": 500, "policy": LOW}
    desk.show("h2", vm("batch", VmState.STOPPED, **by_us))
    desk.hear(TableRead(table="leases", rows=()))
    desk.after(1.0)
    assert "batch" in {start.vm for one in desk.plans() for start in one.starts}


@pytest.mark.parametrize("more", [{"run": 2}, {"destroyed": False}])
def test_what_a_person_ended_after_a_stop_was_given_up_stays_down(more: dict[str, Any]) -> None:
    desk = given_up()
    by_hand = {"stop_reason": StopReason.ON_PURPOSE, "destroyed": True, "memory_mib": 500, "policy": LOW}
    desk.show("h2", vm("batch", VmState.STOPPED, **{**by_hand, **more}))
    desk.hear(TableRead(table="leases", rows=()))
    desk.after(2.0)
    assert all(start.vm != "batch" for one in desk.plans() for start in one.starts)
