"""What the keeper of alerts holds, and what is asked of it. Pure."""

from __future__ import annotations

import fnmatch
import hashlib
from dataclasses import dataclass

from rpds import HashTrieMap

from libs.core.decider import Records
from libs.core.evolve import replace
from services.alerting.notices import Alert, Notice

NOTICES_MOST = 2000


@dataclass(frozen=True, slots=True)
class View:
    """What one Alertmanager has been shown."""

    busy: str = ""
    stale: bool = True
    ended: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class StandingState:
    records: Records
    read: int = -1
    busy: str = ""
    more: bool = True
    turn: int = 0
    """Numbers acts and messages."""
    pending: tuple[str, ...] = ()
    """Records of alerts of which something is to be told, in order."""
    quiet_until: float | None = None
    """What is raised or cleared before then waits for a digest."""
    timers: HashTrieMap[str, float] = HashTrieMap()  # noqa: RUF009  it is never changed in place
    soonest: float | None = None
    """No timer is due before: there may be thousands, and this is asked at every step."""
    silences: HashTrieMap[str, str] = HashTrieMap()  # noqa: RUF009  nor this
    """Patterns of the silences that hold, by the word that began each."""
    views: HashTrieMap[str, View] = HashTrieMap()  # noqa: RUF009  nor this


def name_of(key: str) -> str:
    """The record of an alert: its key may hold what a record's name may not."""
    return f"alert.{hashlib.sha256(key.encode()).hexdigest()[:24]}"


def notice(alert: Alert, state: str) -> Notice:
    """The alert as people are told of it."""
    kept = alert.model_dump(include={"key", "name", "severity", "text", "do", "since", "count"})
    return Notice.model_validate({**kept, "state": state})


def silenced(state: StandingState, key: str) -> bool:
    """Whether nobody is to be told of this alert now."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in state.silences.values())


def merged(before: tuple[Notice, ...], after: tuple[Notice, ...]) -> tuple[Notice, ...]:
    """Of each alert the last word, in the order in which the last words came; the newest where they are too many."""
    newer = {one.key for one in after}
    return (*(one for one in before if one.key not in newer), *after)[-NOTICES_MOST:]


def heard_again(state: StandingState, order: str) -> StandingState:
    """A silence is over."""
    records, silences = state.records.discard(f"silence.{order}"), state.silences.discard(order)
    timers = state.timers.discard(f"silence/{order}")
    return stale(replace(state, records=records, silences=silences, timers=timers))


def timed(state: StandingState, timer: str, at: float) -> StandingState:
    soonest = at if state.soonest is None else min(state.soonest, at)
    return replace(state, timers=state.timers.insert(timer, at), soonest=soonest)


def stale(state: StandingState) -> StandingState:
    """All Alertmanagers are to be shown what stands."""
    views = state.views
    for name, view in list(views.items()):
        views = views.insert(name, replace(view, stale=True))
    return replace(state, views=views)
