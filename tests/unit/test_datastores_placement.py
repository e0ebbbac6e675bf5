"""What placement makes of datastores that a host has lost, or that failed for all: who moves, who waits, who is a target."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from libs.core.decider import TableRead
from libs.events.datastores import DatastoreFailed, DatastoreLost, DatastoreRecovered
from libs.events.failovers import PlannedStart
from libs.events.vms import Stage, VmFailed, VmRestartFailed
from libs.model import LeaseState, VmReport
from services.placement.decide import Placement
from services.placement.state import Phase
from tests.unit.made import boot, crashed, lease, policy, stored, vm
from tests.unit.placing import SETTINGS, Desk

pytestmark = pytest.mark.fast
H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")
NFS: dict[str, Any] = {"datastores": ("nfs",)}


class Racks(Desk):
    """Three hosts that have nfs, and h1 and h2 also san."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        has = {"h1": ("nfs", "san"), "h2": ("nfs", "san"), "h3": ("nfs",)}
        self.decider = Placement(SETTINGS, datastores=has)

    def lost(self, host: str, name: str = "nfs", number: int = 1) -> list[str]:
        vms = tuple(one for one in self.vms[host] if one.state.active and name in one.datastores)
        return self.hear(
            DatastoreLost(datastore=name, number=number, at=boot(host), well=2, asked=3, vms=vms)
        )

    def failed(self, name: str = "nfs", number: int = 1) -> list[str]:
        return self.hear(DatastoreFailed(datastore=name, number=number, hosts=("h1", "h2", "h3"), asked=3))

    def recovered(self, name: str = "nfs", number: int = 1, host: str = "") -> list[str]:
        return self.hear(DatastoreRecovered(datastore=name, number=number, host=host))

    def stays(self, stage: Stage = Stage.EVICT) -> list[str]:
        start = self.last()
        return self.hear(
            VmRestartFailed(
                vm=start.vm,
                name=start.name,
                at=start.to,
                incident=start.key.split("/")[0],
                start_key=start.key,
                reason="its stop had no end",
                stage=stage,
            )
        )

    def rescan(self) -> list[str]:
        """The leases are read, again and again, for longer than a datastore takes to be lost."""
        told: list[str] = []
        for _ in range(4):
            told += self.hear(TableRead("leases", tuple(self.state.leases.values())))
            told += self.after(5.0)
        return told

    def waits(self) -> dict[str, str]:
        return {
            item.vm: item.reason
            for incident in self.state.incidents()
            for item in incident.items
            if item.phase is Phase.WAITING
        }


def origin_of(start: PlannedStart) -> tuple[object, ...]:
    return start.origin, start.run, start.evict, start.proofs


def test_s18_vms_on_a_datastore_that_their_host_lost_are_evicted_and_start_where_it_is_well() -> None:
    racks = Racks()
    racks.runs("h1", "a", "b", **NFS)
    racks.runs("h1", "c", datastores=("san",))
    racks.runs("h1", "d")
    racks.runs("h2", "e", **NFS)
    assert racks.lost("h1") == ["failover.planned"]
    assert set(racks.where()) == {"a", "b"}, "what lies elsewhere, or runs elsewhere, stays"
    assert "h1" not in racks.where().values()
    assert origin_of(racks.last()) == (H1, 1, True, ())
    for start in racks.plans()[-1].starts:
        racks.starts(start)
    assert racks.state.incidents() == []
    assert racks.lost("h1") == [], "told again"
    assert racks.rescan() == []


@pytest.mark.parametrize(
    ("report", "held"),
    [
        (vm("a", policy=policy(protection="none"), **NFS), lease("a", H1)),
        (vm("a", **NFS), lease("a", H2)),
        (vm("a", **NFS), lease("a", H1, LeaseState.STOPPED)),
        (crashed("a", **NFS), lease("a", H1, LeaseState.STOPPED)),
    ],
    ids=["not protected", "held elsewhere", "stopped on purpose", "down"],
)
def test_what_is_not_ours_to_move_stays(report: VmReport, held: Any) -> None:
    racks = Racks()
    racks.show("h1", report)
    racks.hear(TableRead("leases", (held,)))
    racks.lost("h1")
    racks.rescan()
    assert racks.plans() == []


def test_what_nobody_held_yet_when_it_was_told_or_comes_to_run_there_later_moves_too() -> None:
    racks = Racks()
    racks.show("h1", vm("a", **NFS))
    assert racks.lost("h1") == [], "nobody holds it: it could not be taken from anybody"
    racks.leased("a", H1)
    assert racks.rescan() == ["failover.planned"]
    assert origin_of(racks.last()) == (H1, 1, True, ())
    first = racks.last()
    racks.starts()
    racks.runs("h1", "b", **NFS)
    assert racks.rescan() == ["failover.planned"]
    assert racks.last().vm == "b"
    assert racks.last().key.split("/")[0] != first.key.split("/")[0]
    assert racks.rescan() == []


def test_a_start_that_hung_there_and_came_through_as_it_came_back_is_left_alone() -> None:
    racks = Racks()
    racks.lost("h1")
    racks.runs("h1", "a", **NFS)
    for _ in range(3):  # its first write was taken, and that it is back is told a little later
        racks.hear(TableRead("leases", tuple(racks.state.leases.values())))
        racks.after(3.0)
    racks.recovered(host="h1")
    racks.rescan()
    assert racks.plans() == []


def test_what_began_to_run_since_the_loss_was_judged_is_not_stopped_for_it() -> None:
    """The loss may be told late, and a start that hung have come through because the datastore is back."""
    racks = Racks()
    racks.runs("h1", "a", "b", **NFS)
    judged = DatastoreLost(datastore="nfs", number=1, at=H1, well=2, asked=3, vms=tuple(racks.vms["h1"]))
    racks.show("h1", vm("a", **NFS), vm("b", **NFS | {"run": 2}), vm("c", **NFS))
    racks.leased("c", H1)
    assert racks.hear(judged) == ["failover.planned"]
    assert set(racks.where()) == {"a"}
    racks.starts()
    racks.rescan()
    assert {start.vm for plan in racks.plans()[1:] for start in plan.starts} == {"b", "c"}, "it stays lost"


def test_a_host_that_lost_it_or_does_not_have_it_is_no_target() -> None:
    racks = Racks()
    racks.runs("h3", "a", **NFS)
    racks.runs("h1", "b", datastores=("san",))
    racks.lost("h1")
    racks.dies("h3")
    assert racks.where() == {"a": "h2"}
    racks.starts()
    racks.lost("h1", "san")
    assert racks.where() == {"b": "h2"}, "h3 is down, and has no san"


def test_with_nobody_who_reaches_it_it_waits_and_starts_when_a_host_does() -> None:
    racks = Racks()
    racks.runs("h1", "a", datastores=("san",))
    racks.lost("h2", "san", 1)
    assert racks.lost("h1", "san", 2) == ["failover.planned", "capacity.exhausted", "failover.completed"]
    assert "no storage san" in racks.waits()["a"]
    racks.recovered("san", 1, "h2")
    told = racks.after(1.0)
    assert "failover.planned" in told
    assert racks.where() == {"a": "h2"}


def test_a_vm_on_two_datastores_needs_both() -> None:
    racks = Racks()
    racks.runs("h1", "a", datastores=("nfs", "san"))
    racks.dies("h1")
    assert racks.where() == {"a": "h2"}


def test_without_datastores_in_the_pool_nothing_is_asked_of_a_host() -> None:
    desk = Desk()
    desk.runs("h1", "a", **NFS)
    desk.dies("h1")
    assert set(desk.where()) == {"a"}


# -- it comes back


def test_back_before_anything_was_done_it_is_left_alone_and_its_crashes_are_not_touched() -> None:
    racks = Racks(memory_mib=150)
    for host in ("h2", "h3"):
        racks.runs(host, f"full-{host}", memory_mib=150)
    racks.runs("h1", "a", **NFS)
    racks.lost("h1")
    assert racks.waits()["a"].startswith("no_room")
    before = [key for key in racks.state.records if key.startswith("crashes.")]
    racks.recovered(host="h1")
    told = racks.after(1.0)
    assert "vm.health_restored" in told
    assert "capacity.relieved" in told, "what was told to begin is told to end"
    assert racks.state.incidents() == []
    assert [key for key in racks.state.records if key.startswith("crashes.")] == before
    assert racks.rescan() == []


def test_s18_one_that_cannot_be_killed_waits_told_once_and_is_tried_at_once_when_it_is_back() -> None:
    racks = Racks()
    racks.runs("h1", "a", **NFS)
    racks.lost("h1")
    for _ in range(6):
        told = racks.stays()
        told += racks.after(70.0)
        assert told[-1] == "failover.planned"
    assert [fact.kind for fact in racks.told].count("vm.evict_failed") == 1
    racks.stays()
    plans = len(racks.plans())
    racks.recovered(host="h1")
    racks.after(1.0)
    assert len(racks.plans()) == plans + 1, "a stop that was called is carried out"
    assert racks.last().evict


def test_the_host_is_a_target_again() -> None:
    racks = Racks()
    racks.runs("h2", "a", datastores=("san",))
    racks.lost("h1", "san")
    racks.recovered("san", 1, "h1")
    racks.dies("h2")
    assert racks.where() == {"a": "h1"}


# -- failed for all


def test_s18_where_it_failed_for_all_nothing_moves_and_nothing_starts() -> None:
    racks = Racks()
    racks.runs("h1", "a", **NFS)
    racks.runs("h2", "b", **NFS)
    assert racks.failed() == []
    assert racks.rescan() == []
    assert racks.after(300.0) == []
    racks.dies("h1")
    assert "no storage nfs" in racks.waits()["a"]
    racks.recovered()
    racks.after(1.0)
    assert set(racks.where()) == {"a"}


def test_lost_on_one_and_then_failed_for_all_what_waits_goes_on_waiting() -> None:
    racks = Racks()
    racks.runs("h1", "a", **NFS)
    racks.failed(number=1)
    racks.lost("h1", number=2)
    assert racks.plans() == []
    racks.recovered(number=1)
    assert racks.rescan() == ["failover.planned"], "it is well but for h1"


def test_a_crash_waits_where_it_is_while_its_datastore_has_failed() -> None:
    racks = Racks()
    racks.runs("h1", "a", **NFS)
    racks.failed()
    racks.show("h1", crashed("a", **NFS))
    racks.hear(VmFailed(vm="a", name="A", at=H1, run=1, reason="crashed", report=crashed("a", **NFS)))
    assert racks.plans() == []
    assert racks.waits()["a"].startswith("datastore nfs has failed")
    racks.recovered()
    racks.after(1.0)
    assert racks.where() == {"a": "h1"}


def test_a_crash_where_its_datastore_is_lost_starts_elsewhere() -> None:
    racks = Racks()
    racks.runs("h1", "a", **NFS)
    racks.show("h1", crashed("a", **NFS))
    racks.hear(DatastoreLost(datastore="nfs", number=1, at=H1, well=2, asked=3, vms=()))
    racks.hear(VmFailed(vm="a", name="A", at=H1, run=1, reason="crashed", report=crashed("a", **NFS)))
    assert racks.where()["a"] in ("h2", "h3")


# -- what is kept


def test_it_is_known_to_whoever_takes_over() -> None:
    racks = Racks()
    racks.runs("h2", "a", **NFS)
    racks.lost("h1")
    other = Racks()
    other.take(other.decider.resume(other.state, stored(racks.state.records), other.now))
    other.runs("h2", "a", **NFS)
    other.dies("h2")
    assert other.where() == {"a": "h3"}


def test_the_words_may_come_in_any_order_and_again() -> None:
    words: list[Any] = [
        DatastoreLost(datastore="nfs", number=1, at=H1, well=2, asked=3),
        DatastoreRecovered(datastore="nfs", number=1, host="h1"),
        DatastoreFailed(datastore="nfs", number=2, hosts=("h1",), asked=3),
        DatastoreRecovered(datastore="nfs", number=2),
        DatastoreLost(datastore="nfs", number=3, at=H1, well=2, asked=3),
    ]
    for order in permutations(words):
        racks = Racks()
        for word in (*order, *order[:2]):
            racks.hear(word)
        store = racks.state.records["datastore.nfs"].store
        assert (store.failed, {host: loss.number for host, loss in store.lost.items()}) == (0, {"h1": 3})


def test_killed_between_the_incident_and_its_mark_it_goes_on_without_a_second_incident() -> None:
    racks = Racks()
    racks.runs("h1", "a", **NFS)
    racks.lost("h1")
    records = stored(racks.state.records).discard("datastore.nfs")
    other = Racks()
    other.runs("h1", "a", **NFS)
    other.take(other.decider.resume(other.state, records, other.now))
    other.vms["h1"] = racks.vms["h1"]
    other.lost("h1")
    assert [incident.id for incident in other.state.incidents()] == ["store-nfs-1"]
