"""The channels of a suspect: what its libvirt, its peers and its storage slot say to each round of questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from random import Random
from typing import NamedTuple

from infra.detection.model import LOSS, RACKS, RTO_S, Fault, Kind
from libs.config.settings import Detection, Heartbeats

ANSWER_S = 0.01
"""A question to a host that works, there and back."""
PEER_SHARE = 0.78
"""A peer's own look ends so early that its word arrives in time (0.7 of 0.9 s in services/heartbeat/act.py)."""
FIRST_TRIES_S = (0.0, RTO_S, 3 * RTO_S)
"""A standing connection sends again by itself. Once it failed a new one is opened, whose second try comes too late."""
SYN_RTO_S = 1.0
SYN_LEGS_S = (SYN_RTO_S,) * 2
"""A handshake: what is lost of it is sent again so much later."""
PATIENCE = 0.5
"""Share of a question's time after which the kernel is asked beside a libvirt that is late (libs/virt/remote.py)."""
SLOT_REST = 2.0
"""Slot intervals without a movement, from first to latest reading, after which a slot counts as still."""
PEERS_ASKED = 3
SLOT_LOOKED_S = 60.0


class How(IntEnum):
    """How a question fares, worst last."""

    UP = 0
    LOSSY = 1
    STARVED = 2
    """The kernel takes connections, no process answers on them."""
    CUT = 3


class Voters(IntEnum):
    """Which peers the observer reaches, fewest last."""

    ALL = 0
    OTHER_RACKS = 1
    NONE = 2


@dataclass(frozen=True, slots=True)
class Reach:
    """What a fault leaves of the channels. `slot` and `converged`: the storage slot where storage has its own network,
    and where it has not; STARVED and CUT both mean that it stands still."""

    own: How
    peers: How
    voters: Voters
    slot: How
    converged: How


REACH: dict[Kind, Reach] = {
    Kind.STALL: Reach(How.UP, How.UP, Voters.ALL, How.STARVED, How.STARVED),
    Kind.RESTART: Reach(How.UP, How.UP, Voters.ALL, How.STARVED, How.STARVED),
    Kind.THRASH: Reach(How.STARVED, How.STARVED, Voters.ALL, How.STARVED, How.STARVED),
    Kind.LOSS: Reach(How.LOSSY, How.LOSSY, Voters.ALL, How.UP, How.LOSSY),
    Kind.LINK: Reach(How.CUT, How.CUT, Voters.ALL, How.UP, How.CUT),
    Kind.ONEWAY: Reach(How.CUT, How.UP, Voters.ALL, How.UP, How.UP),
    Kind.UPLINK: Reach(How.CUT, How.CUT, Voters.OTHER_RACKS, How.UP, How.CUT),
    Kind.CORE: Reach(How.CUT, How.CUT, Voters.NONE, How.UP, How.CUT),
    Kind.BUS: Reach(How.UP, How.UP, Voters.NONE, How.UP, How.UP),
    Kind.OBSERVER_CUT: Reach(How.CUT, How.UP, Voters.NONE, How.UP, How.UP),
    Kind.DEAD: Reach(How.CUT, How.CUT, Voters.ALL, How.CUT, How.CUT),
    Kind.HUNG: Reach(How.STARVED, How.STARVED, Voters.ALL, How.STARVED, How.STARVED),
}
CUTS = frozenset({Kind.LINK, Kind.UPLINK, Kind.CORE})
"""With converged storage these cut a living host off from every network."""
ANSWERED = frozenset(kind for kind, reach in REACH.items() if reach.own is How.UP)
"""Under these alone its libvirt answers every question of ours."""
KERNEL_TELLS = frozenset(
    kind for kind, reach in REACH.items() if {reach.own, reach.peers} & {How.LOSSY, How.STARVED}
)
"""Under these a connection may be taken on which nothing is answered in time."""


class Words(NamedTuple):
    """What the peers say in one round."""

    silent: tuple[bool, ...]
    """Who saw nothing at all, in the order of asking."""
    hanging: tuple[bool, ...]
    """To whom its kernel gave a connection on which nothing came."""
    domains_known: int
    beside: bool
    """The first of them is of the suspect's own rack."""

    @property
    def kernel(self) -> bool:
        return any(self.hanging)

    def votes(self, kernel: bool) -> int:
        """Each is of another rack. `kernel`: its answer is told from silence; else it passes for silence."""
        return sum(self._against(kernel))

    def neighbour(self, kernel: bool) -> bool:
        return self.beside and self._against(kernel)[0]

    def _against(self, kernel: bool) -> list[bool]:
        return [alone or (hung and not kernel) for alone, hung in zip(self.silent, self.hanging, strict=True)]


UNHEARD = Words((), (), 0, False)
ALONE = frozenset(kind for kind, reach in REACH.items() if reach.voters is Voters.NONE)
"""Under these no host is heard: the observer may be the one that is cut off, and counts anew from their end."""


class Round(NamedTuple):
    """What one round of questions brings, in seconds of the pool's time."""

    asked: float
    own_life: float | None
    """When its libvirt answered us."""
    own_kernel: bool
    """Its libvirt did not, but its kernel took the connection."""
    peer_life: float | None
    """When some peer told that it was answered."""
    words: Words

    @property
    def read(self) -> bool:
        """Some peer was heard, and had read its slot."""
        return self.words is not UNHEARD


@dataclass(slots=True)
class Suspect:
    """The channels of one suspect during one suspicion. Answers are drawn once, and every stage sees the same."""

    rng: Random
    faults: tuple[Fault, ...]
    converged: bool
    since: float
    heard: float
    beats: Heartbeats
    settings: Detection
    steady: bool = field(init=False)
    """One fault from the beginning that leaves nothing to chance: until it ends all rounds are alike."""
    _own: list[tuple[float | None, bool]] = field(default_factory=list)
    _rounds: list[Round] = field(default_factory=list)
    _moved_at: float | None = None

    def __post_init__(self) -> None:
        only = self.faults[0]
        self.steady = len(self.faults) == 1 and only.kind is not Kind.LOSS and only.start <= self.since

    def round(self, number: int) -> Round:
        """The answers to this round of questions, each asked `ask_every_s` after the one before."""
        while len(self._rounds) <= number:
            self._rounds.append(self._ask(len(self._rounds)))
        return self._rounds[number]

    def alone(self) -> list[tuple[float, float]]:
        """From when to when the observer has heard nobody else for as long as answers count."""
        fresh_s = 3 * self.settings.ask_every_s + self.settings.ask_timeout_s
        spans = [(fault.start + fresh_s, fault.end) for fault in self.faults if fault.kind in ALONE]
        return [(start, end) for start, end in spans if start < end]

    def kept_alive_at(self, soonest_s: float) -> float | None:
        """The first sign of life, where our own questions and its heartbeat bring one so often that it is never quiet
        for the shortest confirmation, whatever the other channels say. None where they do not."""
        quiet_from, first = self.since, self.heard
        number = 0
        while self.heard - quiet_from >= soonest_s:
            life, _ = self._answer(number)
            known = self._asked(number) if life is None else life
            if known - quiet_from >= soonest_s:
                return None
            if life is not None:
                first = min(first, life)
                quiet_from = life
            number += 1
        return first

    def moved_at(self, first_read: float) -> float:
        """When its storage slot is first written after that reading; infinite where it is not."""
        if self._moved_at is None:
            self._moved_at = self._next_write(first_read)
        return self._moved_at

    def _reach(self, at: float) -> list[Reach]:
        return [REACH[fault.kind] for fault in self.faults if fault.start <= at < fault.end]

    def _next_write(self, first_read: float) -> float:
        every_s = self.beats.slot_interval_s
        at = first_read + every_s * self.rng.random()
        while at < min(self.heard, first_read + SLOT_LOOKED_S):
            here = [reach.converged if self.converged else reach.slot for reach in self._reach(at)]
            worst = max(here, default=How.UP)
            if worst <= How.LOSSY:
                return at + (self._delay(RTO_S) if worst is How.LOSSY else 0.0)
            at += every_s
        return float("inf")

    def _delay(self, rto_s: float) -> float:
        """How long one segment takes under loss."""
        lost = 0
        while self.rng.random() < LOSS:
            lost += 1
        return rto_s * (2.0**lost - 1.0)

    def _passes(self, fresh: bool, within_s: float) -> tuple[float | None, bool]:
        """Seconds until a question under loss is answered, and whether at least a connection was taken. A new one takes
        three more round trips; beside a standing one a new one is tried when half of the time is over."""
        took, taken = ANSWER_S, False
        for number, rto_s in enumerate((*SYN_LEGS_S, *(RTO_S,) * 6) if fresh else (RTO_S,) * 2):
            took += self._delay(rto_s)
            if took > within_s:
                return None, taken or (not fresh and self._taken(PATIENCE * within_s))
            taken = taken or (fresh and number + 1 == len(SYN_LEGS_S))
        return took, False

    def _taken(self, within_s: float) -> bool:
        """A handshake under loss succeeds in time."""
        return ANSWER_S + sum(self._delay(rto_s) for rto_s in SYN_LEGS_S) <= within_s

    def _question(self, asked: float, within_s: float, fresh: bool, peer: bool) -> tuple[float | None, bool]:
        """When it was answered, if in time; and where it was not, whether its kernel took the connection."""
        for late_s in (0.0,) if fresh else FIRST_TRIES_S:
            at = asked + late_s
            here = {reach.peers if peer else reach.own for reach in self._reach(at)}
            worst = max(here, default=How.UP)
            if worst is How.UP and at + ANSWER_S < asked + within_s:
                return at + ANSWER_S, False
            if worst is How.LOSSY:
                took, taken = self._passes(fresh, within_s)
                return (None if took is None else asked + took), taken
            if worst is How.STARVED:
                over = max(fault.end for fault in self.faults if fault.start <= at < fault.end)
                if over + ANSWER_S < asked + within_s:
                    return over + ANSWER_S, False
                return None, How.LOSSY not in here or self._taken(PATIENCE * within_s)
        return None, False

    def _asked(self, number: int) -> float:
        return self.since + number * self.settings.ask_every_s

    def _alike(self, number: int) -> bool:
        """This round is as the one before: the connection is lost or stands, and the fault goes on."""
        over = self._asked(number) + self.settings.ask_timeout_s
        return number > 1 and self.steady and over < self.faults[0].end

    def _answer(self, number: int) -> tuple[float | None, bool]:
        """Its libvirt's, to our own question of this round. Drawn apart, since for most suspicions it is enough."""
        own = self._own
        while len(own) <= number:
            asked, before = self._asked(len(own)), own[-1][0] if own else None
            if self._alike(len(own)):
                life = None if before is None else before + self.settings.ask_every_s
                own.append((life, own[-1][1]))
            else:
                failed = bool(own) and before is None
                own.append(self._question(asked, self.settings.ask_timeout_s, failed, peer=False))
        return own[number]

    def _ask(self, number: int) -> Round:
        asked, (own, own_kernel) = self._asked(number), self._answer(number)
        if self._alike(number):
            before = self._rounds[-1]
            peer = None if before.peer_life is None else before.peer_life + self.settings.ask_every_s
            return Round(asked, own, own_kernel, peer, before.words)
        voters = max((reach.voters for reach in self._reach(asked)), default=Voters.ALL)
        if voters is Voters.NONE:
            return Round(asked, own, own_kernel, None, UNHEARD)
        within_s = PEER_SHARE * self.settings.ask_timeout_s
        looks = [self._question(asked, within_s, True, peer=True) for _ in range(PEERS_ASKED)]
        lives = [at for at, _ in looks if at is not None]
        # the first is of the suspect's own rack if one is heard there, each other of another rack
        words = Words(
            silent=tuple(at is None and not kernel for at, kernel in looks),
            hanging=tuple(kernel for _, kernel in looks),
            domains_known=RACKS if voters is Voters.ALL else RACKS - 1,
            beside=voters is Voters.ALL,
        )
        return Round(asked, own, own_kernel, min(lives, default=None), words)
