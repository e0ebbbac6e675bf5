"""The agent of one host: pass the gate, beat, read, report. It changes nothing but what the gate demands."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel
from rpds import HashTrieMap

from libs.config.settings import Guests, Heartbeats
from libs.core.decider import Act, BusChanged, Effect, Expired, Input, Publish, Records, Send, Step
from libs.core.evolve import replace
from libs.events.signals import Heartbeat, InventorySeen, LeaseWritten, LetIn
from libs.events.vms import VmStopFailed, VmStoppedByGate, VmStopSettled
from libs.model import Incarnation, Inventory, VmReport
from services.heartbeat import arrivals, copies, guests, slots, strays, vms_told, watchdog
from services.heartbeat.orders import (
    AllRead,
    ArrivalAsked,
    Departed,
    Fired,
    GatePassed,
    GaveBack,
    GiveBack,
    Obeyed,
    PassGate,
    Pinged,
    ReadAll,
    Renewed,
    Stirred,
    StopAgain,
    Stopped,
    StopsTried,
    StrayTried,
    Tell,
    Told,
    WroteSlot,
)
from services.heartbeat.state import AgentState as State

READ_DEADLINE_S = 12.0
GATE_DEADLINE_S = 60.0
RETRY_S = 0.5
CONDEMN_S = 5.0
"""A stop that still fails after so long at the gate condemns its VM: the host joins without waiting longer."""
STOP_AGAIN_S = 5.0
STOP_DEADLINE_S = 60.0
SETTLE_S = 0.02


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
    dog: watchdog.Dog | None = None
    """Its watchdog, where it has one."""
    former: tuple[str, ...] = ()
    """What a host without an agent was called before."""
    hardware: str = ""
    """By what its machine is told from others; see libs/hardware.py."""

    @property
    def record_type(self) -> type[BaseModel]:
        return BaseModel

    def initial(self, now: float) -> State:
        mine = slots.initial(self.datastores, now)
        begun = State(gated=False, beat_at=now, read_at=now, say_at=now, read_ok_at=now, slot_state=mine)
        return begun if self.dog is None else replace(begun, dog=watchdog.initial(self.dog))

    def resume(self, state: State, records: Records, now: float) -> Step[State]:
        return Step(state)

    def records(self, state: State) -> Records:
        return Records()

    def wake_at(self, state: State) -> float | None:
        fed_at = None if self.dog is None else watchdog.wake_at(state.dog, self.dog)
        if not state.gated:
            writes_at = slots.due(state.slot_state) if self._armed_before else None
            return min(at for at in (state.beat_at, fed_at, writes_at) if at is not None)
        due = (
            state.beat_at,
            state.read_at,
            state.say_at,
            state.stop_at,
            state.give_at,
            slots.due(state.slot_state),
        )
        ask_at = state.guests.ask_at if state.guests.able else None
        more = (ask_at, fed_at, arrivals.wake_at(state.comings))
        return min(at for at in (*due, *more) if at is not None)

    def step(self, state: State, event: Input | None, now: float) -> Step[State]:
        step = self._step(state, event, now)
        if self.dog is None:
            return step
        # also before the gate is passed: what an earlier life of this agent armed must not go off while a VM takes its
        # time to be stopped (rule 11). Peers can vouch for a host that is not announced yet
        dog, effects = watchdog.due(step.state.dog, self.dog, now)
        return step if not effects else Step(replace(step.state, dog=dog), (*step.effects, *effects))

    def _step(self, state: State, event: Input | None, now: float) -> Step[State]:
        if self.dog is not None and (told := watchdog.told(state.dog, event, self.dog, now)) is not None:
            return Step(replace(state, dog=told[0]), told[1])
        match event:
            case None if not state.gated:
                return self._before_gate(state, now)
            case None:
                return self._tick(state, now)
            case GatePassed():
                return self._passed(state, event, now)
            case Told() if not state.gated:
                return self._announce(state, now)
            case StopsTried():
                return self._stops_tried(state, event, now)
            case LeaseWritten(lease=lease) if state.gated:
                return Step(state, strays.told(self.at, lease, tuple(state.condemned)))
            case StrayTried():
                step = strays.tried(state.condemned, event, self.at)
                stop_at = min(state.stop_at or now + STOP_AGAIN_S, now + STOP_AGAIN_S) if step.state else None
                return Step(
                    replace(state, condemned=step.state, stop_at=stop_at, read_at=min(state.read_at, now)),
                    step.effects,
                )
            case GaveBack():
                return Step(replace(state, give_at=None))
            case AllRead():
                return self._read(state, event, now)
            case Stirred():
                return self._stirred(state, now)
            case Departed(vm=vm):
                return self._stirred(replace(state, departed=state.departed.insert(vm, state.reads)), now)
            case ArrivalAsked():
                return self._asked(state, event, now)
            case LetIn(at=at) if at == self.at:
                comings, answers = arrivals.told(state.comings, event, now)
                # one that may not come is not to be told any more
                begun = self._stirred(replace(state, comings=comings), now)
                return Step(begun.state, (*answers, *begun.effects))
            case Pinged():
                return self._of_guests(replace(state, guests=guests.pinged(state.guests, event, now)), now)
            case Fired():
                return self._of_guests(replace(state, guests=guests.fired(state.guests, event)), now)
            case WroteSlot():
                return self._wrote(state, event, now)
            case Obeyed():
                # what is stopped is told with its reason once it is read anew
                mine = slots.obeyed(state.slot_state, event, state.reads, now)
                return self._stirred(replace(state, slot_state=mine), now)
            case Renewed():
                return self._stirred(replace(state, stored=None, copied=HashTrieMap()), now)
            case BusChanged(connected=True) if state.gated and state.inventory is not None:
                # nobody heard what was said of changes meanwhile: a beat says only that there are some
                return Step(replace(state, say_at=min(state.say_at, now)))
            case Expired():
                return Step(self._expired(state, event, now))
            case _:
                return Step(state)

    @staticmethod
    def _expired(state: State, event: Expired, now: float) -> State:
        """What our hands did not end in its time is tried again."""
        match event.request:
            case "give_back":
                return replace(state, give_at=now + STOP_AGAIN_S)
            case "stop_again":
                return replace(state, stop_at=now + STOP_AGAIN_S)
            case "ping_guests":
                return replace(state, guests=replace(state.guests, asking=False))
            case "pass_gate" | "tell":
                return replace(state, beat_at=now + RETRY_S)
            case "read_all":
                # nothing is known: the last inventory stands, and is told as old as it is by its rev
                return replace(state, reading=False, read_at=now + RETRY_S)
            case "put_inventory":
                return replace(state, stored=None)
            case "put_definition":
                return replace(state, copied=state.copied.discard(event.key.split("/")[1]))
            case "write_slot":
                return replace(state, slot_state=slots.failed(state.slot_state, event.key))
            case "obey":
                return replace(state, slot_state=replace(state.slot_state, obeying=0))
            case _:
                return state

    @property
    def _armed_before(self) -> bool:
        """An earlier life of this agent has armed the watchdog of this very boot, which has passed its gate."""
        return self.dog is not None and bool(self.dog.recalled)

    def _before_gate(self, state: State, now: float) -> Step[State]:
        """The gate waits for the bus and for libvirt, and what an earlier life armed waits for neither: its slots go on to
        say that the host lives, and feed it."""
        step = self._gate(state, now) if now >= state.beat_at else Step(state)
        if not self._armed_before:
            return step
        mine, writes = self._writes(step.state, now)
        return Step(replace(step.state, slot_state=mine), (*step.effects, *writes))

    def _writes(self, state: State, now: float) -> tuple[slots.SlotState, tuple[Act, ...]]:
        return slots.write(
            state.slot_state,
            self.at,
            self.settings.slot_interval_s,
            self.settings.slot_timeout_s + 1.0,
            now,
            watchdog_s=watchdog.advertised_s(state.dog),
            life="" if self.dog is None else self.life,
        )

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
        remembered = guests.remembered(state.guests, outcome.earlier, now)
        comings = arrivals.recalled(outcome.earlier, now)
        state = replace(state, guests=remembered, comings=comings, give_at=now if outcome.held else None)
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
        begun = replace(state, gated=True, beat_at=now, read_at=now, read_ok_at=now, say_at=now + 1e6)
        return self._tick(begun, now)

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
        advertised_s = watchdog.advertised_s(state.dog)
        mine, writes = self._writes(state, now)
        # where a slot that stands still is to tell something, no write may begin that no heartbeat has announced
        if now >= state.beat_at or (self.dog is not None and writes):
            rev = 0 if state.inventory is None else state.inventory.rev
            beat = Heartbeat(
                at=self.at,
                agent=self.life,
                seq=state.seq + 1,
                inventory_rev=rev,
                stores=slots.ages(state.slot_state, now),
                unread_s=round(max(0.0, now - state.read_ok_at), 3),
                untried=slots.untried(state.slot_state),
                watchdog_s=advertised_s,
                slot_seq=0 if self.dog is None else mine.seq,
                sent_at=None if self.dog is None else now,
                clock_s=round(now, 3),
                hardware=self.hardware,
            )
            effects.append(Send(f"heartbeat.{self.at.host}", beat))
            # late beats are not made up for, and after an early one none is later than an interval
            interval_s = self.settings.interval_s
            due = max(min(state.beat_at, now) + interval_s, now + interval_s / 2)
            state = replace(state, seq=state.seq + 1, beat_at=due)
        if state.give_at is not None and now >= state.give_at:
            effects.append(Act(None, GiveBack(key=f"give/{state.seq}", deadline_s=GATE_DEADLINE_S)))
            # its outcome sets it anew
            state = replace(state, give_at=now + GATE_DEADLINE_S + STOP_AGAIN_S)
        if now >= state.read_at:
            state, acts = self._begin_read(state, now)
            effects += acts
        if now >= state.say_at:
            state, sends = self._say(state, now)
            effects += sends
        state = replace(state, slot_state=mine)
        effects += writes
        if state.inventory is not None and state.comings:
            comings, asks = arrivals.due(state.comings, state.inventory, now)
            state, effects = replace(state, comings=comings), [*effects, *asks]
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
        beat_at = min(state.beat_at, now) if stalled and state.gated else state.beat_at
        dog = state.dog
        if self.dog is not None:
            began = mine.slots[outcome.datastore].began
            dog = watchdog.wrote(dog, outcome.datastore, began, outcome.order, self.dog, now)
        return Step(replace(state, slot_state=mine, beat_at=beat_at, dog=dog), acts)

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
        state = replace(state, read_ok_at=now)
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
        reports = vms_told.with_ordered(state.slot_state.ordered, reports)
        known = arrivals.by_libvirt(state.inventory)
        departed = vms_told.still_departed(state.departed, reports, state.reads)
        buried, vms = vms_told.with_vanished(state.buried, departed, known, reports, state.reads)
        comings = arrivals.awaited(state.comings, outcome.reports, now)
        state = replace(state, buried=buried, departed=departed, comings=comings)
        before = state.inventory
        body = {
            "memory_mib": self.memory_mib or outcome.memory_mib,
            "memory_reserved_mib": self.memory_reserved_mib,
            "cpus": self.cpus or outcome.cpus,
            "vms": arrivals.shown(comings, vms),
            "condemned": tuple(sorted(state.condemned)),
            "locks": outcome.locks,
            "offers": outcome.offers,
            "asks": outcome.asks,
            "former": self.former,
        }
        effects: list[Effect] = []
        changed = before is None or any(getattr(before, name) != value for name, value in body.items())
        if changed:
            rev = 1 if before is None else before.rev + 1
            inventory = Inventory.model_validate({"at": self.at, "agent": self.life, "rev": rev, **body})
            state, effects = self._say(replace(state, inventory=inventory), now)
        state, puts = copies.due(state, outcome)
        return Step(state, (*effects, *puts))

    def _asked(self, state: State, asked: ArrivalAsked, now: float) -> Step[State]:
        """Show it in our inventory, before anybody is asked about it."""
        before = state.inventory if state.gated else None
        comings, answers = arrivals.begun(state.comings, asked, before, now)
        if before is None or comings is state.comings:
            return Step(state, tuple(answers))
        update = {"vms": arrivals.shown(comings, before.vms), "rev": before.rev + 1}
        inventory = before.model_copy(update=update)
        state, said = self._say(replace(state, inventory=inventory, comings=comings), now)
        state, puts = copies.stored(state)
        comings, asks = arrivals.due(comings, inventory, now)
        return Step(replace(state, comings=comings), (*answers, *said, *puts, *asks))

    def _say(self, state: State, now: float) -> tuple[State, list[Effect]]:
        if state.inventory is None:
            return replace(state, say_at=now + self.settings.inventory_every_s), []
        state = replace(state, say_at=now + self.settings.inventory_every_s)
        assert state.inventory is not None
        told = state.inventory.model_copy(update={"offers": None})  # see Inventory.offers
        return state, [Send(f"inventory.{self.at.host}", InventorySeen(inventory=told))]
