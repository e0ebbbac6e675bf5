"""The fencer: from a verdict to a proof, tried for ever, under one record a host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rpds import HashTrieMap

from libs.config.settings import FencingSettings
from libs.core.decider import Act, Expired, Input, Publish, Records, Step
from libs.core.evolve import replace
from libs.events.hosts import HostFailed, HostIsolated, HostJoined, HostRecovered
from libs.events.words import HostConfirmedFailed, HostFenceTestOrdered
from libs.model import FenceProof, Incarnation, ProofMethod
from services.fencer import drill, isolation, overdue, standby, testing
from services.fencer.reserve import Reserve, Shortage
from services.fencer.state import (
    OPEN,
    ORDERS,
    Explained,
    Fence,
    Fenced,
    FenceRecord,
    FencerState,
    FenceTest,
    Looked,
    Ordered,
    PathRecord,
    PathsRead,
    Phase,
    ProvedLevels,
    SwitchedOn,
    again,
    fenced,
    kept,
    over,
)

UNKNOWN_S = 60.0
"""For an attempt on a host of which nothing is configured."""


@dataclass(frozen=True, slots=True)
class Fencer:
    """Decider of the fencer. `deadline_s` bounds one attempt over all levels of the host's devices."""

    settings: FencingSettings
    deadline_s: dict[str, float]
    drill_s: dict[str, float] = field(default_factory=dict)
    """By host that has fence devices how long a reading of all of them may take."""
    times: testing.Times = field(default_factory=testing.Times)
    reserve: standby.Keeping = field(default_factory=standby.Keeping)

    @property
    def record_type(self) -> Any:
        return FenceRecord | PathRecord | FenceTest | Reserve | Shortage

    def initial(self, now: float) -> FencerState:
        return FencerState(Records(), HashTrieMap())

    def resume(self, state: FencerState, records: Records, now: float) -> Step[FencerState]:
        waits = (Phase.WAITING, Phase.ORDER_WAITS)
        fences = [record for record in records.values() if isinstance(record, FenceRecord)]
        waiting = {record.at.host: now for record in fences if record.phase in waits}
        state = FencerState(records, HashTrieMap(waiting))
        state = testing.resumed(overdue.resumed(self.settings, state, self.deadline_s, now), now)
        state = standby.resumed(self.reserve, drill.forget(state, self.drill_s), now)
        return Step(drill.begin(self.settings, state, self.drill_s, now))

    def records(self, state: FencerState) -> Records:
        return state.records

    def wake_at(self, state: FencerState) -> float | None:
        wakes = (
            min(state.retry_at.values(), default=None),
            min(state.alert_at.values(), default=None),
            min(state.test_at.values(), default=None),
            drill.wake_at(self.settings, state),
            standby.wake_at(state),
        )
        return min((at for at in wakes if at is not None), default=None)

    def step(self, state: FencerState, event: Input | None, now: float) -> Step[FencerState]:
        step = self._step(state, event, now)
        if step.state.test_at:
            after = testing.follow(step.state, self.times, now)
            step = Step(after.state, (*step.effects, *after.effects))
        return standby.follow(self.reserve, step, event, now)

    def _step(self, state: FencerState, event: Input | None, now: float) -> Step[FencerState]:
        match event:
            case None:
                return self._due(state, now)
            case HostFailed():
                return self._failed(state, event, now)
            case HostIsolated():
                return isolation.isolated(state, event)
            case Ordered():
                return isolation.ordered(self.settings, state, event, now)
            case Fenced():
                return self._outcome(state, event, now)
            case Expired(request="order_stop", key=key, reason=reason):
                incident = key.split("/")[1]
                failed_order = Ordered(key=key, incident=incident, stopped=False, missing=(reason,))
                return isolation.ordered(self.settings, state, failed_order, now)
            case Explained():
                return self._explained(state, event)
            case HostFenceTestOrdered():
                return testing.ordered(state, event)
            case Looked():
                return testing.looked(state, event, self.times)
            case ProvedLevels():
                return testing.tested(state, event, self.times, now)
            case SwitchedOn():
                return testing.switched_on(state, event)
            case PathsRead():
                return drill.read(self.settings, state, event, now)
            case Expired(request=request) if request in testing.ABOUT:
                return testing.expired(state, event, self.times, now)
            case Expired(request="explain", key=key, reason=reason):
                untold = Explained(key=key, incident=key.split("/")[1], missing=(f"not known: {reason}",))
                return self._explained(state, untold)
            case Expired(request="read_paths", key=key):
                return drill.read(
                    self.settings, state, PathsRead(key=key, host=key.split("/")[1], at=""), now
                )
            case Expired(request=request) if request in standby.ABOUT:
                return Step(state)  # that is standby's, which follows
            case Expired(key=key, reason=reason):
                record = state.incident(key.split("/")[1])
                if record is None or key != _act(record, self.deadline_s).key:
                    return Step(state)
                missing = (f"no end of the attempt: {reason}",)
                failed = Fenced(key=key, incident=record.incident, missing=missing)
                return self._outcome(state, failed, now)
            case HostJoined(at=at):
                return self._new_boot(state, at)
            case HostRecovered(at=at, incident=incident):
                return self._stand_down(state, at, incident)
            case HostConfirmedFailed():
                return self._confirmed(state, event)
            case _:
                return Step(state)

    def _failed(self, state: FencerState, fact: HostFailed, now: float) -> Step[FencerState]:
        host = fact.at.host
        known = state.fence(host)
        record = FenceRecord(
            at=fact.at, incident=fact.incident, epoch=fact.epoch, phase=Phase.FENCING, vms=fact.vms
        )
        if known is not None and known.epoch >= fact.epoch:
            if known.epoch == fact.epoch or known.at == fact.at:
                return Step(state)  # the same failure, told again
            return Step(
                state, (over(record, known.at, fact.key),)
            )  # told late: a later boot has failed since
        before: tuple[Publish, ...] = ()
        if known is not None and known.phase in OPEN and known.at != fact.at:
            before = (over(known, fact.at, fact.key),)
        word = known.word if known is not None else None
        if word is not None and word.epoch > fact.epoch:
            record = record.model_copy(update={"word": word})
        if fact.proof is not None:
            step = self._proven(state, record, fact.proof, fact.key)
        elif word is not None and _means(word, record):
            step = self._proven(state, record, _vouched(word), word.key)
        else:
            state = replace(state, retry_at=state.retry_at.discard(host))
            state = overdue.begun(self.settings, state, record, self._deadline_s(host), now)
            step = kept(state, record, _act(record, self.deadline_s))
        return Step(step.state, (*before, *step.effects))

    def _outcome(self, state: FencerState, outcome: Fenced, now: float) -> Step[FencerState]:
        record = state.incident(outcome.incident)
        if record is None or record.phase is Phase.FENCED:
            return Step(state)
        if outcome.proof is not None:
            return self._proven(state, record, outcome.proof, f"host.failed/{record.incident}")
        if record.phase is Phase.STOOD_DOWN:
            return Step(state)
        if record.recovered:
            return self._stood_down(state, record)
        cause = f"host.failed/{record.incident}"
        waiting = record.model_copy(update={"phase": Phase.WAITING})
        return again(self.settings, state, waiting, outcome.missing, cause, "no proof from any level", now)

    def _deadline_s(self, host: str) -> float:
        return self.deadline_s.get(host, UNKNOWN_S)

    def _explained(self, state: FencerState, outcome: Explained) -> Step[FencerState]:
        return overdue.explained(state, outcome)

    def _due(self, state: FencerState, now: float) -> Step[FencerState]:
        """Whatever waited for this moment."""
        tried = self._retry(state, now)
        told = overdue.due(tried.state, now)
        drilled = drill.due(self.settings, told.state, self.drill_s, now)
        return Step(drilled.state, (*tried.effects, *told.effects, *drilled.effects))

    def _retry(self, state: FencerState, now: float) -> Step[FencerState]:
        effects: list[Act] = []
        for host, due in sorted(state.retry_at.items()):
            if due > now:
                continue
            record = state.records[host]
            attempt = min(record.attempt + 1, 1_000_000)
            ordering = record.phase is Phase.ORDER_WAITS
            phase = Phase.ORDERING if ordering else Phase.FENCING
            record = record.model_copy(update={"phase": phase, "attempt": attempt})
            state = replace(
                state, records=state.records.insert(host, record), retry_at=state.retry_at.remove(host)
            )
            effects.append(isolation.order(record) if ordering else _act(record, self.deadline_s))
        return Step(state, tuple(effects))

    def _new_boot(self, state: FencerState, at: Incarnation) -> Step[FencerState]:
        """The host speaks from another boot: the one that failed is over."""
        record = state.fence(at.host)
        if record is None or record.at == at or record.phase not in OPEN:
            return Step(state)
        proof = FenceProof(
            of=record.at, method=ProofMethod.NEW_BOOT, detail=f"heard from boot {at.boot}", successor=at.boot
        )
        return self._proven(state, record, proof, f"host.joined/{at.host}/{at.boot}/{record.epoch}")

    def _stand_down(self, state: FencerState, at: Incarnation, incident: str) -> Step[FencerState]:
        record = state.fence(at.host)
        if record is not None and record.word is not None and record.word.incident == incident:
            # it speaks, so it is not down: the word on a verdict that has yet to reach us is void
            return kept(state, record.model_copy(update={"word": None}))
        if record is None or record.incident != incident or record.phase not in (*OPEN, *ORDERS):
            return Step(state)
        if record.phase is Phase.FENCING or record.phase in ORDERS:
            # the attempt under way may yet succeed: then it is fenced, whatever it says. An order that lies in a
            # slot will be obeyed, and the VMs that it stops must start elsewhere
            return kept(state, record.model_copy(update={"recovered": True}))
        return self._stood_down(state, record)

    def _stood_down(self, state: FencerState, record: FenceRecord) -> Step[FencerState]:
        host = record.at.host
        state = replace(state, retry_at=state.retry_at.discard(host), alert_at=state.alert_at.discard(host))
        return kept(state, record.model_copy(update={"phase": Phase.STOOD_DOWN}))

    def _confirmed(self, state: FencerState, word: HostConfirmedFailed) -> Step[FencerState]:
        """An operator's explicit word is a proof, of the one incarnation that it names and while that one's
        verdict is open. A host that has spoken since is not down, whoever says so."""
        known = state.fence(word.at.host)
        if known is None:
            expected = FenceRecord(
                at=word.at, incident=word.incident, epoch=0, phase=Phase.EXPECTED, word=word
            )
            return kept(state, expected)
        if known.epoch < word.epoch:
            later = known.word is not None and known.word.epoch >= word.epoch
            return Step(state) if later else kept(state, known.model_copy(update={"word": word}))
        if known.phase not in OPEN or known.recovered or not _means(word, known):
            return Step(state)
        return self._proven(state, known, _vouched(word), word.key)

    def _proven(
        self, state: FencerState, record: FenceRecord, proof: FenceProof, cause: str
    ) -> Step[FencerState]:
        done = record.model_copy(update={"phase": Phase.FENCED, "vms": (), "missing": ()})
        host = record.at.host
        state = replace(state, retry_at=state.retry_at.discard(host), alert_at=state.alert_at.discard(host))
        return kept(state, done, fenced(record, proof, cause))


def _means(word: HostConfirmedFailed, record: FenceRecord) -> bool:
    return (word.at, word.incident, word.epoch) == (record.at, record.incident, record.epoch)


def _vouched(word: HostConfirmedFailed) -> FenceProof:
    return FenceProof(of=word.at, method=ProofMethod.OPERATOR, detail=f"{word.by} at {word.said_at}")


def _act(record: FenceRecord, deadlines_s: dict[str, float]) -> Act:
    host = record.at.host
    request = Fence(
        key=f"fence/{record.incident}/{record.attempt}",
        deadline_s=deadlines_s.get(host, UNKNOWN_S),
        at=record.at,
        incident=record.incident,
    )
    return Act(host, request)
