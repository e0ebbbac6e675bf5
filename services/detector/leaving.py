"""A host on standby that the fencer is about to switch off: that it falls silent is no failure, though it is judged and fenced
as one, since somebody may have started a VM there in the last moment."""

from __future__ import annotations

from libs.core.decider import Step
from libs.core.evolve import replace
from libs.events.standby import StandbyLeaving
from services.detector.state import DetectorState, HostRecord

RULE = "power-off"
"""The verdict that is expected then; by any other evidence it is a failure like any other."""


def told(state: DetectorState, fact: StandbyLeaving) -> Step[DetectorState]:
    """Of this boot alone."""
    record = state.record(fact.host)
    if record.at != fact.at or record.leaving == fact.at.boot:
        return Step(state)
    kept = record.model_copy(update={"leaving": fact.at.boot})
    return Step(replace(state, records=state.records.insert(fact.host, kept)))


def expected(record: HostRecord, rule: str) -> bool:
    """Whether a verdict by this rule is what was to come."""
    return rule == RULE and record.at is not None and record.leaving == record.at.boot
