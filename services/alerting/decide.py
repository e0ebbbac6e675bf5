"""Alerting: every fact to the log and to one webhook, owed until it is delivered or a day old."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from rpds import HashTrieMap

from libs.core.decider import Act, Expired, Input, Outcome, Publish, Records, Request, Step
from libs.core.evolve import replace
from libs.events.base import Fact
from libs.events.facts import ServiceOverdue
from libs.model import Value
from services.alerting import owed
from services.alerting.owed import Owed
from services.alerting.texts import tell

FIRST_S, MOST_S = 1.0, 300.0
TRIES = 300  # about a day at MOST_S
PENDING = 10_000
FOLLOWED_KEPT = 256


class Delivery(Value):
    """One message on its way to the webhook."""

    id: str
    body: dict[str, Any]
    tries: int = 0


class PostWebhook(Request):
    """Deliver one message; the receiver tells repeats by its id."""

    kind: Literal["post_webhook"] = "post_webhook"
    id: str
    record: str
    body: dict[str, Any]


class Announce(Request):
    """Put one sentence into the log."""

    kind: Literal["announce"] = "announce"
    severity: str
    text: str


class Announced(Outcome):
    """It is in the log."""


class Posted(Outcome):
    record: str
    ok: bool
    reason: str = ""


REQUESTS: TypeAdapter[PostWebhook | Announce] = TypeAdapter(
    Annotated[PostWebhook | Announce, Field(discriminator="kind")]
)


@dataclass(frozen=True, slots=True)
class AlertingState:
    records: Records
    retry_at: HashTrieMap[str, float]
    owed: HashTrieMap[str, Owed] = field(default_factory=HashTrieMap)
    """Facts from which nothing has followed yet, by their keys. Not stored: a restart forgets them."""
    followed: tuple[str, ...] = ()
    """What has been followed already, should the fact itself come late."""


@dataclass(frozen=True, slots=True)
class Alerting:
    """Decider of alerting. Without a webhook, facts go to the log alone."""

    webhook: bool
    timeout_s: float
    overdue: bool = False
    """Tell of facts from which nothing follows; see owed.py."""

    @property
    def record_type(self) -> type[Delivery]:
        return Delivery

    def initial(self, now: float) -> AlertingState:
        return AlertingState(Records(), HashTrieMap())

    def resume(self, state: AlertingState, records: Records, now: float) -> Step[AlertingState]:
        retry_at = HashTrieMap({name: now for name in records})
        return Step(replace(state, records=records, retry_at=retry_at))

    def records(self, state: AlertingState) -> Records:
        return state.records

    def wake_at(self, state: AlertingState) -> float | None:
        return min((*state.retry_at.values(), *(one.due_at for one in state.owed.values())), default=None)

    def step(self, state: AlertingState, event: Input | None, now: float) -> Step[AlertingState]:
        match event:
            case None:
                retried = self._retry(state, now)
                step = self._overdue(retried.state, now)
                return Step(step.state, (*retried.effects, *step.effects))
            case Fact():
                return self._tell(self._owed(state, event, now) if self.overdue else state, event)
            case Posted():
                return self._posted(state, event.record, event.ok, now)
            case Expired(request="post_webhook", key=key):
                return self._posted(state, key.rsplit("/", 1)[0].removeprefix("post/"), False, now)
            case _:
                return Step(state)

    def _owed(self, state: AlertingState, fact: Any, now: float) -> AlertingState:
        """What this fact follows from is done with; what must follow from it has its time."""
        marks = tuple(owed.mark(kind, fact) for kind in owed.OF_INCIDENTS if owed.answers(kind, fact))
        left = {key: one for key, one in state.owed.items() if not owed.followed(one, fact)}
        known = tuple(one for one in state.followed if one not in marks)
        found = owed.opened(fact, now)
        if found is not None and owed.mark(found.kind, fact) not in known + marks and len(left) < PENDING:
            left.setdefault(found.of, found)
        return replace(state, owed=HashTrieMap(left), followed=(*known, *marks)[-FOLLOWED_KEPT:])

    def _overdue(self, state: AlertingState, now: float) -> Step[AlertingState]:
        late = sorted((one for one in state.owed.values() if one.due_at <= now), key=lambda one: one.of)
        left = {key: one for key, one in state.owed.items() if one.due_at > now}
        said = tuple(
            Publish(
                "overdue",
                ServiceOverdue(
                    service=one.row.service,
                    of=one.of,
                    waited_s=one.row.within_s,
                    cause=one.of,
                    rule="nothing has followed",
                ),
            )
            for one in late
        )
        return Step(replace(state, owed=HashTrieMap(left)), said)

    def _tell(self, state: AlertingState, fact: Any) -> Step[AlertingState]:
        name = fact.key.replace("/", ".")
        if name in state.records:
            return Step(state)
        severity, text = tell(fact)
        announce = Announce(key=f"log/{fact.key}", deadline_s=1.0, severity=severity.value, text=text)
        if not self.webhook or len(state.records) >= PENDING:
            return Step(state, (Act(None, announce),))
        body = {
            "id": fact.key,
            "severity": severity.value,
            "text": text,
            "data": fact.model_dump(mode="json"),
        }
        step = self._post(state, name, Delivery(id=fact.key, body=body))
        return Step(step.state, (Act(None, announce), *step.effects))

    def _post(self, state: AlertingState, name: str, delivery: Delivery) -> Step[AlertingState]:
        delivery = delivery.model_copy(update={"tries": delivery.tries + 1})
        request = PostWebhook(
            key=f"post/{name}/{delivery.tries}",
            deadline_s=self.timeout_s + 1.0,
            id=delivery.id,
            record=name,
            body=delivery.body,
        )
        return Step(replace(state, records=state.records.insert(name, delivery)), (Act(name, request),))

    def _posted(self, state: AlertingState, name: str, ok: bool, now: float) -> Step[AlertingState]:
        delivery = state.records.get(name)
        if not isinstance(delivery, Delivery):
            return Step(state)
        if ok or delivery.tries >= TRIES:
            return Step(replace(state, records=state.records.remove(name)))
        wait_s = min(FIRST_S * 2.0 ** min(delivery.tries - 1, 16), MOST_S)
        return Step(replace(state, retry_at=state.retry_at.insert(name, now + wait_s)))

    def _retry(self, state: AlertingState, now: float) -> Step[AlertingState]:
        effects: list[Any] = []
        for name, due in sorted(state.retry_at.items()):
            if due > now:
                continue
            state = replace(state, retry_at=state.retry_at.remove(name))
            delivery = state.records.get(name)
            if isinstance(delivery, Delivery):
                step = self._post(state, name, delivery)
                state = step.state
                effects += step.effects
        return Step(state, tuple(effects))
