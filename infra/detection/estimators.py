"""Estimators alone, as others use them: fixed time-outs, Chen, phi accrual. Nobody dies, so each suspicion is false.

Only what is not on time is simulated. Between two silences all heartbeats are on time but for a jitter of
milliseconds, so that stretch enters a window by its length and its moments: exact to a few milliseconds of time-out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Protocol

from infra.detection.hearing import Silence, merged, silences
from infra.detection.model import HOSTS, UNIT, Fault, Kind, PoolTime

WINDOW = 1000
JITTER_MEAN_S = 0.0026
JITTER_VAR = 2 * 0.0022**2
"""Of an inter-arrival time: two delays of a lognormal 0.6 ms and an exponential 2 ms."""
MIN_STDDEV_S = 0.1
"""Akka's floor."""
QUEUED = frozenset({Kind.LOSS, Kind.LINK, Kind.ONEWAY, Kind.UPLINK, Kind.CORE, Kind.OBSERVER_STALL})
"""After these, the heartbeats meanwhile arrive at once. After others they were never sent."""
LATE_S = 0.2
"""What is less late than that is on time: it neither is suspected by anyone nor lifts a deviation over its floor."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Heartbeats on time before it, then nothing for `length_s`, then `queued` more than one at once."""

    before: int
    length_s: float
    queued: int


class Estimator(Protocol):
    """What an estimator makes of arrivals."""

    def timeout_s(self) -> float:
        """The silence after which it suspects, from the last arrival on."""

    def on_time(self, count: int) -> None:
        """So many heartbeats arrived on time."""

    def learn(self, gap: Gap) -> None:
        """One came late, and perhaps more at once with it."""


class Window:
    """The latest WINDOW values, most of which are on time and count as nothing. Estimators of one kind look at the same
    window, which is played to once: to play to each of them took twice as long."""

    def __init__(self) -> None:
        self._odd: deque[tuple[int, float]] = deque()
        self._index, self._sum, self._squares = 0, 0.0, 0.0

    def on_time(self, count: int) -> None:
        self._index += count
        self._forget()

    def odd(self, deviation_s: float) -> None:
        """One value off by that much."""
        self._index += 1
        self._odd.append((self._index, deviation_s))
        self._sum += deviation_s
        self._squares += deviation_s**2
        self._forget()

    def _forget(self) -> None:
        while self._odd and self._odd[0][0] <= self._index - WINDOW:
            _, deviation_s = self._odd.popleft()
            self._sum -= deviation_s
            self._squares -= deviation_s**2
        if not self._odd:
            self._sum = self._squares = 0.0  # no rounding is carried along

    def mean(self) -> float:
        return self._sum / WINDOW

    def variance(self) -> float:
        return max(0.0, self._squares / WINDOW - self.mean() ** 2)


class Lateness(Window):
    """How much later than expected each heartbeat arrived."""

    def __init__(self, interval_s: float) -> None:
        super().__init__()
        self._interval_s = interval_s

    def learn(self, gap: Gap) -> None:
        late_s = gap.length_s - self._interval_s
        for number in range(min(gap.queued, WINDOW) + 1):
            self.odd(max(0.0, late_s - number * self._interval_s))


class Spacing(Window):
    """How much longer than an interval it took from one arrival to the next."""

    def __init__(self, interval_s: float) -> None:
        super().__init__()
        self._interval_s = interval_s

    def learn(self, gap: Gap) -> None:
        self.odd(gap.length_s - self._interval_s)
        for _ in range(min(gap.queued, WINDOW)):
            self.odd(-self._interval_s)


class Fixed:
    def __init__(self, after_s: float) -> None:
        self._after_s = after_s

    def timeout_s(self) -> float:
        return self._after_s

    def on_time(self, count: int) -> None:
        """It learns nothing."""

    def learn(self, gap: Gap) -> None:
        """It learns nothing."""


class Chen:
    """NFD-E (Chen, Toueg, Aguilera 2002): expected arrival by the window's mean lateness, and a margin."""

    def __init__(self, interval_s: float, margin_s: float, late: Lateness | None = None) -> None:
        self._interval_s, self._margin_s = interval_s, margin_s
        self._late = late or Lateness(interval_s)
        self.on_time, self.learn = self._late.on_time, self._late.learn

    def timeout_s(self) -> float:
        return self._interval_s + self._margin_s + self._late.mean()


class Phi:
    """Phi accrual (Hayashibara 2004) as Akka has it: normal, with a floor and an acceptable pause."""

    def __init__(
        self, interval_s: float, threshold: float, pause_s: float, off: Spacing | None = None
    ) -> None:
        self._interval_s, self._pause_s = interval_s, pause_s
        self._quantile = -UNIT.inv_cdf(10.0**-threshold)
        self._off = off or Spacing(interval_s)
        self.on_time, self.learn = self._off.on_time, self._off.learn

    def timeout_s(self) -> float:
        stddev_s = max(MIN_STDDEV_S, math.sqrt(self._off.variance() + JITTER_VAR))
        return self._interval_s + self._off.mean() + self._pause_s + self._quantile * stddev_s


class PhiExponential:
    """Cassandra's: the mean interval alone."""

    def __init__(self, interval_s: float, threshold: float, off: Spacing | None = None) -> None:
        self._interval_s, self._factor = interval_s, threshold * math.log(10.0)
        self._off = off or Spacing(interval_s)
        self.on_time, self.learn = self._off.on_time, self._off.learn

    def timeout_s(self) -> float:
        return self._factor * (self._interval_s + self._off.mean())


def estimators(
    interval_s: float, late: Lateness | None = None, off: Spacing | None = None
) -> dict[str, Estimator]:
    """Those of the table, by their names in it, over windows of their own or over these."""
    return {
        **{f"fixed {after_s:g} s": Fixed(after_s) for after_s in (1.5, 3.0, 5.0, 10.0, 15.0, 30.0)},
        **{f"Chen NFD-E, margin {s:g} s": Chen(interval_s, s, late) for s in (1.0, 2.5, 4.5, 9.5)},
        **{f"phi 8, pause {s:g} s": Phi(interval_s, 8.0, s, off) for s in (0.0, 1.0, 3.0, 10.0)},
        "phi 12, pause 3 s": Phi(interval_s, 12.0, 3.0, off),
        "phi 8, exponential": PhiExponential(interval_s, 8.0, off),
    }


def detects_s(estimator: Estimator, interval_s: float, share: float) -> float:
    """Quantile of the time from a crash at a random instant to suspicion, with all heartbeats on time before: the
    last one is between nothing and an interval old."""
    return estimator.timeout_s() - interval_s * (1.0 - share)


def gaps(rng: Random, time: PoolTime, host: int, interval_s: float) -> Iterator[Gap]:
    """What is not on time of one host's heartbeats, as an observer sees it whose timers may fire before its sockets
    are drained."""
    found = silences(rng, time, host, interval_s, interval_s + LATE_S)
    paused = [_paused(rng, stall, interval_s) for stall in time.stalls]
    found += [one for one in paused if one.heard - one.last > interval_s + LATE_S]
    before = 0.0
    for silence in merged(found):
        length_s = silence.heard - silence.last
        queued = 0
        if any(fault.kind in QUEUED for fault in silence.faults):
            queued = max(0, int(length_s / interval_s) - 1)
        yield Gap(max(0, int((silence.last - before) / interval_s)), length_s, queued)
        before = silence.heard


def _paused(rng: Random, stall: Fault, interval_s: float) -> Silence:
    return Silence(stall.start - interval_s * rng.random(), stall.end, (stall,))


def false_suspicions(rng: Random, time: PoolTime, interval_s: float) -> dict[str, int]:
    """By estimator, over all hosts of this block."""
    counts = dict.fromkeys(estimators(interval_s), 0)
    for host in range(HOSTS):
        late, off = Lateness(interval_s), Spacing(interval_s)
        known = [(name, one.timeout_s) for name, one in estimators(interval_s, late, off).items()]
        for gap in gaps(rng, time, host, interval_s):
            late.on_time(gap.before)
            off.on_time(gap.before)
            for name, timeout_s in known:
                counts[name] += gap.length_s > timeout_s()
            late.learn(gap)
            off.learn(gap)
    return counts
