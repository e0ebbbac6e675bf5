"""What goes over core NATS, never into a stream: heartbeats, inventories, hints, questions and their answers.

A lost signal is never missed: heartbeats and inventories repeat, hints only hasten a periodic reading.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.model import Answer, Incarnation, Inventory, Mark, RunLease, StopReason, Value
from libs.promises import SlotBeat, SlotOrder


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
    unread_s: float = Field(0.0, ge=0, description="how long ago it last read all its VMs from libvirt")
    untried: tuple[str, ...] = Field(
        (), description="of these, those that have taken none since the agent began: for so long at least"
    )
    watchdog_s: float | None = Field(
        None,
        description="the time-out of its watchdog, which is armed and promised; None: it promises nothing",
    )
    slot_seq: int = Field(0, description="the latest write to a slot that it had begun before it sent this")
    sent_at: float | None = Field(
        None, description="by its own monotonic clock, of one that wants to know whether it is heard"
    )
    clock_s: float | None = Field(
        None, description="what its own monotonic clock shows: observers on several machines tell time by it"
    )
    hardware: str = Field("", description="marks of its machine's board and network cards; empty: not known")


class Heard(Value):
    """The fencer that leads to a host with a watchdog: your heartbeat that you sent at that moment was heard."""

    kind: Literal["heard"] = "heard"
    at: Incarnation
    sent_at: float = Field(description="by that host's own monotonic clock, in seconds")


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


class Arriving(Value):
    """A host's libvirt is about to take a VM in by a migration, and waits for our word (ADR 11). Asked again until it comes,
    or is of no use any more."""

    kind: Literal["arriving"] = "arriving"
    ask: str = Field(description="one request of that libvirt's")
    vm: str
    found: StopReason = Field(StopReason.NONE, description="see Arrival")
    inventory: Inventory = Field(description="in which the VM is shown as paused, and arriving")


class LetIn(Value):
    """The executor to that host: from now on everybody who may start the VM knows that it may run there. Or why not."""

    kind: Literal["let_in"] = "let_in"
    at: Incarnation
    ask: str
    refused: str = ""


class Question(Value):
    """ "Can you see host X?", asked of a peer. With an order, it first writes that into X's slots. `slots_only`: do
    not look over the network, which takes its time where nobody answers."""

    kind: Literal["question"] = "question"
    about: str
    order: SlotOrder | None = None
    slots_only: bool = False
    clock: bool = Field(False, description="about no host, but what time it is there")


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
    wall_s: float | None = Field(
        None, description="what the peer's wall clock shows, in seconds since 1970; only where that was asked"
    )
    unheard_s: float | None = Field(
        None,
        description="for how long the host has not greeted this peer, who has listened for at least so long; None: it does not listen",
    )


class MarkTold(Value):
    """How far the plane's data have come: of the plane to all agents, and of an agent what it has heard so far."""

    kind: Literal["mark"] = "mark"
    mark: Mark


class MarkAsked(Value):
    """Who has heard of a later mark than lies in the store?"""

    kind: Literal["mark_asked"] = "mark_asked"


Signal = Annotated[
    Heartbeat
    | Heard
    | Canary
    | Goodbye
    | InventorySeen
    | LeaseWritten
    | Arriving
    | LetIn
    | Question
    | Reply
    | MarkTold
    | MarkAsked,
    Field(discriminator="kind"),
]
SIGNAL: TypeAdapter[Signal] = TypeAdapter(Signal)


def fits(topic: str, signal: Signal) -> bool:
    """Whether a signal is what its topic is for, and about whom the topic says. The server grants topics and reads no
    signal: an agent that may speak on `heartbeat.h1` says nothing of h2 there, and hints at no lease."""
    noun, _, about = topic.partition(".")
    match signal:
        case Heartbeat() | Goodbye() | Heard():
            return noun == signal.kind and signal.at.host == about
        case LetIn(at=at):
            return noun == "let_in" and at.host == about
        case Arriving(inventory=inventory):
            return noun == "arriving" and inventory.at.host == about
        case InventorySeen(inventory=inventory):
            return noun == "inventory" and inventory.at.host == about
        case LeaseWritten(lease=lease):
            return noun == "stray" or (noun == "lease" and lease.vm == about)
        case Canary(replica=replica):
            return noun == "canary" and replica == about
        case Reply(peer=peer):
            return noun == "ask" and peer.host == about
        case MarkTold():
            return topic in ("mark", "mark_told")
        case MarkAsked():
            return topic == "mark_asked"
        case Question():
            return noun == "ask"
