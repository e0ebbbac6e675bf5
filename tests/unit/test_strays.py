"""A run beside the holder's: what counts as one, what an agent may stop on the lease's word, and what is forgotten."""

from __future__ import annotations

import pytest

from libs import strays
from libs.events.failovers import PlannedStart
from libs.events.signals import LeaseWritten
from libs.leases import Grant, adopted, rule, turned
from libs.model import Incarnation, Inventory, LeaseState, RunLease, VmReport, VmState
from services.executor.orders import CondemnRun, RunCondemned
from services.heartbeat.orders import Condemned, GatePassed, PassGate, Stopped, StopStray, StrayTried
from tests.unit.made import boot, inventory, lease, proof, seen, vm
from tests.unit.test_agent import Desk as AgentDesk
from tests.unit.test_agent import Libvirt, hands
from tests.unit.test_executor import Desk, Host, Lab

pytestmark = pytest.mark.fast
H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")
HELD = lease("a", H2, token=2)
CONDEMNED = strays.condemn(HELD, H1, 1)


@pytest.mark.parametrize(
    ("found", "at", "report", "holder"),
    [
        (None, H1, vm("a"), inventory(H2, vm("a"))),
        (turned(HELD, LeaseState.STARTING), H1, vm("a"), inventory(H2, vm("a"))),
        (HELD, H2, vm("a"), inventory(H2, vm("a"))),
        (HELD, Incarnation(host="h9", boot=H2.boot), vm("a"), inventory(H2, vm("a"))),
        (HELD, H1, vm("a", VmState.PAUSED), inventory(H2, vm("a"))),  # it arrives by a migration, maybe
        (HELD, H1, vm("a"), inventory(H2, vm("a", VmState.PAUSED))),
        (HELD, H1, vm("a"), inventory(H2, vm("a", VmState.STOPPED))),
        (HELD, H1, vm("a"), inventory(H2)),
        (HELD, H1, vm("a"), inventory(boot("h2", 2), vm("a"))),
        (HELD, H1, vm("a", run=0), inventory(H2, vm("a"))),
        (CONDEMNED, H1, vm("a"), inventory(H2, vm("a"))),
        (HELD, H1, vm("a"), None),
    ],
)
def test_what_may_be_anything_else_is_no_second_copy(
    found: RunLease | None, at: Incarnation, report: VmReport, holder: Inventory | None
) -> None:
    assert not strays.looks_stray(found, at, report, holder)
    assert strays.looks_stray(HELD, H1, vm("a"), inventory(H2, vm("a")))


def test_a_condemned_run_never_holds_the_lease_and_another_run_there_may() -> None:
    assert adopted(CONDEMNED, H1, vm("a"), vm("a", VmState.STOPPED), holder_known=True) is None
    later = adopted(CONDEMNED, H1, vm("a", run=2), vm("a", VmState.STOPPED), holder_known=True)
    assert later is not None
    assert later.holder == H1


def test_nothing_is_started_while_a_condemned_run_may_go_on() -> None:
    start = PlannedStart(
        key="i/a/1", vm="a", name="A", origin=H2, to=H3, wave=0, priority_rank=2, memory_mib=100, vcpus=1,
        proofs=(proof(H2),),
    )  # fmt: skip
    assert rule(HELD, start).grant is Grant.TAKE
    assert rule(CONDEMNED, start).grant is Grant.REFUSE
    assert rule(CONDEMNED, start.model_copy(update={"proofs": (proof(H2), proof(H1))})).grant is Grant.TAKE


def test_a_run_that_is_seen_to_be_over_is_taken_out_of_its_lease() -> None:
    assert strays.ended(CONDEMNED, inventory(H1, vm("a"))) is None
    assert strays.ended(CONDEMNED, inventory(H1, vm("a", VmState.UNKNOWN))) is None
    assert strays.ended(CONDEMNED, inventory(H3)) is None
    for shown in (inventory(H1), inventory(H1, vm("a", VmState.STOPPED)), inventory(boot("h1", 2), vm("a"))):
        left = strays.ended(CONDEMNED, shown)
        assert left is not None
        assert (left.strays, left.seq) == ((), CONDEMNED.seq + 1)


def test_the_executor_asks_only_what_still_looks_so_a_moment_later_and_tells_what_it_learns() -> None:
    desk = Desk()
    desk.hear(LeaseWritten(lease=HELD))
    desk.hear(seen(H2, vm("a", token=2)))
    assert desk.hear(seen(H1, vm("a"))) == []
    assert desk.wait() == [f"condemn/a/2/{H1.boot}/1"]
    told = desk.hear(RunCondemned(key="condemn/a/2/x/1", lease=CONDEMNED, at=H1, run=1, done=True))
    assert told == ["vm.runs_twice"]


def test_a_migration_that_is_told_in_the_meantime_is_not_asked_about() -> None:
    desk = Desk()
    desk.hear(LeaseWritten(lease=HELD))
    desk.hear(seen(H2, vm("a", token=2)))
    desk.hear(seen(H1, vm("a")))
    assert desk.hear(seen(H2)) == ["lease/a/3"]
    assert desk.wait() == []


async def condemned(here: VmState | None, there: VmState | None) -> tuple[RunCondemned, Lab]:
    lab = Lab(H1, H2, held=HELD)
    for at, state in ((H1, here), (H2, there)):
        if state is not None:
            lab.hosts[at].vms["a"] = state
    done = await lab.hands.perform(CondemnRun(key="k", deadline_s=5.0, lease=HELD, at=H1, run=1))
    assert isinstance(done, RunCondemned)
    return done, lab


@pytest.mark.parametrize(
    ("here", "there", "done"),
    [
        (VmState.RUNNING, VmState.RUNNING, True),
        (VmState.RUNNING, VmState.PAUSED, False),
        (VmState.RUNNING, VmState.STOPPED, False),
        (VmState.RUNNING, None, False),
        (VmState.PAUSED, VmState.RUNNING, False),
        (None, VmState.RUNNING, False),
    ],
)
async def test_only_what_both_hosts_themselves_show_is_condemned(
    here: VmState | None, there: VmState | None, done: bool
) -> None:
    found, lab = await condemned(here, there)
    assert found.done is done
    assert bool(lab.lease().strays) is done


async def test_a_vm_that_goes_to_and_fro_between_two_questions_is_no_second_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs wherever it is asked about, and never twice: its run on the first host is another one the second time."""
    lab = Lab(H1, H2, held=HELD)
    asked: list[Incarnation] = []

    async def report(self: Host, uuid: str) -> VmReport | None:
        asked.append(self.at)
        return vm(uuid, run=asked.count(self.at))

    monkeypatch.setattr(Host, "report", report)
    done = await lab.hands.perform(CondemnRun(key="k", deadline_s=5.0, lease=HELD, at=H1, run=1))
    assert isinstance(done, RunCondemned)
    assert (asked, done.done) == ([H1, H2, H1], False)
    assert lab.lease().strays == ()


def test_an_agent_acts_on_a_hint_that_concerns_it_and_tells_what_came_of_it() -> None:
    desk = AgentDesk().passed()
    assert desk.hear(LeaseWritten(lease=HELD)) == []
    assert desk.hear(LeaseWritten(lease=strays.condemn(HELD, H3, 1))) == []
    assert desk.hear(LeaseWritten(lease=CONDEMNED)) == ["stop_stray"]
    one = Stopped(report=vm("a"), lease=CONDEMNED)
    assert desk.hear(StrayTried(key="stray/a", stopped=(one,))) == ["vm.stopped_by_gate"]
    left = Condemned(report=vm("a"), lease=CONDEMNED, reason="it clings")
    assert desk.hear(StrayTried(key="stray/a", condemned=(left,))) == ["vm.stop_failed"]
    assert desk.hear(LeaseWritten(lease=CONDEMNED)) == [], "it is tried again anyway"
    assert "stop_again" in desk.after(6.0)


async def test_an_agent_stops_what_its_lease_condemns_and_no_other_run() -> None:
    for found, run, stopped in (
        (CONDEMNED, 1, True),
        (CONDEMNED, 2, False),
        (HELD, 1, False),
        (None, 1, False),
    ):
        libvirt = Libvirt(vm("a", run=run))
        mine, world = hands(libvirt)
        if found is not None:
            world.revision += 1
            world.rows["a"] = (found.model_dump_json().encode(), world.revision)
        done = await mine.perform(StopStray(key="stray/a", deadline_s=5.0, at=H1, vm="a"))
        assert isinstance(done, StrayTried)
        assert bool(done.stopped) is stopped
        assert bool(libvirt.destroyed) is stopped


async def test_what_clings_is_told_and_condemned() -> None:
    libvirt = Libvirt(vm("a"))
    libvirt.clings.add("a")
    mine, world = hands(libvirt)
    world.revision += 1
    world.rows["a"] = (CONDEMNED.model_dump_json().encode(), world.revision)
    done = await mine.perform(StopStray(key="stray/a", deadline_s=5.0, at=H1, vm="a"))
    assert isinstance(done, StrayTried)
    assert [one.report.uuid for one in done.condemned] == ["a"]


async def test_the_gate_lets_in_what_a_person_migrated_here() -> None:
    libvirt = Libvirt(vm("a", migrated=True), vm("b"))
    mine, world = hands(libvirt)
    world.revision += 2
    for number, one in enumerate((lease("a", H2), lease("b", H2))):
        world.rows[one.vm] = (one.model_dump_json().encode(), number + 1)
    passed = await mine.perform(PassGate(key="gate/0", deadline_s=5.0, at=H1))
    assert isinstance(passed, GatePassed)
    assert libvirt.destroyed == ["b"]
