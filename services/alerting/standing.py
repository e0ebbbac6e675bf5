"""The keeper of alerts: each is a state that is raised once, told, repeated while nobody minds it, and cleared by itself.

Events are read from the stream, from the place that is written down. What comes soon after a notice waits and is told as
a digest: a storm of events is a handful of messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rpds import HashTrieMap

from libs.config.alerts import Alerts
from libs.core.decider import Act, Effect, Expired, Input, Records, Step
from libs.core.evolve import replace
from libs.events.alerts import AlertAcknowledged, AlertSilenced, AlertUnsilenced
from libs.events.base import Fact
from services.alerting import catalogue
from services.alerting.letters import Fetch, Fetched, Letter
from services.alerting.notices import (
    Alert,
    AlertRecord,
    Heard,
    Message,
    Mirror,
    Mirrored,
    Notice,
    Said,
    Silence,
)
from services.alerting.state import (
    StandingState,
    View,
    heard_again,
    name_of,
    notice,
    silenced,
    stale,
    timed,
)
from services.alerting.telling import TELL_S, flush, queue, said, send

PLACE = "place"
MARKS = (PLACE, "alert.")
"""Written after messages: what an alert says is still to be told is struck out once a message says it."""
FETCH_S, FETCH_AGAIN_S = 20.0, 1.0
MIRROR_S = 60.0
"""An Alertmanager forgets what it is not shown again; five of these are its own default."""
TICK_S = 60.0
ALERTS_MOST, ENDED_MOST = 5000, 500


@dataclass(frozen=True, slots=True)
class Standing:
    """Decider of alerts."""

    settings: Alerts

    @property
    def record_type(self) -> Any:
        return AlertRecord

    def initial(self, now: float) -> StandingState:
        return StandingState(Records())

    def records(self, state: StandingState) -> Records:
        return state.records

    def wake_at(self, state: StandingState) -> float | None:
        times = (at for at in (state.soonest, state.quiet_until) if at is not None)
        return min(times, default=None)

    def resume(self, state: StandingState, records: Records, now: float) -> Step[StandingState]:
        """Times are counted anew: an alert is repeated, or clears by itself, a whole while after."""
        channels = {one.name for one in self.settings.channels}
        heard = records.get(PLACE)
        state = StandingState(records, heard.sequence if heard else -1, turn=state.turn)
        for name, record in records.items():
            if isinstance(record, Message) and record.channel not in channels:
                state = replace(state, records=state.records.remove(name))  # it is configured no more
            elif isinstance(record, Message) and record.waits:  # else it is owed, and said again by the shell
                state = timed(state, f"send/{name}", now)
            elif isinstance(record, Alert):
                if record.untold:
                    state = replace(state, pending=(*state.pending, name), quiet_until=now)
                if not record.over:
                    state = self._counted(state, record, now)
            elif isinstance(record, Silence):
                state = replace(state, silences=state.silences.insert(record.order, record.pattern))
                state = timed(state, f"silence/{record.order}", now + min(TICK_S, record.left_s))
        views = HashTrieMap({one.name: View() for one in self.settings.alertmanagers})
        if views:
            state = timed(replace(state, views=views), "mirror", now + MIRROR_S)
        effects: list[Effect] = []
        return Step(self._on(state, effects), tuple(effects))

    def step(self, state: StandingState, event: Input | None, now: float) -> Step[StandingState]:
        effects: list[Effect] = []
        match event:
            case None:
                state = self._due(state, effects, now)
            case Fact():
                state = replace(state, more=True)
            case Fetched():
                state = self._fetched(state, event, effects, now)
            case Said():
                state = said(state, event.record, event.ok, effects, now)
            case Mirrored():
                state = self._mirrored(state, event.manager, event.key, event.ok)
            case Expired(request="fetch") if state.busy == event.key:
                return Step(timed(state, "fetch", now + FETCH_AGAIN_S))
            case Expired(request="tell"):
                state = said(state, event.key.split("/")[1], False, effects, now)
            case Expired(request="mirror"):
                state = self._mirrored(state, event.key.split("/")[1], event.key, False)
            case _:
                return Step(state)
        return Step(self._on(state, effects), tuple(effects))

    # -- reading

    def _on(self, state: StandingState, effects: list[Effect]) -> StandingState:
        """Read on, and show the Alertmanagers what is new to them, where nothing of the kind is under way."""
        if state.more and not state.busy:
            turn = state.turn + 1
            key = f"fetch/alerts/{turn}"
            after = None if state.read < 0 else state.read
            effects.append(Act(None, Fetch(key=key, deadline_s=FETCH_S, endpoint="alerts", after=after)))
            state = replace(state, busy=key, more=False, turn=turn)
        for name, view in list(state.views.items()):
            if not view.stale or view.busy:
                continue
            turn = state.turn + 1
            key = f"mirror/{name}/{turn}"
            shown = (*self._standing(state), *view.ended)
            effects.append(Act(None, Mirror(key=key, deadline_s=TELL_S, manager=name, notices=shown)))
            view = replace(view, busy=key, stale=False)
            state = replace(state, views=state.views.insert(name, view), turn=turn)
        return state

    def _fetched(
        self, state: StandingState, event: Fetched, effects: list[Effect], now: float
    ) -> StandingState:
        if event.key != state.busy:
            return state
        # what came of the events before these is written down by now: their place is. That of these is with the next
        # reading, which follows at once
        heard = Heard(sequence=event.end if state.read < 0 or not event.letters else state.read)
        more = state.more or bool(event.letters)
        state = replace(state, busy="", more=more, read=event.end)
        if state.records.get(PLACE) != heard:
            state = replace(state, records=state.records.insert(PLACE, heard))
        for letter in event.letters:
            state = self._heard(state, letter, effects, now)
        return state

    def _heard(
        self, state: StandingState, letter: Letter, effects: list[Effect], now: float
    ) -> StandingState:
        fact: Fact = letter.fact
        match fact:
            case AlertAcknowledged():
                return self._acknowledged(state, fact)
            case AlertSilenced():
                kept = Silence(order=fact.order, pattern=fact.pattern, left_s=fact.for_s, by=fact.by)
                records = state.records.insert(f"silence.{fact.order}", kept)
                silences = state.silences.insert(fact.order, fact.pattern)
                state = stale(replace(state, records=records, silences=silences))
                return timed(state, f"silence/{fact.order}", now + min(TICK_S, fact.for_s))
            case AlertUnsilenced():
                return heard_again(state, fact.silence)
        found = catalogue.raised(fact)
        for key in catalogue.cleared(fact):
            if found is None or key != found[0]:
                state = self._clear(state, key, letter.sequence, effects, now)
        return state if found is None else self._raise(state, letter, *found, effects, now)

    # -- alerts

    def _raise(
        self,
        state: StandingState,
        letter: Letter,
        key: str,
        row: catalogue.AlertKind,
        effects: list[Effect],
        now: float,
    ) -> StandingState:
        """A new one is told; one that stands is counted."""
        was = state.records.get(name_of(key))
        if isinstance(was, Alert) and was.sequence >= letter.sequence:
            return state  # read again after a restart
        if isinstance(was, Alert):
            changes: dict[str, Any] = {"text": letter.text, "event": letter.id, "sequence": letter.sequence}
            alert = was.model_copy(update={**changes, "count": was.count + 1})
        elif len(state.records) >= ALERTS_MOST:
            return state
        else:
            alert = Alert(
                key=key,
                name=row.name,
                severity=letter.severity,
                text=letter.text,
                do=row.do,
                since=letter.told.isoformat(),
                event=letter.id,
                sequence=letter.sequence,
            )
        fresh = was is None or was.over
        state = replace(state, records=state.records.insert(name_of(key), alert))
        state = self._counted(state, alert, now, repeat=fresh)
        return self._tell(state, alert, effects, now) if fresh else stale(state)

    def _counted(
        self, state: StandingState, alert: Alert, now: float, *, repeat: bool = True
    ) -> StandingState:
        """Begin to count the time until it is repeated, and until it clears by itself."""
        if repeat and not alert.acknowledged_by:
            state = timed(state, f"repeat/{alert.key}", now + self.settings.repeat_s)
        expires_s = catalogue.EXPIRES_S.get(alert.name)
        return state if expires_s is None else timed(state, f"expire/{alert.key}", now + expires_s)

    def _clear(
        self, state: StandingState, key: str, sequence: int, effects: list[Effect], now: float
    ) -> StandingState:
        alert = state.records.get(name_of(key))
        if not isinstance(alert, Alert) or alert.over or alert.sequence > sequence:
            return state
        timers = state.timers.discard(f"repeat/{key}").discard(f"expire/{key}")
        alert = alert.model_copy(update={"sequence": sequence})
        state = replace(state, records=state.records.remove(name_of(key)), timers=timers)
        over = notice(alert, "resolved")
        for name, view in list(state.views.items()):
            view = replace(view, ended=(*view.ended, over)[-ENDED_MOST:], stale=True)
            state = replace(state, views=state.views.insert(name, view))
        if not alert.told and not alert.untold:
            return state  # nobody was told of it
        return queue(state, alert, "resolved", self.settings, effects, now)

    def _acknowledged(self, state: StandingState, word: AlertAcknowledged) -> StandingState:
        alert = state.records.get(name_of(word.alert))
        if not isinstance(alert, Alert) or alert.over:
            return state
        minded = alert.model_copy(update={"acknowledged_by": word.by})
        return replace(
            state,
            records=state.records.insert(name_of(word.alert), minded),
            timers=state.timers.discard(f"repeat/{word.alert}"),
        )

    def _standing(self, state: StandingState) -> list[Notice]:
        alerts = [one for one in state.records.values() if isinstance(one, Alert) and not one.over]
        shown = [one for one in alerts if not silenced(state, one.key)]
        return [notice(one, "firing") for one in sorted(shown, key=lambda one: one.key)]

    def _tell(self, state: StandingState, alert: Alert, effects: list[Effect], now: float) -> StandingState:
        state = stale(state)
        if not silenced(state, alert.key):
            return queue(state, alert, "firing", self.settings, effects, now)
        quiet = alert.model_copy(update={"untold": "", "over": False})
        return replace(state, records=state.records.insert(name_of(alert.key), quiet))

    def _mirrored(self, state: StandingState, manager: str, key: str, ok: bool) -> StandingState:
        view = state.views.get(manager)
        if view is None or view.busy != key:
            return state
        view = replace(view, busy="", ended=() if ok and not view.stale else view.ended)
        return replace(state, views=state.views.insert(manager, view))

    # -- time

    def _due(self, state: StandingState, effects: list[Effect], now: float) -> StandingState:
        if state.quiet_until is not None and state.quiet_until <= now:
            state = flush(state, self.settings, effects, now)
        for timer in sorted(name for name, at in state.timers.items() if at <= now):
            if timer in state.timers:  # none before it has ended it
                state = replace(state, timers=state.timers.remove(timer))
                state = self._rings(state, timer, effects, now)
        return replace(state, soonest=min(state.timers.values(), default=None))

    def _rings(self, state: StandingState, timer: str, effects: list[Effect], now: float) -> StandingState:
        what, _, of = timer.partition("/")
        alert = state.records.get(name_of(of)) if what == "repeat" else None
        if isinstance(alert, Alert) and not alert.over:
            state = timed(state, timer, now + self.settings.repeat_s)
            return self._tell(state, alert, effects, now)
        if what == "expire":
            return self._clear(state, of, state.read, effects, now)
        if what == "send" and of in state.records:
            return send(state, of, state.records[of], effects)
        if what == "fetch":
            return replace(state, busy="", more=True)
        if what == "silence":
            return self._shorter(state, of, now)
        return stale(timed(state, "mirror", now + MIRROR_S)) if what == "mirror" else state

    def _shorter(self, state: StandingState, order: str, now: float) -> StandingState:
        """What is left of a silence. An alert that stands when it is over is told with its next repeat."""
        name = f"silence.{order}"
        one = state.records.get(name)
        if not isinstance(one, Silence):
            return state
        if one.left_s <= TICK_S:
            return heard_again(state, order)
        shorter = one.model_copy(update={"left_s": one.left_s - TICK_S})
        state = replace(state, records=state.records.insert(name, shorter))
        return timed(state, f"silence/{order}", now + min(TICK_S, shorter.left_s))
