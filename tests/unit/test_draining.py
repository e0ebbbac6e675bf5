"""A host that is drained is emptied: who moves, in which order, how many at once; and who stays, by name and reason."""

from __future__ import annotations

from typing import Any

import pytest

from libs.config.settings import Guests, Restart
from libs.core.decider import TableRead
from libs.events.drains import HostDrained, HostDrainPlanned, HostDrainStuck
from libs.events.failovers import PlannedMove
from libs.events.guests import HostGrey
from libs.events.hosts import HostJoined
from libs.events.vms import VmMoved, VmMoveFailed
from libs.events.words import HostMaintenanceEntered, HostMaintenanceExited
from libs.model import Incarnation, LeaseState, Priority, Protection, VmReport, VmState
from libs.planning.snapshot import PoolPolicy
from services.placement.decide import Placement
from tests.unit import placing
from tests.unit.made import beat, boot, fenced, policy, seen, vm
from tests.unit.test_guest_failures import ill

pytestmark = pytest.mark.fast
H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")
HIGH, NONE = policy(priority=Priority.HIGH), policy(protection=Protection.NONE)
BEST = policy(protection=Protection.BEST_EFFORT, priority=Priority.HIGHEST)


class Desk(placing.Desk):
    """A placement of a pool whose hosts may be drained, with an executor that does what the test says."""

    def __init__(self, *, migrations: bool = True, at_once: int = 4, hosts: int = 3, **more: Any) -> None:
        super().__init__(hosts, **more)
        allowed = PoolPolicy(failures_to_tolerate=0, migrations=migrations)
        settings = Restart(parallel_moves=at_once, parallel_moves_per_host=at_once, retry_first_s=1.0)
        self.decider = Placement(settings, policy=allowed, guests=Guests(grey="drain"))

    def drain(self, host: str = "h1", number: int = 1) -> list[str]:
        return self.hear(HostMaintenanceEntered(host=host, number=number, by="ann", drain=True))

    def grey(self, host: str = "h1", mark: str = "m") -> list[str]:
        return self.hear(HostGrey(at=boot(host), guests=("X",), mark=mark))

    def looks(self, seconds: float) -> list[str]:
        """Time passes, and placement reads the leases again every five seconds."""
        told: list[str] = []
        for _ in range(int(seconds / 5)):
            told += self.after(5.0)
            told += self.hear(TableRead("leases", ()))
        return told

    def ordered(self) -> list[PlannedMove]:
        return [move for fact in self.told if isinstance(fact, HostDrainPlanned) for move in fact.moves]

    def where_to(self) -> dict[str, str]:
        return {move.vm: move.to.host for move in self.ordered()}

    def stays(self) -> dict[str, str]:
        """As was told last."""
        told = [fact for fact in self.told if isinstance(fact, HostDrainStuck)]
        return {one.vm: one.reason for one in told[-1].stays} if told else {}

    def moved(self, move: PlannedMove) -> None:
        """The executor says so, and both hosts show it."""
        held = self.state.leases[move.vm]
        self.leased(move.vm, move.to, token=held.token + 1, memory_mib=move.memory_mib, policy=held.policy)
        fact = VmMoved(
            vm=move.vm, name=move.name, at=move.to, origin=move.origin, incident="-", move_key=move.key,
            token=held.token + 1,
        )  # fmt: skip
        self.hear(fact)
        there = [one for one in self.vms[move.origin.host] if one.uuid == move.vm]
        came = [one.model_copy(update={"migrated": True}) for one in there]
        self.show(move.to.host, *self.vms[move.to.host], *came)
        self.show(move.origin.host, *(one for one in self.vms[move.origin.host] if one.uuid != move.vm))

    def fails(self, move: PlannedMove, reason: str = "unsafe") -> list[str]:
        fact = VmMoveFailed(
            vm=move.vm, name=move.name, at=move.to, origin=move.origin, incident="-", move_key=move.key,
            reason=reason,
        )  # fmt: skip
        return self.hear(fact)


def carried_out(desk: Desk) -> list[str]:
    """All that is ordered is moved, until nothing is ordered any more. The order in which it was."""
    done: list[str] = []
    while len(done) < len(desk.ordered()):
        move = desk.ordered()[len(done)]
        desk.moved(move)
        done.append(move.vm)
        desk.looks(5.0)
    return done


def test_protected_vms_move_first_by_priority_then_the_others() -> None:
    desk = Desk(at_once=1)
    desk.runs("h1", "idle", policy=NONE)
    desk.runs("h1", "idle2", policy=policy(protection=Protection.NONE, priority=Priority.HIGH))
    desk.runs("h1", "best", policy=BEST)
    desk.runs("h1", "plain")
    desk.runs("h1", "first", policy=HIGH)
    desk.drain()
    assert carried_out(desk) == ["first", "plain", "best", "idle2", "idle"]
    desk.looks(5.0)
    assert [type(fact) for fact in desk.told][-1] is HostDrained
    assert desk.stays() == {}


def test_no_more_move_at_a_time_than_the_executor_moves() -> None:
    desk = Desk(at_once=2)
    desk.runs("h1", "a", "b", "c")
    assert desk.drain() == ["host.drain_planned"]
    assert [move.vm for move in desk.ordered()] == ["a", "b"]
    assert "host.drain_planned" not in desk.looks(30.0), "none of both has ended"
    desk.moved(desk.ordered()[0])
    assert [move.vm for move in desk.ordered()] == ["a", "b", "c"]


def test_the_others_of_a_grey_host_move_and_its_failing_guests_start_elsewhere() -> None:
    desk = Desk()
    desk.runs("h1", "sick", "sick2", "old", "older")
    desk.show("h1", ill("sick"), ill("sick2"), vm("old"), vm("older"))
    assert desk.grey() == ["host.draining", "host.drain_planned"]
    assert set(desk.where_to()) == {"old", "older"}
    assert all(move.origin == H1 and move.to != H1 for move in desk.ordered())


def test_room_is_left_for_what_is_down() -> None:
    """Each other host takes one more; what waits to be started there comes first, however little it matters."""
    desk = Desk(hosts=2)
    desk.runs("h1", "mover", memory_mib=600, policy=HIGH)
    desk.runs("h2", "crashes", memory_mib=500, policy=policy(protection=Protection.BEST_EFFORT))
    desk.hear(fenced(boot("h9"), vm("down", memory_mib=600), epoch=7))
    desk.hear(TableRead("leases", ()))
    assert len(desk.open()) == 1
    desk.drain()
    desk.looks(20.0)
    assert desk.ordered() == []
    assert desk.stays() == {"mover": "down_first"}


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (vm("a", memory_mib=900), "no_room"),
        (vm("a", VmState.PAUSED), "not_running"),
        (vm("a", VmState.UNKNOWN), "not_running"),
        (vm("a", policy=policy(requires_labels="rack=r9")), "no_host_suits"),
        (ill("a", policy=NONE), "guest_fails"),
        (ill("a", policy=policy(on_guest_failure="alert")), "guest_fails"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_cannot_be_moved_stays_and_is_named_with_its_reason(report: VmReport, reason: str) -> None:
    desk = Desk()
    for host in ("h2", "h3"):
        desk.runs(host, f"on-{host}", memory_mib=200)
    desk.show("h1", report)
    desk.leased("a", H1, memory_mib=report.memory_mib, policy=report.policy)
    assert desk.drain() == []
    told = desk.looks(30.0)
    assert told.count("host.drain_stuck") == 1
    assert desk.stays() == {"a": reason}
    assert desk.ordered() == []
    drain = desk.state.drain_of("h1")
    assert drain is not None
    assert [(one.name, one.reason) for one in drain.stays] == [("A", reason)]


@pytest.mark.parametrize("state", [LeaseState.EVICTING, LeaseState.MIGRATED_OUT])
def test_what_does_not_run_under_its_hosts_lease_is_not_moved(state: LeaseState) -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.leased("a", H1, state, seq=5)
    desk.drain()
    desk.looks(30.0)
    assert (desk.ordered(), desk.stays()) == ([], {"a": "not_held"})


def test_where_nothing_may_be_migrated_all_stay() -> None:
    desk = Desk(migrations=False)
    desk.runs("h1", "a")
    desk.drain()
    desk.looks(30.0)
    assert (desk.ordered(), desk.stays()) == ([], {"a": "migrations_off"})


def test_a_host_without_an_agent_keeps_its_vms() -> None:
    desk = Desk()
    at = Incarnation(host="h1", boot="b-agentless")
    assert at.outside
    desk.hear(HostJoined(at=at, epoch=1))
    desk.hear(beat("h1").model_copy(update={"at": at}))
    desk.hear(seen(at, vm("a"), memory_mib=1000))
    desk.leased("a", at)
    step = desk.drain()
    assert step == []
    drain = desk.state.drain_of("h1")
    assert drain is not None
    assert [one.reason for one in drain.stays] == ["agentless"]


def test_a_failed_move_is_tried_to_another_host_and_after_three_it_stays() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.drain()
    tried = []
    for _ in range(3):
        move = desk.ordered()[-1]
        tried.append(move.to.host)
        desk.fails(move, "no shared disk")
        assert desk.stays() == {}, "it may yet move"
        desk.looks(60.0)
    assert len(desk.ordered()) == 3
    assert {move.key for move in desk.ordered()} == {*(move.key for move in desk.ordered())}
    assert len({move.key for move in desk.ordered()}) == 3
    assert set(tried[:2]) == {"h2", "h3"}
    assert desk.stays() == {"a": "move_failed"}
    [stuck] = [fact for fact in desk.told if isinstance(fact, HostDrainStuck)]
    assert "no shared disk" in stuck.stays[0].detail


def test_what_stays_for_want_of_room_moves_once_there_is_some() -> None:
    desk = Desk(hosts=2)
    desk.runs("h1", "a", memory_mib=600)
    desk.runs("h2", "b", memory_mib=600)
    desk.drain()
    desk.looks(30.0)
    assert desk.stays() == {"a": "no_room"}
    desk.show("h2")
    desk.leased("b", H2, LeaseState.STOPPED, seq=5)
    desk.looks(20.0)
    assert desk.where_to() == {"a": "h2"}


def test_one_that_came_by_a_migration_is_moved_on() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.drain()
    [move] = desk.ordered()
    desk.moved(move)
    desk.hear(HostMaintenanceExited(host="h1", number=2, by="ann"))
    desk.drain(move.to.host, number=1)
    assert [one.origin.host for one in desk.ordered()] == ["h1", move.to.host]


def test_nothing_is_moved_to_another_host_that_is_closed() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.hear(HostMaintenanceEntered(host="h2", number=1, by="ann"))
    desk.drain()
    assert desk.where_to() == {"a": "h3"}


def test_two_hosts_are_drained_to_the_third() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.runs("h2", "b")
    desk.hear(HostMaintenanceEntered(host="h2", number=1, by="ann"))
    desk.drain()
    desk.drain("h2", number=2)
    assert desk.where_to() == {"a": "h3", "b": "h3"}


def test_maintenance_moves_nothing_unless_that_is_asked_for() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.hear(HostMaintenanceEntered(host="h1", number=1, by="ann"))
    desk.looks(30.0)
    assert (desk.ordered(), desk.state.drain_of("h1")) == ([], None)


def test_a_drain_that_has_ended_orders_nothing_more_and_leaves_no_record() -> None:
    desk = Desk(at_once=1)
    desk.runs("h1", "a", "b")
    desk.drain()
    desk.hear(HostMaintenanceExited(host="h1", number=2, by="ann"))
    desk.moved(desk.ordered()[0])
    desk.looks(30.0)
    assert [move.vm for move in desk.ordered()] == ["a"]
    assert desk.state.drain_of("h1") is None


def test_a_vm_that_must_be_with_one_that_stays_stays() -> None:
    desk = Desk()
    group = policy(affinity="pair")
    desk.show("h1", vm("a", policy=group), vm("b", VmState.PAUSED, policy=group))
    for one in "ab":
        desk.leased(one, H1, policy=group)
    desk.drain()
    desk.looks(30.0)
    assert (desk.ordered(), desk.stays()) == ([], {"a": "strict_rule", "b": "not_running"})


def test_whoever_leads_next_goes_on_where_the_drain_was() -> None:
    desk = Desk(at_once=1)
    desk.runs("h1", "a", "b")
    desk.drain()
    records = desk.state.records
    desk.take(desk.decider.resume(desk.state, records, desk.now))
    assert "host.drain_planned" not in desk.looks(20.0), "its order is under way"
    desk.moved(desk.ordered()[0])
    assert [move.vm for move in desk.ordered()] == ["a", "b"]


def test_an_order_of_which_nothing_is_heard_is_told_again_under_its_key() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.drain()
    assert desk.looks(170.0) == [], "a migration may take so long"
    assert desk.looks(20.0) == ["host.drain_planned"]
    first, again = desk.ordered()
    assert first == again
    desk.moved(again)
    assert desk.looks(400.0) == []


def test_it_is_told_once_that_a_host_is_empty() -> None:
    desk = Desk()
    assert desk.drain() == ["host.drained"]
    assert desk.looks(60.0) == []
    desk.runs("h1", "late")
    desk.looks(5.0)
    assert desk.where_to().keys() == {"late"}
    desk.moved(desk.ordered()[0])
    assert [type(fact) for fact in desk.told].count(HostDrained) == 2, "as soon as its host shows it"
