"""The courier: every event to every endpoint that wants it, in order, until it is delivered or a day old.

The queue of an endpoint is the stream itself, in which events lie for 30 days; what is written down is how far the
endpoint has come. So nothing is copied twenty times, a killed courier goes on where the last one wrote, and an endpoint
that is down holds up nobody but itself. What was delivered since the last writing is delivered again under the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rpds import HashTrieMap

from libs.config.webhooks import Webhook
from libs.core.decider import Act, Effect, Expired, Input, Publish, Records, Step
from libs.core.evolve import replace
from libs.events.base import Fact
from libs.events.webhooks import (
    WebhookDeadLettered,
    WebhookDisabled,
    WebhookFact,
    WebhookFailing,
    WebhookRecovered,
    WebhookRetryOrdered,
)
from services.alerting.filters import wants
from services.alerting.letters import Dead, Fetch, Fetched, Letter, Place, Post, Record, Resend, Tried
from services.alerting.schedule import FAILING_TRIES, Verdict, given_up, pause_s

FETCH_S = 20.0
FETCH_AGAIN_S = 1.0
SAVE_AFTER, SAVE_S = 100, 1.0
"""A place is written down when so many events, or seconds, have passed since it was."""
DEAD_MOST = 1000
"""Dead letters that are kept for one endpoint: the oldest go first."""


@dataclass(frozen=True, slots=True)
class Line:
    """One endpoint's events on their way. `queue` is in order; its head is the one that is tried."""

    done: int
    read: int
    queue: tuple[Letter, ...] = ()
    tries: int = 0
    busy: str = ""
    """Key of the act that is under way: a delivery or a reading."""
    more: bool = True
    """There may be events beyond `read`."""
    wake_at: float | None = None
    save_at: float | None = None
    failing: int = 0
    giving: bool = False
    disabled: str = ""


@dataclass(frozen=True, slots=True)
class CourierState:
    records: Records
    lines: HashTrieMap[str, Line]
    turn: int = 0
    """Numbers the acts of this life."""


@dataclass(frozen=True, slots=True)
class Courier:
    """Decider of deliveries to the configured endpoints."""

    endpoints: tuple[Webhook, ...]
    by_name: dict[str, Webhook] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {one.name: one for one in self.endpoints})

    @property
    def record_type(self) -> Any:
        return Record

    def initial(self, now: float) -> CourierState:
        return CourierState(Records(), HashTrieMap())

    def records(self, state: CourierState) -> Records:
        return state.records

    def wake_at(self, state: CourierState) -> float | None:
        times = (at for line in state.lines.values() for at in (line.wake_at, line.save_at) if at is not None)
        return min(times, default=None)

    def resume(self, state: CourierState, records: Records, now: float) -> Step[CourierState]:
        """Each line begins where it was written down; one that is new begins with the next event."""
        for name in list(records):
            if name.split(".")[1] not in self.by_name:
                records = records.remove(name)  # an endpoint that is configured no more
        state = replace(state, records=records, lines=HashTrieMap())
        effects: list[Effect] = []
        for name in self.by_name:
            place = records.get(f"place.{name}")
            line = Line(-1, -1) if place is None else _line(place)
            state = _with(state, name, line)
            state = self._go_on(state, name, effects, now)
        return Step(state, tuple(effects))

    def step(self, state: CourierState, event: Input | None, now: float) -> Step[CourierState]:
        effects: list[Effect] = []
        match event:
            case None:
                state = self._due(state, effects, now)
            case WebhookRetryOrdered():
                state = self._ordered(self._rung(state, effects, now), event, effects, now)
            case Fact():
                state = self._rung(state, effects, now)
            case Fetched(endpoint=name):
                state = self._for(
                    state, name, event.key, lambda line: self._fetched(line, event), effects, now
                )
            case Tried(record=""):
                state = self._tried(state, event, effects, now)
            case Tried():
                state = self._resent(state, event)
            case Expired(request="resend"):
                state = self._resent_late(state, event)
            case Expired():
                state = self._expired(state, event, effects, now)
            case _:
                pass
        return Step(state, tuple(effects))

    # -- what an endpoint does next

    def _go_on(self, state: CourierState, name: str, effects: list[Effect], now: float) -> CourierState:
        """Deliver the head, or read on, unless something is under way, waited for, or the endpoint is gone."""
        line = state.lines[name]
        if line.busy or line.wake_at is not None or line.disabled:
            return state
        turn = state.turn + 1
        if line.queue:
            head = line.queue[0]
            key = f"post/{name}/{head.sequence}/{turn}"
            deadline_s = self.by_name[name].timeout_s + 5.0
            effects.append(Act(None, Post(key=key, deadline_s=deadline_s, endpoint=name, letter=head)))
        elif line.more:
            key = f"fetch/{name}/{line.read}/{turn}"
            after = None if line.read < 0 else line.read
            effects.append(Act(None, Fetch(key=key, deadline_s=FETCH_S, endpoint=name, after=after)))
            line = replace(line, more=False)
        else:
            return state
        return replace(_with(state, name, replace(line, busy=key)), turn=turn)

    def _for(
        self,
        state: CourierState,
        name: str,
        key: str,
        change: Callable[[Line], Line],
        effects: list[Effect],
        now: float,
    ) -> CourierState:
        """The outcome of what a line has under way; of what an earlier life asked for, nothing."""
        line = state.lines.get(name)
        if line is None or line.busy != key:
            return state
        state = _with(state, name, change(replace(line, busy="")))
        return self._go_on(self._saved(state, name, now), name, effects, now)

    def _rung(self, state: CourierState, effects: list[Effect], now: float) -> CourierState:
        """Something was told: there is more to be read."""
        for name, line in list(state.lines.items()):
            if not line.more:
                state = _with(state, name, replace(line, more=True))
                state = self._go_on(state, name, effects, now)
        return state

    def _fetched(self, line: Line, event: Fetched) -> Line:
        endpoint = self.by_name[event.endpoint]
        wanted = tuple(one for one in event.letters if wants(endpoint, one.fact, one.severity))
        more = line.more or bool(
            event.letters
        )  # what was told while we read, and what lies beyond a full batch
        done = line.done if wanted and line.done >= 0 else event.end
        return replace(line, queue=wanted, read=event.end, more=more, done=done)

    # -- what became of a delivery

    def _tried(self, state: CourierState, event: Tried, effects: list[Effect], now: float) -> CourierState:
        name = event.endpoint
        line = state.lines.get(name)
        if line is None or line.busy != event.key:
            return state
        line = replace(line, busy="")
        head, tries = line.queue[0], line.tries + 1
        if event.verdict is Verdict.DELIVERED:
            if line.failing:
                effects.append(
                    Publish(f"place.{name}", WebhookRecovered(endpoint=name, sequence=line.failing))
                )
            state = _with(state, name, replace(_past(line), tries=0, failing=0, giving=False))
        elif event.verdict is Verdict.GONE:
            at = line.failing or head.sequence
            gone = WebhookDisabled(endpoint=name, sequence=at, reason=event.reason)
            effects.append(Publish(f"place.{name}", gone))
            off = replace(line, disabled=event.reason, tries=0, failing=0, giving=False)
            state = _with(state, name, off)
        elif given_up(tries, event.verdict, event.age_s):
            state = self._give_up(state, line, event, tries, effects)
        else:
            wake_at = now + pause_s(name, head.id, tries, event.asked_s)
            line = replace(line, tries=tries, wake_at=wake_at)
            if tries >= FAILING_TRIES and not line.failing:
                told = WebhookFailing(endpoint=name, sequence=head.sequence, reason=event.reason)
                effects.append(Publish(f"place.{name}", told))
                line = replace(line, failing=head.sequence)
            state = _with(state, name, line)
        return self._go_on(self._saved(state, name, now), name, effects, now)

    def _give_up(
        self, state: CourierState, line: Line, event: Tried, tries: int, effects: list[Effect]
    ) -> CourierState:
        """The head is a dead letter. Told of the first of a row, and never of one that itself tells of an endpoint: with
        several that are dead, each would make more of them for the others."""
        name, head = event.endpoint, line.queue[0]
        record = f"dead.{name}.{head.sequence:012d}"
        dead = Dead(endpoint=name, sequence=head.sequence, event=head.id, reason=event.reason, tries=tries)
        records = state.records.insert(record, dead)
        kept = sorted(one for one in records if one.startswith(f"dead.{name}."))
        for old in kept[: max(0, len(kept) - DEAD_MOST)]:
            records = records.remove(old)
        if not line.giving and not isinstance(head.fact, WebhookFact):
            told = WebhookDeadLettered(
                endpoint=name, sequence=head.sequence, undelivered=head.id, reason=event.reason, tries=tries
            )
            effects.append(Publish(record, told))
            line = replace(line, giving=True)
        alive = event.verdict is Verdict.REFUSED  # it answers: what follows may be to its taste
        line = replace(_past(line), tries=0 if alive else tries)
        return _with(replace(state, records=records), name, line)

    def _expired(
        self, state: CourierState, event: Expired, effects: list[Effect], now: float
    ) -> CourierState:
        """Nothing was read, or a delivery had no end: as one that failed."""
        name = event.key.split("/")[1]
        line = state.lines.get(name)
        if line is None or line.busy != event.key:
            return state
        if event.request == "fetch":
            later = replace(line, busy="", more=True, wake_at=now + FETCH_AGAIN_S)
            return _with(state, name, later)
        sequence = line.queue[0].sequence
        late = Tried(
            key=event.key, endpoint=name, sequence=sequence, verdict=Verdict.FAILED, reason=event.reason
        )
        return self._tried(state, late, effects, now)

    # -- an operator's word

    def _ordered(
        self, state: CourierState, word: WebhookRetryOrdered, effects: list[Effect], now: float
    ) -> CourierState:
        """Enable the endpoint, try its head at once, and send its dead letters again."""
        name = word.endpoint
        line = state.lines.get(name)
        if line is None:
            return state
        state = _with(state, name, replace(line, disabled="", wake_at=None))
        state = self._go_on(self._saved(state, name, now), name, effects, now)
        for record, dead in _dead_of(state.records, name):
            if word.events and dead.event not in word.events:
                continue
            again = dead.model_copy(update={"ordered": dead.ordered + 1})
            state = replace(state, records=state.records.insert(record, again))
            request = Resend(
                key=f"resend/{name}/{dead.sequence}/{again.ordered}",
                deadline_s=self.by_name[name].timeout_s + FETCH_S,
                endpoint=name,
                sequence=dead.sequence,
                record=record,
            )
            effects.append(Act(record, request))
        return state

    def _resent(self, state: CourierState, event: Tried) -> CourierState:
        dead = state.records.get(event.record)
        if not isinstance(dead, Dead):
            return state
        if event.verdict is Verdict.DELIVERED:
            return replace(state, records=state.records.remove(event.record))
        again = dead.model_copy(update={"reason": event.reason, "tries": dead.tries + 1})
        return replace(state, records=state.records.insert(event.record, again))

    def _resent_late(self, state: CourierState, event: Expired) -> CourierState:
        _, name, sequence, _ = event.key.split("/")
        record = f"dead.{name}.{int(sequence):012d}"
        late = Tried(
            key=event.key,
            endpoint=name,
            sequence=int(sequence),
            verdict=Verdict.FAILED,
            reason=event.reason,
            record=record,
        )
        return self._resent(state, late)

    # -- time, and what is written down

    def _due(self, state: CourierState, effects: list[Effect], now: float) -> CourierState:
        for name, line in list(state.lines.items()):
            if line.save_at is not None and line.save_at <= now:
                state = _written(state, name)
            line = state.lines[name]
            if line.wake_at is not None and line.wake_at <= now:
                state = self._go_on(_with(state, name, replace(line, wake_at=None)), name, effects, now)
        return state

    def _saved(self, state: CourierState, name: str, now: float) -> CourierState:
        """Write the place down where something else than its number changed, or it is far behind; else soon."""
        line, place = state.lines[name], state.records.get(f"place.{name}")
        if line.done < 0:
            return state
        if place is None or _but_number(place) != _but_number(_place(line)):
            return _written(state, name)
        if line.done - place.sequence >= SAVE_AFTER:
            return _written(state, name)
        if line.done != place.sequence and line.save_at is None:
            return _with(state, name, replace(line, save_at=now + SAVE_S))
        return state


def _line(place: Place) -> Line:
    return Line(
        place.sequence,
        place.sequence,
        tries=place.tries,
        failing=place.failing,
        giving=place.giving,
        disabled=place.disabled,
    )


def _place(line: Line) -> Place:
    return Place(
        sequence=line.done,
        tries=line.tries,
        failing=line.failing,
        giving=line.giving,
        disabled=line.disabled,
    )


def _but_number(place: Place) -> Place:
    return place.model_copy(update={"sequence": 0})


def _past(line: Line) -> Line:
    """The head is dealt with. With none left, all that was read is, also what the endpoint did not want."""
    head, rest = line.queue[0], line.queue[1:]
    return replace(line, queue=rest, done=head.sequence if rest else line.read)


def _with(state: CourierState, name: str, line: Line) -> CourierState:
    return replace(state, lines=state.lines.insert(name, line))


def _written(state: CourierState, name: str) -> CourierState:
    line = replace(state.lines[name], save_at=None)
    records = state.records.insert(f"place.{name}", _place(line))
    return replace(_with(state, name, line), records=records)


def _dead_of(records: Records, name: str) -> Iterator[tuple[str, Dead]]:
    for record in sorted(one for one in records if one.startswith(f"dead.{name}.")):
        yield record, records[record]
