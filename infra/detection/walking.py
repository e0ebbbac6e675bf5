"""One suspicion, from its first question to a verdict or a heartbeat, judged by the detector's own rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from infra.detection.asking import KERNEL_TELLS, PEER_SHARE, PEERS_ASKED, SLOT_REST, UNHEARD, Round, Suspect
from infra.detection.model import RACKS, Kind
from libs.config.settings import Detection, Heartbeats
from libs.model import HostState
from services.detector.verdict import Evidence, Rule, judge

TICK_S = 0.1
"""The detector looks so often (services/detector/decide.py)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The settings of one Rekindle profile."""

    name: str
    beats: Heartbeats
    settings: Detection

    @property
    def stalls_from_s(self) -> float:
        """No shorter stall keeps a host silent for long enough to be suspected."""
        return self.settings.suspect_after_s - self.beats.interval_s


class Channels(NamedTuple):
    """Which channels a stage has, beyond its own question to libvirt."""

    peers: bool = False
    slot: bool = False
    kernel: bool = False
    """A kernel that takes connections on which nothing answers is told from silence."""


def soonest_s(settings: Detection, channels: Channels) -> float:
    """The shortest confirmation, as the rules have it: how long a suspicion lasts before the worst that questions can
    bring makes a verdict. Shorter ones need not be followed."""
    ticks = 0
    while True:
        worst = Evidence(
            silent_s=settings.suspect_after_s + ticks * TICK_S,
            quiet_s=ticks * TICK_S,
            unreachable=True,
            votes=PEERS_ASKED if channels.peers else 0,
            domains=PEERS_ASKED if channels.peers else 0,
            domains_known=RACKS if channels.peers else 0,
            neighbour=channels.peers,
            slot_still=channels.slot,
        )
        rule = judge(worst, settings)
        if rule is not None and rule.verdict is HostState.FAILED:
            return (ticks - 1) * TICK_S
        ticks += 1


class Verdict(NamedTuple):
    at: float
    rule: Rule
    evidence: Evidence


class Walk(NamedTuple):
    """`left`: when it was found to live after all, so that it is no suspect any more; else when it was heard."""

    left: float
    verdict: Verdict | None


class _Event(NamedTuple):
    at: float
    own: bool
    """An answer to our own question; else what the peers say."""
    life: bool
    hangs: bool
    """No sign of life, and its kernel answered."""
    round: Round


def _events(asked: Suspect, channels: Channels) -> Iterator[_Event]:
    """What arrives, in order, without an end. A round's words are all in before the next round is asked."""
    settings = asked.settings
    for number in count():
        one = asked.round(number)
        own, hangs = one.own_life, channels.kernel and one.own_kernel
        answer = _Event(own or one.asked + settings.ask_timeout_s, True, own is not None, hangs, one)
        if not channels.peers:
            yield answer
            continue
        life, hangs = one.peer_life, channels.kernel and one.words.kernel
        told = one.asked + PEER_SHARE * settings.ask_timeout_s
        word = _Event(life or told, False, life is not None, hangs, one)
        yield from (answer, word) if answer.at <= word.at else (word, answer)


class _Walker:
    """What the channels amount to so far."""

    def __init__(self, asked: Suspect, channels: Channels, judge_from: float) -> None:
        self._asked, self._channels, self._judge_from = asked, channels, judge_from
        self._settings = asked.settings
        self._quiet_from = self._hung_from = asked.since
        self._alone = asked.alone()
        self._latest_s = math.inf
        """After it time alone makes no difference any more, unless something is heard."""
        self._own: _Event | None = None
        self._peers: _Event | None = None
        self._read_first: float | None = None
        self._moves = self._still = False
        self._known: tuple[object, ...] = ()
        self.left: float | None = None

    def hear(self, event: _Event) -> bool:
        """True where it makes a difference: what was judged before on the same words need not be judged again,
        since time makes its difference at the thresholds."""
        if event.own:
            self._own = event
        else:
            self._peers = event
            if event.round.read:
                self._read(event.round.asked)
        if event.life:
            self._hung_from = event.at
        if event.life or event.hangs:
            self._quiet_from, self._latest_s = event.at, math.inf
        own, peers = self._own, self._peers
        known = (
            None if own is None else (own.life, own.hangs),
            None if peers is None else (peers.life, peers.round.words),
            self._moves,
            self._still,
        )
        new, self._known = known != self._known, known
        return new

    def _read(self, at: float) -> None:
        if not self._channels.slot:
            return
        first = self._read_first = at if self._read_first is None else self._read_first
        self._moves = self._asked.moved_at(first) <= at
        self._still = not self._moves and at - first >= SLOT_REST * self._asked.beats.slot_interval_s - 1e-6

    def thresholds(self, after: float, until: float) -> list[float]:
        """When the mere passing of time may make a verdict, in that span."""
        if after >= self._latest_s:
            return []
        settings = self._settings
        moments = [self._judge_from, self._hung_from + settings.hung_s]
        for clock in (self._quiet_from, *(end for _, end in self._alone)):
            moments += (clock + settings.confirm_witnessed_s, clock + settings.confirm_silence_s)
        moments += (end + settings.hung_s for _, end in self._alone)
        self._latest_s = max(moments)
        return sorted([moment for moment in moments if after < moment <= until])

    def evidence(self, now: float) -> Evidence:
        alone = max((min(end, now) for start, end in self._alone if start <= now), default=-math.inf)
        own, peers = self._own, self._peers
        words, kernel = UNHEARD if peers is None else peers.round.words, self._channels.kernel
        votes = words.votes(kernel)
        return Evidence(
            silent_s=now - self._asked.since + self._settings.suspect_after_s,
            quiet_s=now - max(self._quiet_from, alone) + 1e-6,
            hung_s=now - max(self._hung_from, alone) + 1e-6,
            lives_elsewhere=(own is not None and own.life) or (peers is not None and peers.life),
            unreachable=own is not None and not own.life,
            hangs=(own is not None and own.hangs) or (peers is not None and peers.hangs),
            votes=votes,
            domains=votes,
            domains_known=words.domains_known,
            neighbour=words.neighbour(kernel),
            slot_moves=self._moves,
            slot_still=self._still,
        )

    def tick(self, moment: float) -> float:
        """The first tick from this moment: only then the detector looks."""
        since = self._asked.since
        return since + TICK_S * math.ceil((moment - since) / TICK_S - 1e-6)

    def judged(self, at: float) -> Verdict | None:
        """The verdict of failure at this tick, if there is one."""
        if at < self._judge_from or at >= self._asked.heard:
            return None
        found = self.evidence(at)
        rule = judge(found, self._settings)
        if rule is None:
            return None
        if rule.verdict is HostState.FAILED:
            return Verdict(at, rule, found)
        self.left = at if self.left is None else self.left
        return None


def walk(asked: Suspect, channels: Channels, judge_from: float) -> Walk:
    """Follow one suspicion until it is judged failed or heard."""
    walker, before, due = _Walker(asked, channels, judge_from), asked.since, False
    until = _nothing_new_after(asked, judge_from)
    for event in _events(asked, channels):
        moments = walker.thresholds(before, min(until, event.at))
        for moment in [before, *moments] if due else moments:
            at = walker.tick(moment)
            due = at >= event.at - 1e-7
            if due:
                break  # this arrives before that tick, and is weighed with the rest
            if verdict := walker.judged(at):
                return Walk(_left(walker, asked), verdict)
        if event.at >= until:
            break
        due = walker.hear(event) or due
        before = event.at
    return Walk(_left(walker, asked), None)


def _left(walker: _Walker, asked: Suspect) -> float:
    return asked.heard if walker.left is None else walker.left


def _nothing_new_after(asked: Suspect, judge_from: float) -> float:
    """Under one fault that does not change, the answers of later rounds are those of the earlier ones: once the
    longest confirmation is over and nothing was concluded, only its end is news, and that is a sign of life."""
    if not asked.steady:
        return asked.heard
    settings = asked.settings
    confirm_s = settings.hung_s if asked.faults[0].kind in KERNEL_TELLS else settings.confirm_silence_s
    longest_s = confirm_s + 3 * settings.ask_every_s + settings.ask_timeout_s
    slot_s = (SLOT_REST + 1) * asked.beats.slot_interval_s
    return min(asked.heard, max(asked.since, judge_from) + longest_s + slot_s)


def power_read(asked: Suspect, reached_s: float) -> Verdict | None:
    """The verdict where a fence device answers `off` so long after it was asked."""
    for number in count():
        at = asked.since + number * asked.settings.ask_every_s
        if at >= asked.heard:
            return None
        if any(
            fault.kind in (Kind.OBSERVER_CUT, Kind.CORE) and fault.start <= at < fault.end
            for fault in asked.faults
        ):
            continue  # the device is as far away as the host
        found = Evidence(silent_s=at - asked.since, quiet_s=0.0, power_off=True)
        rule = judge(found, asked.settings)
        return None if rule is None else Verdict(at + reached_s, rule, found)
    return None
