"""Orders become starts, bounded and in order; what is uncertain is never dropped; leases follow the hypervisors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from libs.config.settings import Restart
from libs.core.clock import SystemClock
from libs.core.decider import Expired, Input, TableRead
from libs.core.ports import Hypervisor, StartRefusedError, UnavailableError
from libs.events.failovers import FailoverPlanned, PlannedStart
from libs.events.signals import LeaseWritten
from libs.events.vms import Stage
from libs.model import (
    Answer,
    FenceProof,
    Incarnation,
    LeaseState,
    ProofMethod,
    RunLease,
    StopReason,
    VmDefinition,
    VmPolicy,
    VmReport,
    VmState,
)
from services.executor.act import Hands
from services.executor.decide import Executor
from services.executor.orders import (
    PLANS_KEPT,
    Attempted,
    LeaseFound,
    Phase,
    Result,
    StartVm,
    TakenUp,
    WriteLease,
)
from services.executor.state import FRESH_S, ExecutorState
from tests.unit import desk
from tests.unit.made import boot, fenced, lease, proof, seen, stored, vm
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast
H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")
L = LeaseState


def order(
    uuid: str, to: Incarnation = H2, *, attempt: int = 1, incident: str = "h1-1", **more: Any
) -> PlannedStart:
    values: dict[str, Any] = {
        "origin": H1, "wave": 0, "priority_rank": 2, "memory_mib": 100, "vcpus": 1, "proofs": (proof(H1),),
        **more,
    }  # fmt: skip
    return PlannedStart(key=f"{incident}/{uuid}/{attempt}", vm=uuid, name=uuid.upper(), to=to, **values)


def plan(*starts: PlannedStart, revision: int = 1, incident: str = "h1-1") -> FailoverPlanned:
    return FailoverPlanned(incident=incident, revision=revision, starts=starts)


class Desk(desk.Desk[ExecutorState]):
    """An executor."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(Executor(Restart(**settings)), 10.0)

    def ends(self, uuid: str, result: Result, reason: str = "", token: int = 1) -> list[str]:
        request = next(one for one in reversed(self.asked) if one.kind == "start_vm" and one.start.vm == uuid)
        return self.hear(
            Attempted(key=request.key, start=request.start, result=result, reason=reason, token=token)
        )


# -- orders


def test_who_still_holds_the_disks_is_said_as_far_as_it_is_known() -> None:
    def refused(desk: Desk) -> str:
        desk.hear(plan(order("a")))
        asked = desk.asked[-1]
        outcome = Attempted(
            key=asked.key, start=asked.start, result=Result.NOT_STARTED, reason="virtlockd: h2: busy", stage=Stage.LOCK
        )  # fmt: skip
        desk.hear(outcome)
        assert (desk.told[-1].kind, desk.told[-1].stage) == ("vm.restart_failed", Stage.LOCK)
        return str(desk.told[-1].reason)

    nobody = Desk()
    nobody.hear(seen(H3, vm("b")))
    assert refused(nobody) == (
        f"still held by a host that does not say so: it ran last on {H1}, which was held harmless by power_off "
        "(virtlockd: h2: busy)"
    )
    shown = Desk()
    shown.hear(seen(H3, vm("a")))
    assert refused(shown).startswith(f"still held by {H3}, which says that it is running there (")
    late = Desk()
    late.hear(seen(H3, vm("a")))
    late.now += FRESH_S + 1.0
    assert "does not say so" in refused(late), "what was said long ago may be over"


def test_the_important_start_first_and_never_more_than_allowed_on_one_host() -> None:
    desk = Desk(parallel_per_host=2, parallel=3)
    starts = (
        order("e", priority_rank=4),
        order("d", priority_rank=2, wave=1),
        order("c", priority_rank=2),
        order("a", priority_rank=0),
        order("b", priority_rank=1, wave=7),
        order("x", H3, priority_rank=3),
        order("y", H3, priority_rank=4),
    )
    assert desk.hear(plan(*starts)) == ["start/h1-1/a/1/1", "start/h1-1/b/1/1", "start/h1-1/x/1/1"]
    assert desk.ends("b", Result.STARTED) == ["vm.restarted", "start/h1-1/c/1/1"]
    assert desk.ends("x", Result.STARTED) == ["vm.restarted", "start/h1-1/y/1/1"]
    assert desk.ends("a", Result.NOT_STARTED) == ["vm.restart_failed", "start/h1-1/d/1/1"]
    assert desk.ends("c", Result.STARTED) == ["vm.restarted", "start/h1-1/e/1/1"]


def test_restart_goes_before_best_effort_and_whom_others_wait_for_is_as_urgent_as_they_are() -> None:
    desk = Desk(parallel=1)
    starts = (
        order("tried", urgency=(1, 0, 0), priority_rank=0),
        order("late", urgency=(0, 2, 1), priority_rank=2),
        order("base", urgency=(0, 0, 0), priority_rank=4),
        order("app", urgency=(0, 0, 0), priority_rank=0, wave=1),
        order("old", priority_rank=1, policy=VmPolicy(order=3)),  # of a placement that named no urgency
    )
    desk.hear(plan(*starts))
    for uuid in ("base", "app", "old", "late"):
        desk.ends(uuid, Result.STARTED)
    assert [one.start.vm for one in desk.asked] == ["base", "app", "old", "late", "tried"]


def test_fifty_tellings_of_one_plan_are_one_start_each() -> None:
    desk = Desk()
    for _ in range(50):
        desk.hear(plan(order("a"), order("b")))
    assert len(desk.asked) == 2
    desk.ends("a", Result.STARTED, token=7)
    assert desk.told[0].token == 7
    assert desk.told[0].at == H2


def test_a_later_attempt_replaces_an_earlier_and_not_the_other_way_round() -> None:
    desk = Desk()
    desk.hear(plan(order("a", H2), revision=1))
    desk.hear(plan(order("a", H3, attempt=2), revision=2))
    # told again late: its acknowledgement was lost
    assert desk.hear(plan(order("a", H2), revision=1)) == []
    assert desk.state.records["a"].start.to == H3
    assert desk.ends("a", Result.STARTED) == ["vm.restarted"]
    assert desk.told[-1].start_key == "h1-1/a/2"


def test_an_order_that_is_told_again_once_it_has_ended_takes_no_place_of_a_later_one() -> None:
    desk = Desk()
    first = plan(order("a", run=1), revision=1)
    desk.hear(first)
    desk.ends("a", Result.STARTED)
    # it runs, fails once more, and is ordered by another incident; then the first comes again
    desk.hear(plan(order("a", H3, incident="vm-a-2", run=2), incident="vm-a-2"))
    assert desk.hear(first) == []
    assert desk.state.records["a"].start.to == H3
    assert desk.ends("a", Result.STARTED) == ["vm.restarted"]
    assert desk.told[-1].start_key == "vm-a-2/a/1"


def test_what_is_known_of_the_orders_of_a_vm_outlives_the_process_and_stays_small() -> None:
    desk = Desk()
    for number in range(20):
        desk.hear(plan(order("a", incident=f"vm-a-{number}"), incident=f"vm-a-{number}"))
        desk.ends("a", Result.NOT_STARTED)
    assert len(desk.state.taken_up("a").plans) == PLANS_KEPT
    after = Desk()
    after.take(after.decider.resume(after.state, stored(desk.state.records), 50.0))
    assert after.hear(plan(order("a", incident="vm-a-19"), incident="vm-a-19")) == []
    assert after.asked == []


def test_the_outcome_of_a_replaced_order_is_no_outcome_of_the_new() -> None:
    desk = Desk()
    desk.hear(plan(order("a", H2), revision=1))
    old = desk.asked[-1]
    desk.hear(plan(order("a", H3, attempt=2), revision=2))
    assert desk.hear(Attempted(key=old.key, start=old.start, result=Result.NOT_STARTED)) == []
    assert [uuid for uuid, _ in desk.state.starts()] == ["a"]


# -- uncertain


def test_what_is_uncertain_is_told_once_asked_again_for_ever_and_never_dropped() -> None:
    desk = Desk()
    desk.hear(plan(order("a")))
    assert desk.ends("a", Result.UNCERTAIN, "no answer") == ["vm.start_uncertain"]
    for attempt in range(2, 200):
        assert desk.wait() == [f"start/h1-1/a/1/{attempt}"]
        late = Expired(key=desk.asked[-1].key, request="start_vm", reason="no end in 35 s")
        assert desk.hear(late) == []
    desk.wait()
    assert desk.ends("a", Result.STARTED) == ["vm.restarted"]
    assert desk.decider.wake_at(desk.state) is None


def test_what_is_uncertain_takes_no_place_of_another() -> None:
    desk = Desk(parallel_per_host=1)
    desk.hear(plan(order("a", priority_rank=0), order("b")))
    assert desk.ends("a", Result.UNCERTAIN) == ["vm.start_uncertain", "start/h1-1/b/1/1"]


def test_a_target_that_is_fenced_takes_its_starts_with_it() -> None:
    desk = Desk(parallel_per_host=1)
    desk.hear(plan(order("a"), order("b"), order("c", H3)))
    desk.ends("a", Result.UNCERTAIN)
    assert desk.hear(fenced(boot("h2", 2))) == [], "another boot of it"
    assert [uuid for uuid, _ in desk.state.starts()] == ["a", "b", "c"]
    desk.hear(fenced(H2))
    assert [uuid for uuid, _ in desk.state.starts()] == ["c"]
    assert desk.decider.wake_at(desk.state) is None
    late = Expired(key="start/h1-1/b/1/1", request="start_vm", reason="no end")
    assert desk.hear(late) == []


def test_a_successor_goes_on_where_its_predecessor_was() -> None:
    desk = Desk(parallel_per_host=1)
    desk.hear(plan(order("a", priority_rank=0), order("b"), order("c"), order("d", H3)))
    desk.ends("a", Result.UNCERTAIN)
    assert {uuid: record.phase for uuid, record in desk.state.starts()} == {
        "a": Phase.UNCERTAIN,
        "b": Phase.STARTING,
        "c": Phase.QUEUED,
        "d": Phase.STARTING,
    }
    after = Desk(parallel_per_host=1)
    # what was starting is owed, and performed again by the shell
    assert after.take(after.decider.resume(after.state, stored(desk.state.records), 50.0)) == []
    after.now = 50.0
    step = after.decider.step(after.state, None, 50.0)
    after.take(step)
    assert after.asked == [], "b still has the only place on h2"
    b = StartVm(key="start/h1-1/b/1/1", deadline_s=1, start=order("b"), incident="h1-1")
    told = after.hear(Attempted(key=b.key, start=b.start, result=Result.STARTED))
    assert told == ["vm.restarted", "start/h1-1/a/1/2"]


# -- leases follow what people do


def test_what_is_found_running_gets_a_lease_and_the_answer_ends_the_writing() -> None:
    desk = Desk()
    assert desk.hear(seen(H1, vm("a"))) == ["lease/a/1"]
    assert desk.asked[-1].lease.holder == H1
    assert desk.hear(seen(H1, vm("a"))) == [], "it is being written"
    desk.hear(LeaseFound(key="lease/a/1", lease=desk.asked[-1].lease))
    assert desk.hear(seen(H1, vm("a"))) == []


@pytest.mark.parametrize(
    "answer",
    [
        LeaseFound(key="lease/a/1", lease=None),
        Expired(key="lease/a/1", request="write_lease", reason="no answer"),
    ],
)
def test_a_lease_that_could_not_be_written_is_tried_again(answer: Input) -> None:
    desk = Desk()
    desk.hear(seen(H1, vm("a")))
    desk.hear(answer)
    assert desk.hear(seen(H1, vm("a"))) == ["lease/a/1"]


def test_a_vm_that_is_being_started_is_not_adopted_on_the_side() -> None:
    desk = Desk()
    desk.hear(plan(order("a")))
    assert desk.hear(seen(H2, vm("a"))) == []


def test_a_migration_is_followed_once_the_old_host_itself_no_longer_shows_it() -> None:
    desk = Desk()
    desk.hear(TableRead("leases", (lease("a", H1),)))
    desk.hear(seen(H1, vm("a")))
    assert desk.hear(seen(H2, vm("a"))) == [], "both show it: nothing is concluded"
    assert desk.hear(seen(H1)) == ["lease/a/2"]
    assert desk.asked[-1].lease.holder == H2
    assert desk.asked[-1].lease.token == 2


def test_the_lease_of_a_fenced_boot_follows_at_once_what_people_took_elsewhere() -> None:
    """And not only when that host tells its inventory again: it may fail before."""
    desk = Desk()
    desk.hear(LeaseWritten(lease=lease("a", H1)))
    desk.hear(seen(H2, vm("a")))
    desk.hear(seen(boot("h1", 2)))
    assert [one for one in desk.asked if isinstance(one, WriteLease)] == [], "a later boot is no proof"
    desk.hear(fenced(H1))
    (write,) = [one for one in desk.asked if isinstance(one, WriteLease)]
    assert (write.lease.holder, write.lease.token, write.lease.state) == (H2, 2, L.RUNNING)


def test_a_fenced_boots_lease_does_not_follow_to_the_next_boot_of_its_host() -> None:
    desk = Desk()
    desk.hear(LeaseWritten(lease=lease("a", H1)))
    desk.hear(seen(boot("h1", 2), vm("a")))
    desk.hear(fenced(H1))
    desk.hear(seen(boot("h1", 2), vm("a"), rev=2))
    assert [one for one in desk.asked if isinstance(one, WriteLease)] == []


def test_what_a_host_showed_before_it_was_fenced_is_no_migration_to_it() -> None:
    """A replica that followed is not told of the fence; it may hear the last inventory late, too."""
    follower = Desk()
    follower.hear(LeaseWritten(lease=lease("a", H1)))
    follower.hear(seen(H1, vm("a")))
    follower.hear(LeaseWritten(lease=lease("a", H2, token=2, start_key="i/a/1")))
    follower.hear(seen(H2, vm("a", token=2)))
    assert follower.hear(seen(H2, vm("a", VmState.STOPPED, stop_reason=StopReason.CRASHED, token=2))) == []
    leader = Desk()
    leader.hear(fenced(H1, vm("a")))
    leader.hear(LeaseWritten(lease=lease("a", H2, L.STOPPED, token=2)))
    assert leader.hear(seen(H1, vm("a"))) == []


def test_whoever_leads_next_asks_no_boot_that_was_proven_over_under_another_leader() -> None:
    """It heard what that boot showed last, and was not told of the proof: it would ask it for ever."""
    first = Desk()
    first.hear(fenced(H1, vm("a")))
    follower = Desk()
    follower.hear(seen(H1, vm("a")))
    follower.take(follower.decider.resume(follower.state, first.decider.records(first.state), follower.now))
    follower.hear(plan(order("a")))
    follower.ends("a", Result.UNCERTAIN)
    follower.now += 1.1
    follower.take(follower.decider.step(follower.state, None, follower.now))
    again = follower.asked[-1]
    assert isinstance(again, StartVm)
    assert again.key.endswith("/2")
    assert again.shown == ()


def test_a_vm_that_moves_on_is_not_taken_back_to_a_host_that_was_not_heard_for_long() -> None:
    desk = Desk()
    desk.hear(LeaseWritten(lease=lease("a", H2, token=2)))
    desk.hear(seen(H1, vm("a")))
    desk.now += 60.0
    desk.hear(seen(H2, vm("a")))
    desk.hear(seen(H3, vm("a")))
    assert desk.hear(seen(H2)) == ["lease/a/3"]
    assert desk.asked[-1].lease.holder == H3


def test_a_vm_that_a_person_started_after_its_host_was_fenced_is_adopted() -> None:
    desk = Desk()
    desk.hear(TableRead("leases", (lease("a", H1),)))
    desk.hear(seen(H1, vm("a")))
    desk.hear(fenced(H1, vm("a")))
    assert desk.hear(seen(H3, vm("a"))) == ["lease/a/2"]
    assert desk.asked[-1].lease.holder == H3


def test_a_vm_shut_down_on_purpose_is_noted_as_stopped() -> None:
    desk = Desk()
    desk.hear(LeaseWritten(lease=lease("a", H1)))
    desk.hear(seen(H1, vm("a", VmState.STOPPED, stop_reason=StopReason.ON_PURPOSE)))
    assert desk.asked[-1].lease.state is L.STOPPED


def test_an_older_reading_of_a_lease_does_not_undo_a_newer() -> None:
    desk = Desk()
    desk.hear(LeaseWritten(lease=lease("a", H2, token=2)))
    desk.hear(TableRead("leases", (lease("a", H1, token=1),)))
    assert desk.state.leases["a"].holder == H2


# -- the hands


@dataclass
class Host:
    """A hypervisor in memory."""

    at: Incarnation
    vms: dict[str, VmState] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    starts: list[str] = field(default_factory=list)
    on_start: Callable[[Host, str], None] = lambda host, uuid: None
    on_migrate: Callable[[Host, Host, str], None] = lambda host, target, uuid: host.carry(target, uuid)
    gone: bool = False
    reasons: dict[str, StopReason] = field(default_factory=dict)
    found_at: tuple[str, ...] = ()

    async def addresses(self, uuid: str) -> tuple[str, ...]:
        self._up()
        return self.found_at

    def _up(self) -> None:
        if self.gone:
            raise UnavailableError("no answer")

    async def reports(self) -> list[VmReport]:
        self._up()
        return [vm(uuid, state) for uuid, state in self.vms.items()]

    async def report(self, uuid: str) -> VmReport | None:
        self._up()
        if uuid not in self.vms:
            return None
        stopped = self.vms[uuid] is VmState.STOPPED
        reason = self.reasons.get(uuid, StopReason.UNKNOWN) if stopped else StopReason.NONE
        return vm(uuid, self.vms[uuid], stop_reason=reason, token=self.tokens.get(uuid, 0))

    async def start(self, definition: VmDefinition, token: int) -> None:
        self._up()
        self.starts.append(definition.uuid)
        self.tokens[definition.uuid] = token
        self.vms[definition.uuid] = VmState.RUNNING
        self.on_start(self, definition.uuid)

    async def destroy(self, uuid: str) -> None:
        self.vms[uuid] = VmState.STOPPED

    async def migrate(self, uuid: str, target: Hypervisor, timeout_s: float) -> None:
        self._up()
        assert isinstance(target, Host)
        self.on_migrate(self, target, uuid)

    def carry(self, target: Host, uuid: str) -> None:
        """A live migration that goes through."""
        self.vms[uuid], self.reasons[uuid] = VmState.STOPPED, StopReason.MIGRATED
        target.vms[uuid], target.tokens[uuid] = VmState.RUNNING, self.tokens.get(uuid, 0)


@dataclass
class Hosts:
    hosts: dict[Incarnation, Host]

    async def at(self, incarnation: Incarnation, timeout_s: float) -> Hypervisor:
        if incarnation not in self.hosts:
            raise UnavailableError(f"{incarnation} is not heard")
        return self.hosts[incarnation]

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        return Answer.UNKNOWN, ""


class Lab:
    """The executor's hands over hypervisors and a store in memory."""

    def __init__(self, *at: Incarnation, held: RunLease | None = None, defined: bool = True) -> None:
        self.world = World()
        self.store = Process(self.world)
        self.hosts = {one: Host(one) for one in at}
        self.hands = Hands(
            _Bucket(self.store, "leases."),
            _Bucket(self.store, "definitions."),
            Hosts(self.hosts),
            self.store,
            SystemClock(),
        )
        if held is not None:
            self.put("leases.a", held.model_dump_json())
        if defined:
            self.put(
                "definitions.a", VmDefinition(uuid="a", name="A", xml="<x/>", sha256="0").model_dump_json()
            )

    def put(self, key: str, text: str) -> None:
        self.world.revision += 1
        self.world.rows[key] = (text.encode(), self.world.revision)

    def lease(self) -> RunLease:
        return RunLease.model_validate_json(self.world.rows["leases.a"][0])

    async def start(self, start: PlannedStart, *, shown: tuple[Incarnation, ...] = ()) -> Attempted:
        request = StartVm(key="k", deadline_s=5.0, start=start, incident="h1-1", shown=shown)
        done = await self.hands.perform(request)
        assert isinstance(done, Attempted)
        return done


class _Bucket:
    """One bucket of several in one store."""

    def __init__(self, store: Process, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    async def get(self, key: str) -> Any:
        return await self._store.get(self._prefix + key)

    async def put(self, key: str, value: bytes, expected: int | None) -> int:
        return await self._store.put(self._prefix + key, value, expected)

    async def delete(self, key: str, expected: int | None) -> None:
        await self._store.delete(self._prefix + key, expected)

    async def scan(self, prefix: str) -> Any:
        return await self._store.scan(self._prefix + prefix)


async def test_a_start_takes_the_lease_starts_with_its_token_and_sees_it_running() -> None:
    lab = Lab(H2, held=lease("a", H1, token=4))
    done = await lab.start(order("a"))
    assert (done.result, done.token) == (Result.STARTED, 5)
    assert datetime.fromisoformat(done.called_at)
    assert lab.hosts[H2].tokens == {"a": 5}
    assert (lab.lease().holder, lab.lease().state, lab.lease().token) == (H2, L.RUNNING, 5)
    again = await lab.start(order("a"))
    assert (again.result, again.token) == (Result.STARTED, 5)
    assert lab.hosts[H2].starts == ["a"], "the same order again starts nothing"


async def test_without_the_lease_nothing_is_started() -> None:
    lab = Lab(H2, H3, held=lease("a", H3))
    assert (await lab.start(order("a"))).result is Result.NOT_STARTED
    assert lab.hosts[H2].starts == []
    assert lab.lease() == lease("a", H3)


async def test_two_orders_at_once_start_it_in_one_place() -> None:
    lab = Lab(H2, H3, held=lease("a", H1))
    one, other = order("a", H2), order("a", H3, attempt=2)
    results = [await lab.start(one), await lab.start(other)]
    assert [done.result for done in results] == [Result.STARTED, Result.NOT_STARTED]
    assert [host.starts for host in lab.hosts.values()] == [["a"], []]


async def test_a_race_for_the_lease_has_one_winner() -> None:
    lab = Lab(H2, H3, held=lease("a", H1))
    real = lab.store.put

    async def slow(key: str, value: bytes, expected: int | None) -> int:
        # the other one is quicker, once
        lab.store.put = real  # type: ignore[method-assign]
        assert (await lab.start(order("a", H3, attempt=2))).result is Result.STARTED
        return await real(key, value, expected)

    lab.store.put = slow  # type: ignore[method-assign]
    assert (await lab.start(order("a", H2))).result is Result.NOT_STARTED
    assert lab.hosts[H2].starts == []


async def test_a_target_that_is_not_proven_to_be_that_boot_is_uncertain_not_skipped() -> None:
    lab = Lab(held=lease("a", H1))
    with pytest.raises(UnavailableError):
        await lab.start(order("a"))
    assert (lab.lease().holder, lab.lease().state) == (H2, L.STARTING)
    # when it answers after all, the same order goes on under the same token
    lab.hosts[H2] = Host(H2)
    assert (await lab.start(order("a"))).token == 2


async def test_a_refusal_is_a_refusal_only_where_it_is_seen_not_to_run() -> None:
    def refuse(host: Host, uuid: str, *, state: VmState) -> None:
        host.vms[uuid] = state
        raise StartRefusedError("no space left on device")

    for state, result, held in (
        (VmState.STOPPED, Result.NOT_STARTED, L.FAILED),
        (VmState.RUNNING, Result.STARTED, L.RUNNING),
        (VmState.PAUSED, Result.STARTED, L.RUNNING),
    ):
        lab = Lab(H2, held=lease("a", H1))
        lab.hosts[H2].on_start = functools.partial(refuse, state=state)
        done = await lab.start(order("a"))
        assert (done.result, lab.lease().state) == (result, held)
    lab = Lab(H2, held=lease("a", H1))
    lab.hosts[H2].on_start = lambda host, uuid: refuse(host, uuid, state=VmState.UNKNOWN)
    with pytest.raises(UnavailableError):
        await lab.start(order("a"))
    assert lab.lease().state is L.STARTING, "nothing is known: the lease stays taken"


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.PAUSED, VmState.UNKNOWN])
async def test_what_the_next_boot_of_its_host_runs_or_is_about_to_run_is_started_nowhere_else(
    state: VmState,
) -> None:
    later = boot("h1", 2)
    lab = Lab(H2, later, held=lease("a", H1))
    lab.hosts[later].vms["a"] = state
    ended = FenceProof(of=H1, method=ProofMethod.NEW_BOOT, detail="", successor=later.boot)
    done = await lab.start(order("a").model_copy(update={"proofs": (ended,)}))
    assert done.result is Result.NOT_STARTED
    assert f"says that it is {state.value} there" in done.reason
    assert lab.hosts[H2].starts == []


async def test_what_the_lock_of_its_disks_refuses_is_told_from_any_other_refusal() -> None:
    def refuse(host: Host, uuid: str) -> None:
        host.vms[uuid] = VmState.STOPPED
        raise StartRefusedError("h2: resource busy: Lockspace resource is locked", "virtlockd")

    lab = Lab(H2, held=lease("a", H1))
    lab.hosts[H2].on_start = refuse
    done = await lab.start(order("a"))
    assert (done.result, done.stage) == (Result.NOT_STARTED, Stage.LOCK)
    assert done.reason == "virtlockd: h2: resource busy: Lockspace resource is locked"
    assert lab.lease().state is L.FAILED, "it is known not to run here, and may be tried again"


async def test_a_target_lost_in_the_middle_leaves_the_lease_taken() -> None:
    def lost(host: Host, uuid: str) -> None:
        host.gone = True

    lab = Lab(H2, held=lease("a", H1))
    lab.hosts[H2].on_start = lost
    with pytest.raises(UnavailableError):
        await lab.start(order("a"))
    assert (lab.lease().holder, lab.lease().state) == (H2, L.STARTING)


async def test_a_start_whose_vm_is_gone_right_after_has_failed() -> None:
    def dies(host: Host, uuid: str) -> None:
        host.vms[uuid] = VmState.STOPPED

    lab = Lab(H2, held=lease("a", H1))
    lab.hosts[H2].on_start = dies
    done = await lab.start(order("a"))
    assert (done.result, lab.lease().state) == (Result.NOT_STARTED, L.FAILED)


async def test_what_ran_unseen_and_was_shut_down_on_purpose_stays_down() -> None:
    """The one before us died in a start that succeeded, and a person was quicker than we."""
    lab = Lab(H2, held=lease("a", H2, L.STARTING, token=2, start_key=order("a").key))
    host = lab.hosts[H2]
    host.vms["a"], host.tokens["a"], host.reasons["a"] = VmState.STOPPED, 2, StopReason.ON_PURPOSE
    done = await lab.start(order("a"))
    assert (done.result, lab.lease().state, host.starts) == (Result.NOT_STARTED, L.STOPPED, [])


async def test_what_ran_unseen_and_was_migrated_is_not_started_beside_its_copy() -> None:
    """Nobody could tell whether our start succeeded; it did, and a person took it to another host meanwhile."""
    lab = Lab(H2, H3, held=lease("a", H2, L.STARTING, token=2, start_key=order("a").key))
    host = lab.hosts[H2]
    host.vms["a"], host.tokens["a"], host.reasons["a"] = VmState.STOPPED, 2, StopReason.MIGRATED
    done = await lab.start(order("a"))
    assert (done.result, lab.lease().state, host.starts) == (Result.NOT_STARTED, L.RUNNING, [])
    again = await lab.start(order("a", H3, attempt=2))
    assert (again.result, lab.hosts[H3].starts) == (Result.NOT_STARTED, []), "it is still held by H2"


async def test_what_ran_unseen_and_was_migrated_and_undefined_is_not_started_beside_its_copy() -> None:
    lab = Lab(H2, H3, held=lease("a", H2, L.STARTING, token=2, start_key=order("a").key))
    lab.hosts[H3].vms["a"] = VmState.RUNNING
    done = await lab.start(order("a"), shown=(H3,))
    assert (done.result, lab.lease().state, lab.hosts[H2].starts) == (Result.NOT_STARTED, L.RUNNING, [])


async def test_what_another_host_only_knows_is_started() -> None:
    lab = Lab(H2, H3, held=lease("a", H2, L.STARTING, token=2, start_key=order("a").key))
    lab.hosts[H3].vms["a"] = VmState.STOPPED
    done = await lab.start(order("a"), shown=(H3,))
    assert done.result is Result.STARTED


def test_a_start_that_is_tried_again_names_who_else_may_run_the_vm() -> None:
    desk = Desk()
    desk.hear(seen(H2))
    desk.hear(seen(H3, vm("a", VmState.UNKNOWN), vm("b", VmState.STOPPED)))
    desk.hear(plan(order("a"), order("b")))
    assert [one.shown for one in desk.asked] == [(), ()]
    desk.ends("a", Result.UNCERTAIN)
    desk.ends("b", Result.UNCERTAIN)
    desk.asked.clear()
    desk.wait()
    assert {one.start.vm: one.shown for one in desk.asked} == {"a": (H3,), "b": ()}


@pytest.mark.parametrize("reason", [StopReason.ON_PURPOSE, StopReason.MIGRATED])
async def test_a_stop_by_hand_before_this_start_says_nothing_of_it_also_when_it_is_taken_up_again(
    reason: StopReason,
) -> None:
    """libvirt keeps the last reason until the next run begins, and a definition with the new token may be all
    that the one before us has done."""
    lab = Lab(H2, held=lease("a", H1))
    host = lab.hosts[H2]
    host.vms["a"], host.reasons["a"] = VmState.STOPPED, reason

    def defined_only(host: Host, uuid: str) -> None:
        host.vms[uuid] = VmState.STOPPED
        raise UnavailableError("lost in the middle")

    host.on_start = defined_only
    with pytest.raises(UnavailableError):
        await lab.start(order("a"))
    assert (lab.lease().state, lab.lease().stopped_before) == (L.STARTING, True)
    host.on_start = lambda host, uuid: None
    done = await lab.start(order("a"))
    assert (done.result, lab.lease().state) == (Result.STARTED, L.RUNNING)


async def test_it_is_started_from_the_copy_of_the_host_that_had_it_whatever_others_say_of_it() -> None:
    lab = Lab(H2, held=lease("a", H1, token=4))
    for key, xml in (("a.h1", "<had/>"), ("a.h3", "<forged/>"), ("a.h2", "<older/>")):
        copy = VmDefinition(uuid="a", name="A", xml=xml, sha256="0")
        lab.put(f"definitions.{key}", copy.model_dump_json())
    assert (await lab.start(order("a"))).result is Result.STARTED
    rows = {
        key: VmDefinition.model_validate_json(row[0]) for key, row in lab.world.rows.items() if "def" in key
    }
    assert rows["definitions.a.h2"].xml == "<had/>", (
        "its target may be lost before its own agent has copied it"
    )
    lab.put("definitions.a.h1", VmDefinition(uuid="b", name="B", xml="<b/>", sha256="0").model_dump_json())
    lab.put("leases.a", lease("a", H1, token=9).model_dump_json())
    lab.hosts[H2].starts.clear()
    with pytest.raises(UnavailableError, match="is one of b"):
        await lab.start(order("a"))
    assert lab.hosts[H2].starts == []


async def test_without_a_copy_of_the_definition_it_says_so() -> None:
    lab = Lab(H2, held=lease("a", H1), defined=False)
    done = await lab.start(order("a"))
    assert done.result is Result.NOT_STARTED
    assert "definition" in done.reason


@pytest.mark.parametrize(
    ("holder_says", "started"),
    [(VmState.STOPPED, True), (VmState.RUNNING, False), (VmState.PAUSED, False), (VmState.UNKNOWN, False)],
)
async def test_after_a_crash_only_the_living_holders_own_word_gives_the_lease(
    holder_says: VmState, started: bool
) -> None:
    lab = Lab(H1, H2, held=lease("a", H1))
    lab.hosts[H1].vms["a"] = holder_says
    done = await lab.start(order("a", H2, proofs=(), run=1))
    assert (done.result is Result.STARTED) is started
    assert (lab.hosts[H2].starts == ["a"]) is started


async def test_a_holder_that_does_not_answer_gives_nothing() -> None:
    lab = Lab(H2, held=lease("a", H1))
    assert (await lab.start(order("a", H2, proofs=(), run=1))).result is Result.NOT_STARTED
    assert lab.lease() == lease("a", H1)


async def test_an_adoption_decided_on_an_old_reading_writes_nothing() -> None:
    lab = Lab(held=lease("a", H1, token=5))
    wanted = lease("a", H2, token=2)
    done = await lab.hands.perform(WriteLease(key="lease/a/2", deadline_s=1.0, lease=wanted))
    assert isinstance(done, LeaseFound)
    assert done.lease == lease("a", H1, token=5)
    lab = Lab()
    done = await lab.hands.perform(WriteLease(key="lease/a/1", deadline_s=1.0, lease=lease("a", H1)))
    assert isinstance(done, LeaseFound)
    assert lab.lease() == lease("a", H1)


async def test_a_lease_that_cannot_be_read_is_unknown_and_nothing_is_started() -> None:
    lab = Lab(H2)
    lab.put("leases.a", "of another age")
    with pytest.raises(UnavailableError, match="lease"):
        await lab.start(order("a"))
    with pytest.raises(UnavailableError, match="lease"):
        await lab.hands.perform(WriteLease(key="lease/a/1", deadline_s=1.0, lease=lease("a", H1)))
    assert lab.hosts[H2].starts == []


def test_a_record_that_cannot_be_read_as_a_start_does_not_pass_for_one_that_has_ended() -> None:
    """Another version may write what this one does not know: a start that is owed must not be forgotten by that."""
    kind: TypeAdapter[Any] = TypeAdapter(Executor(Restart()).record_type)
    with pytest.raises(ValidationError):
        kind.validate_python(
            {"start": {"vm": "a"}, "incident": "i", "cause": "c", "phase": "of a later version"}
        )
    assert kind.validate_python({"plans": {"i": 1}}) == TakenUp(plans={"i": 1})
