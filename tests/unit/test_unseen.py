"""A VM that was migrated away and that no host shows: a person is told once, and nothing is started."""

from __future__ import annotations

import pytest

from libs.core.decider import Expired
from libs.events.hosts import HostJoined
from libs.events.signals import LeaseWritten
from libs.leases import Grant, rule
from libs.model import Incarnation, LeaseState, Protection, StopReason, VmPolicy, VmReport, VmState
from services.executor.orders import LeaseFound, WriteLease
from services.executor.unseen import UNSEEN_S
from services.placement.state import Item, Phase
from tests.unit.made import boot, fenced, lease, proof, seen, vm
from tests.unit.placing import Desk as Placing
from tests.unit.test_executor import Desk, order, plan

pytestmark = pytest.mark.fast
H1, H2 = boot("h1"), boot("h2")
GONE = vm("a", VmState.STOPPED, stop_reason=StopReason.MIGRATED)


def held(desk: Desk | None = None) -> Desk:
    desk = desk or Desk()
    desk.hear(LeaseWritten(lease=lease("a", H1)))
    desk.hear(seen(H2))
    return desk


def told(desk: Desk, shown: VmReport, *, at: Incarnation = H1, after_s: float = UNSEEN_S) -> list[str]:
    """The host says so, and says it again later."""
    desk.hear(seen(at, shown))
    desk.now += after_s
    return desk.hear(seen(at, shown, rev=2))


def test_what_was_migrated_to_where_nobody_shows_it_is_told_once() -> None:
    desk = held()
    assert told(desk, GONE, after_s=UNSEEN_S - 1.0) == []
    desk.now += 1.0
    assert desk.hear(seen(H1, GONE, rev=3)) == ["vm.unseen", "lease/a/2"]
    desk.now += UNSEEN_S
    assert desk.hear(seen(H1, GONE, rev=4)) == []
    assert desk.told[-1].key == f"vm.unseen/a/{H1.boot}/1-0"
    (write,) = desk.asked
    assert isinstance(write, WriteLease), "it may run where we cannot see it: nothing is started"
    assert (write.lease.state, write.lease.holder, write.lease.token) == (LeaseState.MIGRATED_OUT, H1, 1)


def test_that_it_is_out_of_the_pool_is_written_until_that_has_come_through() -> None:
    desk = held()
    told(desk, GONE)
    desk.hear(Expired(key=f"lease/a/{desk.asked[0].lease.seq}", request="write_lease", reason="no answer"))
    assert desk.hear(seen(H1, GONE, rev=3)) == ["lease/a/2"], "told once"
    again = [one for one in desk.asked if isinstance(one, WriteLease)]
    assert [one.lease.state for one in again] == [LeaseState.MIGRATED_OUT] * 2
    desk.hear(LeaseFound(key=again[-1].key, lease=again[-1].lease))
    desk.hear(seen(H1, GONE, rev=4))
    assert len(desk.asked) == 2


@pytest.mark.parametrize("at", [H1, H2])
def test_whoever_shows_it_again_has_its_lease(at: Incarnation) -> None:
    """Brought back into the pool, to the host that let it go or to another."""
    desk = held()
    told(desk, GONE)
    desk.hear(LeaseFound(key=desk.asked[0].key, lease=desk.asked[0].lease))
    desk.hear(seen(at, vm("a", run=2), rev=9))
    write = desk.asked[-1]
    assert (write.lease.state, write.lease.holder, write.lease.token) == (LeaseState.RUNNING, at, 2)


def test_the_host_that_let_it_go_fails_before_that_was_told_and_it_is_let_go_all_the_same() -> None:
    desk = held()
    desk.hear(seen(H1, GONE))
    assert desk.hear(fenced(H1)) == ["vm.unseen", "lease/a/2"]
    (write,) = [one for one in desk.asked if isinstance(one, WriteLease)]
    assert (write.lease.state, write.lease.holder) == (LeaseState.MIGRATED_OUT, H1)


def test_no_start_takes_the_lease_of_what_is_out_of_the_pool() -> None:
    out = lease("a", H1, state=LeaseState.MIGRATED_OUT)
    start = order("a").model_copy(update={"origin": H1, "proofs": (proof(H1),)})
    assert rule(lease("a", H1), start).grant is Grant.TAKE
    ruling = rule(out, start)
    assert (ruling.grant, "outside the pool" in ruling.reason) == (Grant.REFUSE, True)
    assert not out.wanted


def waiting(desk: Placing) -> Item:
    (item,) = [one for incident in desk.state.incidents() for one in incident.items if one.vm == "a"]
    return item


def test_a_vm_that_its_failed_host_had_let_go_is_no_orphan_of_it() -> None:
    """Placement waits with a reason until a lease says where it is, or that nobody knows."""
    desk = Placing()
    desk.show("h1", GONE, vm("b"))
    for one in ("a", "b"):
        desk.leased(one, H1)
    desk.off.add("h1")
    desk.hear(fenced(H1))
    planned = [fact for fact in desk.told if fact.kind == "failover.planned"]
    assert [start.vm for fact in planned for start in fact.starts] == ["b"]
    item = waiting(desk)
    assert (item.taken, item.phase) == (True, Phase.WAITING)
    assert "migrated away" in item.reason
    desk.hear(HostJoined(at=boot("h1", 2)))
    desk.hear(seen(boot("h1", 2)))
    desk.after(60.0)
    starts = [start.vm for fact in desk.told if fact.kind == "failover.planned" for start in fact.starts]
    assert "a" not in starts
    desk.leased("a", H1, LeaseState.MIGRATED_OUT, seq=9)
    desk.after(3.0)
    assert (waiting(desk).phase, "outside the pool" in waiting(desk).reason) == (Phase.GIVEN_UP, True)


@pytest.mark.parametrize("shown", [VmState.RUNNING, VmState.PAUSED, VmState.UNKNOWN])
def test_what_any_host_may_have_is_not_unseen(shown: VmState) -> None:
    desk = held()
    desk.hear(seen(H2, vm("a", shown), rev=2))
    assert "vm.unseen" not in told(desk, GONE)


@pytest.mark.parametrize(
    "shown",
    [
        vm("a"),
        vm("a", VmState.STOPPED, stop_reason=StopReason.CRASHED),
        vm("a", VmState.STOPPED),
        GONE.model_copy(update={"policy": VmPolicy(protection=Protection.NONE)}),
    ],
    ids=["it runs", "it crashed", "nobody knows why it is down", "it is not protected"],
)
def test_only_a_protected_vm_that_its_holder_let_go_is_unseen(shown: VmReport) -> None:
    assert told(held(), shown) == []


def test_what_a_host_without_the_lease_once_let_go_is_not_unseen() -> None:
    assert told(held(), GONE, at=H2) == []


def test_a_vm_that_is_about_to_be_started_is_not_unseen() -> None:
    desk = held()
    desk.hear(plan(order("a")))
    assert "vm.unseen" not in told(desk, GONE)


def test_one_that_was_shown_meanwhile_has_its_time_anew() -> None:
    """A migration to and fro, of which only the ends were told."""
    desk = held()
    desk.hear(seen(H1, GONE))
    desk.hear(seen(H1, vm("a", run=2), rev=2))
    assert told(desk, GONE.model_copy(update={"run": 2}), after_s=UNSEEN_S - 1.0) == []


def test_whoever_starts_it_by_hand_takes_its_lease_along() -> None:
    desk = held()
    told(desk, GONE, after_s=1.0)
    desk.hear(seen(H2, vm("a"), rev=9))
    (write,) = [one for one in desk.asked if isinstance(one, WriteLease)]
    assert (write.lease.holder, write.lease.token) == (H2, 2)


def test_a_boot_that_is_over_lets_nothing_go() -> None:
    desk = held()
    desk.hear(seen(H1, GONE))
    desk.hear(fenced(H1))
    desk.now += UNSEEN_S
    assert "vm.unseen" not in desk.hear(seen(H1, GONE, rev=2))
