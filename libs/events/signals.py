"""What goes over core NATS, never into a stream: heartbeats, inventories, hints, questions and their answers.

A lost signal is never missed: heartbeats and inventories repeat, hints only hasten a periodic reading.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.model import Answer, Incarnation, Inventory, RunLease, SlotBeat, SlotOrder, Value


class Heartbeat(Value):
    """One sign of life of one host. The receiver times it by its own clock."""

    kind: Literal["heartbeat"] = "heartbeat"
    at: Incarnation
    agent: str = Field(description="one life of the agent process")
    seq: int
    inventory_rev: int = Field(0, description="the inventory that holds at this heartbeat")
    stores: dict[str, float] = Field(
        {},
        description="each of its datastores: for how many seconds it has not taken a write of the slot there",
    )
    untried: tuple[str, ...] = Field(
        (), description="of these, those that have taken none since the agent began: for so long at least"
    )


class Goodbye(Value):
    """The agent is being stopped on purpose; its silence for `grace_s` means nothing about the host. `for_good`:
    since the host itself goes down, and so will everything that runs on it."""

    kind: Literal["goodbye"] = "goodbye"
    at: Incarnation
    agent: str
    grace_s: float = 30.0
    for_good: bool = False


class Canary(Value):
    """An observer's word to itself over the bus: heard, it can hear. An onlooker learns that it leads and is well."""

    kind: Literal["canary"] = "canary"
    replica: str = Field(description="one process of the service")
    seq: int
    sent_at: float = Field(description="by the sender's own monotonic clock, in seconds")
    deaf: bool = Field(False, description="it has not heard itself for too long")
    round_trip_s: float | None = Field(None, description="of the one that it heard last")


class InventorySeen(Value):
    """A host's full inventory: on every change, and repeated."""

    kind: Literal["inventory"] = "inventory"
    inventory: Inventory


class LeaseWritten(Value):
    """A hint that a run lease changed; the bucket is the truth."""

    kind: Literal["lease"] = "lease"
    lease: RunLease


class Question(Value):
    """ "Can you see host X?", asked of a peer. With an order, it first writes that into X's slots. `slots_only`: do
    not look over the network, which takes its time where nobody answers."""

    kind: Literal["question"] = "question"
    about: str
    order: SlotOrder | None = None
    slots_only: bool = False


class SlotSeen(Value):
    """What a peer read in the slot of a host just now. `beat` is None where the host never wrote there."""

    datastore: str
    beat: SlotBeat | None = None
    age_s: float = Field(0.0, ge=0, description="how long before the reply it was read")
    trouble: str = Field("", description="why it could not be read: then it says nothing")


class Reply(Value):
    """A peer's own observation of `about`; a peer that does not answer has not voted."""

    kind: Literal["reply"] = "reply"
    about: str
    peer: Incarnation
    answer: Answer
    detail: str = ""
    slots: tuple[SlotSeen, ...] = ()
    ordered: tuple[str, ...] = Field((), description="datastores on which the order was written")


Signal = Annotated[
    Heartbeat | Canary | Goodbye | InventorySeen | LeaseWritten | Question | Reply,
    Field(discriminator="kind"),
]
SIGNAL: TypeAdapter[Signal] = TypeAdapter(Signal)
