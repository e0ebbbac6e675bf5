"""The detector: who is silent, who is asked, who is held to have failed.

Hearing only changes views; judging happens on ticks and when an answer or a heartbeat makes a difference.
A follower hears like the leader and never judges, so it takes over with warm views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rpds import HashTrieMap

from libs.config.settings import Detection
from libs.core.decider import (
    BusChanged,
    Effect,
    Expired,
    Input,
    Paused,
    Publish,
    Records,
    Step,
    TableRead,
)
from libs.core.evolve import replace
from libs.events.facts import AnyFact
from libs.events.hosts import (
    HostFenced,
    HostFenceRefuted,
    HostJoined,
    HostRecovered,
    HostRefuted,
    HostSuspected,
)
from libs.events.outside import OutsideTold
from libs.events.signals import Canary, Goodbye, Heartbeat, InventorySeen
from libs.events.standby import StandbyLeaving
from libs.events.words import HostReadmitOrdered, HostRemoved, StormReleaseOrdered
from libs.model import (
    FenceProof,
    HostState,
    Incarnation,
    ProofMethod,
)
from services.detector import (
    canary,
    clocks,
    datastores,
    flapping,
    hearing,
    inventories,
    leaving,
    outside,
    scanning,
    storms,
    twins,
    unknowns,
    watching,
)
from services.detector.asks import Answered, Disconnected, Looked, Panicked
from services.detector.moves import failed_fact, judged, move
from services.detector.pursuit import Pursuit
from services.detector.sight import Sight
from services.detector.state import (
    FORMER_KEPT,
    UNSCANNED,
    CanaryState,
    DetectorState,
    HostRecord,
    HostView,
    Pace,
    StoreRecord,
    StormRecord,
    known_boots,
)

TICK_S = 0.1
HINT_S = 0.02
ECHO_S = 5.0
"""What a fenced boot said before it was fenced may reach us for so long."""
State = DetectorState


@dataclass(frozen=True, slots=True)
class Detector:
    """Decider of the detector. `hosts` are the pool's; whoever else speaks is not listened to."""

    hosts: tuple[str, ...]
    settings: Detection
    replica: str = "detector"
    """This process among all of the detector: [A-Za-z0-9_-] only."""
    plane_started: float | None = None
    """When the management plane started, by the same clock; None: with this process."""
    beat_interval_s: float = 0.5
    slot_interval_s: float = 0.5
    domains: dict[str, str] = field(default_factory=dict)
    """The failure domain of each host that names one; any other is one of its own."""
    agentless: frozenset[str] = frozenset()
    standby: frozenset[str] = frozenset()
    """Hosts that are watched from the management side: what is asked of them is asked from there, and is no vote."""
    grey_min: int = 2
    """Guests of known health that must all fail for their host to be held grey."""
    machine: str = ""
    """This boot of the machine on which this process runs: within it clocks are one."""
    unheard_after_s: float = math.inf
    """A host that was not heard for so long since we began to listen is told of; inf: never."""
    unread_after_s: float = math.inf
    """A host whose VMs nobody could read for so long is told of; inf: never."""
    _clocked: tuple[str, ...] = field(init=False, repr=False)
    _pursuit: Pursuit = field(init=False, repr=False)
    _pace: Pace = field(init=False, repr=False)
    _ours: frozenset[str] = field(init=False, repr=False)
    """`hosts`, to be asked about for each heartbeat."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ours", frozenset(self.hosts))
        witnesses = tuple(host for host in self.hosts if host not in self.agentless)
        pursuit = Pursuit(self.hosts, witnesses, self.settings, self.slot_interval_s, self.domains)
        object.__setattr__(self, "_pursuit", pursuit)
        object.__setattr__(self, "_clocked", witnesses)
        pace = canary.pace(self.settings.suspect_after_s, self.beat_interval_s)
        object.__setattr__(self, "_pace", pace)

    @property
    def record_type(self) -> Any:
        return HostRecord | StormRecord | StoreRecord

    def initial(self, now: float) -> State:
        started = now if self.plane_started is None else min(now, self.plane_started)
        return State(
            records=Records(),
            views=HashTrieMap(),
            listening_since=now,
            quiet_until=started + self.settings.quiet_after_start_s,
            judge_from=now,
            tick_at=now + TICK_S,
            canary=canary.begun(CanaryState(pace=self._pace), now),
            machine=self.machine,
        )

    def resume(self, state: State, records: Records, now: float) -> Step[State]:
        views: HashTrieMap[str, HostView] = HashTrieMap(
            {host: replace(view, suspicion=None) for host, view in state.views.items()}
        )
        records = flapping.resumed(records, now)
        state = replace(state, boots=known_boots(records))
        bird = canary.cut(state.canary) if state.cut else canary.begun(state.canary, now)
        state = replace(
            state, records=records, views=views, tick_at=now + TICK_S, canary=bird, scan=UNSCANNED
        )
        return Step(state, inventories.told_again(state, self.grey_min))

    def records(self, state: State) -> Records:
        return state.records

    def wake_at(self, state: State) -> float | None:
        return state.tick_at

    def step(self, state: State, event: Input | None, now: float) -> Step[State]:
        found = self._step(state, event, now)
        if found.effects:
            found = flapping.counted(found, self.settings, now)
        after = found.state
        if after.scan is UNSCANNED:
            return found
        if after.records is state.records and isinstance(event, Heartbeat | None):
            return found  # a tick looks at nobody but whom it knows to be unwell
        if isinstance(event, Heartbeat):
            after = scanning.kept(state, after, event.at.host, self.settings.suspect_after_s, now)
            return Step(after, found.effects)
        # nor does what else is heard often make anybody unwell; all else is rare, and may
        same = after.records is state.records and after.listening_since == state.listening_since
        if same and isinstance(event, InventorySeen | Canary):
            return found
        return Step(replace(after, scan=UNSCANNED), found.effects)

    def _step(self, state: State, event: Input | None, now: float) -> Step[State]:
        deaf_s = self.settings.deaf_period_s
        match event:
            case None:
                return self._tick(state, now)
            case Heartbeat(at=at) if at.host in self._ours:
                return self._heard(state, event, now)
            case InventorySeen(inventory=inventory) if inventory.at.host in self._ours:
                return inventories.heard(state, inventory, self.grey_min)
            case Goodbye() if event.at.host in self._ours:
                return self._goodbye(state, event, now)
            case Panicked(host=host) if host in self._ours:
                return self._doubt_now(state, host, "its crash kernel says that it panicked", now)
            case Disconnected(host=host) if host in self._ours:
                return self._doubt_now(state, host, "", now)
            case Answered():
                return self._pursuit.answered(state, event, now)
            case HostFenced():
                return self._fenced(state, event, now)
            case HostRemoved():
                return self._removed(state, event)
            case OutsideTold(host=host) if host in self.hosts:
                return outside.doubted(state, event, now, HINT_S)
            case StandbyLeaving():
                return leaving.told(state, event)
            case HostReadmitOrdered():
                return flapping.ordered(state, event)
            case StormReleaseOrdered():
                return storms.ordered(state, self.hosts, event)
            case Canary():
                return hearing.canary_back(state, event, self.replica, deaf_s, now)
            case Paused():
                return hearing.again(state, self.replica, deaf_s, now, anew=False)
            case BusChanged(connected=connected):
                state = replace(state, cut=not connected)
                return hearing.again(state, self.replica, deaf_s, now, anew=True)
            case TableRead(table="inventory", rows=rows):
                return inventories.read(state, self._ours, rows, self.grey_min)
            case Looked():
                return watching.looked(state, event, self.grey_min, self._clocked, now)
            case Expired(request="look_over_libvirt" | "store_look"):
                return watching.failed(state, event, self.unread_after_s, now)
            case Expired():
                return Step(state)  # a question without an answer: the next round asks again
            case _:
                return Step(state)

    # -- hearing

    def _heard(self, state: State, beat: Heartbeat, now: float) -> Step[State]:
        at = beat.at
        host, record = at.host, state.record(at.host)
        if record.removes(beat.agent):
            return Step(state)
        twin = twins.heard(state, beat, self.settings, now)
        if twin is not None:
            return twin
        if record.at == at:
            at = record.at  # one object for all heartbeats of a boot: less to keep, and to compare
        view = replace(
            state.view(host),
            heard_at=now,
            seen=at,
            clock_s=beat.clock_s,
            hardware=beat.hardware,
            mute_until=0.0,
            last_word="",
            doubted=False,
            told_of="",
        )
        writes = datastores.heard(state, beat, self.settings, now)
        state = replace(state, views=state.views.insert(host, view), writes=writes)
        if record.state is HostState.HEALTHY and record.at is at:
            return unknowns.read(state, record, beat, self.unread_after_s)
        if record.state is HostState.FENCED and record.at is at:
            return self._beyond(state, record, at, now)
        return self._alive(state, record, at, now)

    def _beyond(self, state: State, record: HostRecord, at: Incarnation, now: float) -> Step[State]:
        """A heartbeat of a boot that is proven over: an echo for a while, and then the refutation of its proof."""
        fenced_at = state.view(record.host).fenced_at
        echo_until = max(state.listening_since, fenced_at or state.listening_since) + ECHO_S
        if now < echo_until or record.refuted == record.epoch:
            return Step(state)
        fact = HostFenceRefuted(
            at=at,
            incident=record.incident,
            epoch=record.epoch,
            cause=f"host.fenced/{record.incident}",
            rule="heard after its proof",
        )
        return move(state, record.model_copy(update={"refuted": record.epoch}), fact)

    def _alive(self, state: State, record: HostRecord, at: Incarnation, now: float) -> Step[State]:
        """A heartbeat that changes something: a first one, a new boot, or a sign of life in time."""
        view = replace(state.view(at.host), suspicion=None)
        state = replace(state, views=state.views.insert(at.host, view))
        if record.at is not None and record.at != at:
            return self._rebooted(state, record, at, now)
        known = clocks.heard(state, at.host, now, self._clocked, anew=record.at is None)
        update = {"state": HostState.HEALTHY, "at": at, "heard": known, "unheard": 0}
        healthy = record.model_copy(update={**update, "hardware": view.hardware})
        match record.state:
            case HostState.SUSPECT | HostState.AGENT_DOWN:
                fact: AnyFact = HostRefuted(at=at, number=record.number, was=record.state, rule="heard")
            case HostState.FAILED | HostState.ISOLATED:
                fact = HostRecovered(
                    at=at,
                    incident=record.incident,
                    epoch=record.epoch,
                    suspicion=record.number,
                    rule="heard",
                )
            case HostState.FENCED:
                return Step(state)  # an echo of the boot that is proven over
            case _:
                fact = HostJoined(at=at, epoch=record.epoch, unknown=record.unheard, rule="heard")
                state = replace(state, boots=state.boots.insert(at.boot, at.host))
        return move(state, healthy, fact)

    def _rebooted(self, state: State, record: HostRecord, at: Incarnation, now: float) -> Step[State]:
        """Another boot speaks: the old one is over, and that is its fence proof."""
        assert record.at is not None
        facts: list[AnyFact] = []
        if record.state not in (HostState.FAILED, HostState.FENCED):
            proof = FenceProof(
                of=record.at,
                method=ProofMethod.NEW_BOOT,
                detail=f"heard from boot {at.boot}",
                successor=at.boot,
            )
            record = judged(record, HostState.FAILED)
            facts.append(failed_fact(state, record, "rebooted", (), proof))
        old = record.at
        assert old is not None
        former = (*record.former, old.boot)[-FORMER_KEPT:]
        unknown = record.unheard
        update = {"state": HostState.HEALTHY, "at": at, "former": former, "unheard": 0}
        known = clocks.heard(state, at.host, now, self._clocked, anew=True)
        hardware = state.view(at.host).hardware
        record = record.model_copy(update={**update, "heard": known, "hardware": hardware})
        facts.append(
            HostJoined(at=at, epoch=record.epoch, unknown=unknown, rule="new-boot", cause=record.incident)
        )
        boots = state.boots.discard(old.boot).insert(at.boot, record.host)
        state = replace(state, records=state.records.insert(record.host, record), boots=boots)
        return Step(state, tuple(Publish(record.host, fact) for fact in facts))

    def _goodbye(self, state: State, goodbye: Goodbye, now: float) -> Step[State]:
        if goodbye.for_good:
            return self._doubt_now(state, goodbye.at.host, "it said that it goes down", now)
        view = replace(state.view(goodbye.at.host), mute_until=now + goodbye.grace_s)
        return Step(replace(state, views=state.views.insert(goodbye.at.host, view)))

    def _doubt_now(self, state: State, host: str, last_word: str, now: float) -> Step[State]:
        """Do not wait for silence to grow: ask at the next tick. A hint is never a verdict."""
        view, record = state.view(host), state.record(host)
        if record.at is None or view.heard_at is None or view.seen != record.at:
            return Step(state)
        if not last_word and (now < view.mute_until or record.state is not HostState.HEALTHY):
            return Step(state)  # its agent has said goodbye, or it is being asked after already
        view = replace(view, doubted=True, last_word=last_word or view.last_word)
        return Step(
            replace(state, views=state.views.insert(host, view), tick_at=min(state.tick_at, now + HINT_S))
        )

    def _fenced(self, state: State, fact: HostFenced, now: float) -> Step[State]:
        record = state.record(fact.at.host)
        # the same incident: it may have spoken for a last time since the verdict, and be fenced all the same
        if record.at != fact.at or record.epoch != fact.epoch or record.state is HostState.FENCED:
            return Step(state)
        record = record.model_copy(update={"state": HostState.FENCED})
        view = replace(state.view(record.host), fenced_at=now, suspicion=None)
        records, views = state.records.insert(record.host, record), state.views.insert(record.host, view)
        return Step(replace(state, records=records, views=views))

    def _removed(self, state: State, fact: HostRemoved) -> Step[State]:
        """Forget the host. Its numbers go on: what is said of it once it has joined again is said after this.
        A verdict that came meanwhile stands, and is handled to its end."""
        host = fact.at.host
        record = state.record(host)
        standing = record.state in (HostState.FAILED, HostState.ISOLATED)
        if host not in self._ours or record.at != fact.at or standing:
            return Step(state)
        if record.removes(fact.agent):
            return Step(state)  # told again, and it has joined since
        boots = state.boots.discard(fact.at.boot)
        state = replace(state, views=state.views.discard(host), boots=boots)
        return move(state, record.without(fact), None)

    # -- judging

    def _tick(self, state: State, now: float) -> Step[State]:
        before = state.tick_at - TICK_S
        step = hearing.canary_flown(state, self.replica, self.settings.deaf_period_s, now)
        state = replace(step.state, tick_at=now + TICK_S)
        effects: list[Effect] = list(step.effects)
        doubtful = canary.overdue(state.canary, now)
        scan = scanning.scanned(state, self.hosts, self.settings.suspect_after_s, now)
        state = replace(state, scan=scan)
        looks = [
            host for host in scan.unwell if not scanning.well(state, host, self.settings.suspect_after_s, now)
        ]
        # who falls silent at this tick is noted before anybody is held failed at it: both together may be a storm
        looks.sort(key=lambda host: not self._in_no_doubt(state, host))
        sight = self._pursuit.sight(now)
        for host in looks:
            if doubtful and self._in_no_doubt(state, host):
                continue
            step = self._look(state, host, sight)
            sight.looked_at(state, step.state, host)
            state = step.state
            effects += step.effects
        step = storms.watch(state, self.hosts, scan.unwell, now)
        effects += step.effects
        if now // flapping.LOOK_S != before // flapping.LOOK_S:
            step = flapping.quiet(step.state, self.hosts, self.settings, now)
            effects += step.effects
            if not doubtful:
                step = datastores.look(step.state, self.hosts, self.settings, now)
                effects += step.effects
                step = unknowns.look(step.state, self.hosts, self.standby, self.unheard_after_s, now)
                effects += step.effects
                step = clocks.look(step.state, self.hosts, self._clocked, now)
        return Step(step.state, tuple(effects))

    def _in_no_doubt(self, state: State, host: str) -> bool:
        return state.record(host).state in (HostState.HEALTHY, HostState.UNKNOWN)

    def _look(self, state: State, host: str, sight: Sight) -> Step[State]:
        record, view, now = state.record(host), state.view(host), sight.now
        if (
            record.at is not None
            and view.seen not in (None, record.at)
            and view.seen.boot not in record.former
            and str(view.seen) not in record.twins
        ):
            # a new boot beat while we could not decide; it counts also if it has been silent since
            other = twins.other_machine(state, record, view.seen, view.hardware, self.settings)
            return other or self._alive(state, record, view.seen, now)
        if record.state is HostState.FAILED or record.state is HostState.FENCED:
            return Step(state)
        if record.state in (HostState.SUSPECT, HostState.AGENT_DOWN, HostState.ISOLATED):
            step = self._pursuit.pursue(state, record, sight)
            look = watching.due(step.state, host, self.unread_after_s, now)
            long_s = max(self.unread_after_s, self.settings.hung_s + self.settings.confirm_silence_s)
            told = unknowns.doubtful(look.state, host, long_s, now)
            return Step(told.state, (*step.effects, *look.effects, *told.effects))
        silent_from = max(state.listening_since, view.heard_at or state.listening_since)
        # a hint may come late, of a life of its agent that is over: the present one would have beaten meanwhile
        said = bool(view.last_word or view.told_of)
        hinted = view.doubted and (said or now - silent_from >= 1.2 * self.beat_interval_s)
        silent = now - silent_from >= self.settings.suspect_after_s or hinted
        if record.at is None or not silent or now < view.mute_until:
            return Step(state)
        if view.heard_at is None and now < state.quiet_until:
            # not heard since we began: it had no chance yet to be heard, and we claim nothing
            if record.state is HostState.UNKNOWN:
                return Step(state)
            return move(state, record.model_copy(update={"state": HostState.UNKNOWN}), None)
        update: dict[str, object] = {
            "state": HostState.SUSPECT,
            "number": record.number + 1,
            "unheard": 0,
        }
        if view.heard_at is not None and view.seen == record.at:
            update["heard"] = clocks.heard(state, host, view.heard_at, self._clocked, anew=False)
        record = record.model_copy(update=update)
        fact = HostSuspected(
            at=record.at,
            number=record.number,
            silent_s=round(now - silent_from, 3),
            rule=view.told_of
            or ("its connection ended, or it said so" if view.doubted else "silent for suspect_after_s"),
        )
        step = move(state, record, fact)
        sight.looked_at(state, step.state, host)
        asked = self._pursuit.pursue(step.state, record, sight)
        return Step(asked.state, (*step.effects, *asked.effects))
