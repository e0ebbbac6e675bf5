"""The ports: what a service may ask of the world. Each has a real adapter and a simulated twin.

Errors are part of the contract: an adapter translates what its library raises into the few kinds below,
and never invents an answer. Unknown is never "no" (DESIGN §4 rule 3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from libs.events.facts import AnyFact
from libs.events.signals import Signal
from libs.model import (
    Answer,
    FenceProof,
    Incarnation,
    PowerState,
    SlotBeat,
    SlotOrder,
    VmDefinition,
    VmReport,
)


class UnavailableError(Exception):
    """The other side could not be reached or did not answer in time. Nothing is known of what it did."""


class ConflictError(Exception):
    """A compare-and-set lost: somebody else wrote."""


class Clock(Protocol):
    """Time. Deciders are handed `monotonic`; `wall` is for people."""

    def monotonic(self) -> float: ...

    def wall(self) -> datetime: ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery of one fact, at least once. Not acknowledged in time, it comes again."""

    fact: AnyFact
    ack: Callable[[], Awaitable[None]]
    nak: Callable[[float], Awaitable[None]]
    """Ask for it again after so many seconds."""


class Subscription(Protocol):
    async def stop(self) -> None: ...


class Bus(Protocol):
    """Facts (durable, deduplicated by key) and signals (best effort)."""

    @property
    def connected(self) -> bool: ...

    def on_change(self, heard: Callable[[bool], None]) -> Callable[[], None]:
        """Call `heard` with True or False whenever the connection comes or goes, until the function that
        is returned is called."""

    async def publish(self, fact: AnyFact) -> None:
        """Store a fact. Raises UnavailableError when the budget for retries (20 s) is spent."""

    async def send(self, topic: str, signal: Signal) -> None:
        """Send a signal now or drop it; never queued for later."""

    async def listen(self, topics: Sequence[str], heard: Callable[[Signal], None]) -> Subscription: ...

    async def consume(
        self, durable: str, kinds: Sequence[str], heard: Callable[[Delivery], None]
    ) -> Subscription:
        """Deliver facts of these kinds, from where this durable name was last acknowledged."""

    async def ask(self, topic: str, question: Signal, timeout_s: float) -> Signal:
        """One question, one reply. Raises UnavailableError where none came."""

    async def answer(self, topic: str, answer: Callable[[Signal], Awaitable[Signal]]) -> Subscription: ...


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    value: bytes
    revision: int


class Store(Protocol):
    """One bucket of small values with compare-and-set."""

    async def get(self, key: str) -> Row | None:
        """Raises UnavailableError. May be stale: decide only by a write that succeeds."""

    async def put(self, key: str, value: bytes, expected: int | None) -> int:
        """Write and return the new revision. `expected` is the revision to replace, 0 for "absent", None
        for "whatever is there". Raises ConflictError, or UnavailableError where the outcome is not known."""

    async def delete(self, key: str, expected: int | None) -> None: ...

    async def scan(self, prefix: str) -> list[Row]:
        """All rows whose key begins so, in order of key."""


class Lease(Protocol):
    """The right to be the one active replica of a role. A time lease is not a fence: what must happen
    once is guarded by compare-and-set beside it."""

    @property
    def token(self) -> int | None:
        """Grows with every new holder; None where another holds it."""

    def held(self) -> bool:
        """True only while no other replica can hold it, by this process's own monotonic clock."""

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` when the role was gained or lost, and when it is ours again after its validity had run
        out. That it ran out is not told: it is seen by `held`, and nobody looks again and again for the rest."""


class StartRefusedError(Exception):
    """The hypervisor refused the start and the VM is known not to run there."""


class Hypervisor(Protocol):
    """One host's hypervisor, seen from wherever this process is."""

    async def reports(self) -> list[VmReport]:
        """All VMs of the host. Raises UnavailableError; never an empty list for a failure."""

    async def report(self, uuid: str) -> VmReport | None:
        """One VM, None where the host does not know it."""

    async def start(self, definition: VmDefinition, token: int) -> None:
        """Define from the copy, with the token in its metadata, and start afresh: never from an image that was
        saved there earlier. Raises StartRefusedError where it is known not to run, UnavailableError where
        nothing is known."""

    async def destroy(self, uuid: str) -> None:
        """Stop at once, as the boot gate does. No error where it does not run."""


class Hypervisors(Protocol):
    """Connections to the hosts of the pool, kept warm."""

    async def at(self, incarnation: Incarnation, timeout_s: float) -> Hypervisor:
        """A connection that is proven to lead to this very boot of the host. Raises UnavailableError."""

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        """Does the host's hypervisor answer? With a detail for people."""


class Slots(Protocol):
    """The hosts' heartbeat slots on one shared datastore, as this process reaches it. Every method raises
    UnavailableError where the datastore does not answer in time: of a slot that cannot be read nothing is known."""

    async def beat(self, beat: SlotBeat) -> SlotOrder | None:
        """Write the host's own beat, and read the latest order to it."""

    async def read(self, host: str) -> SlotBeat | None:
        """The latest beat of a host; None where it never wrote one that can be read."""

    async def order(self, host: str, order: SlotOrder) -> None:
        """Write an order to a host."""


class Probes(Protocol):
    """The agents of the other hosts, asked directly over the network that the VMs use."""

    async def ask(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        """Does its agent answer? `unknown` where it has no such address. Never raises for the world's faults."""


class Power(Protocol):
    """The fence devices of the pool."""

    async def status(self, host: str, timeout_s: float) -> tuple[PowerState, str]:
        """What the first device that answers says, with a detail. Never raises for the world's faults."""

    async def fence(self, incarnation: Incarnation, off_seen: Callable[[], None]) -> FenceProof:
        """Make the host harmless and return the proof. `off_seen` is called at the first reading of off: a
        sign of life after it voids the proof. Raises FenceError naming what is missing."""


class FenceError(Exception):
    """No proof was had. `missing` names, device by device, what stood in the way."""

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__("; ".join(missing))
        self.missing = tuple(missing)
