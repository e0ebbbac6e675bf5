"""An incident's record kept, or closed where nothing more is needed, with what is to be said of it."""

from __future__ import annotations

from collections.abc import Sequence

from libs.core.decider import Publish, Step
from libs.core.evolve import replace
from libs.events.facts import AnyFact
from services.placement import incidents
from services.placement.state import Incident, PlacementRecord, PlacementState

State = PlacementState


def settle(state: State, incident: Incident, facts: Sequence[AnyFact]) -> Step[State]:
    """Keep the incident, or close it where it needs nothing more; say what is to be said, in order."""
    record = f"incident.{incident.id}"
    left, done = incidents.settled(incident)
    kept = replace(state, records=state.records.discard(record)) if left is None else keep(state, left)
    return Step(kept, tuple(Publish(record, fact) for fact in (*facts, *done)))


def keep(state: State, incident: Incident) -> State:
    key, record = f"incident.{incident.id}", PlacementRecord(incident=incident)
    if state.records.get(key) == record:
        return state  # an unchanged record is not written again
    return replace(state, records=state.records.insert(key, record))
