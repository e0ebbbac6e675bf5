"""The fencer: from a verdict to a proof, tried for ever, under one record a host."""

from __future__ import annotations

from dataclasses import dataclass

from rpds import HashTrieMap

from libs.config.settings import FencingSettings
from libs.core.decider import Act, Expired, Input, Publish, Records, Step
from libs.core.evolve import replace
from libs.events.hosts import HostFailed, HostIsolated, HostJoined, HostRecovered
from libs.events.words import HostConfirmedFailed
from libs.model import FenceProof, Incarnation, ProofMethod
from services.fencer import isolation
from services.fencer.state import (
    OPEN,
    ORDERS,
    Fence,
    Fenced,
    FenceRecord,
    FencerState,
    Ordered,
    Phase,
    again,
    fenced,
    kept,
    over,
)


@dataclass(frozen=True, slots=True)
class Fencer:
    """Decider of the fencer. `deadline_s` bounds one attempt over all levels of the host's devices."""

    settings: FencingSettings
    deadline_s: dict[str, float]

    @property
    def record_type(self) -> type[FenceRecord]:
        return FenceRecord

    def initial(self, now: float) -> FencerState:
        return FencerState(HashTrieMap(), HashTrieMap())

    def resume(self, state: FencerState, records: Records, now: float) -> Step[FencerState]:
        waits = (Phase.WAITING, Phase.ORDER_WAITS)
        waiting = {host: now for host, record in records.items() if record.phase in waits}
        return Step(FencerState(records, HashTrieMap(waiting)))

    def records(self, state: FencerState) -> Records:
        return state.records

    def wake_at(self, state: FencerState) -> float | None:
        return min(state.retry_at.values(), default=None)

    def step(self, state: FencerState, event: Input | None, now: float) -> Step[FencerState]:
        match event:
            case None:
                return self._retry(state, now)
            case HostFailed():
                return self._failed(state, event)
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
            case Expired(key=key, reason=reason):
                for record in state.records.values():
                    if key == _act(record, self.deadline_s).key:
                        missing = (f"no end of the attempt: {reason}",)
                        failed = Fenced(key=key, incident=record.incident, missing=missing)
                        return self._outcome(state, failed, now)
                return Step(state)
            case HostJoined(at=at):
                return self._new_boot(state, at)
            case HostRecovered(at=at, incident=incident):
                return self._stand_down(state, at, incident)
            case HostConfirmedFailed():
                return self._confirmed(state, event)
            case _:
                return Step(state)

    def _failed(self, state: FencerState, fact: HostFailed) -> Step[FencerState]:
        host = fact.at.host
        known = state.records.get(host)
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
            step = kept(state, record, _act(record, self.deadline_s))
        return Step(step.state, (*before, *step.effects))

    def _outcome(self, state: FencerState, outcome: Fenced, now: float) -> Step[FencerState]:
        record = next((r for r in state.records.values() if r.incident == outcome.incident), None)
        if record is None or record.phase is Phase.FENCED:
            return Step(state)
        if outcome.proof is not None:
            return self._proven(state, record, outcome.proof, f"host.failed/{record.incident}")
        if record.phase is Phase.STOOD_DOWN:
            return Step(state)
        if record.recovered:
            return kept(state, record.model_copy(update={"phase": Phase.STOOD_DOWN}))
        cause = f"host.failed/{record.incident}"
        waiting = record.model_copy(update={"phase": Phase.WAITING})
        return again(self.settings, state, waiting, outcome.missing, cause, "no proof from any level", now)

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
        record = state.records.get(at.host)
        if record is None or record.at == at or record.phase not in OPEN:
            return Step(state)
        proof = FenceProof(
            of=record.at, method=ProofMethod.NEW_BOOT, detail=f"heard from boot {at.boot}", successor=at.boot
        )
        return self._proven(state, record, proof, f"host.joined/{at.host}/{at.boot}/{record.epoch}")

    def _stand_down(self, state: FencerState, at: Incarnation, incident: str) -> Step[FencerState]:
        record = state.records.get(at.host)
        if record is not None and record.word is not None and record.word.incident == incident:
            # it speaks, so it is not down: the word on a verdict that has yet to reach us is void
            return kept(state, record.model_copy(update={"word": None}))
        if record is None or record.incident != incident or record.phase not in (*OPEN, *ORDERS):
            return Step(state)
        if record.phase is Phase.FENCING or record.phase in ORDERS:
            # the attempt under way may yet succeed: then it is fenced, whatever it says. An order that lies in a
            # slot will be obeyed, and the VMs that it stops must start elsewhere
            return kept(state, record.model_copy(update={"recovered": True}))
        return kept(
            replace(state, retry_at=state.retry_at.discard(at.host)),
            record.model_copy(update={"phase": Phase.STOOD_DOWN}),
        )

    def _confirmed(self, state: FencerState, word: HostConfirmedFailed) -> Step[FencerState]:
        """An operator's explicit word is a proof, of the one incarnation that it names and while that one's
        verdict is open. A host that has spoken since is not down, whoever says so."""
        known = state.records.get(word.at.host)
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
        done = record.model_copy(update={"phase": Phase.FENCED, "vms": ()})
        state = replace(state, retry_at=state.retry_at.discard(record.at.host))
        return kept(state, done, fenced(record, proof, cause))


def _means(word: HostConfirmedFailed, record: FenceRecord) -> bool:
    return (word.at, word.incident, word.epoch) == (record.at, record.incident, record.epoch)


def _vouched(word: HostConfirmedFailed) -> FenceProof:
    return FenceProof(of=word.at, method=ProofMethod.OPERATOR, detail=f"{word.by} at {word.said_at}")


def _act(record: FenceRecord, deadlines_s: dict[str, float]) -> Act:
    host = record.at.host
    request = Fence(
        key=f"fence/{record.incident}/{record.attempt}",
        deadline_s=deadlines_s.get(host, 60.0),
        at=record.at,
        incident=record.incident,
    )
    return Act(host, request)
