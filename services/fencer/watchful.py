"""The fencer with an eye on hosts that promise to reset themselves: what presume.py finds is a proof like any other,
beside the attempts by power. The first proof wins."""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.core.decider import BusChanged, Expired, Input, Note, Paused, Publish, Records, Step
from libs.core.evolve import replace
from libs.events.hosts import HostFenceFailed
from libs.events.signals import Heartbeat
from libs.model import FenceProof
from services.fencer import presume
from services.fencer.decide import Fencer
from services.fencer.state import OPEN, Explained, Fenced, FenceRecord, FencerState
from services.fencer.watches import Claimed, PromiseSeen, Unseen

ANEW = "stood still, or was cut off: what hosts with a watchdog have left to live is counted anew"


@dataclass(frozen=True, slots=True)
class Watchful(Fencer):
    """Decider of the fencer. `watched`: hosts that have a watchdog by the pool file."""

    watched: tuple[str, ...] = ()
    how: presume.Presume = field(default_factory=lambda: presume.Presume(margin_s=2.0, ask_timeout_s=0.9))

    def resume(self, state: FencerState, records: Records, now: float) -> Step[FencerState]:
        step = Fencer.resume(self, state, records, now)
        return self._followed(replace(step.state, presume=presume.resumed(state.presume, now)), step, now)

    def wake_at(self, state: FencerState) -> float | None:
        due = (Fencer.wake_at(self, state), presume.wake_at(state.presume))
        return min((at for at in due if at is not None), default=None)

    def step(self, state: FencerState, event: Input | None, now: float) -> Step[FencerState]:
        if not self.watched:
            return Fencer.step(self, state, event, now)
        step = self._looked(state, event, now)
        if step is None:
            step = Fencer.step(self, state, event, now)
        return self._followed(step.state, step, now)

    def _followed(self, state: FencerState, step: Step[FencerState], now: float) -> Step[FencerState]:
        """Whose incident is open is watched from now on, and asked after as it is due."""
        seen = presume.follow(state.presume, state.records, self.watched, now)
        seen, effects = presume.due(seen, self.how, now)
        if seen is state.presume:
            return step if state is step.state else Step(state, step.effects)
        return Step(replace(state, presume=seen), (*step.effects, *effects))

    def _looked(self, state: FencerState, event: Input | None, now: float) -> Step[FencerState] | None:
        """What an input says of hosts with a watchdog; None where it is none of theirs."""
        seen, proof = state.presume, None
        match event:
            case Heartbeat():
                seen, effects = presume.heard(seen, event, now)
                return Step(replace(state, presume=seen), effects)
            case Paused() | BusChanged():
                said = (Note(ANEW),) if seen.watches else ()
                return Step(replace(state, presume=presume.anew(seen, now)), said)
            case PromiseSeen():
                seen = presume.promised(seen, event, now)
            case Unseen():
                seen, effects = presume.answered(seen, event, self.how, now)
                return Step(replace(state, presume=seen), effects)
            case Claimed(incident=incident):
                seen, proof = presume.claimed(seen, event, now)
                if proof is not None:
                    return self._presumed(state, incident, proof)
            case Expired():
                found = presume.expired(seen, event, now)
                if found is None:
                    return None
                seen = found
            case _:
                return None
        return Step(replace(state, presume=seen))

    def _presumed(self, state: FencerState, incident: str, proof: FenceProof) -> Step[FencerState]:
        record = state.fence(proof.of.host)
        if record is None or record.incident != incident or record.phase not in OPEN or record.recovered:
            return Step(state)
        return self._proven(state, record, proof, f"host.failed/{incident}")

    def _outcome(self, state: FencerState, outcome: Fenced, now: float) -> Step[FencerState]:
        """An attempt by power has ended: where it brought no proof, the watchdog's part in that is named, too."""
        record = state.incident(outcome.incident)
        if outcome.proof is None and record is not None:
            lacks = presume.missing(state.presume, self.how, record.at.host)
            outcome = outcome.model_copy(update={"missing": (*outcome.missing, *lacks)})
        step = Fencer._outcome(self, state, outcome, now)
        if record is None or not presume.runs_out(state.presume, self.how, record.at.host, now):
            return step
        return self._untold(replace(step, state=replace(step.state, alert_at=state.alert_at)), record)

    def _explained(self, state: FencerState, outcome: Explained) -> Step[FencerState]:
        """An attempt by power that takes long is told of: so is the watchdog's part."""
        record = state.incident(outcome.incident)
        lacks = () if record is None else presume.missing(state.presume, self.how, record.at.host)
        missing = (*outcome.missing, *lacks)
        return Fencer._explained(self, state, outcome.model_copy(update={"missing": missing}))

    def _untold(self, step: Step[FencerState], before: FenceRecord) -> Step[FencerState]:
        """The attempt is repeated as ever; that it failed is told with a later one, if that fails as well, or in time while
        that goes on."""
        kept = tuple(
            one
            for one in step.effects
            if not (isinstance(one, Publish) and isinstance(one.fact, HostFenceFailed))
        )
        if len(kept) == len(step.effects):
            return step
        host = before.at.host
        record = step.state.records[host].model_copy(update={"missing": before.missing})
        return Step(replace(step.state, records=step.state.records.insert(host, record)), kept)
