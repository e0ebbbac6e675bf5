"""The executor: which start goes when, what its outcome means, and leases kept in line with what people do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from rpds import HashTrieMap

from libs import leases, strays
from libs.config.settings import Restart
from libs.core.decider import Act, Effect, Expired, Input, Publish, Records, Step, TableRead
from libs.core.evolve import replace
from libs.events.drains import HostDrainPlanned
from libs.events.failovers import FailoverPlanned, PlannedStart
from libs.events.hosts import HostFenced
from libs.events.signals import Arriving, InventorySeen, LeaseWritten
from libs.events.vms import Stage, VmRestarted, VmRestartFailed, VmStartUncertain
from libs.events.words import HostRemoved
from libs.model import Incarnation, Inventory, RunLease
from services.executor import arrivals, doubles, moving, order, pace, readiness, unseen
from services.executor import state as kept
from services.executor.holders import still_held
from services.executor.orders import (
    ArrivalNoted,
    Attempted,
    LeaseFound,
    OverRecord,
    Phase,
    Probed,
    Result,
    RoomMade,
    RoomRecord,
    RunCondemned,
    StartRecord,
    StartVm,
    TakenUp,
)
from services.executor.state import ExecutorState

UNCERTAIN_RETRY_S = 1.0
EVICT_S = 50.0
"""What an eviction may take before the start itself."""


State = ExecutorState


@dataclass(frozen=True, slots=True)
class Executor:
    """Decider of the executor."""

    settings: Restart

    @property
    def record_type(self) -> Any:
        return StartRecord | TakenUp | OverRecord | RoomRecord

    def initial(self, now: float) -> State:
        return State(Records(), HashTrieMap(), HashTrieMap(), HashTrieMap(), HashTrieMap())

    def resume(self, state: State, records: Records, now: float) -> Step[State]:
        state = kept.resumed(replace(state, records=records, writing=HashTrieMap()))
        uncertain = {vm: now for vm, record in state.starts() if record.phase is Phase.UNCERTAIN}
        state = replace(
            state, retry_at=HashTrieMap(uncertain), waits=order.resumed(records, now), probes=HashTrieMap()
        )
        return self._in_turn(self._dispatch(state, now), now)

    def records(self, state: State) -> Records:
        return state.records

    def wake_at(self, state: State) -> float | None:
        turn = order.next_at(state.waits, state.records, state.signs)
        looks = [one.due for one in state.doubled.values()]
        more = [at for at in (turn, readiness.next_at(state.probes)) if at is not None]
        return min([*state.retry_at.values(), *looks, *more], default=None)

    def step(self, state: State, event: Input | None, now: float) -> Step[State]:
        return self._in_turn(self._step(state, event, now), now)

    def _in_turn(self, step: Step[State], now: float) -> Step[State]:
        """And begin what need not wait for others any longer, after whatever happened; and ask those who are waited for."""
        state, effects = step.state, step.effects
        waits = order.moved_on(state.waits, state.records, state.signs, now)
        moved = not waits == state.waits  # noqa: SIM201  of two such maps `!=` says whether all values differ
        if moved:
            vain = order.in_vain(state.waits, waits, state.records, state.signs, now)
            more = self._dispatch(replace(state, waits=waits), now)
            told = [Publish(one.vm, one) for one in vain]
            state, effects = more.state, (*effects, *told, *more.effects)
        probes, asks = readiness.asked(state.signs, order.probed(state.waits, state.records), now)
        if probes is not state.probes:
            state = replace(state, probes=probes)
        return Step(state, (*effects, *asks))

    def _step(self, state: State, event: Input | None, now: float) -> Step[State]:
        match event:
            case None:
                return self._retry(state, now)
            case FailoverPlanned():
                return self._planned(state, event, now)
            case HostDrainPlanned():
                return self._rooms_ordered(state, event, now)
            case Attempted():
                return self._attempted(state, event, now)
            case RoomMade():
                made = moving.made(state, event, now)
                step = self._dispatch(made.state, now)
                return Step(step.state, (*made.effects, *step.effects))
            case Probed():
                return Step(replace(state, probes=readiness.told(state.probes, event, now)))
            case Arriving():
                heard = self._reconcile(state, event.inventory, now)
                step = arrivals.asked(heard.state, event)
                return Step(step.state, (*heard.effects, *step.effects))
            case ArrivalNoted():
                return arrivals.answered(state, event)
            case RunCondemned():
                return doubles.condemned(state, event)
            case HostFenced(at=at):
                lost = [vm for vm, record in state.starts() if record.start.to == at]
                for vm in lost:  # placement plans these again, with this proof
                    state = kept.drop(state, vm)
                state, let_go = unseen.ended(state, at, now)
                rooms = moving.over(state, at)
                state = kept.proven_over(rooms.state, at)
                state, writes = doubles.forgotten(state, lambda lease: strays.fenced(lease, at))
                state, more = self._left_behind(state, at, now)
                state, gone = arrivals.over(state, at)
                step = self._dispatch(state, now)
                return Step(step.state, (*rooms.effects, *let_go, *writes, *more, *gone, *step.effects))
            case HostRemoved(at=at):
                rooms = moving.over(state, at)
                state, gone = arrivals.over(kept.over(rooms.state, at), at)
                return Step(state, (*rooms.effects, *gone))
            case InventorySeen(inventory=inventory):
                return self._reconcile(state, inventory, now)
            case LeaseWritten(lease=lease):
                return Step(kept.known(state, lease))
            case TableRead(table="leases", rows=rows):
                for row in rows:
                    if isinstance(row, RunLease):
                        state = kept.known(state, row)
                return Step(state)
            case LeaseFound(lease=found, key=key):
                state = replace(state, writing=state.writing.discard(key.split("/")[1]))
                return Step(state if found is None else kept.known(state, found))
            case Expired(key=key, request=kind):
                return self._expired(state, kind, key, event.reason, now)
            case _:
                return Step(state)

    # -- starts

    def _planned(self, state: State, fact: FailoverPlanned, now: float) -> Step[State]:
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
                waits=order.begun(state.waits, start, now),
            )
        return self._rooms_ordered(state, fact, now)

    def _rooms_ordered(
        self, state: State, fact: FailoverPlanned | HostDrainPlanned, now: float
    ) -> Step[State]:
        ordered = moving.ordered(state, fact)
        step = self._dispatch(ordered.state, now)
        return Step(step.state, (*ordered.effects, *step.effects))

    def _dispatch(self, state: State, now: float) -> Step[State]:
        """Begin what may begin, the most important first, bounded in all, and a host and a datastore by how long starts take there."""
        records = [record for _, record in state.starts()]
        busy = [record for record in records if record.phase is Phase.STARTING]
        by_load = Counter(key for record in busy for key in pace.keys(record.start))
        free = self.settings.parallel - len(busy)
        queued = [
            record
            for record in records
            if record.phase is Phase.QUEUED and record.start.vm not in state.waits
        ]
        queued.sort(key=lambda record: order.turn(record.start))
        acts: list[Effect] = []
        for record in queued:
            loads = pace.keys(record.start)
            full = any(by_load[key] >= pace.allowed(state.paces, self.settings, key) for key in loads)
            if free <= 0 or full:
                continue
            free -= 1
            by_load.update(loads)
            state, act = self._begin(state, record)
            state = replace(state, began=state.began.insert(record.start.vm, now))
            acts.append(act)
        rooms = moving.dispatched(state, self.settings)
        return Step(rooms.state, (*acts, *rooms.effects))

    def _begin(self, state: State, record: StartRecord) -> tuple[State, Act]:
        record = record.model_copy(update={"phase": Phase.STARTING, "tries": record.tries + 1})
        vm = record.start.vm
        shown = kept.elsewhere(state, vm, record.start.to) if record.tries > 1 else ()
        request = StartVm(
            key=f"start/{record.start.key}/{record.tries}",
            deadline_s=self.settings.start_timeout_s + 5.0 + (EVICT_S if record.start.evict else 0.0),
            start=record.start,
            incident=record.incident,
            shown=shown,
        )
        return replace(state, records=state.records.insert(vm, record)), Act(vm, request)

    def _attempted(self, state: State, outcome: Attempted, now: float) -> Step[State]:
        start = outcome.start
        record = state.records.get(start.vm)
        if not isinstance(record, StartRecord) or record.start.key != start.key:
            return Step(state)  # dropped since: its target was fenced, or another order came
        state = self._paced(state, start, now, told=outcome.result is not Result.UNCERTAIN)
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
                state = kept.drop(state, start.vm)
            case Result.NOT_STARTED:
                reason = outcome.reason
                if outcome.stage is Stage.LOCK:
                    shown = kept.fresh(state, now)
                    reason = f"{still_held(start, shown)} ({reason})"
                failed = VmRestartFailed(
                    vm=start.vm,
                    name=start.name,
                    at=start.to,
                    incident=record.incident,
                    start_key=start.key,
                    reason=reason[:500],
                    stage=outcome.stage,
                    cause=record.cause,
                    rule="known not to run there",
                )
                said = (Publish(start.vm, failed),)
                state = kept.drop(state, start.vm)
            case Result.UNCERTAIN:
                return self._uncertain(state, record, outcome.reason, now)
        step = self._dispatch(state, now)
        return Step(step.state, (*said, *step.effects))

    def _paced(self, state: State, start: PlannedStart, now: float, *, told: bool) -> State:
        """How long it took says how many its host and datastores take; not where it had to be stopped elsewhere first."""
        began = state.began.get(start.vm)
        state = replace(state, began=state.began.discard(start.vm))
        if began is None or start.evict:
            return state
        paces = pace.ended(state.paces, self.settings, pace.keys(start), began, now, told=told)
        return replace(state, paces=paces)

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
        step = self._dispatch(state, now)
        return Step(step.state, (*said, *step.effects))

    def _retry(self, state: State, now: float) -> Step[State]:
        for vm, due in sorted(state.retry_at.items()):
            if due <= now and vm in state.records:
                record = state.records[vm].model_copy(update={"phase": Phase.QUEUED})
                state = replace(
                    state, records=state.records.insert(vm, record), retry_at=state.retry_at.remove(vm)
                )
        state, asks = doubles.looked(state, now)
        step = self._dispatch(state, now)
        return Step(step.state, (*asks, *step.effects))

    def _expired(self, state: State, kind: str, key: str, reason: str, now: float) -> Step[State]:
        if kind == "probe_guest":
            expired = Expired(key=key, request=kind, reason=reason)
            return Step(replace(state, probes=readiness.told(state.probes, expired, now)))
        if kind == "write_lease":
            return Step(replace(state, writing=state.writing.discard(key.split("/")[1])))
        for name, room in state.records.items():
            if isinstance(room, RoomRecord) and f"{room.makes.key}/{room.tries}" == key:
                return moving.uncertain(state, name, reason, now)
        for _, record in state.starts():
            if f"start/{record.start.key}/{record.tries}" == key:
                state = self._paced(state, record.start, now, told=False)
                return self._uncertain(state, record, reason, now)
        return Step(state)

    # -- leases follow what people do

    def _reconcile(self, state: State, inventory: Inventory, now: float) -> Step[State]:
        """Every inventory is held against the leases: level, not edge, so nothing missed is lost."""
        at, before = inventory.at, state.heard.get(inventory.at.host)
        if inventory.outdated(before):
            return Step(state)
        if state.over.get(at.host) == at:  # or its proof was a lie, and what runs there runs twice
            return Step(*doubles.beyond(state, inventory, now))
        heard, heard_at = state.heard.insert(at.host, inventory), state.heard_at.insert(at.host, now)
        state = replace(state, heard=heard, heard_at=heard_at)
        state, acts = doubles.forgotten(state, lambda lease: strays.ended(lease, inventory))
        held = {lease.vm for lease in state.leases.values() if lease.holder == at}
        for vm in sorted(held | {report.uuid for report in inventory.vms}):
            if kept.busy(state, vm):
                continue
            change = self._change(state, vm, kept.sources(state, vm, inventory, before, now))
            if change is not None:
                state, act = kept.write(state, change)
                acts.append(act)
                continue
            state, more = doubles.found(state, vm, inventory, now)
            acts += more
        state, gone_on = arrivals.shown(state, inventory)
        state, told = unseen.looked(state, inventory, now)
        return Step(state, (*acts, *gone_on, *told))

    def _left_behind(self, state: State, at: Incarnation, now: float) -> tuple[State, list[Effect]]:
        """A boot that is proven over holds leases of VMs that people have taken elsewhere: they go to where these run,
        at once, before that host fails as well, or this one once more."""
        acts: list[Effect] = []
        for vm in sorted(lease.vm for lease in state.leases.values() if lease.holder == at):
            if kept.busy(state, vm):
                continue
            change = self._change(state, vm, kept.fresh(state, now))
            if change is not None:
                state, act = kept.write(state, change)
                acts.append(act)
        return state, acts

    def _change(self, state: State, vm: str, sources: list[Inventory]) -> RunLease | None:
        lease = state.leases.get(vm)
        holder = state.heard.get(lease.holder.host) if lease is not None else None
        # what is proven over runs nothing, whatever a later boot of that host says by now
        over = lease is not None and state.over.get(lease.holder.host) == lease.holder
        known = over or (lease is not None and holder is not None and holder.at == lease.holder)
        holder_report = holder.vm(vm) if known and not over and holder is not None else None
        for inventory in sources:
            report = inventory.vm(vm)
            same = lease is not None and inventory.at.host == lease.holder.host
            if over and same and lease is not None and lease.holder.boot not in inventory.former:
                continue  # whether a later boot of the same host may run it is its gate's to say, where it has one
            if report is not None:
                change = leases.adopted(lease, inventory.at, report, holder_report, known, inventory.former)
                if change is not None:
                    return change
        return None
