"""What goes over core NATS, never into a stream: heartbeats, inventories, hints, questions and their answers.

A lost signal is never missed: heartbeats and inventories repeat, hints only hasten a periodic reading.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.model import Answer, Incarnation, Inventory, RunLease, Value


class Heartbeat(Value):
    """One sign of life of one host. The receiver times it by its own clock."""

    kind: Literal["heartbeat"] = "heartbeat"
    at: Incarnation
    agent: str = Field(description="one life of the agent process")
    seq: int
    inventory_rev: int = Field(0, description="the inventory that holds at this heartbeat")


class Goodbye(Value):
    """The agent is being stopped on purpose; its silence for `grace_s` means nothing about the host."""

    kind: Literal["goodbye"] = "goodbye"
    at: Incarnation
    agent: str
    grace_s: float = 30.0


class InventorySeen(Value):
    """A host's full inventory: on every change, and repeated."""

    kind: Literal["inventory"] = "inventory"
    inventory: Inventory


class LeaseWritten(Value):
    """A hint that a run lease changed; the bucket is the truth."""

    kind: Literal["lease"] = "lease"
    lease: RunLease


class Question(Value):
    """ "Can you see host X?", asked of a peer."""

    kind: Literal["question"] = "question"
    about: str


class Reply(Value):
    """A peer's own observation of `about`; a peer that does not answer has not voted."""

    kind: Literal["reply"] = "reply"
    about: str
    peer: Incarnation
    answer: Answer
    detail: str = ""


Signal = Annotated[
    Heartbeat | Goodbye | InventorySeen | LeaseWritten | Question | Reply, Field(discriminator="kind")
]
SIGNAL: TypeAdapter[Signal] = TypeAdapter(Signal)
