"""CloudEvents 1.0, structured JSON: the form in which facts lie in the stream.

`id` is the fact's key and the server's `Nats-Msg-Id`. Source: CloudEvents v1.0.2 and its NATS binding.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, ValidationError

from libs.events.facts import FACT, AnyFact
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
        data=fact,
    )


def unwrap(payload: bytes) -> Envelope:
    """Read an envelope. Raises UnreadableError, saying why."""
    try:
        return Envelope.model_validate_json(payload)
    except ValidationError as error:
        raise UnreadableError(str(error)) from error


def subject_of(pool: str, fact: AnyFact) -> str:
    """`rekindle.<pool>.event.<noun>.<verb>.<id>`."""
    return f"rekindle.{pool}.event.{fact.kind}.{fact.about}"


__all__ = ["CONTENT_TYPE", "FACT", "Envelope", "UnreadableError", "subject_of", "unwrap", "wrap"]
