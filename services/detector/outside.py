"""What another system says against a host: questions are asked at once, and nothing is believed by it."""

from __future__ import annotations

from libs.core.decider import Step
from libs.core.evolve import replace
from libs.events.outside import OutsideTold
from libs.model import HostState
from services.detector.state import DetectorState


def doubted(state: DetectorState, fact: OutsideTold, now: float, soon_s: float) -> Step[DetectorState]:
    """Of a host that is held to be well, and is heard: of any other more is known already. Its next heartbeat ends it."""
    record, view = state.record(fact.host), state.view(fact.host)
    well = record.state is HostState.HEALTHY and view.heard_at is not None and view.seen == record.at
    if fact.action != "mark_suspect" or not well or now < view.mute_until:
        return Step(state)
    view = replace(view, doubted=True, told_of=f"told by {fact.source}: {fact.name}")
    views = state.views.insert(fact.host, view)
    return Step(replace(state, views=views, tick_at=min(state.tick_at, now + soon_s)))
