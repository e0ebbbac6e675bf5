"""The executor: which start goes when, what its outcome means, and leases kept in line with what people do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rpds import HashTrieMap

from libs import leases
from libs.config.settings import Restart
from libs.core.decider import Act, Effect, Expired, Input, Publish, Records, Step, TableRead
from libs.core.evolve import replace
from libs.events.failovers import FailoverPlanned
from libs.events.hosts import HostFenced
from libs.events.signals import InventorySeen, LeaseWritten
from libs.events.vms import VmRestarted, VmRestartFailed, VmStartUncertain
from libs.events.words import HostRemoved
from libs.model import Incarnation, Inventory, RunLease, StopReason
from services.executor.orders import (
    Attempted,
    LeaseFound,
    Phase,
    Result,
    StartRecord,
    StartVm,
    TakenUp,
    WriteLease,
)

UNCERTAIN_RETRY_S = 1.0
LEASE_WRITE_S = 5.0
EVICT_S = 50.0
"""What an eviction may take before the start itself."""
FRESH_S = 12.0
"""Two inventories of a host that lives have come in this time. A replica that only followed was not told that a
host is fenced, and keeps what that one said last."""


@dataclass(frozen=True, slots=True)
class ExecutorState:
    records: Records
    retry_at: HashTrieMap[str, float]
    leases: HashTrieMap[str, RunLease]
    heard: HashTrieMap[str, Inventory]
    writing: HashTrieMap[str, int]
    """Leases whose write is under way: VM to the seq being written."""
    heard_at: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """When each host's inventory was heard."""
    over: HashTrieMap[str, Incarnation] = field(default_factory=HashTrieMap)
    """By host the boot that was fenced last: what it still says comes late."""

    def starts(self) -> list[tuple[str, StartRecord]]:
        """By VM the starts that are owed."""
        return sorted((vm, one) for vm, one in self.records.items() if isinstance(one, StartRecord))

    def taken_up(self, vm: str) -> TakenUp:
        """The orders for this VM that are no news, that of the start that is owed among them."""
        record = self.records.get(vm)
        if isinstance(record, StartRecord):
            return record.taken_up
        return record if isinstance(record, TakenUp) else TakenUp(plans={})


State = ExecutorState


@dataclass(frozen=True, slots=True)
class Executor:
    """Decider of the executor."""

    settings: Restart

    @property
    def record_type(self) -> Any:
        return StartRecord | TakenUp

    def initial(self, now: float) -> State:
        empty: Records = HashTrieMap()
        return State(empty, HashTrieMap(), HashTrieMap(), HashTrieMap(), HashTrieMap())

    def resume(self, state: State, records: Records, now: float) -> Step[State]:
        state = replace(state, records=records, writing=HashTrieMap())
        uncertain = {vm: now for vm, record in state.starts() if record.phase is Phase.UNCERTAIN}
        state = replace(state, retry_at=HashTrieMap(uncertain))
        return self._dispatch(state)

    def records(self, state: State) -> Records:
        return state.records

    def wake_at(self, state: State) -> float | None:
        return min(state.retry_at.values(), default=None)

    def step(self, state: State, event: Input | None, now: float) -> Step[State]:
        match event:
            case None:
                return self._retry(state, now)
            case FailoverPlanned():
                return self._planned(state, event)
            case Attempted():
                return self._attempted(state, event, now)
            case HostFenced(at=at):
                gone = [vm for vm, record in state.starts() if record.start.to == at]
                for vm in gone:  # placement plans these again, with this proof
                    state = _drop(state, vm)
                state = replace(_over(state, at), over=state.over.insert(at.host, at))
                return self._dispatch(state)
            case HostRemoved(at=at):
                return Step(_over(state, at))
            case InventorySeen(inventory=inventory):
                return self._reconcile(state, inventory, now)
            case LeaseWritten(lease=lease):
                return Step(_known(state, lease))
            case TableRead(table="leases", rows=rows):
                for row in rows:
                    if isinstance(row, RunLease):
                        state = _known(state, row)
                return Step(state)
            case LeaseFound(lease=found, key=key):
                state = replace(state, writing=state.writing.discard(key.split("/")[1]))
                return Step(state if found is None else _known(state, found))
            case Expired(key=key, request=kind):
                return self._expired(state, kind, key, event.reason, now)
            case _:
                return Step(state)

    # -- starts

    def _planned(self, state: State, fact: FailoverPlanned) -> Step[State]:
        """An order takes the place of any that is under way for its VM: placement gives another only where that one
        is of no use any more. So one that was taken up before must not come in the place of a later one."""
        for start in fact.starts:
            taken = state.taken_up(start.vm)
            if taken.has(fact.incident, fact.revision):
                continue  # told again, or late: another attempt was ordered since
            record = StartRecord(
                start=start,
                incident=fact.incident,
                revision=fact.revision,
                cause=fact.key,
                before=taken,
            )
            state = replace(
                state,
                records=state.records.insert(start.vm, record),
                retry_at=state.retry_at.discard(start.vm),
            )
        return self._dispatch(state)

    def _dispatch(self, state: State) -> Step[State]:
        """Begin what may begin, the most important first, bounded in all and a host."""
        records = [record for _, record in state.starts()]
        busy = [record for record in records if record.phase is Phase.STARTING]
        by_host = Counter(record.start.to.host for record in busy)
        free = self.settings.parallel - len(busy)
        queued = [record for record in records if record.phase is Phase.QUEUED]
        queued.sort(key=lambda r: (r.start.priority_rank, r.start.wave, r.start.name))
        acts: list[Effect] = []
        for record in queued:
            host = record.start.to.host
            if free <= 0 or by_host[host] >= self.settings.parallel_per_host:
                continue
            free -= 1
            by_host[host] += 1
            state, act = self._begin(state, record)
            acts.append(act)
        return Step(state, tuple(acts))

    def _begin(self, state: State, record: StartRecord) -> tuple[State, Act]:
        record = record.model_copy(update={"phase": Phase.STARTING, "tries": record.tries + 1})
        vm = record.start.vm
        request = StartVm(
            key=f"start/{record.start.key}/{record.tries}",
            deadline_s=self.settings.start_timeout_s + 5.0 + (EVICT_S if record.start.evict else 0.0),
            start=record.start,
            incident=record.incident,
        )
        return replace(state, records=state.records.insert(vm, record)), Act(vm, request)

    def _attempted(self, state: State, outcome: Attempted, now: float) -> Step[State]:
        start = outcome.start
        record = state.records.get(start.vm)
        if not isinstance(record, StartRecord) or record.start.key != start.key:
            return Step(state)  # dropped since: its target was fenced, or another order came
        match outcome.result:
            case Result.STARTED:
                started = VmRestarted(
                    vm=start.vm,
                    name=start.name,
                    at=start.to,
                    incident=record.incident,
                    start_key=start.key,
                    token=outcome.token,
                    called_at=outcome.called_at,
                    cause=record.cause,
                    rule="seen running",
                )
                said: tuple[Effect, ...] = (Publish(start.vm, started),)
                state = _drop(state, start.vm)
            case Result.NOT_STARTED:
                failed = VmRestartFailed(
                    vm=start.vm,
                    name=start.name,
                    at=start.to,
                    incident=record.incident,
                    start_key=start.key,
                    reason=outcome.reason[:500],
                    stage=outcome.stage,
                    cause=record.cause,
                    rule="known not to run there",
                )
                said = (Publish(start.vm, failed),)
                state = _drop(state, start.vm)
            case Result.UNCERTAIN:
                return self._uncertain(state, record, outcome.reason, now)
        step = self._dispatch(state)
        return Step(step.state, (*said, *step.effects))

    def _uncertain(self, state: State, record: StartRecord, reason: str, now: float) -> Step[State]:
        """It may be under way on a target that does not answer: ask again until it answers or is fenced."""
        start = record.start
        first = record.tries == 1
        record = record.model_copy(update={"phase": Phase.UNCERTAIN})
        state = replace(
            state,
            records=state.records.insert(start.vm, record),
            retry_at=state.retry_at.insert(start.vm, now + UNCERTAIN_RETRY_S),
        )
        said: tuple[Effect, ...] = ()
        if first:
            fact = VmStartUncertain(
                vm=start.vm,
                name=start.name,
                at=start.to,
                incident=record.incident,
                start_key=start.key,
                reason=reason[:500],
                cause=record.cause,
                rule="never planned elsewhere until the target answers or is fenced",
            )
            said = (Publish(start.vm, fact),)
        step = self._dispatch(state)
        return Step(step.state, (*said, *step.effects))

    def _retry(self, state: State, now: float) -> Step[State]:
        for vm, due in sorted(state.retry_at.items()):
            if due <= now:
                record = state.records[vm].model_copy(update={"phase": Phase.QUEUED})
                state = replace(
                    state, records=state.records.insert(vm, record), retry_at=state.retry_at.remove(vm)
                )
        return self._dispatch(state)

    def _expired(self, state: State, kind: str, key: str, reason: str, now: float) -> Step[State]:
        if kind == "write_lease":
            return Step(replace(state, writing=state.writing.discard(key.split("/")[1])))
        for _, record in state.starts():
            if f"start/{record.start.key}/{record.tries}" == key:
                return self._uncertain(state, record, reason, now)
        return Step(state)

    # -- leases follow what people do

    def _reconcile(self, state: State, inventory: Inventory, now: float) -> Step[State]:
        """Every inventory is held against the leases: level, not edge, so nothing missed is lost."""
        at, before = inventory.at, state.heard.get(inventory.at.host)
        if state.over.get(at.host) == at or inventory.outdated(before):
            return Step(state)
        heard, heard_at = state.heard.insert(at.host, inventory), state.heard_at.insert(at.host, now)
        state = replace(state, heard=heard, heard_at=heard_at)
        acts: list[Effect] = []
        held = {lease.vm for lease in state.leases.values() if lease.holder == at}
        for vm in sorted(held | {report.uuid for report in inventory.vms}):
            if isinstance(state.records.get(vm), StartRecord) or vm in state.writing:
                continue  # a start of ours is under way: its outcome says how it is
            change = self._change(state, vm, _sources(state, vm, inventory, before, now))
            if change is not None:
                request = WriteLease(key=f"lease/{vm}/{change.seq}", deadline_s=LEASE_WRITE_S, lease=change)
                acts.append(Act(None, request))
                state = replace(state, writing=state.writing.insert(vm, change.seq))
        return Step(state, tuple(acts))

    def _change(self, state: State, vm: str, sources: list[Inventory]) -> RunLease | None:
        lease = state.leases.get(vm)
        holder = state.heard.get(lease.holder.host) if lease is not None else None
        known = lease is not None and holder is not None and holder.at == lease.holder
        holder_report = holder.vm(vm) if known and holder is not None else None
        for inventory in sources:
            report = inventory.vm(vm)
            if report is not None:
                change = leases.adopted(lease, inventory.at, report, holder_report, known)
                if change is not None:
                    return change
        return None


def _sources(
    state: State, vm: str, inventory: Inventory, before: Inventory | None, now: float
) -> list[Inventory]:
    """Whose word on where the VM runs is taken now: that of the host that speaks. Where it had the VM and has it no
    longer, it may have been migrated: then also that of the others, where it is fresh."""
    had = before.vm(vm) if before is not None and before.at == inventory.at else None
    has = inventory.vm(vm)
    left = has is None or has.stop_reason is StopReason.MIGRATED
    if had is None or not had.state.active or not left:
        return [inventory]
    fresh = [
        one for host, one in sorted(state.heard.items()) if now - state.heard_at.get(host, now) < FRESH_S
    ]
    return [inventory, *(one for one in fresh if one is not inventory)]


def _over(state: State, at: Incarnation) -> State:
    """Whatever this incarnation showed last holds no longer."""
    heard = state.heard.get(at.host)
    if heard is None or heard.at != at:
        return state
    over = heard.model_copy(update={"vms": ()})
    return replace(state, heard=state.heard.insert(at.host, over))


def _drop(state: State, vm: str) -> State:
    """Its start is owed no more: what is left is that its orders were taken up."""
    records = state.records.insert(vm, state.taken_up(vm))
    return replace(state, records=records, retry_at=state.retry_at.discard(vm))


def _known(state: State, lease: RunLease) -> State:
    before = state.leases.get(lease.vm)
    if before is not None and before.seq >= lease.seq:
        return state
    return replace(state, leases=state.leases.insert(lease.vm, lease))
