"""Storms: more suspects at once than believable, so that verdicts without a proof wait (DESIGN §4 rule 7)."""

from __future__ import annotations

from rpds import HashTrieMap

from libs.core.decider import Publish, Step
from libs.core.evolve import replace
from libs.events.facts import StormHeld, StormReleased
from libs.model import HostState
from services.detector.state import DetectorState
from services.detector.verdict import storm_limit

State = DetectorState
Hosts = tuple[str, ...]


def suspects(state: State, hosts: Hosts) -> list[str]:
    """Who is silent: suspected, or held failed and not yet fenced."""
    silent = (HostState.SUSPECT, HostState.FAILED)
    return [host for host in hosts if state.record(host).state in silent]


def stormy(state: State, hosts: Hosts, judged: str | None = None) -> bool:
    """`judged`: a host about to be held failed is silent, too, also where it was held to be agent_down."""
    silent = {*suspects(state, hosts), *([judged] if judged is not None else [])}
    if not silent:
        return False
    known = sum(1 for host in hosts if state.record(host).at is not None)
    return len(silent) > storm_limit(known)


def holds(state: State, hosts: Hosts, judged: str) -> bool:
    """True where a verdict on this host needs evidence that stands on its own."""
    return state.storm > 0 or stormy(state, hosts, judged)


def watch(state: State, hosts: Hosts, now: float) -> Step[State]:
    """Hold a storm that began, release one that is over."""
    raging = stormy(state, hosts)
    if raging and not state.storm:
        number = max((record.number for record in state.records.values()), default=0) + state.storms + 1
        known = sum(1 for host in hosts if state.record(host).at is not None)
        held = StormHeld(
            number=number,
            suspects=tuple(suspects(state, hosts)),
            limit=storm_limit(known),
            rule="more suspects at once than believable",
        )
        state = replace(state, storm=number, storms=state.storms + 1)
        return Step(state, (Publish(held.suspects[0], held),))
    if state.storm and not raging:
        released = StormReleased(number=state.storm, rule="believable again")
        return Step(_over(state, now), (Publish(hosts[0], released),))
    return Step(state)


def _over(state: State, now: float) -> State:
    """What was seen in the storm may be the storm's doing: whoever is silent after it must be so for a full
    period more. A reading of power stands on its own."""
    views = {
        host: view
        if view.suspicion is None
        else replace(view, suspicion=replace(view.suspicion, alive_at=now))
        for host, view in state.views.items()
    }
    return replace(state, views=HashTrieMap(views), storm=0)
