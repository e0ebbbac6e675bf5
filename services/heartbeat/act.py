"""The agent's hands: read libvirt, store what was read, hold the gate, look at a neighbour for others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from libs import definitions
from libs.core.decider import Outcome
from libs.core.ports import (
    Bus,
    Clock,
    Greetings,
    Hypervisor,
    Hypervisors,
    Probes,
    Row,
    Slots,
    Store,
    UnavailableError,
)
from libs.events.signals import Question, Reply, Signal, SlotSeen
from libs.leases import may_run
from libs.model import (
    Answer,
    DiskLocks,
    Incarnation,
    Inventory,
    Offers,
    RunLease,
    VmDefinition,
    VmReport,
    VmState,
)
from libs.needs import with_needs
from libs.promises import SlotOrder
from libs.strays import condemned
from services.heartbeat import heldback
from services.heartbeat.keeper import Keeper
from services.heartbeat.orders import (
    AllRead,
    AnswerArrival,
    ArmWatchdog,
    Condemned,
    FeedWatchdog,
    GatePassed,
    GaveBack,
    GiveBack,
    Greet,
    KeepPromise,
    Obey,
    Obeyed,
    Order,
    PassGate,
    Pinged,
    PingGuests,
    Put,
    PutDefinition,
    PutInventory,
    ReadAll,
    ReadPromise,
    StopAgain,
    Stopped,
    StopStray,
    StopsTried,
    StrayTried,
    Tell,
    Told,
    WriteSlot,
    WroteSlot,
)

GRACE_S = 10.0
"""For a guest to shut down by itself when its isolated host is told to stop it."""
GUEST_S = 2.0
GUESTS_AT_ONCE = 4
"""Fewer than libvirt takes from one client at a time."""
STARTS_UP_LOOKS, STARTS_UP_LOOK_S = 20, 0.05
"""For how long a VM of unknown state is looked at: a start takes less than a second to be one way or the other."""
STOP_S = 35.0
"""More than libvirt takes to give up killing a process that does not die."""


class LocalHypervisor(Hypervisor, Protocol):
    """What the agent needs beyond what the executor does."""

    async def node(self) -> tuple[int, int]: ...

    async def disk_locks(self) -> DiskLocks | None:
        """What its configuration says guards the disks; None where it cannot be read."""

    async def offers(self) -> Offers | None:
        """What the host offers VMs, as it was read last; None where that is not known. It may be half a minute old, and
        holds up no reading of VMs for longer than a second; never raises for the world's faults."""

    async def definitions(self) -> list[VmDefinition]: ...

    async def shut_down(self, uuid: str, grace_s: float) -> None:
        """Ask the guest to, and end it where it has not after so long. Raises UnavailableError."""

    async def ping_guest(self, uuid: str, timeout_s: float) -> bool:
        """Whether its agent answers. Raises UnavailableError where it could not be asked; never holds up, nor is
        held up by, any other call."""

    def remember_runs(self, runs: dict[str, int]) -> None:
        """What an earlier life of this agent saw on this boot: a crash seen late keeps its number."""


class Door(Protocol):
    """Port: where libvirt's hook waits for our word on a VM that a migration is to bring (ADR 11). Raises nothing."""

    def answer(self, ask: str, refused: str) -> None:
        """No error where nobody waits any more."""

    def asks(self) -> bool | None:
        """Whether the hook is in its place; None where that cannot be seen."""


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
    slots: Mapping[str, Slots]
    """By datastore; none for an agentless host, which nothing runs on."""
    probes: Probes
    probe_s: float
    """How long a peer's own look may take: whoever asks waits little longer."""
    clock: Clock
    greetings: Greetings | None = None
    """None where no other host can say anything to us."""
    keeper: Keeper | None = None
    """Of the host's watchdog, where it has one."""
    held: heldback.HeldBack | None = None
    """Where a gate may stand before its libvirt."""
    latest: Callable[[], bool] = lambda: True
    """Whether the store is known to be no old copy of itself."""
    door: Door | None = None
    """At which libvirt asks before it takes a VM in; None where it does not."""
    passed: heldback.Passed | None = None
    """Which boot has passed the gate, as this host itself remembers it; None: only the store does."""

    async def perform(self, request: Order) -> Outcome:
        """Raises UnavailableError where libvirt or the bus did not answer."""
        match request:
            case PassGate():
                return await self._gate(request)
            case StopAgain():
                reports = [one for one in await self.hypervisor.reports() if one.uuid in request.vms]
                stopped, condemned = await self._stop(request.at, reports)
                return StopsTried(key=request.key, stopped=tuple(stopped), condemned=tuple(condemned))
            case StopStray():
                return await self._stop_stray(request)
            case Tell():
                for fact in request.facts:
                    await self.bus.publish(fact)
                return Told(key=request.key)
            case GiveBack():
                if self.held is None:
                    return GaveBack(key=request.key)
                return await heldback.give_back(
                    request.key, self.held, self.hypervisor, self._lease_of, self.latest
                )
            case ReadAll():
                memory_mib, cpus = await self.hypervisor.node()
                found = tuple(await self.hypervisor.reports())
                definitions = tuple(await self.hypervisor.definitions())
                offers = await self.hypervisor.offers()
                return AllRead(
                    key=request.key,
                    memory_mib=memory_mib,
                    cpus=cpus,
                    reports=with_needs(found, definitions, offers),
                    definitions=definitions,
                    offers=offers,
                    asks=None if self.door is None else self.door.asks(),
                    locks=await self.hypervisor.disk_locks(),
                )
            case PingGuests():
                return await self._ping(request)
            case PutInventory():
                payload = request.inventory.model_dump_json().encode()
                await self.inventory.put(request.inventory.at.host, payload, None)
            case PutDefinition():
                await self._copy(request)
            case WriteSlot():
                return await self._write_slot(request)
            case Obey():
                return await self._obey(request)
            case AnswerArrival():
                if self.door is not None:
                    self.door.answer(request.ask, request.refused)
            case ReadPromise() | ArmWatchdog() | FeedWatchdog() | KeepPromise() | Greet():
                assert self.keeper is not None
                return await self.keeper.perform(request)
        return Put(key=request.key)

    async def _gate(self, request: PassGate) -> GatePassed:
        at, row = request.at, await self.inventory.get(request.at.host)
        earlier = None if row is None else _inventory(row)
        reports = await self.hypervisor.reports()
        if earlier is None or earlier.at != at:
            if self.passed is not None and await self.passed.boot() == at.boot:
                # the store is an old copy, or has lost it: what it says of leases may be as old
                return GatePassed(key=request.key, held=await heldback.any_held(self.held))
            stopped, condemned = await self._stop(at, reports)
            if condemned and not request.condemn:
                raise UnavailableError("; ".join(one.reason for one in condemned))
            if self.passed is not None and not condemned:
                await self.passed.remember(at.boot)
            held = await heldback.any_held(self.held)
            return GatePassed(key=request.key, stopped=tuple(stopped), condemned=tuple(condemned), held=held)
        # this boot passed the gate in an earlier life of this agent; what runs since is not for us to stop, but
        # for what it had to let through
        self.hypervisor.remember_runs({report.uuid: report.run for report in earlier.vms})
        stopped, condemned = await self._stop(at, [one for one in reports if one.uuid in earlier.condemned])
        left = {one.report.uuid for one in condemned}
        settled = [one for one in earlier.vms if one.uuid in earlier.condemned and one.uuid not in left]
        return GatePassed(
            key=request.key,
            stopped=tuple(stopped),
            condemned=tuple(condemned),
            earlier=earlier.vms,
            settled=tuple(settled),
            held=await heldback.any_held(self.held),
        )

    async def _ping(self, request: PingGuests) -> Pinged:
        """Side by side, bounded: one that hangs costs its time, and the others theirs no later than by that."""
        answered: list[tuple[str, int]] = []
        silent: list[tuple[str, int]] = []
        free = asyncio.Semaphore(GUESTS_AT_ONCE)

        async def ask(vm: str, run: int) -> None:
            async with free:
                with contextlib.suppress(UnavailableError):  # it could not be asked: that is no silence
                    said = await self.hypervisor.ping_guest(vm, GUEST_S)
                    (answered if said else silent).append((vm, run))

        with contextlib.suppress(TimeoutError):  # whoever was not asked by then was not asked
            async with asyncio.timeout(request.within_s):
                await asyncio.gather(*(ask(vm, run) for vm, run in request.vms))
        return Pinged(key=request.key, answered=tuple(sorted(answered)), silent=tuple(sorted(silent)))

    async def _stop(
        self, at: Incarnation, reports: Sequence[VmReport]
    ) -> tuple[list[Stopped], list[Condemned]]:
        """Stop those whose lease is elsewhere; side by side, since one that hangs must not keep the others. Raises
        UnavailableError where it cannot be told what runs or may run."""
        forbidden = []
        for report in await asyncio.gather(*(self._told(at, report) for report in reports)):
            if not report.state.active or report.migrated:
                # who migrates a VM here has it from a living host, whose lease follows: a second copy it is not
                continue
            lease = await self._lease_of(report.uuid)
            if lease is not None and not may_run(lease, at, report.policy, boots_known=self.boots_known):
                forbidden.append(Stopped(report=report, lease=lease))
        reasons = await asyncio.gather(*(self._destroy(one) for one in forbidden))
        condemned = [
            Condemned(report=one.report, lease=one.lease, reason=reason)
            for one, reason in zip(forbidden, reasons, strict=True)
            if reason
        ]
        return [one for one, reason in zip(forbidden, reasons, strict=True) if not reason], condemned

    async def _told(self, at: Incarnation, report: VmReport) -> VmReport:
        """What starts up is unknown for a moment. What is for longer may run: the gate stays shut until libvirt can tell.
        Raises UnavailableError."""
        latest: VmReport | None = report
        for _ in range(STARTS_UP_LOOKS):
            if latest is None or latest.state is not VmState.UNKNOWN:
                break
            await asyncio.sleep(STARTS_UP_LOOK_S)
            latest = await self.hypervisor.report(report.uuid)
        if latest is None:
            return report.model_copy(update={"state": VmState.STOPPED})
        if latest.state is VmState.UNKNOWN:
            raise UnavailableError(f"{at} cannot tell the state of {report.name}")
        return latest

    async def _stop_stray(self, request: StopStray) -> StrayTried:
        """On the lease's own word that condemns this very run, which is true however old the reading is."""
        report = await self.hypervisor.report(request.vm)
        lease = await self._lease_of(request.vm)
        active = report is not None and report.state is not VmState.STOPPED
        if lease is None or report is None or not active or not condemned(lease, request.at, report.run):
            return StrayTried(key=request.key)
        one = Stopped(report=report, lease=lease)
        reason = await self._destroy(one)
        if reason:
            left = Condemned(report=report, lease=lease, reason=reason)
            return StrayTried(key=request.key, condemned=(left,))
        return StrayTried(key=request.key, stopped=(one,))

    async def _lease_of(self, vm: str) -> RunLease | None:
        row = await self.leases.get(vm)
        return None if row is None else _lease(row)

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
        """As this host has it. Where it does not run that may be a stale one, left behind by a failover: nobody reads it
        while another host is known to have the VM."""
        await definitions.write(self.definitions, request.definition, self.at.host)

    # -- the host's own slots

    async def _write_slot(self, request: WriteSlot) -> WroteSlot:
        slot = self.slots[request.datastore]
        former = await slot.read(self.at.host) if request.first else None
        beat = request.beat
        if former is not None and former.boot == self.at.boot and former.obeyed > beat.obeyed:
            beat = beat.model_copy(update={"obeyed": former.obeyed, "stopped": former.stopped})
        order = await slot.beat(beat)
        return WroteSlot(key=request.key, datastore=request.datastore, order=order, former=former)

    async def _obey(self, request: Obey) -> Obeyed:
        """Stop them all, side by side, and look: only what is seen not to run is said to be stopped."""
        wanted = set(request.vms)
        running = [one for one in await self.hypervisor.reports() if one.uuid in wanted]
        await asyncio.gather(*(self._end(one) for one in running if one.state is not VmState.STOPPED))
        after = {one.uuid: one.state for one in await self.hypervisor.reports()}
        left = tuple(vm for vm in request.vms if after.get(vm, VmState.STOPPED) is not VmState.STOPPED)
        stopped = tuple(vm for vm in request.vms if vm not in left)
        return Obeyed(key=request.key, number=request.number, stopped=stopped, left=left)

    async def _end(self, report: VmReport) -> None:
        with contextlib.suppress(UnavailableError, TimeoutError):  # what comes of it is looked at afterwards
            async with asyncio.timeout(STOP_S):
                await self.hypervisor.shut_down(report.uuid, GRACE_S)

    # -- what peers are asked

    async def answer(self, question: Signal) -> Signal:
        """ "Can you see host X?": an own look, now, at all that may show it; and what is written to it."""
        if isinstance(question, Question) and question.clock:
            return Reply(about="", peer=self.at, answer=Answer.UNKNOWN, wall_s=self.clock.wall().timestamp())
        if not isinstance(question, Question) or not question.about:
            return Reply(about="", peer=self.at, answer=Answer.UNKNOWN, detail="not a question")
        about = question.about
        ordered = [] if question.order is None else await self._order(about, question.order)
        looks = asyncio.gather(*(self._look(name, about) for name in sorted(self.slots)))
        if question.slots_only:
            slots = _aged(await looks)
            return Reply(
                about=about,
                peer=self.at,
                answer=Answer.UNKNOWN,
                slots=slots,
                ordered=tuple(ordered),
                unheard_s=self._unheard_s(about),
            )
        (libvirt, heard), (agent, said), seen = await asyncio.gather(
            self.neighbours.probe(about, self.probe_s), self.probes.ask(about, self.probe_s), looks
        )
        return Reply(
            about=about,
            peer=self.at,
            answer=_both(libvirt, agent),
            detail=f"libvirt {libvirt.value}: {heard[:90]}; agent {agent.value}: {said[:90]}",
            slots=_aged(seen),
            ordered=tuple(ordered),
            unheard_s=self._unheard_s(about),
        )

    def _unheard_s(self, host: str) -> float | None:
        return None if self.greetings is None else self.greetings.unheard_s(host)

    async def _look(self, datastore: str, host: str) -> tuple[SlotSeen, float]:
        """What its slot shows, and when that was read."""
        try:
            async with asyncio.timeout(self.probe_s):
                seen = SlotSeen(datastore=datastore, beat=await self.slots[datastore].read(host))
        except (UnavailableError, TimeoutError) as error:
            seen = SlotSeen(datastore=datastore, trouble=str(error)[:100] or "no answer in time")
        return seen, asyncio.get_running_loop().time()

    async def _order(self, host: str, order: SlotOrder) -> list[str]:
        async def write(name: str) -> bool:
            try:
                async with asyncio.timeout(self.probe_s):
                    await self.slots[name].order(host, order)
            except (UnavailableError, TimeoutError):
                return False
            return True

        names = sorted(self.slots)
        written = await asyncio.gather(*map(write, names))
        return [name for name, done in zip(names, written, strict=True) if done]


def _aged(seen: Sequence[tuple[SlotSeen, float]]) -> tuple[SlotSeen, ...]:
    """Each reading with its age at this moment."""
    now = asyncio.get_running_loop().time()
    return tuple(one.model_copy(update={"age_s": max(0.0, now - at)}) for one, at in seen)


def _both(libvirt: Answer, agent: Answer) -> Answer:
    """One word for two looks: the one that says most of its life. Silent only where all that could be asked was."""
    for sign in (Answer.UP, Answer.REFUSED, Answer.HANGS):
        if sign in (libvirt, agent):
            return sign
    return Answer.SILENT if Answer.SILENT in (libvirt, agent) else Answer.UNKNOWN


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
