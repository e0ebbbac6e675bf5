"""The ports: what a service may ask of the world. Each has a real adapter and a simulated twin.

Errors are part of the contract: an adapter translates what its library raises into the few kinds below,
and never invents an answer. Unknown is never "no" (DESIGN §4 rule 3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from libs.events.base import Fact
from libs.events.envelope import Envelope
from libs.events.facts import AnyFact
from libs.events.hosts import LevelTested
from libs.events.signals import Signal
from libs.model import Answer, FenceProof, Incarnation, PowerState, VmDefinition, VmReport
from libs.promises import Promise, SlotBeat, SlotOrder
from libs.readiness import Target


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

    fact: Fact
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
        """Deliver facts of these kinds, from where this durable name was last acknowledged: what was delivered to others
        before, and not acknowledged, comes at once."""

    async def ask(self, topic: str, question: Signal, timeout_s: float) -> Signal:
        """One question, one reply. Raises UnavailableError where none came."""

    async def answer(self, topic: str, answer: Callable[[Signal], Awaitable[Signal]]) -> Subscription: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """One fact in the stream, as it was first told."""

    sequence: int
    envelope: Envelope


class Archive(Protocol):
    """The stream of facts, read from any place in it. Raises UnavailableError. Unreadable facts are passed over."""

    async def last(self) -> int:
        """The sequence of the newest fact; 0 where there is none."""

    async def after(self, sequence: int, most: int) -> list[Kept]:
        """Facts after a sequence, oldest first. Empty only where there is none, at this moment."""


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
        """All rows whose key begins so, in order of key. Raises UnavailableError. What was acknowledged before is in it, unless
        this side has lost its majority: decide only by a write that succeeds."""


class Lease(Protocol):
    """The right to be the one active replica of a role. A time lease is not a fence: what must happen
    once is guarded by compare-and-set beside it."""

    @property
    def token(self) -> int | None:
        """Grows with every new holder; None where another holds it."""

    def held(self) -> bool:
        """True only while no other replica can hold it, by this process's own monotonic clock."""

    def unseen_s(self) -> float:
        """Seconds since somebody was seen to lead; 0 where it is held. On a server that is cut off from its peers the
        claim stands still, whatever it says."""

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` when the role was gained or lost, and when it is ours again after its validity had run out, or is
        another's. That it ran out is not told: it is seen by `held`, and nobody looks again and again for the rest."""


class Guard(Protocol):
    """Whether what lies in the store may be acted on: it is the latest that this pool has known."""

    @property
    def ok(self) -> bool: ...

    @property
    def generation(self) -> int:
        """Of the state: another one is to be read anew."""

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever `ok` has changed."""


class StartRefusedError(Exception):
    """The hypervisor refused the start and the VM is known not to run there. `lock` names the lock of its disks that
    refused it, since somebody holds it: no other host would do. "" where it was refused for another reason."""

    def __init__(self, reason: str, lock: str = "") -> None:
        super().__init__(reason)
        self.lock = lock


class MoveRefusedError(Exception):
    """The hypervisor refused to migrate, or gave it up: by its word the VM runs on where it was."""


class Hypervisor(Protocol):
    """One host's hypervisor, seen from wherever this process is."""

    async def reports(self) -> list[VmReport]:
        """All VMs of the host. Raises UnavailableError; never an empty list for a failure."""

    async def report(self, uuid: str) -> VmReport | None:
        """One VM, None where the host does not know it."""

    async def addresses(self, uuid: str) -> tuple[str, ...]:
        """At which addresses its guest may be reached, as far as anybody there knows; none where nobody does. A guest that
        hangs holds up no other call. Raises UnavailableError."""

    async def start(self, definition: VmDefinition, token: int) -> None:
        """Define from the copy, with the token in its metadata, and start afresh: never from an image that was
        saved there earlier. Raises StartRefusedError where it is known not to run, UnavailableError where
        nothing is known."""

    async def destroy(self, uuid: str) -> None:
        """Stop at once, as the boot gate does. No error where it does not run."""

    async def migrate(self, uuid: str, target: Hypervisor, timeout_s: float) -> None:
        """Move the running VM live to `target`, which must reach its disks and gets its definition. Given up after
        `timeout_s`. Raises MoveRefusedError where it is known to run on here, UnavailableError where nothing is known."""


class Hypervisors(Protocol):
    """Connections to the hosts of the pool, kept warm."""

    async def at(self, incarnation: Incarnation, timeout_s: float) -> Hypervisor:
        """A connection that is proven to lead to this very boot of the host. Raises UnavailableError."""

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        """Does the host's hypervisor answer? With a detail for people."""


class WatchedHypervisors(Hypervisors, Protocol):
    """Connections to hosts whose agent may be silent."""

    async def still(self, incarnation: Incarnation, known_s: float | None, timeout_s: float) -> Hypervisor:
        """As `at`; and where no heartbeat proves the boot any more, its age does: `known_s` ago the host was known to
        be in it (None: nobody knows), and one that has run for longer still is. Raises UnavailableError."""


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

    async def greet(self, host: str, me: Incarnation, timeout_s: float) -> bool:
        """Tell its agent that this boot lives. True where it says that it has noted it; never raises for the
        world's faults."""


class Greetings(Protocol):
    """What the other hosts said to this one directly."""

    def unheard_s(self, host: str) -> float | None:
        """For how long that host, in whatever boot, has not greeted us, who have listened for at least so long; None
        where we do not listen."""


class GuestProbes(Protocol):
    """Guests asked over the network whether they are ready."""

    async def ask(self, target: Target, address: str, timeout_s: float) -> tuple[bool, str]:
        """Whether what is at this address takes a connection, and has the page where one is meant; with a detail for
        people. Never raises for the world's faults."""


class WatchdogError(Exception):
    """The watchdog cannot be armed, fed or disarmed, and why. What it does now is not known."""


class Watchdog(Protocol):
    """The host's own watchdog: resets the host unless it is fed in time, whatever becomes of who armed it."""

    async def arm(self, timeout_s: float) -> float:
        """Arm it, or take it over armed, and return the time-out in seconds that it really has. That feeds it. Raises
        WatchdogError: no such device, another has it, or the end of this process would disarm it."""

    def feed(self) -> None:
        """At once: nobody may stand still between the look at the clock and this. Raises WatchdogError."""

    async def disarm(self) -> None:
        """Raises WatchdogError where it goes on, as one with nowayout does."""


class PromiseMemory(Protocol):
    """What a host's own disk remembers of its promise, from one life of its agent to the next."""

    def recall(self, at: Incarnation) -> tuple[Promise, ...]:
        """Those of which one stands for this boot, if any does; none where nothing is remembered of it. Never raises."""

    async def remember(self, at: Incarnation, perhaps: tuple[Promise, ...]) -> None:
        """In place of what was remembered. Nothing need outlive the host: its next boot promises anew. Raises
        UnavailableError where something else would go on to be remembered."""


class Witness(Protocol):
    """Looks for signs of life of a host from the moment on at which a fence level first read its power off."""

    async def said(self) -> Sequence[str]:
        """Every sign of life since, for people; none is needed for a proof."""

    def close(self) -> None:
        """Nobody wants to know any more."""


OffSeen = Callable[[], Witness | None]


class Power(Protocol):
    """The fence devices of the pool."""

    async def status(self, host: str, timeout_s: float) -> tuple[PowerState, str]:
        """What the first device that answers says, with a detail. Never raises for the world's faults."""

    async def fence(self, incarnation: Incarnation, off_seen: OffSeen) -> FenceProof:
        """Make the host harmless and return the proof. `off_seen` is called at the first reading of off of each
        level: what its witness says voids that level's proof. Raises FenceError naming what is missing."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of one fence device."""

    name: str
    level: int
    state: PowerState
    detail: str


class FencePaths(Protocol):
    """The ways to the fence devices, beside what fences by them."""

    def missing(self, host: str) -> tuple[str, ...]:
        """What stands in the way of a proof at this moment, level by level and device by device; nothing where no
        attempt is under way."""

    async def read(self, host: str) -> Sequence[Reading]:
        """One reading of every device of a host. Changes nothing. Never raises for the world's faults."""

    async def test(self, host: str, off_seen: OffSeen) -> Sequence[LevelTested]:
        """Switch the host off through each of its levels, one after the other, and see what each proves."""

    async def switch_on(self, host: str) -> tuple[bool, str]:
        """Switch it on again through all devices, the last level first: a BMC may draw its power from an outlet.
        With a detail where that cannot be had."""


class FenceError(Exception):
    """No proof was had. `missing` names, device by device, what stood in the way."""

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__("; ".join(missing))
        self.missing = tuple(missing)
