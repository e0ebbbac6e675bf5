"""The pipeline stage by stage over one block of a pool's time: false verdicts of each, and how soon a crash is found.

The verdicts are the detector's: `judge` and `storm_limit` of services.detector.verdict, on evidence that is
gathered here as services/detector/evidence.py and decide.py do it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import NamedTuple

from infra.detection.asking import ANSWERED, CUTS, KERNEL_TELLS, Suspect
from infra.detection.hearing import Silence, silences
from infra.detection.model import CONVERGED, HOSTS, Fault, Kind, PoolTime
from infra.detection.walking import TICK_S, Channels, Profile, Verdict, Walk, soonest_s, walk
from libs.model import HostState
from services.detector.verdict import Evidence, judge, storm_limit

PAUSE_NOTICED_S = 0.6
"""A pause of its own that the shell notices (libs/core/shell.py); a shorter one ends with drained sockets."""
CANARY_S = 1.0
"""The observer knows so long after the bus went that it is deaf."""
MINUTE_S = 60.0


class Stage(StrEnum):
    """Cumulative; the last two are what-ifs beside the whole."""

    SUSPICION = "suspicion alone"
    HEALTH = "+ self-health"
    OWN = "+ own question to libvirt"
    PEERS = "+ peers' votes"
    SLOT = "+ storage slot"
    KERNEL = "+ a kernel's answer"
    GUARD = "+ storm guard: Rekindle"
    SILENT = "Rekindle without storage and voters"
    UNTOLD = "Rekindle if a kernel's answer passed for silence"


CHANNELS: dict[Stage, Channels] = {
    Stage.OWN: Channels(),
    Stage.PEERS: Channels(peers=True),
    Stage.SLOT: Channels(peers=True, slot=True),
    Stage.KERNEL: Channels(peers=True, slot=True, kernel=True),
    Stage.SILENT: Channels(kernel=True),
}
GUARDED: dict[Stage, Stage] = {
    Stage.GUARD: Stage.KERNEL,
    Stage.SILENT: Stage.SILENT,
    Stage.UNTOLD: Stage.SLOT,
}
"""Stages behind the storm guard, and whose walk they share."""
UNTOLD: dict[Stage, Stage] = {Stage.KERNEL: Stage.SLOT, Stage.SILENT: Stage.OWN}
"""Whose walk these take where no kernel's answer is to be told from silence."""


def like(stage: Stage, faults: tuple[Fault, ...]) -> Stage:
    """The stage whose walk it shares under these faults."""
    told = any(fault.kind in KERNEL_TELLS for fault in faults)
    return stage if told else UNTOLD.get(stage, stage)


class Span(NamedTuple):
    """One suspicion: from its first question until a heartbeat, or until the observer knows that it was deaf."""

    since: float
    judge_from: float
    until: float


class Deaf(NamedTuple):
    """The observer heard nothing; what it concludes before `noticed` stands, and at `end` it begins anew."""

    noticed: float
    end: float


class Found(NamedTuple):
    """A false verdict."""

    at: float
    host: int
    cut: bool
    cause: str


@dataclass(frozen=True, slots=True)
class Count:
    """False verdicts of one stage."""

    false: int = 0
    """On living hosts that some network reached."""
    cut: int = 0
    """On living hosts that were cut off from every network during the whole confirmation."""
    worst_minute: int = 0
    """Hosts declared within one minute, of both sorts."""
    causes: Counter[str] = field(default_factory=Counter)
    """What befell those that were not cut off."""

    def plus(self, other: Count) -> Count:
        worst = max(self.worst_minute, other.worst_minute)
        return Count(self.false + other.false, self.cut + other.cut, worst, self.causes + other.causes)


class Deafness:
    """When the observer was deaf and knew it: its own pauses, and the bus's."""

    def __init__(self, time: PoolTime, period_s: float) -> None:
        self._period_s = period_s
        pauses = [Deaf(f.start, f.end) for f in time.stalls if f.end - f.start > PAUSE_NOTICED_S]
        lost = [Deaf(f.start + CANARY_S, f.end) for f in time.pool if f.kind is Kind.BUS]
        self.spans: list[Deaf] = []
        for deaf in sorted(pauses + lost):
            if self.spans and deaf.noticed <= self.spans[-1].end:
                before = self.spans.pop()
                deaf = Deaf(before.noticed, max(before.end, deaf.end))
            self.spans.append(deaf)
        self._ends = [deaf.end + period_s for deaf in self.spans]

    def cuts(self, silence: Silence, suspect_s: float) -> Iterator[Span]:
        """The suspicions that one silence makes, each with what deafness leaves of it."""
        listening, judge_from, suspected = silence.last, -math.inf, False
        for index in range(bisect_right(self._ends, silence.last), len(self.spans)):
            deaf = self.spans[index]
            if deaf.noticed >= silence.heard:
                break
            if deaf.end > listening:
                since = listening + (0.0 if suspected else suspect_s)
                if since < deaf.noticed:
                    yield Span(since, judge_from, deaf.noticed)
                    suspected = True
                listening = deaf.end
            judge_from = deaf.end + self._period_s
        since = listening + (0.0 if suspected else suspect_s)
        if since < silence.heard:
            yield Span(since, judge_from, silence.heard)


def storms(suspects: list[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """When more hosts than that were suspects at once, from their spans."""
    edges = sorted([(since, 1) for since, _ in suspects] + [(left, -1) for _, left in suspects])
    found, count, began = [], 0, 0.0
    for at, step in edges:
        count += step
        if step > 0 and count == limit + 1:
            began = at
        elif step < 0 and count == limit:
            found.append((began, at))
    return found


def worst_minute(found: list[Found]) -> int:
    """The most hosts declared within any minute."""
    here: Counter[int] = Counter()
    first, worst = 0, 0
    found = sorted(found)
    for one in found:
        here[one.host] += 1
        while found[first].at <= one.at - MINUTE_S:
            here[found[first].host] -= 1
            if not here[found[first].host]:
                del here[found[first].host]
            first += 1
        worst = max(worst, len(here))
    return worst


def cut_off(host: int, faults: tuple[Fault, ...], since: float, at: float) -> bool:
    """No network reached it at any moment of that span."""
    if host not in CONVERGED or not any(fault.kind in CUTS for fault in faults):
        return False
    reached = since
    for fault in sorted(faults, key=lambda fault: fault.start):
        if fault.kind in CUTS and fault.start <= reached < fault.end:
            reached = fault.end
    return reached > at


class Pipeline:
    """All stages over one block, for one profile."""

    def __init__(self, time: PoolTime, profile: Profile, rng: Random) -> None:
        self.time, self.profile, self.rng = time, profile, rng
        self.deafness = Deafness(time, profile.settings.deaf_period_s)
        self._soonest_s = {one: soonest_s(profile.settings, one) for one in CHANNELS.values()}
        self.silences = [
            silences(rng, time, host, profile.beats.interval_s, profile.settings.suspect_after_s)
            for host in range(HOSTS)
        ]
        self._suspects: dict[Stage, list[tuple[float, float]]] = {stage: [] for stage in GUARDED.values()}
        self._held: dict[Stage, list[tuple[int, Suspect, Verdict]]] = {stage: [] for stage in GUARDED}
        self._found: dict[Stage, list[Found]] = {stage: [] for stage in Stage}
        self._storms: dict[Stage, list[tuple[float, float]]] = {}

    def run(self) -> dict[Stage, Count]:
        """False verdicts by stage."""
        self._observer_stalls()
        for host, found in enumerate(self.silences):
            for silence in found:
                self._follow(host, silence)
        limit = storm_limit(HOSTS)
        self._storms = {stage: storms(spans, limit) for stage, spans in self._suspects.items()}
        for stage, held in self._held.items():
            for host, asked, verdict in held:
                later = self.guarded(stage, asked, verdict)
                if later is not None:
                    self._say(stage, host, asked.faults, later[0], later[1].at)
        return {stage: _counted(found) for stage, found in self._found.items()}

    def found(self, stage: Stage) -> tuple[Found, ...]:
        """Its false verdicts, once it ran."""
        return tuple(self._found[stage])

    def suspect(self, host: int, silence: Silence, span: Span) -> Suspect:
        beats, settings = self.profile.beats, self.profile.settings
        return Suspect(self.rng, silence.faults, host in CONVERGED, span.since, span.until, beats, settings)

    def guarded(self, stage: Stage, asked: Suspect, verdict: Verdict) -> tuple[float, Verdict] | None:
        """Since when it was suspected and the verdict, once no storm holds it up; None where a heartbeat came
        first. What was seen in a storm counts for nothing after it."""
        shared = GUARDED[stage]
        held = self._storms[shared]
        while True:
            index = bisect_right(held, (verdict.at, math.inf)) - 1
            if index < 0 or held[index][1] <= asked.since:
                break  # none during this suspicion
            over = held[index][1]
            if over > verdict.at and verdict.rule.stands(verdict.evidence):
                break
            if over >= asked.heard:
                return None
            asked = Suspect(
                self.rng, asked.faults, asked.converged, over, asked.heard, asked.beats, asked.settings
            )
            again = walk(asked, CHANNELS[shared], over).verdict
            if again is None:
                return None
            verdict = again
        return asked.since, verdict

    def _observer_stalls(self) -> None:
        """Timers that fire before the sockets are drained find everybody silent."""
        beats, settings = self.profile.beats, self.profile.settings
        for stall in self.time.stalls:
            length_s = stall.end - stall.start
            if length_s + beats.interval_s <= settings.suspect_after_s:
                continue
            for host in range(HOSTS):
                if length_s + beats.interval_s * self.rng.random() > settings.suspect_after_s:
                    cut = cut_off(host, self.time.common(host), stall.end, stall.end)
                    self._found[Stage.SUSPICION].append(Found(stall.end, host, cut, stall.kind))

    def _follow(self, host: int, silence: Silence) -> None:
        suspect_s = self.profile.settings.suspect_after_s + TICK_S * self.rng.random()
        since = silence.last + suspect_s
        if since >= silence.heard:
            return
        self._say(Stage.SUSPICION, host, silence.faults, since, since)
        spans = list(self.deafness.cuts(silence, suspect_s))
        for span in spans:
            at = max(span.since, span.judge_from)
            if at < span.until:
                self._say(Stage.HEALTH, host, silence.faults, at, at)
                break
        if all(fault.kind in ANSWERED for fault in silence.faults):
            found = Evidence(suspect_s, 0.0, lives_elsewhere=True)
            rule = judge(found, self.profile.settings)  # the same for every answer of every round
            if rule is None or rule.verdict is not HostState.FAILED:
                return
        self._pursue(host, silence, spans)

    def _pursue(self, host: int, silence: Silence, spans: list[Span]) -> None:
        """Ask, over each suspicion until one makes a verdict. Stages share the answers."""
        done: set[Stage] = set()
        for span in spans:
            asked = self.suspect(host, silence, span)
            walks: dict[Stage, Walk] = {}
            for stage, channels in CHANNELS.items():
                if (shared := like(stage, silence.faults)) is not stage:
                    walks[stage] = walks[shared]
                    continue
                lives = asked.kept_alive_at(self._soonest_s[channels])
                walks[stage] = walk(asked, channels, span.judge_from) if lives is None else Walk(lives, None)
            for stage, spans_of in self._suspects.items():
                spans_of.append((span.since, walks[stage].left))
            for stage in CHANNELS:
                verdict = walks[stage].verdict
                if verdict is not None and stage not in done and stage not in GUARDED:
                    self._say(stage, host, silence.faults, span.since, verdict.at)
                    done.add(stage)
            for stage, shared in GUARDED.items():
                verdict = walks[shared].verdict
                if verdict is not None and stage not in done:
                    self._held[stage].append((host, asked, verdict))
                    done.add(stage)

    def _say(self, stage: Stage, host: int, faults: tuple[Fault, ...], since: float, at: float) -> None:
        cause = faults[0].kind if len(faults) == 1 else " and ".join(sorted({one.kind for one in faults}))
        self._found[stage].append(Found(at, host, cut_off(host, faults, since, at), cause))


def _counted(found: list[Found]) -> Count:
    causes = Counter(one.cause for one in found if not one.cut)
    cut = sum(one.cut for one in found)
    return Count(len(found) - cut, cut, worst_minute(found), causes)
