"""The executor's hands. A start is: lease by compare-and-set, the right boot of the target, define, start, see."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from pydantic import ValidationError

from libs.core.decider import Outcome
from libs.core.ports import (
    Bus,
    Clock,
    ConflictError,
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
from libs.leases import Grant, Ruling, put_down, rule, stopped_on_purpose, taken, turned
from libs.model import (
    Incarnation,
    LeaseState,
    ProofMethod,
    RunLease,
    VmDefinition,
    VmReport,
    VmState,
)
from services.executor.evict import Way, evict
from services.executor.orders import Attempted, LeaseFound, Result, StartVm, WriteLease

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

    async def perform(self, request: StartVm | WriteLease) -> Outcome:
        """Raises UnavailableError where nothing is known of the outcome."""
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
            if ruling.grant is Grant.TAKE and (still := await self._runs_still(start)):
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
        return Ruling(Grant.TAKE, ruling.reason)

    async def _runs_still(self, start: PlannedStart) -> str:
        """A later boot proves the former one over; the VM itself may run in it by autostart, if the gate could not
        stop it. A host that obeyed lives, and a person may have started the VM there since. Where that boot answers,
        its own word is better than what was told of it. "" where it does not."""
        for proof in start.proofs:
            boot = Incarnation(host=proof.of.host, boot=proof.successor) if proof.successor else start.to
            if proof.method is ProofMethod.OBEYED:
                boot = proof.of
            if boot.host == start.to.host:
                continue
            with contextlib.suppress(UnavailableError):
                living = await self.hypervisors.at(boot, SUCCESSOR_S)
                report = await living.report(start.vm)
                if report is not None and report.state.active:
                    return f"{boot} says that it is {report.state.value} there"
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
        row = await self.definitions.get(start.vm)
        if row is None:
            await self._turn(lease, LeaseState.FAILED)
            return _ended(request, Result.NOT_STARTED, reason="no copy of its definition is on the bus")
        definition = VmDefinition.model_validate_json(row.value)
        target = await self.hypervisors.at(start.to, TARGET_S)
        found = await self._seen(target, start)
        if found is not None and (found.state.active or put_down(lease, found)):
            return await self._as_found(request, lease, found)
        if found is not None and stopped_on_purpose(found) and not lease.stopped_before:
            # from now on that is no news, also to whoever goes on with this start after us
            noted = lease.model_copy(update={"stopped_before": True, "seq": lease.seq + 1})
            if not await self._rewrite(lease, noted):
                return _ended(request, Result.UNCERTAIN, reason="the lease changed")
            lease = noted
        called_at = self.clock.wall().isoformat()
        refused = ""
        try:
            await target.start(definition, lease.token)
        except StartRefusedError as error:
            refused = str(error)
        found = await self._seen(target, start)
        if found is not None and (found.state.active or (not refused and put_down(lease, found))):
            return await self._as_found(request, lease, found, called_at if not refused else "")
        await self._turn(lease, LeaseState.FAILED)
        reason = refused or "it was started and is not running"
        return _ended(request, Result.NOT_STARTED, reason=reason)

    async def _as_found(
        self, request: StartVm, lease: RunLease, found: VmReport, called_at: str = ""
    ) -> Attempted:
        """It runs with our token, or has done so until somebody stopped it on purpose: then it stays down."""
        if found.state.active:
            await self._turn(lease, LeaseState.RUNNING)
            return _ended(request, Result.STARTED, token=lease.token, called_at=called_at)
        await self._turn(lease, LeaseState.STOPPED)
        reason = "it ran with our token and was stopped on purpose"
        return _ended(request, Result.NOT_STARTED, reason=reason)

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
