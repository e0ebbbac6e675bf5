"""The agent's hands: read libvirt, store what was read, hold the gate, look at a neighbour for others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from libs.core.decider import Outcome
from libs.core.ports import Bus, ConflictError, Hypervisor, Hypervisors, Row, Store, UnavailableError
from libs.events.signals import Question, Reply, Signal
from libs.leases import may_run
from libs.model import Answer, Incarnation, Inventory, RunLease, VmDefinition, VmReport, VmState
from services.heartbeat.orders import (
    AllRead,
    Condemned,
    GatePassed,
    Order,
    PassGate,
    Put,
    PutDefinition,
    PutInventory,
    ReadAll,
    StopAgain,
    Stopped,
    StopsTried,
    Tell,
    Told,
)

PROBE_S = 0.7
STOP_S = 35.0
"""More than libvirt takes to give up killing a process that does not die."""


class LocalHypervisor(Hypervisor, Protocol):
    """What the agent needs beyond what the executor does."""

    async def node(self) -> tuple[int, int]: ...

    async def definitions(self) -> list[VmDefinition]: ...

    def remember_runs(self, runs: dict[str, int]) -> None:
        """What an earlier life of this agent saw on this boot: a crash seen late keeps its number."""


@dataclass(frozen=True, slots=True)
class Hands:
    hypervisor: LocalHypervisor
    neighbours: Hypervisors
    inventory: Store
    definitions: Store
    leases: Store
    bus: Bus
    at: Incarnation
    boots_known: bool
    """False for an agentless host: whether it booted can only be guessed from outside."""

    async def perform(self, request: Order) -> Outcome:
        """Raises UnavailableError where libvirt or the bus did not answer."""
        match request:
            case PassGate():
                return await self._gate(request)
            case StopAgain():
                reports = [one for one in await self.hypervisor.reports() if one.uuid in request.vms]
                stopped, condemned = await self._stop(request.at, reports)
                return StopsTried(key=request.key, stopped=tuple(stopped), condemned=tuple(condemned))
            case Tell():
                for fact in request.facts:
                    await self.bus.publish(fact)
                return Told(key=request.key)
            case ReadAll():
                memory_mib, cpus = await self.hypervisor.node()
                found = tuple(await self.hypervisor.reports())
                definitions = tuple(await self.hypervisor.definitions())
                return AllRead(
                    key=request.key,
                    memory_mib=memory_mib,
                    cpus=cpus,
                    reports=found,
                    definitions=definitions,
                )
            case PutInventory():
                payload = request.inventory.model_dump_json().encode()
                await self.inventory.put(request.inventory.at.host, payload, None)
            case PutDefinition():
                await self._copy(request)
        return Put(key=request.key)

    async def _gate(self, request: PassGate) -> GatePassed:
        at, row = request.at, await self.inventory.get(request.at.host)
        earlier = None if row is None else _inventory(row)
        reports = await self.hypervisor.reports()
        if earlier is None or earlier.at != at:
            stopped, condemned = await self._stop(at, reports)
            if condemned and not request.condemn:
                raise UnavailableError("; ".join(one.reason for one in condemned))
            return GatePassed(key=request.key, stopped=tuple(stopped), condemned=tuple(condemned))
        # this boot passed the gate in an earlier life of this agent; what runs since is not for us to stop, but
        # for what it had to let through
        self.hypervisor.remember_runs({report.uuid: report.run for report in earlier.vms})
        stopped, condemned = await self._stop(at, [one for one in reports if one.uuid in earlier.condemned])
        left = {one.report.uuid for one in condemned}
        settled = [one for one in earlier.vms if one.uuid in earlier.condemned and one.uuid not in left]
        return GatePassed(
            key=request.key, stopped=tuple(stopped), condemned=tuple(condemned), settled=tuple(settled)
        )

    async def _stop(
        self, at: Incarnation, reports: Sequence[VmReport]
    ) -> tuple[list[Stopped], list[Condemned]]:
        """Stop those whose lease is elsewhere; side by side, since one that hangs must not keep the others. Raises
        UnavailableError where it cannot be told what runs or may run."""
        forbidden = []
        for report in reports:
            if report.state is VmState.UNKNOWN:  # it may run: the gate stays shut until libvirt can tell
                raise UnavailableError(f"{at} cannot tell the state of {report.name}")
            if not report.state.active:
                continue
            row = await self.leases.get(report.uuid)
            lease = None if row is None else _lease(row)
            if lease is not None and not may_run(lease, at, boots_known=self.boots_known):
                forbidden.append(Stopped(report=report, lease=lease))
        reasons = await asyncio.gather(*(self._destroy(one) for one in forbidden))
        condemned = [
            Condemned(report=one.report, lease=one.lease, reason=reason)
            for one, reason in zip(forbidden, reasons, strict=True)
            if reason
        ]
        return [one for one, reason in zip(forbidden, reasons, strict=True) if not reason], condemned

    async def _destroy(self, one: Stopped) -> str:
        """Why it could not be stopped; "" where it was."""
        try:
            async with asyncio.timeout(STOP_S):
                await self.hypervisor.destroy(one.report.uuid)
        except UnavailableError as error:
            return str(error) or "its stop failed"
        except TimeoutError:
            return f"its stop had no end in {STOP_S} s"
        return ""

    async def _copy(self, request: PutDefinition) -> None:
        """Where it runs, it is the definition. Where it does not, it may be a stale one left behind by a
        failover: it is copied only if there is none."""
        definition = request.definition
        payload = definition.model_dump_json().encode()
        if request.active:
            await self.definitions.put(definition.uuid, payload, None)
            return
        try:
            await self.definitions.put(definition.uuid, payload, 0)
        except ConflictError:
            return

    async def answer(self, question: Signal) -> Signal:
        """ "Can you see host X?": an own look, now."""
        about = question.about if isinstance(question, Question) else ""
        answer, detail = Answer.UNKNOWN, "not a question"
        if about:
            answer, detail = await self.neighbours.probe(about, PROBE_S)
        return Reply(about=about, peer=self.at, answer=answer, detail=detail[:200])


def _inventory(row: Row) -> Inventory | None:
    """What another version stored says nothing about this boot: then the gate is passed once more."""
    try:
        return Inventory.model_validate_json(row.value)
    except ValidationError:
        return None


def _lease(row: Row) -> RunLease:
    """What cannot be read is unknown: the gate stays shut, and says why."""
    try:
        return RunLease.model_validate_json(row.value)
    except ValidationError as error:
        raise UnavailableError(f"the lease {row.key} cannot be read: {str(error)[:200]}") from error
