"""A failover begins from the plan that was kept ready for that host's loss, where it still holds."""

from __future__ import annotations

import pytest

from libs.core.decider import TableRead
from libs.events.failovers import FailoverPlanned
from libs.events.hosts import HostJoined
from libs.events.words import HostRemoved
from libs.model import Priority, Protection, VmReport
from services.placement.ready import RECORD
from tests.unit.made import beat, boot, fenced, policy, seen, vm
from tests.unit.test_proving import Desk

pytestmark = pytest.mark.fast


def lost(desk: Desk, host: str, *vms: VmReport) -> FailoverPlanned:
    """The host falls silent, a look is taken without it, and it is fenced."""
    desk.now += 3.0
    for name in sorted(desk.state.heard):
        if name != host:
            desk.hear(beat(name))
    before = len(desk.said)
    desk.hear(fenced(boot(host), *vms))
    [planned] = [one for one in desk.said[before:] if isinstance(one, FailoverPlanned)]
    return planned


def ready_to(desk: Desk, host: str) -> dict[str, str]:
    return dict(desk.state.ready[host].witness.placed)


def where(planned: FailoverPlanned) -> dict[str, str]:
    return {start.vm: start.to.host for start in planned.starts}


def test_a_failover_starts_from_the_plan_that_was_ready() -> None:
    desk = Desk()
    one, two = vm("a", memory_mib=300), vm("b", memory_mib=200)
    desk.host("h1", one, two)
    desk.host("h2")
    desk.host("h3", vm("c"))
    desk.looks()
    ready = ready_to(desk, "h1")
    planned = lost(desk, "h1", one, two)
    assert planned.ready
    assert {vm.upper(): to for vm, to in where(planned).items()} == ready
    assert planned.rule == "as was kept ready for this loss"


def test_the_ready_plan_follows_the_pool() -> None:
    desk = Desk()
    one = vm("a", memory_mib=600)
    desk.host("h1", one)
    desk.host("h2")
    desk.looks()
    assert ready_to(desk, "h1") == {"A": "h2"}
    desk.host("h3")
    desk.host("h2", vm("big", memory_mib=700))
    desk.looks()
    assert ready_to(desk, "h1") == {"A": "h3"}
    assert where(lost(desk, "h1", one)) == {"a": "h3"}


def test_where_the_target_is_lost_as_well_a_plan_is_sought() -> None:
    desk = Desk()
    one = vm("a", memory_mib=300)
    desk.host("h1", one)
    desk.host("h2")
    desk.host("h3", vm("c", memory_mib=200))
    desk.looks()
    assert ready_to(desk, "h1") == {"A": "h2"}
    desk.now += 3.0
    desk.hear(beat("h3"), fenced(boot("h1"), one))
    planned = desk.said[-1]
    assert isinstance(planned, FailoverPlanned)
    assert where(planned) == {"a": "h3"}
    assert not planned.ready


def test_where_a_vm_has_taken_the_room_since_a_plan_is_sought() -> None:
    desk = Desk()
    one, two = vm("a", memory_mib=600), vm("b", memory_mib=600)
    desk.host("h1", one)
    desk.host("h2")
    desk.host("h3", vm("c", memory_mib=200))
    desk.looks()
    assert ready_to(desk, "h1") == {"A": "h2"}
    desk.hear(seen(boot("h2"), two, rev=2))
    planned = lost(desk, "h1", one)
    assert where(planned) == {"a": "h3"}


def test_what_a_ready_plan_leaves_out_is_sought_by_priority() -> None:
    desk = Desk()
    low = vm("low", memory_mib=500, policy=policy(priority=Priority.LOW))
    high = vm("high", memory_mib=400, policy=policy(priority=Priority.HIGH))
    desk.host("h1", low, high)
    desk.host("h2", vm("c", memory_mib=450))
    desk.looks()
    planned = lost(desk, "h1", low, high)
    assert not planned.ready
    assert where(planned) == {"high": "h2"}
    assert [one.name for one in planned.waiting] == ["LOW"]


def test_a_best_effort_vm_goes_where_room_is_left_beside_the_plan() -> None:
    desk = Desk()
    kept, tried = vm("a", memory_mib=300), vm("t", policy=policy(protection=Protection.BEST_EFFORT))
    desk.host("h1", kept, tried)
    desk.host("h2")
    desk.looks()
    planned = lost(desk, "h1", kept, tried)
    assert planned.ready
    assert set(where(planned)) == {"a", "t"}


def test_a_former_boot_of_a_host_has_no_ready_plan() -> None:
    desk = Desk()
    one = vm("a")
    desk.host("h1", one)
    desk.host("h2")
    desk.looks()
    desk.hear(HostJoined(at=boot("h1", 2), epoch=1), beat("h1", 2), seen(boot("h1", 2)))
    desk.hear(TableRead("leases", tuple(desk.leases.values())))
    assert not lost(desk, "h1", one).ready


def test_of_a_host_that_was_removed_no_plan_is_kept() -> None:
    desk = Desk()
    desk.host("h1")
    desk.host("h2", vm("b"))
    desk.host("h3")
    desk.looks()
    assert set(desk.state.ready) == {"h1", "h2", "h3"}
    desk.hear(HostRemoved(at=boot("h1"), agent="life", by="ann@desk"))
    desk.looks()
    assert set(desk.state.ready) == {"h2", "h3"}


def test_people_see_for_whom_a_plan_is_ready_and_who_is_left_out() -> None:
    desk = Desk()
    desk.host("h1", vm("a", memory_mib=600), vm("b", memory_mib=300), memory_mib=1200)
    desk.host("h2", vm("c", memory_mib=250))
    desk.looks()
    ready = desk.state.records[RECORD].ready
    assert (ready["h1"].vms, ready["h1"].left) == (1, ("B",))
    assert (ready["h2"].vms, ready["h2"].left) == (1, ())
