"""A VM whose QEMU lives is stopped, and seen to be, before it starts anywhere; killed at any line, it ends the same."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from libs.core.clock import SystemClock
from libs.core.ports import UnavailableError
from libs.events.failovers import PlannedStart
from libs.events.vms import Stage
from libs.leases import Grant, adopted, evicting, rule
from libs.model import (
    Incarnation,
    Isolation,
    LeaseState,
    RunLease,
    StopReason,
    VmDefinition,
    VmPolicy,
    VmReport,
    VmState,
)
from services.executor.act import Hands
from services.executor.orders import Attempted, Result
from tests.unit.made import boot, lease, proof, vm
from tests.unit.test_executor import Desk, Hosts, Lab, _Bucket, order, plan
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast
H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")
L, OFF = LeaseState, VmState.STOPPED
MEANT = StopReason.ON_PURPOSE


def evict(to: Incarnation = H1, attempt: int = 1, **more: Any) -> PlannedStart:
    return order("a", to, attempt=attempt, **{"proofs": (), "run": 1, "evict": True, **more})


EVICTING = evicting(lease("a", H1), 1)


@pytest.mark.parametrize(
    ("found", "start", "grant"),
    [
        (lease("a", H1), evict(H2), Grant.EVICT),
        (lease("a", H1), evict(H1), Grant.EVICT),
        (EVICTING, evict(H2), Grant.EVICT),
        (EVICTING, evict(H2, proofs=(proof(H1),)), Grant.TAKE),
        (lease("a", H1, L.STARTING), evict(H2), Grant.REFUSE),
        (lease("a", H1, L.STOPPED), evict(H2), Grant.REFUSE),
        (lease("a", H3), evict(H2), Grant.REFUSE),
        (lease("a", H2, L.FAILED), evict(H3), Grant.TAKE),
        # it runs, and nobody holds it yet
        (None, evict(H2), Grant.REFUSE),
        (None, evict(H2, proofs=(proof(H1),)), Grant.TAKE),
        # without the order to evict, nobody evicts
        (EVICTING, evict(H2, evict=False), Grant.ASK_HOLDER),
    ],
)
def test_who_is_evicted(found: RunLease | None, start: PlannedStart, grant: Grant) -> None:
    assert rule(found, start).grant is grant


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (vm("a", OFF, stop_reason=MEANT, destroyed=True), None),
        (vm("a", OFF, stop_reason=StopReason.CRASHED), None),
        (vm("a", OFF, stop_reason=MEANT), L.STOPPED),
        (vm("a", OFF, stop_reason=StopReason.SAVED), L.STOPPED),
        (vm("a", VmState.PAUSED), None),
        (vm("a", run=2), L.RUNNING),
    ],
    ids=["by us", "crashed", "in the guest", "saved", "still there", "started anew by a person"],
)
def test_how_an_eviction_is_adopted(report: VmReport, expected: LeaseState | None) -> None:
    change = adopted(EVICTING, H1, report, report, holder_known=True)
    assert (None if change is None else change.state) is expected
    if expected is L.RUNNING:
        assert change is not None
        assert change.token == EVICTING.token + 1


@dataclass
class Slow:
    """A hypervisor whose every call is a turn of the process that calls."""

    at: Incarnation
    process: Process
    state: VmState | None = None
    run: int = 1
    token: int = 0
    reason: StopReason = StopReason.NONE
    destroyed: bool = False
    clings: bool = False
    says: VmState | None = None
    calls: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    """The lease as it lay at each stop."""

    async def report(self, uuid: str) -> VmReport | None:
        await self.process.turn()
        if self.state is None:
            return None
        state = self.says or self.state
        reason = self.reason if state is OFF else StopReason.NONE
        found = vm(uuid, state, run=self.run, token=self.token, stop_reason=reason, destroyed=self.destroyed)
        await self.process.turn()
        return found

    async def start(self, definition: VmDefinition, token: int) -> None:
        await self.process.turn()
        assert self.state is not VmState.RUNNING
        self.calls.append("start")
        self.state, self.token, self.run = VmState.RUNNING, token, self.run + 1
        self.destroyed = False
        await self.process.turn()

    async def destroy(self, uuid: str) -> None:
        await self.process.turn()
        self.calls.append("destroy")
        row = self.process.world.rows["leases.a"][0]
        self.leases.append(RunLease.model_validate_json(row).state.value)
        if self.clings:
            raise UnavailableError("Device or resource busy")
        if self.state is not OFF:
            self.state, self.reason, self.destroyed = OFF, MEANT, True
        await self.process.turn()

    async def reports(self) -> list[VmReport]:
        raise AssertionError


class Bench(Lab):
    """Hands that can be killed, over hosts and a store that outlive them."""

    def __init__(self, held: RunLease | None = None) -> None:
        super().__init__(held=lease("a", H1) if held is None else held)
        self.h1 = Slow(H1, self.store, VmState.RUNNING)
        self.h2 = Slow(H2, self.store)
        self.renew()

    def renew(self) -> None:
        """Another process."""
        self.store = Process(self.world)
        self.h1.process = self.h2.process = self.store
        hosts: Any = {H1: self.h1, H2: self.h2}
        buckets = _Bucket(self.store, "leases."), _Bucket(self.store, "definitions.")
        self.hands = Hands(*buckets, Hosts(hosts), self.store, SystemClock())

    async def attempt(self, start: PlannedStart) -> Attempted | None:
        """None where the process was killed in it."""
        task = asyncio.ensure_future(self.start(start))
        died = asyncio.ensure_future(self.store.died.wait())
        done, _ = await asyncio.wait([task, died], return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        if task not in done:
            task.cancel()
            return None
        return task.result()


@pytest.mark.parametrize("to", [H1, H2], ids=["in place", "elsewhere"])
async def test_it_is_stopped_under_a_lease_that_says_so_and_started_then(to: Incarnation) -> None:
    bench = Bench()
    done = await bench.start(evict(to))
    assert (done.result, done.token) == (Result.STARTED, 2)
    assert bench.h1.leases == ["evicting"]
    assert bench.h1.calls + bench.h2.calls == ["destroy", "start"]
    assert (bench.lease().holder, bench.lease().state) == (to, L.RUNNING)


@pytest.mark.parametrize("to", [H1, H2], ids=["in place", "elsewhere"])
async def test_killed_at_any_line_it_ends_the_same(to: Incarnation) -> None:
    turn = 0
    while True:
        turn += 1
        bench = Bench()
        bench.world.dies_at = turn
        done = await bench.attempt(evict(to))
        if done is not None:
            assert turn > 20, "there are that many lines at least"
            return
        held = bench.lease()
        report = await Slow(H1, Process(World()), bench.h1.state, bench.h1.run, bench.h1.token,
                            bench.h1.reason, bench.h1.destroyed).report("a")  # fmt: skip
        assert report is not None
        change = adopted(held, H1, report, report, holder_known=True)
        assert change is None or change.state is not L.STOPPED, f"turn {turn}: taken for a person's will"
        bench.renew()
        done = await bench.attempt(evict(to))
        assert done is not None
        assert done.result is Result.STARTED, f"turn {turn}: {done.reason}"
        calls = bench.h1.calls + bench.h2.calls
        assert calls.count("start") == 1, f"turn {turn}"
        target = bench.h1 if to == H1 else bench.h2
        assert (target.state, target.token) == (VmState.RUNNING, 2), f"turn {turn}"
        assert to == H1 or bench.h1.state is OFF, f"turn {turn}: it runs twice"


async def test_what_cannot_be_stopped_is_started_nowhere_and_is_told() -> None:
    bench = Bench()
    bench.h1.clings = True
    for attempt in (1, 2, 3):
        done = await bench.start(evict(H2, attempt))
        assert (done.result, done.stage) == (Result.NOT_STARTED, Stage.EVICT)
        assert "busy" in done.reason
    assert bench.h2.calls == []
    assert (bench.lease().holder, bench.lease().state) == (H1, L.EVICTING)
    bench.h1.clings = False
    assert (await bench.start(evict(H2, 4))).result is Result.STARTED


@pytest.mark.parametrize("says", [VmState.UNKNOWN, None], ids=["it cannot tell", "it does not answer"])
async def test_an_origin_that_cannot_be_asked_keeps_its_vm(says: VmState | None) -> None:
    bench = Bench()
    bench.h1.says = says
    if says is None:
        hosts: Any = {H2: bench.h2}
        bench.hands = Hands(
            bench.hands.leases, bench.hands.definitions, Hosts(hosts), bench.store, SystemClock()
        )
    done = await bench.start(evict(H2))
    assert (done.result, done.stage) == (Result.NOT_STARTED, Stage.ASK)
    assert bench.h1.calls + bench.h2.calls == []
    assert bench.lease() == lease("a", H1)


@pytest.mark.parametrize("destroyed", [True, False], ids=["virsh destroy", "in the guest"])
async def test_what_a_person_stopped_before_we_did_stays_down(destroyed: bool) -> None:
    bench = Bench()
    bench.h1.state, bench.h1.reason, bench.h1.destroyed = OFF, MEANT, destroyed
    done = await bench.start(evict(H2))
    assert done.result is Result.NOT_STARTED
    assert bench.lease().state is L.STOPPED
    assert (await bench.start(evict(H2, 2))).result is Result.NOT_STARTED
    assert bench.h1.calls + bench.h2.calls == []


async def test_whether_an_order_or_a_person_stopped_it_is_its_agents_word() -> None:
    """Of a VM that an isolated host may be ordered to stop, libvirt shows the same for both."""
    policy = VmPolicy(isolation=Isolation.SHUTDOWN)
    bench = Bench()
    bench.h1.state, bench.h1.reason = OFF, MEANT
    done = await bench.start(evict(H2, policy=policy))
    assert (done.result, done.stage) == (Result.NOT_STARTED, Stage.ASK)
    assert bench.lease() == lease("a", H1), "left to what the agent says"
    assert bench.h1.calls + bench.h2.calls == []


async def test_a_stop_by_order_while_the_lease_was_being_marked_leaves_no_mark() -> None:
    bench = Bench()
    put = bench.store.put

    async def quick(key: str, value: bytes, expected: int | None) -> int:
        bench.h1.state, bench.h1.reason = OFF, MEANT
        return await put(key, value, expected)

    bench.store.put = quick  # type: ignore[method-assign]
    started = await bench.start(evict(H2, policy=VmPolicy(isolation=Isolation.SHUTDOWN)))
    assert started.result is Result.NOT_STARTED
    assert bench.lease().state is L.RUNNING


async def test_a_stop_while_the_lease_was_being_marked_is_a_persons() -> None:
    bench = Bench()
    put = bench.store.put

    async def quick(key: str, value: bytes, expected: int | None) -> int:
        bench.h1.state, bench.h1.reason, bench.h1.destroyed = OFF, MEANT, True
        return await put(key, value, expected)

    bench.store.put = quick  # type: ignore[method-assign]
    assert (await bench.start(evict(H2))).result is Result.NOT_STARTED
    assert bench.lease().state is L.STOPPED


async def test_a_guest_that_shuts_itself_down_while_it_cannot_be_stopped_stays_down() -> None:
    bench = Bench()
    bench.h1.clings = True
    await bench.start(evict(H2))
    bench.h1.clings = False
    bench.h1.state, bench.h1.reason = OFF, MEANT
    assert (await bench.start(evict(H2, 2))).result is Result.NOT_STARTED
    assert (bench.lease().state, bench.h2.calls) == (L.STOPPED, [])


async def test_a_run_that_a_person_began_since_is_left_alone() -> None:
    bench = Bench()
    bench.h1.run = 2
    done = await bench.start(evict(H2))
    assert (done.result, bench.h1.calls, bench.lease()) == (Result.NOT_STARTED, [], lease("a", H1))


async def test_what_a_person_migrated_away_meanwhile_is_started_nowhere() -> None:
    """Where it runs now, the lease says soon: random world 349 had it twice."""
    bench = Bench()
    bench.h1.state, bench.h1.reason = OFF, StopReason.MIGRATED
    done = await bench.start(evict(H2))
    assert (done.result, done.stage) == (Result.NOT_STARTED, Stage.ASK)
    assert bench.h1.calls + bench.h2.calls == []
    assert bench.lease().holder == H1


async def test_what_crashed_meanwhile_is_simply_started() -> None:
    bench = Bench()
    bench.h1.state, bench.h1.reason = OFF, StopReason.CRASHED
    assert (await bench.start(evict(H1))).result is Result.STARTED
    assert bench.h1.calls == ["start"]


def test_the_decider_gives_it_its_time_and_says_where_it_failed() -> None:
    desk = Desk()
    desk.hear(plan(evict(H2)))
    assert desk.asked[-1].deadline_s > 70
    start = desk.asked[-1]
    desk.hear(
        Attempted(key=start.key, start=start.start, result=Result.NOT_STARTED, reason="no", stage=Stage.EVICT)
    )
    assert (desk.told[-1].kind, desk.told[-1].stage) == ("vm.restart_failed", Stage.EVICT)


@pytest.mark.parametrize("held", [lease("a", H1), EVICTING], ids=["before the stop", "in the midst of it"])
async def test_a_vm_that_a_person_migrated_away_first_runs_on_and_starts_nowhere(held: RunLease) -> None:
    bench = Bench(held=held)
    bench.h1.state, bench.h1.reason = OFF, StopReason.MIGRATED
    done = await bench.start(evict(H2))
    assert (done.result, done.stage) == (Result.NOT_STARTED, Stage.ASK)
    assert "migrated away" in done.reason
    assert (bench.lease().holder, bench.lease().state) == (H1, L.RUNNING), (
        "for whoever shows it to take along"
    )
    assert bench.h2.calls == []
