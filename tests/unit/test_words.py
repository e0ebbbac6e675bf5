"""What detector, placement and executor make of an operator's words: maintenance, and removal from the pool."""

from __future__ import annotations

import pytest

from libs import lifecycle
from libs.core.decider import TableRead
from libs.events.signals import Heartbeat, InventorySeen
from libs.events.words import HostMaintenanceEntered, HostMaintenanceExited, HostRemoved
from libs.model import HostState, Incarnation, PowerState
from tests.unit.made import beat, boot, crashed, fenced, inventory, lease, seen, stored, vm
from tests.unit.placing import Desk
from tests.unit.test_executor import Desk as ExecutorDesk
from tests.unit.watch import Watch, pool

pytestmark = pytest.mark.fast
S = HostState
H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")


def removed(at: Incarnation, agent: str = "life") -> HostRemoved:
    return HostRemoved(at=at, agent=agent, by="ann@desk")


def entered(host: str, number: int = 1) -> HostMaintenanceEntered:
    return HostMaintenanceEntered(host=host, number=number, by="ann@desk")


def exited(host: str, number: int = 2) -> HostMaintenanceExited:
    return HostMaintenanceExited(host=host, number=number, by="ann@desk")


# -- the detector and removal


def without(host: str = "h3") -> Watch:
    watch = pool("h1", "h2", "h3", "h4")
    watch.hear(removed(boot(host)))
    return watch


def test_nobody_minds_the_silence_of_a_host_that_was_removed() -> None:
    watch = without()
    watch.silent.add("h3")
    assert watch.after(300.0) == []
    assert watch.is_("h3") is S.UNKNOWN
    assert not any(asked.host == "h3" for asked in watch.asked)


def test_what_the_same_life_of_its_agent_still_says_is_not_listened_to() -> None:
    watch = without()
    assert watch.hear(beat("h3")) == []
    assert watch.hear(seen(H3, vm("a"))) == []
    assert watch.state.view("h3").inventory is None
    assert watch.after(5.0) == []


@pytest.mark.parametrize("number", [1, 2], ids=["its agent is started anew", "it boots"])
def test_it_joins_as_a_new_one_and_its_numbers_go_on(number: int) -> None:
    watch = without()
    before = watch.state.record("h3")
    assert watch.hear(Heartbeat(at=boot("h3", number), agent="another life", seq=1)) == ["host.joined"]
    assert watch.told[-1].key != f"host.joined/h3/{H3.boot}/0", "no repeat of its first joining"
    watch.silent.add("h3")
    watch.after(1.7)
    watch.answer("h3", "power", power=PowerState.OFF)
    verdict = watch.told[-1]
    assert verdict.kind == "host.failed"
    assert verdict.epoch > before.epoch > 0


def test_a_removal_that_is_told_again_after_it_joined_again_is_no_removal() -> None:
    watch = without()
    watch.hear(Heartbeat(at=H3, agent="another life", seq=1))
    watch.hear(removed(H3))
    assert watch.is_("h3") is S.HEALTHY


def test_a_removal_holds_for_a_successor() -> None:
    watch = without()
    after = pool("h1", "h2", "h3", "h4")
    after.resume(stored(watch.state.records))
    assert after.hear(beat("h3")) == []
    after.silent.add("h3")
    after.after(100.0)
    assert after.is_("h3") is S.UNKNOWN


def test_a_verdict_that_came_first_is_handled_to_its_end() -> None:
    watch = pool("h1", "h2", "h3", "h4").gone("h3")
    watch.answer("h3", "power", power=PowerState.OFF)
    watch.hear(removed(H3))
    assert watch.is_("h3") is S.FAILED


def test_a_removal_of_a_boot_that_is_over_is_void() -> None:
    watch = pool("h1", "h2", "h3", "h4")
    watch.hear(beat("h3", 2))
    watch.hear(removed(H3))
    assert watch.state.record("h3").at == boot("h3", 2)


def test_a_fenced_boot_stays_over_after_its_host_was_removed() -> None:
    watch = pool("h1", "h2", "h3", "h4").gone("h3")
    watch.answer("h3", "power", power=PowerState.OFF)
    watch.hear(fenced(H3).model_copy(update={"incident": watch.state.record("h3").incident}))
    watch.hear(removed(H3, agent=""))
    assert watch.is_("h3") is S.UNKNOWN
    assert watch.hear(Heartbeat(at=H3, agent="echo", seq=9)) == []
    assert watch.hear(beat("h3", 2)) == ["host.joined"]


def test_the_table_has_a_row_for_every_state_that_a_host_can_be_removed_from() -> None:
    rows = [row for row in lifecycle.TABLE if row.fact == "host.removed"]
    assert {row.before for row in rows} == {S.HEALTHY, S.SUSPECT, S.AGENT_DOWN, S.FENCED}
    assert {(row.after, row.speaker) for row in rows} == {(S.UNKNOWN, "operator")}


def test_a_successor_tells_nothing_of_what_crashed_on_a_host_that_was_removed() -> None:
    watch = without()
    after = pool("h1", "h2", "h3", "h4")
    after.hear(seen(H3, crashed("a")))
    assert after.resume(stored(watch.state.records)) == []


# -- placement and maintenance


def test_nothing_is_planned_onto_a_host_in_maintenance() -> None:
    desk = Desk()
    desk.runs("h1", "a", "b")
    desk.hear(entered("h3"))
    desk.dies("h1")
    assert desk.where() == {"a": "h2", "b": "h2"}


def test_what_waits_is_planned_when_a_host_leaves_maintenance() -> None:
    desk = Desk(hosts=2)
    desk.runs("h1", "a")
    desk.hear(entered("h2"))
    desk.dies("h1")
    assert desk.plans()[-1].starts == ()
    assert [one.vm for one in desk.plans()[-1].waiting] == ["a"]
    desk.after(30.0)
    assert "failover.planned" in [*desk.hear(exited("h2")), *desk.after(1.0)]
    assert desk.where() == {"a": "h2"}


def test_an_older_word_that_comes_late_or_again_is_void() -> None:
    desk = Desk()
    desk.hear(exited("h3", 2))
    desk.hear(entered("h3", 1))
    assert not desk.state.words_on("h3").maintenance
    desk.hear(entered("h3", 3))
    desk.hear(exited("h3", 2))
    assert desk.state.words_on("h3").maintenance


def test_maintenance_holds_for_a_successor() -> None:
    desk = Desk()
    desk.hear(entered("h3"))
    after = Desk()
    after.take(after.decider.resume(after.state, stored(desk.state.records), after.now))
    after.runs("h1", "a")
    after.dies("h1")
    assert after.where() == {"a": "h2"}


def test_a_host_in_maintenance_that_fails_is_dealt_with_and_its_vm_that_crashes_restarts_there() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.hear(entered("h1"))
    desk.crashes("a")
    assert desk.where() == {"a": "h1"}
    desk.starts()
    desk.dies("h1")
    assert set(desk.where().values()) <= {"h2", "h3"}


def test_a_failed_start_goes_round_again_only_over_hosts_that_take_vms() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.hear(entered("h3"))
    desk.dies("h1")
    assert desk.where() == {"a": "h2"}
    desk.refuses()
    desk.after(10.0)
    assert desk.where() == {"a": "h2"}, "again there: h3 is closed"


# -- placement and removal


def test_placement_forgets_a_host_that_was_removed_until_it_joins_as_another() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.hear(entered("h3"))
    desk.hear(removed(H3))
    desk.after(2.0)  # its agent still speaks
    assert desk.hear(TableRead("inventory", (inventory(H3),))) == []
    assert "h3" not in desk.state.heard
    desk.dies("h1")
    assert desk.where() == {"a": "h2"}
    desk.hear(Heartbeat(at=boot("h3", 2), agent="new", seq=1))
    desk.hear(InventorySeen(inventory=inventory(boot("h3", 2), agent="new")))
    assert not desk.state.words_on("h3").maintenance
    assert desk.state.words_on("h3").number == 1, "numbers go on"


def test_a_removal_told_again_or_late_does_not_touch_the_host_that_joined() -> None:
    desk = Desk()
    desk.hear(removed(H3))
    desk.hear(Heartbeat(at=boot("h3", 2), agent="new", seq=1))
    desk.hear(InventorySeen(inventory=inventory(boot("h3", 2), agent="new")))
    desk.hear(removed(H3))
    desk.hear(removed(H3, agent="older"))
    assert desk.state.heard["h3"].at == boot("h3", 2)


def test_what_a_follower_heard_of_a_host_before_its_removal_is_forgotten_when_it_leads() -> None:
    leader, follower = Desk(), Desk()
    leader.hear(removed(H3))
    follower.take(follower.decider.resume(follower.state, stored(leader.state.records), follower.now))
    follower.runs("h1", "a", "b")
    follower.dies("h1")
    assert follower.where() == {"a": "h2", "b": "h2"}


# -- the executor


def test_a_vm_that_a_person_started_after_its_host_was_removed_is_adopted() -> None:
    desk = ExecutorDesk()
    desk.hear(TableRead("leases", (lease("a", H3),)))
    desk.hear(seen(H3, vm("a")))
    assert desk.hear(seen(H2, vm("a"))) == [], "it is held elsewhere, as far as is known"
    desk.hear(removed(H3))
    assert desk.hear(seen(H2, vm("a"))) == ["lease/a/2"]
    assert desk.asked[-1].lease.holder == H2
