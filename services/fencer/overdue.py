"""What is missing is told in time: also while an attempt is under way whose devices all hang, by how far it has come."""

from __future__ import annotations

from libs.config.settings import FencingSettings
from libs.core.decider import Act, Step
from libs.core.evolve import replace
from services.fencer.state import OPEN, Explain, Explained, FenceRecord, FencerState, Phase, failing, kept

AFTER_RESTART_S = 12.0
"""Nothing tells how long ago the verdict was that another fencer had begun with: its attempt begins anew, and this
long is enough for each level's devices to be asked."""
EXPLAIN_S = 5.0


def begun(
    settings: FencingSettings, state: FencerState, record: FenceRecord, deadline_s: float, now: float
) -> FencerState:
    """The first attempt on a verdict begins. One that ends by then tells by itself what is missing."""
    host, after_s = record.at.host, settings.alert_after_s
    if deadline_s <= after_s:
        return replace(state, alert_at=state.alert_at.discard(host))
    return replace(state, alert_at=state.alert_at.insert(host, now + after_s))


def resumed(
    settings: FencingSettings, state: FencerState, deadlines_s: dict[str, float], now: float
) -> FencerState:
    """Another fencer may have begun long ago and told nothing."""
    after_s = min(AFTER_RESTART_S, settings.alert_after_s)
    fences = [record for record in state.records.values() if isinstance(record, FenceRecord)]
    untold = {
        record.at.host: now + after_s
        for record in fences
        if record.phase in OPEN
        and not record.missing
        and deadlines_s.get(record.at.host, after_s + 1.0) > after_s
    }
    return replace(state, alert_at=type(state.alert_at)(untold))


def due(state: FencerState, now: float) -> Step[FencerState]:
    """Ask what stands in the way of each proof that people should have been told of by now."""
    effects: list[Act] = []
    for host, at in sorted(state.alert_at.items()):
        if at > now:
            continue
        state = replace(state, alert_at=state.alert_at.remove(host))
        record = state.fence(host)
        if record is not None and record.phase in OPEN and not record.missing:
            key = f"explain/{record.incident}/{record.attempt}"
            request = Explain(key=key, deadline_s=EXPLAIN_S, host=host, incident=record.incident)
            effects.append(Act(None, request))
    return Step(state, tuple(effects))


def explained(state: FencerState, outcome: Explained) -> Step[FencerState]:
    """Told once an incident, and only while nothing else has been told of it."""
    record = state.incident(outcome.incident)
    if record is None or record.phase is not Phase.FENCING or record.recovered or record.missing:
        return Step(state)
    missing = outcome.missing or ("no device has been asked yet",)
    record = record.model_copy(update={"missing": missing})
    cause = f"host.failed/{record.incident}"
    return kept(state, record, failing(record, cause, "no proof in time", under_way=True))
