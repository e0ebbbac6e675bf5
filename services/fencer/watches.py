"""What the fencer holds of hosts that may be presumed fenced, and what is asked of the world for it; see presume.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from rpds import HashTrieMap

from libs.core.decider import Outcome, Request
from libs.events.signals import SlotSeen
from libs.model import Answer, Incarnation
from libs.promises import Promise

NEVER = -math.inf


@dataclass(frozen=True, slots=True)
class Word:
    """The latest heartbeat of a host with a watchdog."""

    at: Incarnation
    life: str
    slot_seq: int
    heard_at: float


@dataclass(frozen=True, slots=True)
class Mark:
    """What a slot shows: no write of it was begun after `by`."""

    life: str
    seq: int
    by: float


@dataclass(frozen=True, slots=True)
class Shown:
    """The slot on one datastore: what it shows, and when the first and the latest question were asked to which it did."""

    mark: Mark
    first_at: float
    last_at: float


@dataclass(frozen=True, slots=True)
class Peer:
    """What one peer said last. `greeted_by`: it was not greeted after that, by our clock; None: it cannot tell.
    `looked_at`: when it was asked to look for itself, which brought the answer; `seen_at`: when it last saw it."""

    asked_at: float
    greeted_by: float | None
    answer: Answer = Answer.UNKNOWN
    looked_at: float = NEVER
    seen_at: float = NEVER


@dataclass(frozen=True, slots=True)
class Watch:
    """One host that is not fenced yet, and may be presumed so."""

    at: Incarnation
    incident: str
    since: float
    """No sign of life after that."""
    opened: float = 0.0
    read: bool = False
    promise: Promise | None = None
    revision: int = 0
    read_at: float = NEVER
    """When its promise is read (again)."""
    reading: bool = False
    round: int = 0
    ask_at: float = NEVER
    asked_at: float = NEVER
    quick: bool = False
    """The round under way asks for no looks over the network, which take their time where nobody answers."""
    peers: HashTrieMap[str, Peer] = field(default_factory=HashTrieMap)
    slots: HashTrieMap[str, Shown] = field(default_factory=HashTrieMap)
    """By datastore."""
    sign: str = ""
    claiming: bool = False


@dataclass(frozen=True, slots=True)
class PresumeState:
    """`since`: we hear and lead since then without a break. A host is heard only by whoever leads, so that what no
    leader has heard nobody has."""

    since: float = math.inf
    words: HashTrieMap[str, Word] = field(default_factory=HashTrieMap)
    watches: HashTrieMap[str, Watch] = field(default_factory=HashTrieMap)


class ReadPromise(Request):
    """What has this host promised?"""

    kind: Literal["read_promise"] = "read_promise"
    host: str
    incident: str


class AskUnseen(Request):
    """Can this peer see the host, and for how long has the host not greeted it?"""

    kind: Literal["ask_unseen"] = "ask_unseen"
    host: str
    incident: str
    peer: str
    asked_at: float
    quick: bool
    within_s: float


class ClaimPromise(Request):
    """Write into the promise that this host was presumed fenced by it, unless it was changed since it was read."""

    kind: Literal["claim_promise"] = "claim_promise"
    incident: str
    promise: Promise
    revision: int


class PromiseSeen(Outcome):
    """What stands in the bucket; None: nothing of this host."""

    incident: str
    promise: Promise | None = None
    revision: int = 0


class Unseen(Outcome):
    """What one peer said."""

    incident: str
    peer: str
    asked_at: float
    quick: bool
    answer: Answer
    unheard_s: float | None = None
    slots: tuple[SlotSeen, ...] = ()


class Claimed(Outcome):
    """Whether the promise stands as it was read, and bears this incident now."""

    incident: str
    ours: bool
