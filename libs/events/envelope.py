"""CloudEvents 1.0, structured JSON: the form in which facts lie in the stream.

`id` is the fact's key and the server's `Nats-Msg-Id`. Source: CloudEvents v1.0.2 and its NATS binding;
`traceparent` is its Distributed Tracing extension.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, ValidationError

from libs.events.facts import FACT, AnyFact
from libs.events.threads import incident_of, traceparent
from libs.model import Value

CONTENT_TYPE = "application/cloudevents+json"


class Envelope(Value):
    """One CloudEvent around one fact."""

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(min_length=1)
    source: str = Field(min_length=1)
    type: str
    subject: str
    time: datetime = Field(
        description="wall time of the first publication; for people, nothing is decided by it"
    )
    datacontenttype: Literal["application/json"] = "application/json"
    incident: str | None = Field(
        None, description="what all facts of one incident share, an end with its beginning; extension"
    )
    traceparent: str | None = Field(
        None, description="W3C Trace Context: a trace an incident, a span a fact; extension"
    )
    data: AnyFact


class UnreadableError(ValueError):
    """The bytes are not a fact of any version that we know. Never evidence of anything."""


def wrap(fact: AnyFact, *, pool: str, service: str, wall: datetime) -> Envelope:
    """Put a fact into its envelope."""
    return Envelope(
        id=fact.key,
        source=f"/rekindle/{pool}/{service}",
        type=f"rekindle.{fact.kind}.v{fact.VERSION}",
        subject=fact.about,
        time=wall,
        incident=incident_of(fact),
        traceparent=traceparent(pool, fact),
        data=fact,
    )


def unwrap(payload: bytes) -> Envelope:
    """Read an envelope. Raises UnreadableError, saying why."""
    try:
        return Envelope.model_validate_json(payload)
    except ValidationError as error:
        raise UnreadableError(str(error)) from error


def subject_of(pool: str, fact: AnyFact) -> str:
    """`rekindle.<pool>.event.<noun>.<verb>.<id>`. Where agents have accounts of their own the server adds `.<host>` to
    what one told of a VM."""
    return f"rekindle.{pool}.event.{fact.kind}.{fact.about}"


WORDS = 6
"""Of a subject that says no host."""


def told_by(subject: str, envelope: Envelope) -> Envelope:
    """A fact under a subject with one word more was told by the agent of that host, by the server's word: it may say only
    what that host can know of itself. Raises UnreadableError, saying so."""
    words = subject.split(".")
    if len(words) == WORDS:
        return envelope
    at = getattr(envelope.data, "at", None)
    if len(words) != WORDS + 1 or at is None or at.host != words[-1]:
        raise UnreadableError(f"the agent of {words[-1]} told it, and it is about another host")
    return envelope


__all__ = ["CONTENT_TYPE", "FACT", "Envelope", "UnreadableError", "subject_of", "told_by", "unwrap", "wrap"]
