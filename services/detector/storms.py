"""Storms: more suspects at once than believable, so that verdicts without a proof wait (DESIGN §4 rule 7).

A storm ends when the number is believable again. Until then evidence that stands on its own passes, and so do
the hosts that an operator has released by name: not one that falls silent after the operator looked.
"""

from __future__ import annotations

from rpds import HashTrieMap

from libs.core.decider import Publish, Step
from libs.core.evolve import replace
from libs.events.hosts import StormHeld, StormReleased
from libs.events.words import StormReleaseOrdered
from libs.model import HostState
from services.detector.evidence import living
from services.detector.state import STORM, DetectorState, StormRecord
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
    return raging(state, hosts, len(silent))


def raging(state: State, hosts: Hosts, silent: int) -> bool:
    """So many are silent at once that it is more likely the observer's doing than theirs. Asked at each tick while anybody
    is silent: counted no further than needed."""
    known = 0
    for host in hosts if silent > 0 else ():
        if state.record(host).at is not None:
            known += 1
            if storm_limit(known) >= silent:
                return False
    return silent > storm_limit(known) if silent > 0 else False


def holds(state: State, hosts: Hosts, judged: str, settle_s: float, now: float) -> bool:
    """True where a verdict on this host needs evidence that stands on its own: in a storm that no operator has
    released it from, and while others still fall silent, since that may be how a storm begins."""
    if released(state, judged):
        return False
    if state.storm is not None or stormy(state, hosts, judged):
        return True
    return any(now - since < settle_s for host, since in state.silent_since.items() if host != judged)


def released(state: State, host: str) -> bool:
    """An operator has looked, and said that this host may be held failed in the storm that is held."""
    return state.storm is not None and host in state.storm.released


def ordered(state: State, hosts: Hosts, word: StormReleaseOrdered) -> Step[State]:
    """An operator's word. It counts for those whom it names and who are suspects still, and for the storm that
    the operator was shown."""
    storm = state.storm
    if storm is None or storm.number != word.number or word.order <= storm.order:
        return Step(state)
    silent = suspects(state, hosts)
    released = tuple(host for host in silent if host in word.suspects)
    known = tuple(host for host in storm.suspects if host in released)
    update = {"suspects": known, "released": released, "order": word.order, "by": word.by}
    return Step(_kept(state, storm.model_copy(update=update)))


def watch(state: State, hosts: Hosts, unwell: Hosts, now: float) -> Step[State]:
    """Note who is silent; hold a storm that begins or grows after its release, release one that is over. Suspects are
    among the `unwell`, in the order of `hosts`."""
    silent = suspects(state, unwell)
    if (silent or state.silent_since) and set(silent) != set(state.silent_since):
        since = {host: state.silent_since.get(host, now) for host in silent}
        state = replace(state, silent_since=HashTrieMap(since))
    storm = state.storm
    rages = raging(state, hosts, len(silent))
    if storm is None:
        return _hold(state, hosts, silent, None) if rages else Step(state)
    if not rages:
        over = storm.model_copy(update={"held": False, "suspects": (), "released": (), "by": ""})
        released = StormReleased(number=storm.number, rule="believable again")
        return Step(_doubting(_kept(state, over), now), (Publish(STORM, released),))
    # who has spoken is released no longer: its next silence is another one
    released_ = tuple(host for host in storm.released if host in state.silent_since)
    named = tuple(host for host in storm.suspects if host in state.silent_since)
    if (released_, named) != (storm.released, storm.suspects):
        storm = storm.model_copy(update={"released": released_, "suspects": named})
        state = _kept(state, storm)
    if storm.by and any(host not in named and host not in released_ for host in silent):
        return _hold(state, hosts, silent, storm)
    return Step(state)


def _hold(state: State, hosts: Hosts, silent: list[str], before: StormRecord | None) -> Step[State]:
    """Alert, naming all suspects. `before`: the storm that has grown since an operator released it."""
    latest = state.records.get(STORM)
    if isinstance(latest, StormRecord):
        number, order = latest.number + 1, latest.order
    else:  # of storms that an earlier version held nothing is stored
        number, order = max(state.record(host).number for host in hosts) + 1, 0
    held = StormHeld(
        number=number,
        suspects=tuple(silent),
        limit=_limit(state, hosts),
        rule="more suspects at once than believable"
        if before is None
        else "another suspect since the release",
    )
    record = StormRecord(number=number, held=True, suspects=held.suspects, order=order)
    if before is not None:
        record = record.model_copy(update={"released": before.released, "by": before.by})
    return Step(_kept(state, record), (Publish(STORM, held),))


def _limit(state: State, hosts: Hosts) -> int:
    return storm_limit(sum(1 for host in hosts if state.record(host).at is not None))


def _kept(state: State, record: StormRecord) -> State:
    return replace(state, records=state.records.insert(STORM, record))


def _doubting(state: State, now: float) -> State:
    """What was seen in the storm may be the storm's doing: whoever is silent after it must be so for a full
    period more. A reading of power stands on its own."""
    views = {
        host: view if view.suspicion is None else replace(view, suspicion=living(view.suspicion, STORM, now))
        for host, view in state.views.items()
    }
    return replace(state, views=HashTrieMap(views))
