"""What breaks in the observer's own hearing do to its evidence: it is discarded (DESIGN §4 rule 6)."""

from __future__ import annotations

import math

from rpds import HashTrieMap

from libs.core.decider import Effect, Step
from libs.core.evolve import replace
from libs.events.signals import Canary
from services.detector import canary
from services.detector.state import DetectorState, HostView

State = DetectorState


def deaf(state: State, until: float, period_s: float) -> State:
    """Discard our own evidence and listen for a full period before suspecting anyone."""
    views: HashTrieMap[str, HostView] = HashTrieMap(
        {host: replace(view, suspicion=None) for host, view in state.views.items()}
    )
    return replace(state, views=views, listening_since=until, judge_from=until + period_s)


def again(state: State, replica: str, period_s: float, now: float, *, anew: bool) -> Step[State]:
    """After a break in what we hear: until the bus is there and we hear ourselves nobody is silent. `anew`: with
    another connection, on which we were never deaf."""
    if state.cut:
        return Step(deaf(replace(state, canary=canary.cut(state.canary)), math.inf, period_s))
    effects: tuple[Effect, ...] = ()
    bird = canary.begun(state.canary, now)
    if anew:
        bird, effects = canary.hearing(bird, replica, now)
    until = now if bird.deaf_since is None else math.inf
    return Step(deaf(replace(state, canary=bird), until, period_s), effects)


def canary_back(state: State, signal: Canary, replica: str, period_s: float, now: float) -> Step[State]:
    """We hear ourselves: where we were deaf, we begin anew."""
    bird = canary.heard(state.canary, signal, replica, now)
    if bird is state.canary:
        return Step(state)
    bird, effects = canary.hearing(bird, replica, now)
    state = replace(state, canary=bird)
    return Step(deaf(state, now, period_s) if effects else state, effects)


def canary_flown(state: State, replica: str, period_s: float, now: float) -> Step[State]:
    """Send one where it is due; where none came back for too long, we are deaf."""
    bird, effects = canary.flown(state.canary, replica, now)
    if bird.deaf_since is not None and state.canary.deaf_since is None:
        state = deaf(state, math.inf, period_s)
    return Step(replace(state, canary=bird), effects)
