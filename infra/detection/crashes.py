"""How soon a true crash is found: at a random instant, and in the middle of some other fault."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from infra.detection.hearing import Silence
from infra.detection.model import HOSTS, Fault, Kind
from infra.detection.stages import CHANNELS, GUARDED, Pipeline, Stage, like
from infra.detection.walking import TICK_S, Verdict, power_read, walk

A_HOST_YEAR = 2
"""Crashes tried at random instants for each host-year, and as many in the middle of a fault."""
POWER_ANSWER_S = (0.1, 0.5)
"""A fence device's answer: assumed, even."""
AROUND_S = 150.0
GIVEN_UP_S = 600.0


class When(StrEnum):
    ANYTIME = "any time"
    FAULT = "during a fault"


class Speed(StrEnum):
    """What is told of a crash beyond the stages."""

    PROOF = "power reads off"
    HUNG = "hangs for good"
    """All stages together, where its kernel goes on."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds from crash to verdict, and the rules that made it."""

    found_s: tuple[float, ...] = ()
    rules: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Not found within GIVEN_UP_S."""

    def plus(self, other: Times) -> Times:
        return Times(self.found_s + other.found_s, self.rules + other.rules, self.missed + other.missed)


Key = tuple[When, Stage | Speed]


class Crashes:
    """Crashes in one block, after the pipeline ran over it: its storms hold up these verdicts as well."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._line, self._rng = pipeline, pipeline.rng
        self._found: dict[Key, list[float]] = {}
        self._rules: dict[Key, Counter[str]] = {}
        self._missed: Counter[Key] = Counter()

    def run(self) -> dict[Key, Times]:
        tries = math.ceil(A_HOST_YEAR * self._line.time.host_years)
        for _ in range(tries):
            host = self._rng.randrange(HOSTS)
            self._crash(When.ANYTIME, host, self._line.time.seconds * self._rng.random())
            host = self._rng.randrange(HOSTS)
            faults = (*self._line.time.hosts[host], *self._line.time.common(host), *self._line.time.stalls)
            if faults:
                fault = self._rng.choices(faults, [one.end - one.start for one in faults])[0]
                at = fault.start + (fault.end - fault.start) * self._rng.random()
                self._crash(When.FAULT, host, at)
        keys = set(self._found) | set(self._missed)
        return {
            key: Times(tuple(self._found.get(key, ())), self._rules.get(key, Counter()), self._missed[key])
            for key in sorted(keys)
        }

    def _silence(self, host: int, at: float, kind: Kind) -> Silence:
        """The last one. It may have begun before the crash, by another fault."""
        known = self._line.silences[host]
        index = bisect_right(known, at, key=lambda silence: silence.last) - 1
        before = known[index] if index >= 0 and known[index].heard > at else None
        last = before.last if before else at - self._line.profile.beats.interval_s * self._rng.random()
        around = [
            fault
            for fault in self._line.time.common(host)
            if fault.start < at + AROUND_S and fault.end > last
        ]
        own = [fault for fault in (before.faults if before else ()) if fault not in around]
        return Silence(last, at + GIVEN_UP_S, (Fault(kind, at, math.inf), *own, *around))

    def _crash(self, when: When, host: int, at: float) -> None:
        line = self._line
        silence = self._silence(host, at, Kind.DEAD)
        suspect_s = line.profile.settings.suspect_after_s + TICK_S * line.rng.random()
        since = silence.last + suspect_s
        for stall in line.time.stalls:
            if stall.start < since < stall.end:
                since = stall.end
        self._note(when, Stage.SUSPICION, since - at, "suspected")
        spans = list(line.deafness.cuts(silence, suspect_s))
        firsts = [max(span.since, span.judge_from) for span in spans if span.judge_from < span.until]
        for first in firsts[:1]:
            self._note(when, Stage.HEALTH, first - at, "suspected")
        pending: set[Stage | Speed] = {*CHANNELS, *GUARDED, Speed.PROOF}
        power_s = self._rng.uniform(*POWER_ANSWER_S)
        for span in spans:
            asked = line.suspect(host, silence, span)
            walks: dict[Stage, Verdict | None] = {}
            for stage in [one for one in Stage if one in pending]:
                shared = like(GUARDED.get(stage, stage), silence.faults)
                if shared not in walks:
                    walks[shared] = walk(asked, CHANNELS[shared], span.judge_from).verdict
                walked = walks[shared]
                if walked is not None and stage in GUARDED:
                    later = line.guarded(stage, asked, walked)
                    walked = later[1] if later else None
                if walked is not None:
                    self._note(when, stage, walked.at - at, walked.rule.name)
                    pending.discard(stage)
            read = power_read(asked, power_s) if Speed.PROOF in pending else None
            if read is not None and max(read.at, span.judge_from) < span.until:
                self._note(when, Speed.PROOF, max(read.at, span.judge_from) - at, read.rule.name)
                pending.discard(Speed.PROOF)
        for what in pending:
            self._missed[when, what] += 1
        self._hang(when, host, at, suspect_s)

    def _hang(self, when: When, host: int, at: float, suspect_s: float) -> None:
        """The same host at the same moment, whose processes all stop while its kernel goes on."""
        silence = self._silence(host, at, Kind.HUNG)
        for span in self._line.deafness.cuts(silence, suspect_s):
            asked = self._line.suspect(host, silence, span)
            walked = walk(asked, CHANNELS[GUARDED[Stage.GUARD]], span.judge_from).verdict
            later = None if walked is None else self._line.guarded(Stage.GUARD, asked, walked)
            if later is not None:
                return self._note(when, Speed.HUNG, later[1].at - at, later[1].rule.name)
        self._missed[when, Speed.HUNG] += 1
        return None

    def _note(self, when: When, what: Stage | Speed, took_s: float, rule: str) -> None:
        """A verdict before the crash was a false one, and is counted as such elsewhere."""
        if took_s >= 0.0:
            self._found.setdefault((when, what), []).append(round(took_s, 4))
            self._rules.setdefault((when, what), Counter())[rule] += 1
