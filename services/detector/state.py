"""What the detector knows: views (heard, not persisted) and records (decided, persisted)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import Field
from rpds import HashTrieMap

from libs.core.decider import Records
from libs.events.words import HostRemoved
from libs.model import Answer, HostState, Incarnation, Inventory, PowerState, Value

FORMER_KEPT = 8


class Heard(Value):
    """When a boot was known to go on, by the monotonic clock of this boot of a management machine."""

    machine: str
    at: float
    clocks: dict[str, float] = Field({})
    """What the clocks of some other hosts showed then, by their boot ids; see clocks.py."""
    span_s: float = 0.0
    """For how long that boot had been known by then."""


class HostRecord(Value):
    """One host as decided. Moves only along libs/lifecycle.py."""

    host: str
    state: HostState = HostState.UNKNOWN
    at: Incarnation | None = None
    epoch: int = 0
    """Grows with every verdict of failure on this host."""
    number: int = 0
    """Grows with every suspicion."""
    undecided: int = 0
    """The latest suspicion of which it was told that it waits, since nobody else is heard; 0: none yet."""
    incident: str = ""
    heard: Heard | None = None
    """When this boot was known to go on: as it joined, now and then since, and when it was last heard before it was
    suspected."""
    alerts: int = 0
    """Grows with every alert that something of it is unknown; see unknowns.py."""
    unheard: int = 0
    """Number of the alert that it is not heard at all; 0: none stands."""
    unread: int = 0
    """Number of the alert that nobody can read its VMs; 0: none stands."""
    refuted: int = 0
    """The latest verdict whose proof its own heartbeats have refuted: that is told once."""
    hardware: str = ""
    """The marks of the machine that this boot runs on; "": not known."""
    former: tuple[str, ...] = ()
    """Boot ids that are over: what they still say is an echo."""
    leaving: str = ""
    """The boot that the fencer is about to switch off, since it is a host on standby and idle."""
    removed: str = ""
    """The life of its agent that was taken out of the pool and is not listened to; the next one joins anew."""

    failures: tuple[float, ...] = ()
    """Monotonic times (s) of its latest verdicts; `failures_max` at most. See flapping.py on their clock."""
    quarantine: int = 0
    """Epoch of the verdict that put it into quarantine; 0: it is in none."""

    twins: tuple[str, ...] = ()
    """Incarnations that claim its name or its boot while it lives, and are not listened to. An operator's readmission
    forgets them."""

    def removes(self, agent: str) -> bool:
        """True where this is the life of its agent that was taken out of the pool."""
        return bool(agent) and agent == self.removed

    def without(self, fact: HostRemoved) -> HostRecord:
        """What is left of a host that was removed: numbers that go on, and whom not to listen to."""
        over = (fact.at.boot,) if self.state is HostState.FENCED else ()
        return HostRecord(
            host=self.host,
            epoch=self.epoch + 1,
            number=self.number,
            alerts=self.alerts,
            former=(*self.former, *over)[-FORMER_KEPT:],
            removed=fact.agent,
        )


class StormRecord(Value):
    """The latest storm, so that a restart or another replica goes on with it. Bounded by the pool's hosts."""

    number: int
    """Grows with every alert."""
    held: bool
    suspects: tuple[str, ...]
    """Who was named in the alert, and is silent still."""
    released: tuple[str, ...] = ()
    """Of whom an operator said that they may be held failed, and who has been silent since."""
    order: int = 0
    """The operator's latest order; an older one is void."""
    by: str = ""
    """Whose order it was, while a storm is held."""


STORM = "pool.storm"
"""The name of its record: no host's name has a dot."""


class Loss(Value):
    """A datastore that is lost on one boot of a host."""

    number: int
    at: Incarnation


class StoreRecord(Value):
    """What is told of one datastore and not over. Bounded by the pool's hosts; see datastores.py."""

    PREFIX: ClassVar[str] = "pool.datastore."

    datastore: str
    number: int = 0
    """Grows with every loss and failure."""
    failed: int = 0
    """Number of the failure that goes on; 0: it is well, or lost on single hosts."""
    lost: dict[str, Loss] = Field({})
    """By host."""


@dataclass(frozen=True, slots=True)
class Writes:
    """What a host's heartbeats say of its datastores."""

    at: Incarnation
    heard_at: float
    since: float
    """It has been heard without a break since."""
    age_s: dict[str, float]
    """By datastore: how long ago it took a write, when that was said."""
    well_since: dict[str, float]
    """Datastores that take writes, and since when we have heard so without a break."""


@dataclass(frozen=True, slots=True)
class Channel:
    """The latest word on one channel. `at` is None while its first answer is awaited."""

    asked_at: float
    at: float | None = None
    answer: Answer = Answer.UNKNOWN
    power: PowerState = PowerState.UNKNOWN
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SlotView:
    """One storage slot of the suspect, as peers read it: its latest beat, when that was first read, and when the
    latest question was asked whose answer showed it unchanged."""

    seq: int
    first_at: float
    still_at: float


@dataclass(frozen=True, slots=True)
class Unread:
    """A peer could not read a slot of the suspect: evidence of nothing, kept for whoever asks why a verdict was slow."""

    peer: str
    trouble: str
    at: float


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is being asked about one silent host."""

    since: float
    ask_at: float
    round: int = 0
    alive_at: float | None = None
    """The latest sign of life on any channel but the heartbeat."""
    signs: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """By channel, when it last brought a sign of life."""
    kernel_at: float | None = None
    """When its kernel last took a connection on which no process answered."""
    alone_at: float | None = None
    """When no other host was heard either, so that it may be us who are cut off."""
    alone_since: float | None = None
    """Since when that has been so without a break."""
    reached_since: float | None = None
    """Since when our own question to its libvirt, or a peer, has reached it without a break."""
    moved_at: float | None = None
    """When one of its storage slots was last seen to move."""
    channels: HashTrieMap[str, Channel] = field(default_factory=HashTrieMap)
    slots: HashTrieMap[str, SlotView] = field(default_factory=HashTrieMap)
    """By datastore."""
    unread: HashTrieMap[str, Unread] = field(default_factory=HashTrieMap)
    """By datastore, where nobody has read it since."""


@dataclass(frozen=True, slots=True)
class Watching:
    """How the VMs of a host whose agent is down are watched."""

    look_at: float = 0.0
    looks: int = 0
    blind: bool = False
    """The latest look failed, and that was noted."""
    blind_since: float | None = None
    """When the first failed after which none has brought anything."""
    stored: bool = True
    """What the latest look showed lies in the bucket, or is on its way there."""


@dataclass(frozen=True, slots=True)
class Twin:
    """A boot that is over and speaks on beside the one that followed it, and since when."""

    at: Incarnation
    since: float


@dataclass(frozen=True, slots=True)
class HostView:
    """What was heard of one host by this process."""

    heard_at: float | None = None
    seen: Incarnation | None = None
    clock_s: float | None = None
    """What its host's own monotonic clock showed at that heartbeat."""
    hardware: str = ""
    """And the marks of its machine."""
    inventory: Inventory | None = None
    fenced_at: float | None = None
    """When we heard that this boot is fenced."""
    mute_until: float = 0.0
    """The agent said goodbye: its silence until then means nothing."""
    told_of: str = ""
    """What another system has said against it, since it was heard last: a reason to ask, no evidence."""
    last_word: str = ""
    """It said that it goes down for good, or its crash kernel said that it panicked; nothing was heard since."""
    doubted: bool = False
    """Asked after before its silence is long enough: its connection ended, or it said its last word."""
    suspicion: Suspicion | None = None
    watching: Watching = Watching()
    twin: Twin | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of the canary, in seconds; what they follow from is in canary.py."""

    every_s: float = 0.5
    overdue_s: float = 0.8
    """Since the last that came back: whoever fell silent meanwhile may be well."""
    clear_s: float = 0.6
    """From the first that comes back: who is well has been heard by then."""
    deaf_s: float = 1.2


@dataclass(frozen=True, slots=True)
class CanaryState:
    """Whether this process hears itself. It flies its canary while it leads; see canary.py."""

    pace: Pace = Pace()

    send_at: float = math.inf
    seq: int = 0
    heard_at: float = 0.0
    """When the latest came back, or we began to fly them."""
    clear_at: float = math.inf
    """Before it we may not have heard who is well; inf until one comes back."""
    deaf_since: float | None = None
    round_trip_s: float | None = None
    """How long the latest took from us to us."""
    number: int = 0
    """How often this process was deaf by it."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The latest walk over all hosts of the pool: whom there is something to look at, and until when that can be
    nobody else. With thousands of hosts a walk at each tick would be a third of a processor."""

    unwell: tuple[str, ...] = ()
    """In the order of the pool."""
    until: float = -math.inf
    """Until then nobody else can have been silent for too long."""


UNSCANNED = Scan()


@dataclass(frozen=True, slots=True)
class DetectorState:
    records: Records
    views: HashTrieMap[str, HostView]
    listening_since: float
    """We have heard everything since then; before it we were deaf or not there."""
    quiet_until: float
    judge_from: float
    """No verdict before: we were deaf a moment ago."""
    tick_at: float
    canary: CanaryState = CanaryState()
    machine: str = ""
    """This boot of the machine on which this process runs; "": not known."""
    cut: bool = False
    """The connection to the bus is lost."""
    silent_since: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """Who is suspected or held failed, and since when this process has known it."""
    writes: HashTrieMap[str, Writes] = field(default_factory=HashTrieMap)
    """What each host says of its datastores."""

    boots: HashTrieMap[str, str] = field(default_factory=HashTrieMap)
    """Host by boot id, of the boots that the records know."""
    scan: Scan = UNSCANNED

    def record(self, host: str) -> HostRecord:
        found = self.records.get(host)
        return found if isinstance(found, HostRecord) else _blank(host)

    @property
    def storm(self) -> StormRecord | None:
        """The storm that is held, if one is."""
        found = self.records.get(STORM)
        return found if isinstance(found, StormRecord) and found.held else None

    def view(self, host: str) -> HostView:
        return self.views.get(host) or UNSEEN


@functools.lru_cache(maxsize=65_536)
def _blank(host: str) -> HostRecord:
    """Of a host that no record is kept of. A tick asks for it many times for each host that has not joined: to make it anew
    each time took longer than a tick may among 10,000, so that none ever joined."""
    return HostRecord(host=host)


UNSEEN = HostView()


def known_boots(records: Records) -> HashTrieMap[str, str]:
    """Host by boot id."""
    hosts = [one for one in records.values() if isinstance(one, HostRecord)]
    return HashTrieMap({one.at.boot: one.host for one in hosts if one.at is not None})
