"""What the courier is told, asks for and writes down."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.core.decider import Outcome, Request
from libs.core.ports import Kept
from libs.events.facts import AnyFact
from libs.model import Value
from services.alerting.schedule import Verdict
from services.alerting.texts import Severity, tell


@dataclass(frozen=True, slots=True)
class Letter:
    """One event as it is posted: the same bytes for every endpoint and at every try."""

    sequence: int
    id: str
    fact: AnyFact
    severity: Severity
    text: str
    told: datetime
    body: str


def letter(kept: Kept) -> Letter:
    """The CloudEvent as it lies in the stream, with two extensions: `severity`, and `text`, a sentence for people."""
    severity, text = tell(kept.envelope.data)
    body = kept.envelope.model_dump(mode="json", exclude_none=True)
    told = json.dumps({**body, "severity": severity.value, "text": text}, separators=(",", ":"))
    return Letter(
        kept.sequence, kept.envelope.id, kept.envelope.data, severity, text, kept.envelope.time, told
    )


def message_id(event: str) -> str:
    """The webhook-id of an event: the same at every try and for every endpoint. No dots, as Standard Webhooks wants."""
    return "msg_" + hashlib.sha256(event.encode()).hexdigest()[:32]


class Place(Value):
    """How far one endpoint has come in the stream of events."""

    kind: Literal["place"] = "place"
    sequence: int = Field(description="everything up to here is delivered, filtered or a dead letter")
    tries: int = Field(0, description="of the next one, in vain")
    failing: int = Field(
        0, description="sequence at which people were told that it takes nothing; 0: they were not"
    )
    giving: bool = Field(False, description="people were told that events are given up")
    disabled: str = Field("", description="why it is told nothing any more")


class Dead(Value):
    """One event that was given up for one endpoint."""

    kind: Literal["dead"] = "dead"
    endpoint: str
    sequence: int
    event: str
    reason: str
    tries: int
    ordered: int = Field(0, description="how often an operator had it sent again")


Record = Annotated[Place | Dead, Field(discriminator="kind")]


class Fetch(Request):
    """Read events after a place in the stream; where that is None, only say where the stream ends."""

    kind: Literal["fetch"] = "fetch"
    endpoint: str
    after: int | None


class Post(Request):
    """Deliver one event. Not owed: the place in the stream says what is."""

    kind: Literal["post"] = "post"
    endpoint: str
    letter: Annotated[Letter, Field(exclude=True)]


class Resend(Request):
    """Deliver a dead letter once more. Owed, so it names the event by its place."""

    kind: Literal["resend"] = "resend"
    endpoint: str
    sequence: int
    record: str


class Fetched(Outcome):
    """`end`: where the stream ended, or the sequence of the last event that was read."""

    endpoint: str
    letters: Annotated[tuple[Letter, ...], Field(exclude=True)] = ()
    end: int


class Tried(Outcome):
    """What became of one delivery."""

    endpoint: str
    sequence: int
    verdict: Verdict
    reason: str = ""
    asked_s: float | None = Field(None, description="the endpoint's Retry-After")
    age_s: float = Field(0.0, description="how long ago the event was told, by wall clocks")
    record: str = Field("", description="of the dead letter, where it was one")

    @property
    def ended(self) -> str:
        return self.verdict.value


REQUESTS: TypeAdapter[Fetch | Resend] = TypeAdapter(Annotated[Fetch | Resend, Field(discriminator="kind")])
