"""Guests that fail while their QEMU lives: in place, elsewhere, given up; well again; a stop that fails; grey hosts."""

from __future__ import annotations

from typing import Any

import pytest

from libs.config.settings import Guests
from libs.core.decider import TableRead
from libs.crashes import crashes, failure_of, grey, unhealthy, well
from libs.events.failovers import PlannedStart
from libs.events.guests import HostGrey
from libs.events.vms import Stage, VmRestartFailed
from libs.events.words import HostMaintenanceExited
from libs.model import Failure, Health, LeaseState, StopReason, VmReport, VmState
from services.detector.guests import told
from services.placement.decide import Placement
from tests.unit.made import boot, crashed, inventory, policy, seen, vm
from tests.unit.placing import SETTINGS, Desk

pytestmark = pytest.mark.fast
H1, H2 = boot("h1"), boot("h2")
OK, SILENT, PANICKED = Health.OK, Health.SILENT, Health.PANICKED


def ill(uuid: str, health: Health = SILENT, **more: Any) -> VmReport:
    return vm(uuid, VmState.RUNNING if health in (SILENT, OK) else VmState.PAUSED, health=health, **more)


# -- what is a failure


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (vm("a"), None),
        (vm("a", health=OK), None),
        (vm("a", VmState.PAUSED), None),
        (vm("a", VmState.UNKNOWN), None),
        (vm("a", VmState.UNKNOWN, health=SILENT), None),
        (vm("a", VmState.STOPPED, health=SILENT), None),
        (crashed("a"), Failure.CRASHED),
        (ill("a"), Failure.SILENT),
        (ill("a", PANICKED), Failure.PANICKED),
        (ill("a", Health.IO_ERROR), Failure.IO_ERROR),
        (ill("a", Health.WATCHDOG), Failure.WATCHDOG),
    ],
)
def test_what_is_a_failure(report: VmReport, why: Failure | None) -> None:
    assert failure_of(report) is why
    facts = crashes(inventory(H1, report), None)
    assert [one.why for one in facts] == ([] if why is None else [why])
    assert all(one.report.state.active is (why is not Failure.CRASHED) for one in facts)


def test_a_failure_is_told_once_a_run_and_cause() -> None:
    keys = [
        one.key
        for before, now in (
            (None, ill("a")),
            (ill("a"), ill("a", memory_mib=200)),
            (ill("a"), ill("a", PANICKED)),
            (vm("a", run=2), ill("a", run=2)),
            (ill("a"), ill("a", run=2)),
        )
        for one in crashes(inventory(H1, now), None if before is None else inventory(H1, before))
    ]
    which = [key.rsplit("/", 1)[1] for key in keys]
    assert which == ["1-0-silent", "1-0-panicked", "2-0-silent", "2-0-silent"]
    assert crashes(inventory(H1, crashed("a")), None)[0].key.endswith("/1-0"), "as ever"


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        ({}, ["vm.failed"]),
        ({"protection": "best_effort"}, ["vm.failed"]),
        ({"on_guest_failure": "alert"}, ["vm.unhealthy"]),
        ({"protection": "none"}, []),
        ({"protection": "none", "on_guest_failure": "alert"}, []),
    ],
)
def test_by_its_policy_a_guest_is_restarted_or_told_of_or_neither(
    more: dict[str, Any], kinds: list[str]
) -> None:
    now = inventory(H1, ill("a", policy=policy(**more)))
    assert [one.kind for one in told(now, None, 2)] == kinds
    assert told(now, now, 2) == []
    gone = inventory(H1, crashed("a", policy=policy(on_guest_failure="alert")))
    assert [one.kind for one in told(gone, None, 2)] == ["vm.failed"], (
        "its process is gone: that is another thing"
    )
    assert not unhealthy(gone, None)


# -- grey


@pytest.mark.parametrize(
    ("vms", "least", "found"),
    [
        ((ill("a"), ill("b")), 2, "ab"),
        ((ill("a"), ill("b", PANICKED), vm("c"), crashed("d")), 2, "ab"),
        ((ill("a"), ill("b"), vm("c", health=OK)), 2, ""),
        ((ill("a"),), 2, ""),
        ((ill("a"), crashed("b")), 2, ""),
        ((ill("a"), ill("b")), 3, ""),
        ((ill("a"),), 1, ""),
        ((), 2, ""),
    ],
)
def test_a_host_is_grey_where_all_guests_of_known_health_fail(
    vms: tuple[VmReport, ...], least: int, found: str
) -> None:
    now = inventory(H1, *vms)
    assert "".join(one.uuid for one in grey(now, least)) == found
    facts = [one for one in told(now, None, least) if isinstance(one, HostGrey)]
    assert [one.guests for one in facts] == ([tuple(found.upper())] if found else [])


def test_a_grey_host_is_told_once_and_under_the_same_key_by_whoever_takes_over() -> None:
    first = inventory(H1, ill("a"), ill("b"))
    keys = [one.key for one in told(first, inventory(H1, ill("a"), vm("b")), 2) if one.kind == "host.grey"]
    again = [one.key for one in told(first, None, 2) if one.kind == "host.grey"]
    assert keys == again != []
    assert told(inventory(H1, ill("a"), ill("b"), ill("c")), first, 2)[1:] == []


def test_a_host_is_well_where_a_guest_is_known_to_be_and_none_fails() -> None:
    assert well(inventory(H1, vm("a", health=OK), vm("b")))
    assert not well(inventory(H1, vm("a", health=OK), ill("b")))
    assert not well(inventory(H1, vm("a"))), "nothing is known of it"
    assert not well(inventory(H1))


# -- placement


class Ward(Desk):
    """A placement with guests that fail and recover."""

    def __init__(self, grey: str = "alert", hosts: int = 3) -> None:
        super().__init__(hosts)
        self.decider = Placement(SETTINGS, guests=Guests.model_validate({"grey": grey}))

    def has(self, host: str, *vms: VmReport) -> list[str]:
        """The host shows this, and the detector says what it makes of it."""
        before = inventory(boot(host), *self.vms[host])
        heard = self.show(host, *vms)
        for fact in told(inventory(boot(host), *vms), before, 2):
            heard += self.hear(fact)
        return heard

    def stays(self, stage: Stage, start: PlannedStart | None = None) -> list[str]:
        start = start or self.last()
        incident = start.key.split("/")[0]
        reason = "its stop failed"
        return self.hear(
            VmRestartFailed(
                vm=start.vm, name=start.name, at=start.to, incident=incident, start_key=start.key,
                reason=reason, stage=stage,
            )
        )  # fmt: skip


def test_a_guest_that_fails_is_evicted_and_restarted_in_place_after_a_moment() -> None:
    ward = Ward()
    ward.runs("h1", "a", "b")
    assert ward.has("h1", ill("a"), vm("b")) == []
    assert ward.after(1.5) == []
    assert ward.after(1.0) == ["failover.planned"]
    start = ward.last()
    assert (start.to, start.origin, start.run, start.evict, start.proofs) == (H1, H1, 1, True, ())
    assert ward.starts() == ["failover.completed"]
    assert ward.open() == []


def test_three_in_an_hour_in_place_then_elsewhere_then_given_up() -> None:
    ward = Ward()
    ward.runs("h1", "a")
    at, where = H1, []
    for run in range(1, 7):
        ward.has(at.host, ill("a", run=run))
        assert ward.after(3.0) == ["failover.planned"]
        ward.show(at.host)
        at = ward.last().to
        where.append(at.host)
        assert ward.last().evict
        ward.starts()
        ward.show(at.host, vm("a", run=run + 1))
    assert where[:3] == ["h1", "h1", "h1"]
    assert all(one != other for one, other in zip(["h1", *where[3:]], where[3:], strict=False))
    assert ward.has(at.host, ill("a", run=7)) == ["vm.given_up"]
    assert ward.after(600) == []


def test_a_guest_that_is_well_again_before_anything_was_done_is_left_alone_and_costs_nothing() -> None:
    ward = Ward()
    ward.runs("h1", "a")
    for _ in range(10):
        ward.has("h1", ill("a"))
        ward.show("h1", vm("a", health=OK))
        assert ward.after(3.0) == ["vm.health_restored"]
        assert ward.open() == []
    ward.has("h1", ill("a"))
    ward.after(3.0)
    assert ward.last().to == H1, "none of these counted"


@pytest.mark.parametrize("more", [{"protection": "none"}, {"on_guest_failure": "alert"}])
def test_a_guest_whose_policy_is_changed_before_anything_was_done_is_left_as_it_is(
    more: dict[str, Any],
) -> None:
    ward = Ward()
    ward.runs("h1", "a")
    ward.has("h1", ill("a"))
    ward.show("h1", ill("a", policy=policy(**more)))
    assert ward.after(60.0) == []
    assert ward.open() == []


def test_once_its_stop_was_ordered_it_is_carried_out() -> None:
    ward = Ward()
    ward.runs("h1", "a")
    ward.has("h1", ill("a"))
    ward.after(3.0)
    ward.stays(Stage.EVICT)
    ward.show("h1", vm("a", health=OK))
    assert "failover.planned" in ward.after(10.0)


@pytest.mark.parametrize("stage", [Stage.ASK, Stage.EVICT])
def test_what_cannot_be_stopped_is_tried_for_ever_in_the_same_place_and_told_once(stage: Stage) -> None:
    ward = Ward()
    ward.runs("h1", "a")
    ward.has("h1", ill("a"))
    ward.after(3.0)
    heard = []
    for _ in range(12):
        heard += ward.stays(stage)
        heard += ward.after(70.0)
        assert ward.last().to == H1
    assert heard.count("vm.evict_failed") == (1 if stage is Stage.EVICT else 0)
    assert heard.count("failover.planned") == 12
    assert "host.suspected" not in heard


def test_what_the_lock_of_the_disks_refuses_goes_over_no_other_host_waits_longer_and_is_told_once() -> None:
    ward = Ward()
    ward.runs("h1", "a")
    ward.dies("h1")
    heard: list[str] = []
    targets, waits = set(), []
    for _ in range(6):
        ward.after(70.0)
        targets.add(ward.last().to)
        heard += ward.stays(Stage.LOCK)
        waits.append(round(ward.state.retry_at["a"] - ward.now))
    assert waits == [1, 2, 4, 8, 16, 32]
    assert len(targets) == 1, "another host would be refused as well"
    assert heard.count("vm.still_held") == 1
    assert not {"vm.evict_failed", "capacity.exhausted"} & set(heard)


def test_a_guest_whose_host_fails_then_starts_elsewhere_with_the_proof() -> None:
    ward = Ward()
    ward.runs("h1", "a")
    ward.has("h1", ill("a"))
    ward.after(3.0)
    ward.stays(Stage.ASK)
    ward.dies("h1")
    ward.after(2.0)
    start = ward.last()
    assert start.to != H1
    assert [one.of for one in start.proofs] == [H1]


def test_a_guest_that_a_person_shut_down_meanwhile_stays_down() -> None:
    ward = Ward()
    ward.runs("h1", "a")
    ward.has("h1", ill("a"))
    ward.show("h1", vm("a", VmState.STOPPED, stop_reason=StopReason.ON_PURPOSE))
    ward.leased("a", H1, LeaseState.STOPPED, seq=2)
    assert ward.after(10.0) == ["failover.completed"]
    assert ward.plans() == []


def test_a_guest_whose_copy_a_person_started_elsewhere_waits_until_that_is_stopped() -> None:
    """The copy is no restart: it is condemned, and the guest is as silent as before."""
    ward = Ward()
    ward.runs("h1", "a")
    ward.show("h2", vm("a"))
    ward.has("h1", ill("a"))
    ward.after(5.0)
    assert [start for plan in ward.plans() for start in plan.starts] == []
    ward.show("h2", vm("a", VmState.STOPPED))
    ward.after(1.0)
    assert (ward.last().to, ward.last().evict) == (H1, True)


def test_a_guest_that_a_person_started_elsewhere_after_it_ended_needs_nothing() -> None:
    ward = Ward()
    ward.runs("h1", "a")
    ward.has("h1", ill("a"))
    ward.show("h2", vm("a"))
    ward.show("h1", vm("a", VmState.STOPPED))
    ward.after(5.0)
    assert (ward.plans(), ward.open()) == ([], [])


@pytest.mark.parametrize("shown", [vm("a", run=2), vm("a", VmState.STOPPED)], ids=["another run", "stopped"])
def test_a_failure_told_late_of_a_run_that_is_over_is_history(shown: VmReport) -> None:
    ward = Ward()
    ward.runs("h1", "a")
    fact = crashes(inventory(H1, ill("a")), None)[0]
    ward.show("h1", shown)
    assert ward.hear(fact) == []
    assert ward.after(5.0) == []


def test_a_failure_of_a_vm_that_nobody_holds_yet_is_looked_at_again() -> None:
    ward = Ward()
    ward.show("h1", vm("a"))
    assert ward.has("h1", ill("a")) == []
    ward.leased("a", H1)
    ward.hear(TableRead("leases", ()))
    assert ward.after(3.0) == ["failover.planned"]


def test_the_guests_of_a_grey_host_are_left_as_they_are_until_it_is_no_longer() -> None:
    ward = Ward()
    ward.runs("h1", "a", "b")
    ward.has("h1", ill("a"), vm("b", health=OK))
    ward.has("h1", ill("a"), ill("b"))
    assert "failover.planned" not in ward.after(60.0)
    ward.has("h1", vm("a", health=OK), ill("b"))
    heard = ward.after(5.0)
    assert "vm.health_restored" in heard
    start = ward.last()
    assert (start.vm, start.to) == ("b", H1), "now it is the guest's own failure"


def test_one_that_ends_on_a_grey_host_is_down_and_starts_again_as_any_that_crashes() -> None:
    ward = Ward()
    ward.runs("h1", "a", "b", "c")
    ward.has("h1", ill("a"), ill("b"), ill("c"))
    assert "failover.planned" not in ward.after(60.0)
    ward.has("h1", crashed("a"), ill("b"), ill("c"))
    assert "failover.planned" in ward.after(5.0)
    assert (ward.last().vm, ward.last().to) == ("a", H1)
    assert "failover.planned" not in ward.after(60.0), "the others are left as they are"


def test_nothing_is_restarted_in_place_before_what_else_fails_there_was_read() -> None:
    """Failures are heard on the stream, inventories read from the store, whose answer may be lost for seconds."""
    ward = Ward()
    ward.runs("h1", "a", "b")
    before = inventory(H1, vm("a"), vm("b"))
    newer = inventory(H1, ill("a"), ill("b"), rev=2)
    for fact in told(newer, before, 2):
        ward.hear(fact)
    assert "failover.planned" not in ward.after(10.0), "both failed, and only that is known"
    ward.hear(seen(H1, *newer.vms, rev=2))
    assert "failover.planned" not in ward.after(10.0), "all guests fail there"
    ward.hear(seen(H1, ill("a"), vm("b", health=OK), rev=3))
    ward.after(5.0)
    assert ward.last().vm == "a"


def test_the_guests_of_a_grey_host_that_is_drained_are_restarted_elsewhere_and_it_takes_none() -> None:
    ward = Ward("drain")
    ward.runs("h1", "a", "b")
    heard = ward.has("h1", ill("a"), ill("b"))
    assert heard == ["host.draining"]
    assert ward.after(3.0) == ["failover.planned", "failover.planned"]
    starts = [start for one in ward.plans() for start in one.starts]
    assert {start.vm for start in starts} == {"a", "b"}
    assert all(start.evict and start.to != H1 for start in starts)
    for start in starts:
        ward.starts(start)
    ward.show("h1")
    ward.show("h2", vm("c", health=OK), vm("d", health=OK))
    ward.dies("h2")
    ward.dies("h3", epoch=2)
    ward.after(5.0)
    assert all(start.to.host != "h1" for one in ward.plans() for start in one.starts)


def test_a_drain_ends_by_an_operators_word_or_when_the_guests_are_well() -> None:
    ward = Ward("drain")
    ward.runs("h1", "a", "b")
    ward.has("h1", ill("a"), ill("b"))
    assert ward.state.words_on("h1").closed
    assert "A, B" in ward.state.words_on("h1").drain
    ward.hear(HostMaintenanceExited(host="h1", number=1, by="ann"))
    assert not ward.state.words_on("h1").closed
    fact = next(one for one in told(inventory(H1, ill("a"), ill("b")), None, 2) if isinstance(one, HostGrey))
    ward.hear(fact)
    assert not ward.state.words_on("h1").closed, "told again"
    other = Ward("drain")
    other.runs("h1", "a", "b")
    other.has("h1", ill("a"), ill("b"))
    other.show("h1", vm("a", health=OK), vm("b", health=OK))
    assert "host.drain_ended" in other.hear(TableRead("leases", ()))
    assert not other.state.words_on("h1").closed
    assert isinstance(fact, HostGrey)


def test_a_vm_that_crashed_on_a_drained_host_restarts_there_as_in_maintenance() -> None:
    ward = Ward("drain")
    ward.runs("h1", "a", "b", "c")
    ward.has("h1", ill("a"), ill("b"), vm("c"))
    ward.crashes("c")
    assert ward.last().vm == "c"
    assert ward.last().to == H1
