"""The agent of one host: pass the gate, beat, read, report. It changes nothing but what the gate demands."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel
from rpds import HashTrieMap

from libs.config.settings import Guests, Heartbeats
from libs.core.decider import Act, Effect, Expired, Input, Publish, Records, Send, Step
from libs.core.evolve import replace
from libs.events.signals import Heartbeat, InventorySeen
from libs.events.vms import VmStopFailed, VmStoppedByGate, VmStopSettled
from libs.model import Health, Incarnation, Inventory, StopReason, VmReport, VmState
from services.heartbeat import guests, slots
from services.heartbeat.orders import (
    AllRead,
    Fired,
    GatePassed,
    Obeyed,
    PassGate,
    Pinged,
    Put,
    PutDefinition,
    PutInventory,
    ReadAll,
    Stirred,
    StopAgain,
    Stopped,
    StopsTried,
    Tell,
    Told,
    WroteSlot,
)

READ_DEADLINE_S = 12.0
PUT_DEADLINE_S = 10.0
GATE_DEADLINE_S = 60.0
RETRY_S = 0.5
CONDEMN_S = 5.0
"""A stop that still fails after so long at the gate condemns its VM: the host joins without waiting longer."""
STOP_AGAIN_S = 5.0
STOP_DEADLINE_S = 60.0
SETTLE_S = 0.02
TOMBSTONE_READS = 120  # a transient VM that is gone is still told of for so many readings


@dataclass(frozen=True, slots=True)
class AgentState:
    gated: bool
    """True once the gate is passed: from then on the host is announced."""
    beat_at: float
    read_at: float
    say_at: float
    slot_state: slots.SlotState
    seq: int = 0
    reading: bool = False
    again: bool = False
    """Something stirred while we were reading."""
    reads: int = 0
    tries: int = 0
    gate_since: float | None = None
    condemned: HashTrieMap[str, Stopped] = field(default_factory=HashTrieMap)
    """VMs that may not run here and could not be stopped: tried for ever."""
    stop_at: float | None = None
    """When to try these once more."""
    inventory: Inventory | None = None
    stored: Inventory | None = None
    """The inventory as last stored, or as its storing is under way."""
    copied: HashTrieMap[str, str] = field(default_factory=HashTrieMap)
    """Definitions that are on the bus: VM to hash and whether it was active."""
    buried: HashTrieMap[str, int] = field(default_factory=HashTrieMap)
    """VMs that vanished, and at which reading."""
    guests: guests.GuestsState = field(default_factory=guests.GuestsState)


State = AgentState


@dataclass(frozen=True, slots=True)
class Agent:
    """Decider of one host's agent. `memory_mib` and `cpus` override what libvirt reports."""

    at: Incarnation
    life: str
    settings: Heartbeats
    memory_mib: int | None = None
    memory_reserved_mib: int = 0
    cpus: int | None = None
    datastores: tuple[str, ...] = ()
    """On which of the pool's datastores this host has a slot."""
    guests: Guests = field(default_factory=Guests)

    @property
    def record_type(self) -> type[BaseModel]:
        return BaseModel

    def initial(self, now: float) -> State:
        mine = slots.initial(self.datastores, now)
        return State(gated=False, beat_at=now, read_at=now, say_at=now, slot_state=mine)

    def resume(self, state: State, records: Records, now: float) -> Step[State]:
        return Step(state)

    def records(self, state: State) -> Records:
        return HashTrieMap()

    def wake_at(self, state: State) -> float | None:
        if not state.gated:
            return state.beat_at
        due = (state.beat_at, state.read_at, state.say_at, state.stop_at, slots.due(state.slot_state))
        ask_at = state.guests.ask_at if state.guests.able else None
        return min(at for at in (*due, ask_at) if at is not None)

    def step(self, state: State, event: Input | None, now: float) -> Step[State]:
        match event:
            case None if not state.gated:
                return self._gate(state, now)
            case None:
                return self._tick(state, now)
            case GatePassed():
                return self._passed(state, event, now)
            case Told() if not state.gated:
                return self._announce(state, now)
            case StopsTried():
                return self._stops_tried(state, event, now)
            case Expired(request="stop_again"):
                return Step(replace(state, stop_at=now + STOP_AGAIN_S))
            case AllRead():
                return self._read(state, event, now)
            case Stirred():
                return self._stirred(state, now)
            case Pinged():
                return self._of_guests(replace(state, guests=guests.pinged(state.guests, event, now)), now)
            case Fired():
                return self._of_guests(replace(state, guests=guests.fired(state.guests, event)), now)
            case Expired(request="ping_guests"):
                return Step(replace(state, guests=replace(state.guests, asking=False)))
            case Expired(request="pass_gate" | "tell"):
                return Step(replace(state, beat_at=now + RETRY_S))
            case Expired(request="read_all"):
                # nothing is known: the last inventory stands, and is told as old as it is by its rev
                return Step(replace(state, reading=False, read_at=now + RETRY_S))
            case Expired(request="put_inventory"):
                return Step(replace(state, stored=None))
            case Expired(request="put_definition", key=key):
                return Step(replace(state, copied=state.copied.discard(key.split("/")[1])))
            case WroteSlot():
                return self._wrote(state, event, now)
            case Obeyed():
                # what is stopped is told with its reason once it is read anew
                mine = slots.obeyed(state.slot_state, event, state.reads, now)
                return self._stirred(replace(state, slot_state=mine), now)
            case Expired(request="write_slot", key=key):
                return Step(replace(state, slot_state=slots.failed(state.slot_state, key)))
            case Expired(request="obey"):
                return Step(replace(state, slot_state=replace(state.slot_state, obeying=0)))
            case Put():
                return Step(state)
            case _:
                return Step(state)

    def _gate(self, state: State, now: float) -> Step[State]:
        since = now if state.gate_since is None else state.gate_since
        request = PassGate(
            key=f"gate/{state.tries}",
            deadline_s=GATE_DEADLINE_S,
            at=self.at,
            condemn=now - since >= CONDEMN_S,
        )
        later = now + GATE_DEADLINE_S + RETRY_S  # the outcome comes before; Expired sets it earlier
        state = replace(state, tries=state.tries + 1, beat_at=later, gate_since=since)
        return Step(state, (Act(None, request),))

    def _passed(self, state: State, outcome: GatePassed, now: float) -> Step[State]:
        """Announce this boot; where a stop failed, only once that is told: nobody may take the VM for stopped."""
        state = replace(state, guests=guests.remembered(state.guests, outcome.earlier, now))
        said = (*self._stopped(outcome.stopped), *(self._settled(report) for report in outcome.settled))
        if not outcome.condemned:
            step = self._announce(state, now)
            return Step(step.state, (*said, *step.effects))
        facts = tuple(
            VmStopFailed(
                vm=one.report.uuid,
                name=one.report.name,
                at=self.at,
                holder=one.lease.holder,
                reason=one.reason[:300],
                rule="its lease is elsewhere",
            )
            for one in outcome.condemned
        )
        condemned = HashTrieMap({one.report.uuid: one for one in outcome.condemned})
        state = replace(state, condemned=condemned, stop_at=now + STOP_AGAIN_S)
        tell = Tell(key=f"tell/{state.tries}", deadline_s=GATE_DEADLINE_S, facts=facts)
        return Step(state, (*said, Act(None, tell)))

    def _announce(self, state: State, now: float) -> Step[State]:
        return self._tick(replace(state, gated=True, beat_at=now, read_at=now, say_at=now + 1e6), now)

    def _stopped(self, stopped: tuple[Stopped, ...]) -> list[Effect]:
        return [
            Publish(
                self.at.host,
                VmStoppedByGate(
                    vm=one.report.uuid,
                    name=one.report.name,
                    at=self.at,
                    token=one.lease.token,
                    holder=one.lease.holder,
                    rule="its lease is elsewhere",
                ),
            )
            for one in stopped
        ]

    def _settled(self, report: VmReport) -> Effect:
        fact = VmStopSettled(
            vm=report.uuid, name=report.name, at=self.at, rule="it does not run here, or may"
        )
        return Publish(self.at.host, fact)

    def _stops_tried(self, state: State, outcome: StopsTried, now: float) -> Step[State]:
        left = {one.report.uuid for one in outcome.condemned}
        over = [one.report for vm, one in sorted(state.condemned.items()) if vm not in left]
        kept = HashTrieMap({vm: one for vm, one in state.condemned.items() if vm in left})
        again = now + STOP_AGAIN_S if kept else None
        state = replace(state, condemned=kept, stop_at=again, read_at=now if over else state.read_at)
        said = (*self._stopped(outcome.stopped), *(self._settled(report) for report in over))
        return Step(state, said)

    def _tick(self, state: State, now: float) -> Step[State]:
        effects: list[Effect] = []
        if now >= state.beat_at:
            rev = 0 if state.inventory is None else state.inventory.rev
            beat = Heartbeat(
                at=self.at,
                agent=self.life,
                seq=state.seq + 1,
                inventory_rev=rev,
                stores=slots.ages(state.slot_state, now),
                untried=slots.untried(state.slot_state),
            )
            effects.append(Send(f"heartbeat.{self.at.host}", beat))
            # late beats are not made up for: the next is due one interval from now
            due = max(state.beat_at + self.settings.interval_s, now + self.settings.interval_s / 2)
            state = replace(state, seq=state.seq + 1, beat_at=due)
        if now >= state.read_at:
            state, acts = self._begin_read(state, now)
            effects += acts
        if now >= state.say_at:
            state, sends = self._say(state, now)
            effects += sends
        mine, writes = slots.write(
            state.slot_state, self.at, self.settings.slot_interval_s, self.settings.slot_timeout_s + 1.0, now
        )
        state = replace(state, slot_state=mine)
        effects += writes
        if state.guests.able and now >= state.guests.ask_at:
            reports = state.inventory.vms if state.inventory else ()
            asked, pings = guests.asked(state.guests, reports, self.guests, now)
            state = replace(state, guests=asked)
            effects += pings
        if state.stop_at is not None and now >= state.stop_at:
            again = StopAgain(
                key=f"stop/{state.seq}",
                deadline_s=STOP_DEADLINE_S,
                at=self.at,
                vms=tuple(sorted(state.condemned)),
            )
            effects.append(Act(None, again))
            state = replace(
                state, stop_at=now + STOP_DEADLINE_S + STOP_AGAIN_S
            )  # its outcome sets it earlier
        return Step(state, tuple(effects))

    def _wrote(self, state: State, outcome: WroteSlot, now: float) -> Step[State]:
        """A datastore that stalled and is back is told of at once: starts that hung in it come through in the same
        moment, and whoever hears of these must not hold it lost by what we said before."""
        stalled = state.slot_state.slots[outcome.datastore].missed
        mine, acts = slots.wrote(state.slot_state, outcome, self.at, now)
        beat_at = min(state.beat_at, now) if stalled else state.beat_at
        return Step(replace(state, slot_state=mine, beat_at=beat_at), acts)

    def _begin_read(self, state: State, now: float) -> tuple[State, list[Effect]]:
        if state.reading:
            return replace(state, read_at=now + self.settings.inventory_every_s), []
        state = replace(
            state, reading=True, reads=state.reads + 1, read_at=now + self.settings.inventory_every_s
        )
        return state, [Act(None, ReadAll(key=f"read/{state.reads}", deadline_s=READ_DEADLINE_S))]

    def _stirred(self, state: State, now: float) -> Step[State]:
        if state.reading:
            return Step(replace(state, again=True))
        return Step(replace(state, read_at=min(state.read_at, now + SETTLE_S)))

    def _of_guests(self, state: State, now: float) -> Step[State]:
        """What is known by now of a guest's health is told with a fresh reading of its state."""
        told = state.inventory.vms if state.inventory else ()
        news = guests.changed(state.guests, told, self.guests, now)
        return self._stirred(state, now) if news else Step(state)

    def _read(self, state: State, outcome: AllRead, now: float) -> Step[State]:
        state = (
            replace(state, reading=False, again=False, read_at=now + SETTLE_S)
            if state.again
            else replace(state, reading=False)
        )
        active = {report.uuid for report in outcome.reports if report.state.active}
        state = replace(
            state, slot_state=slots.run_again(state.slot_state, active, int(outcome.key.split("/")[1]))
        )
        state = replace(state, guests=guests.read(state.guests, outcome.reports))
        reports = guests.judged(state.guests, outcome.reports, self.guests, now)
        state, vms = self._with_vanished(state, self._with_ordered(state, reports))
        before = state.inventory
        body = {
            "memory_mib": self.memory_mib or outcome.memory_mib,
            "memory_reserved_mib": self.memory_reserved_mib,
            "cpus": self.cpus or outcome.cpus,
            "vms": vms,
            "condemned": tuple(sorted(state.condemned)),
        }
        effects: list[Effect] = []
        changed = before is None or any(getattr(before, name) != value for name, value in body.items())
        if changed:
            rev = 1 if before is None else before.rev + 1
            inventory = Inventory.model_validate({"at": self.at, "agent": self.life, "rev": rev, **body})
            state, effects = self._say(replace(state, inventory=inventory), now)
        state, puts = self._store(state, outcome)
        return Step(state, (*effects, *puts))

    def _with_ordered(self, state: State, reports: tuple[VmReport, ...]) -> tuple[VmReport, ...]:
        """libvirt shows what was stopped by order as stopped on purpose: nobody wants it to stay down."""
        ordered = state.slot_state.ordered
        if not ordered:
            return reports
        return tuple(
            report.model_copy(update={"stop_reason": StopReason.ORDERED})
            if report.uuid in ordered and report.stop_reason is StopReason.ON_PURPOSE
            else report
            for report in reports
        )

    def _with_vanished(
        self, state: State, reports: tuple[VmReport, ...]
    ) -> tuple[State, tuple[VmReport, ...]]:
        """A VM that was active and is no longer known was transient and ended: say so for a while. Nobody
        can say why it ended, so its reason is unknown."""
        present = {report.uuid for report in reports}
        buried = HashTrieMap(
            {
                vm: at
                for vm, at in state.buried.items()
                if vm not in present and state.reads - at < TOMBSTONE_READS
            }
        )
        vanished = []
        for report in state.inventory.vms if state.inventory else ():
            if report.uuid in present:
                continue
            if report.state.active:
                buried = buried.insert(report.uuid, state.reads)
            if report.uuid in buried:
                update = {
                    "state": VmState.STOPPED,
                    "stop_reason": StopReason.UNKNOWN,
                    "health": Health.UNKNOWN,
                    "agent": False,
                }
                vanished.append(report.model_copy(update=update))
        both = sorted((*reports, *vanished), key=lambda report: report.uuid)
        return replace(state, buried=buried), tuple(both)

    def _say(self, state: State, now: float) -> tuple[State, list[Effect]]:
        if state.inventory is None:
            return replace(state, say_at=now + self.settings.inventory_every_s), []
        state = replace(state, say_at=now + self.settings.inventory_every_s)
        assert state.inventory is not None
        return state, [Send(f"inventory.{self.at.host}", InventorySeen(inventory=state.inventory))]

    def _store(self, state: State, outcome: AllRead) -> tuple[State, list[Effect]]:
        """Store what is not stored yet: the inventory, and definitions that changed."""
        effects: list[Effect] = []
        inventory = state.inventory
        if inventory is not None and inventory != state.stored:
            key = f"inventory/{inventory.rev}/{state.reads}"
            effects.append(Act(None, PutInventory(key=key, deadline_s=PUT_DEADLINE_S, inventory=inventory)))
            state = replace(state, stored=inventory)
        active = {report.uuid for report in outcome.reports if report.state.active}
        copied = state.copied
        for definition in outcome.definitions:
            runs = definition.uuid in active
            mark = f"{definition.sha256}/{runs}"
            if copied.get(definition.uuid) != mark:
                key = f"definition/{definition.uuid}/{state.reads}"
                put = PutDefinition(key=key, deadline_s=PUT_DEADLINE_S, definition=definition, active=runs)
                effects.append(Act(None, put))
                copied = copied.insert(definition.uuid, mark)
        return replace(state, copied=copied), effects
