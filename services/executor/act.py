"""The executor's hands. A start is: lease by compare-and-set, the right boot of the target, define, start, see."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from libs import definitions
from libs.core.decider import Outcome
from libs.core.ports import (
    Bus,
    Clock,
    ConflictError,
    GuestProbes,
    Hypervisor,
    Hypervisors,
    Row,
    StartRefusedError,
    Store,
    UnavailableError,
)
from libs.events.failovers import PlannedStart
from libs.events.signals import LeaseWritten
from libs.events.vms import Stage
from libs.leases import (
    Grant,
    Ruling,
    ended_by_hand,
    migrated,
    put_down,
    rule,
    stopped_on_purpose,
    taken,
    turned,
    ways,
)
from libs.leases import over as ran_under
from libs.model import (
    Incarnation,
    LeaseState,
    ProofMethod,
    RunLease,
    VmReport,
    VmState,
)
from services.executor import arrivals, move
from services.executor.condemn import judged
from services.executor.evict import Way, evict
from services.executor.orders import (
    Attempted,
    CondemnRun,
    LeaseFound,
    MoveVm,
    NoteArrival,
    Order,
    ProbeGuest,
    Result,
    StartVm,
    StopVm,
    WriteLease,
)
from services.executor.probe import probed

TARGET_S = 5.0
SUCCESSOR_S = 0.7
RACES = 5


@dataclass(frozen=True, slots=True)
class Hands:
    leases: Store
    definitions: Store
    hypervisors: Hypervisors
    bus: Bus
    clock: Clock
    lives: Callable[[Incarnation], bool] = lambda at: False
    """Whether this very boot was heard a moment ago, whoever else speaks in its host's name."""
    probes: GuestProbes | None = None
    """None: no guest can be probed from here."""

    async def perform(self, request: Order) -> Outcome:
        """Raises UnavailableError where nothing is known of the outcome."""
        if isinstance(request, CondemnRun):
            return await judged(self.hypervisors, self._read, self._write, request)
        if isinstance(request, MoveVm):
            return await move.carried_out(self.hypervisors, self._read, self._write, request)
        if isinstance(request, ProbeGuest):
            return await probed(self.hypervisors, self.probes, request)
        if isinstance(request, NoteArrival):
            return await arrivals.noted(self._read, self._write, request)
        if isinstance(request, StopVm):
            return await move.stopped(self.hypervisors, self._read, self._rewrite, request)
        if isinstance(request, WriteLease):
            return LeaseFound(key=request.key, lease=await self._adopt(request.lease))
        return await self._start(request)

    # -- leases

    async def _read(self, vm: str) -> tuple[RunLease | None, int]:
        row = await self.leases.get(vm)
        return (None, 0) if row is None else (_lease(row), row.revision)

    async def _write(self, lease: RunLease, expected: int) -> int:
        revision = await self.leases.put(lease.vm, lease.model_dump_json().encode(), expected)
        await self.bus.send(f"lease.{lease.vm}", LeaseWritten(lease=lease))
        return revision

    async def _adopt(self, lease: RunLease) -> RunLease | None:
        found, revision = await self._read(lease.vm)
        if (0 if found is None else found.seq) != lease.seq - 1:
            return found  # decided on an old reading: decide again on this one
        if found is not None and found.holder.host != lease.holder.host:
            await definitions.taken_along(self.definitions, lease.vm, found.holder.host, lease.holder.host)
        try:
            await self._write(lease, revision)
        except ConflictError:
            return (await self._read(lease.vm))[0]
        return lease

    async def _take(self, request: StartVm) -> RunLease | Attempted:
        """Hold the lease for this start, or say why not."""
        start = request.start
        for _ in range(RACES):
            lease, revision = await self._read(start.vm)
            ruling = rule(lease, start)
            if ruling.grant is Grant.ASK_HOLDER:
                ruling = await self._ask_holder(start, ruling)
            if lease is not None and ruling.grant is Grant.EVICT:
                evicted = await evict(self.hypervisors, self._rewrite, start, lease)
                if evicted.way is Way.STAYS:
                    return _ended(request, Result.NOT_STARTED, reason=evicted.reason, stage=evicted.stage)
                if evicted.way is Way.AGAIN:
                    continue
                ruling = Ruling(Grant.TAKE, f"{start.origin} says that it is stopped")
            if ruling.grant is Grant.TAKE and (still := await self._runs_still(start, lease)):
                ruling = Ruling(Grant.REFUSE, still)
            if ruling.grant is Grant.REFUSE:
                return _ended(request, Result.NOT_STARTED, reason=ruling.reason)
            if lease is not None and ruling.grant is Grant.DONE:
                return _ended(request, Result.STARTED, token=lease.token)
            if lease is not None and ruling.grant is Grant.OURS:
                return lease
            mine = taken(lease, start)
            try:
                await self._write(mine, revision)
            except ConflictError:
                continue  # somebody else wrote: look again
            return mine
        return _ended(request, Result.UNCERTAIN, reason="the lease keeps changing")

    async def _ask_holder(self, start: PlannedStart, ruling: Ruling) -> Ruling:
        try:
            holder = await self.hypervisors.at(start.origin, TARGET_S)
            report = await holder.report(start.vm)
        except UnavailableError as error:
            return Ruling(Grant.REFUSE, f"{start.origin} does not answer: {error}")
        if report is not None and report.state is not VmState.STOPPED:
            return Ruling(Grant.REFUSE, f"{start.origin} says that it is {report.state.value}")
        # with a proof: where it went to is over, too
        if report is not None and migrated(report) and not start.proofs:
            return Ruling(Grant.REFUSE, f"{start.origin} says that it was migrated away")
        return Ruling(Grant.TAKE, ruling.reason)

    async def _runs_still(self, start: PlannedStart, lease: RunLease | None) -> str:
        """A later boot proves the former one over; the VM itself may run in it by autostart, if the gate could not
        stop it. A host that obeyed lives, and a person may have started the VM there since. Where that boot answers,
        its own word is better than what was told of it. "" where it does not."""
        over = {proof.of for proof in start.proofs}
        for at, found in () if lease is None else ways(lease):
            if lease is None or at in over:
                continue
            if still := await move.may_run(self.hypervisors, self._rewrite, lease, at, found):
                return still
        for proof in start.proofs:
            if proof.method is ProofMethod.NEW_BOOT and self.lives(proof.of):
                return f"{proof.of} is heard, although {proof.successor[:8]} speaks in its name"
            if proof.later is not None and proof.later.outside:
                if proof.later not in over and (still := await self._outside(start, proof.later, lease)):
                    return still
                continue
            boot = proof.later or start.to
            if proof.method is ProofMethod.OBEYED:
                boot = proof.of
            if boot.host == start.to.host:
                continue
            with contextlib.suppress(UnavailableError):
                living = await self.hypervisors.at(boot, SUCCESSOR_S)
                report = await living.report(start.vm)
                if report is not None and report.state is not VmState.STOPPED:
                    return f"{boot} says that it is {report.state.value} there"
        return ""

    async def _outside(self, start: PlannedStart, boot: Incarnation, lease: RunLease | None) -> str:
        """A host without an agent has no gate that stops what autostart began, and may be the very boot that is called
        over: so it must say that the VM does not run there. It also knows what a person did while nobody watched."""
        here = boot.host == start.to.host
        try:
            living = await self.hypervisors.at(boot, TARGET_S)
            report = await living.report(start.vm)
        except UnavailableError as error:
            return "" if here else f"{boot} does not say whether it runs there: {error}"
        if report is None:
            return ""
        if report.state is not VmState.STOPPED and not here:
            return f"{boot} says that it is {report.state.value} there"
        held = lease is not None and lease.state is LeaseState.RUNNING and lease.holder.host == boot.host
        if lease is not None and held and stopped_on_purpose(report) and ran_under(lease, report):
            await self._turn(lease, LeaseState.STOPPED)
            return f"it was stopped on purpose on {boot}"
        return ""

    async def _turn(self, lease: RunLease, state: LeaseState) -> None:
        """Note how the start ended; where somebody else wrote meanwhile, theirs is the later truth."""
        await self._rewrite(lease, turned(lease, state))

    async def _rewrite(self, lease: RunLease, later: RunLease) -> bool:
        """Put this in its place; False where it lies otherwise by now."""
        found, revision = await self._read(lease.vm)
        if found != lease:
            return False
        try:
            await self._write(later, revision)
        except ConflictError:
            return False
        return True

    # -- the start itself

    async def _start(self, request: StartVm) -> Attempted:
        lease = await self._take(request)
        if isinstance(lease, Attempted):
            return lease
        start = request.start
        definition = await definitions.read(self.definitions, start.vm, start.origin.host)
        if definition is None:
            await self._turn(lease, LeaseState.FAILED)
            return _ended(request, Result.NOT_STARTED, reason="no copy of its definition is on the bus")
        # the target may be lost before its own agent has copied it
        await definitions.write(self.definitions, definition, start.to.host)
        target = await self.hypervisors.at(start.to, TARGET_S)
        found = await self._seen(target, start)
        if found is not None and (found.state.active or put_down(lease, found)):
            return await self._as_found(request, lease, found)
        if found is None and (where := await self._taken_elsewhere(request)) is not None:
            await self._turn(lease, LeaseState.RUNNING)
            reason = f"it ran with our token and was migrated since: {where} runs it"
            return _ended(request, Result.NOT_STARTED, reason=reason)
        if found is not None and ended_by_hand(found) and not lease.stopped_before:
            # from now on that is no news, also to whoever goes on with this start after us
            noted = lease.model_copy(update={"stopped_before": True, "seq": lease.seq + 1})
            if not await self._rewrite(lease, noted):
                return _ended(request, Result.UNCERTAIN, reason="the lease changed")
            lease = noted
        called_at = self.clock.wall().isoformat()
        refused, lock = "", ""
        try:
            await target.start(definition, lease.token)
        except StartRefusedError as error:
            refused, lock = str(error), error.lock
        found = await self._seen(target, start)
        if found is not None and (found.state.active or (not refused and put_down(lease, found))):
            return await self._as_found(request, lease, found, called_at if not refused else "")
        await self._turn(lease, LeaseState.FAILED)
        if lock:
            return _ended(request, Result.NOT_STARTED, reason=f"{lock}: {refused}", stage=Stage.LOCK)
        reason = refused or "it was started and is not running"
        return _ended(request, Result.NOT_STARTED, reason=reason)

    async def _as_found(
        self, request: StartVm, lease: RunLease, found: VmReport, called_at: str = ""
    ) -> Attempted:
        """It runs with our token, or has done so until somebody stopped it on purpose: then it stays down. Or took it to
        another host: then the lease is left to what both of them say, as after any migration."""
        if found.state.active:
            await self._turn(lease, LeaseState.RUNNING)
            # an earlier start of ours may have come through instead, which hung there under another token; without a
            # gate autostart may have begun it with none, and a person may have migrated it there
            return _ended(request, Result.STARTED, token=found.token, called_at=called_at)
        if migrated(found):
            await self._turn(lease, LeaseState.RUNNING)
            reason = "it ran with our token and was migrated since"
            return _ended(request, Result.NOT_STARTED, reason=reason)
        await self._turn(lease, LeaseState.STOPPED)
        reason = "it ran with our token and was stopped on purpose"
        return _ended(request, Result.NOT_STARTED, reason=reason)

    async def _taken_elsewhere(self, request: StartVm) -> Incarnation | None:
        """Who runs it, by its own word. A start that was carried out unseen leaves nothing on its target where a person
        migrated the VM and had it undefined there (`--undefinesource`, and what virt-manager does)."""
        for at in request.shown:
            other = await self._seen(await self.hypervisors.at(at, TARGET_S), request.start)
            if other is not None and other.state.active:
                return at
        return None

    async def _seen(self, target: Hypervisor, start: PlannedStart) -> VmReport | None:
        report = await target.report(start.vm)
        if report is not None and report.state is VmState.UNKNOWN:
            raise UnavailableError(f"{start.to} cannot tell the state of {start.name}")
        return report


def _ended(
    request: StartVm,
    result: Result,
    *,
    token: int = 0,
    called_at: str = "",
    reason: str = "",
    stage: Stage = Stage.START,
) -> Attempted:
    return Attempted(
        key=request.key,
        start=request.start,
        result=result,
        token=token,
        called_at=called_at,
        reason=reason,
        stage=stage,
    )


def _lease(row: Row) -> RunLease:
    """What cannot be read is unknown, and whoever holds it may be running it."""
    try:
        return RunLease.model_validate_json(row.value)
    except ValidationError as error:
        raise UnavailableError(f"the lease {row.key} cannot be read: {str(error)[:200]}") from error
