"""The fault model: what befalls a pool in a simulated time, drawn as intervals from a seed.

Nothing is done a heartbeat: a fault is its kind, its beginning and its end, in seconds. All rates are
assumptions, most of them from SCIENCE.md 1.2; nobody has traced them in the field.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from statistics import NormalDist
from typing import NamedTuple

HOSTS, RACKS = 100, 5
SEPARATE_STORAGE = 0.7
YEAR_S = 365.25 * 86400.0
BLOCK_YEARS = 0.25
"""Of one pool. A block is drawn from a seed of its own, so that results do not depend on who computes it."""
LOSS = 0.3
RTO_S = 0.204
"""Linux's first retransmission on a path of under a millisecond; it doubles."""
UNIT = NormalDist()


class Weather(StrEnum):
    """How much goes wrong. The factor is on every rate."""

    CALM = "calm"
    NORMAL = "normal"
    STORMY = "stormy"

    @property
    def factor(self) -> float:
        return {"calm": 0.3, "normal": 1.0, "stormy": 3.0}[self.value]


class Kind(StrEnum):
    STALL = "agent stalls"
    RESTART = "agent restarts"
    THRASH = "I/O thrash"
    LOSS = "loss burst"
    LINK = "management link down"
    ONEWAY = "one-way path loss"
    UPLINK = "rack uplink brownout"
    CORE = "core brownout"
    BUS = "bus failover"
    OBSERVER_STALL = "observer stalls"
    OBSERVER_CUT = "observer isolated"
    DEAD = "host dead"
    HUNG = "host hangs for good"
    """What is to be detected; these are never drawn with the others."""


@dataclass(frozen=True, slots=True)
class LogNormal:
    median_s: float
    sigma: float

    def draw(self, rng: Random, at_least_s: float = 0.0) -> float:
        """Seconds. With `at_least_s`, of the tail beyond it."""
        below = 1.0 - self.tail(at_least_s)
        # random() may be 0.0, whose quantile is not a number
        quantile = below + (1.0 - below) * (1.0 - rng.random())
        return self.median_s * math.exp(self.sigma * UNIT.inv_cdf(min(quantile, 1.0 - 1e-15)))

    def tail(self, at_least_s: float) -> float:
        """Probability of a longer one."""
        if at_least_s <= 0.0:
            return 1.0
        return 1.0 - UNIT.cdf(math.log(at_least_s / self.median_s) / self.sigma)

    def __str__(self) -> str:
        return f"lognormal, median {self.median_s:g} s, sigma {self.sigma:g}"


@dataclass(frozen=True, slots=True)
class Uniform:
    low_s: float
    high_s: float

    def draw(self, rng: Random, at_least_s: float = 0.0) -> float:
        """Seconds. With `at_least_s`, of the tail beyond it."""
        low_s = max(self.low_s, at_least_s)
        return low_s + (self.high_s - low_s) * rng.random()

    def tail(self, at_least_s: float) -> float:
        """Probability of a longer one."""
        return min(1.0, max(0.0, (self.high_s - at_least_s) / (self.high_s - self.low_s)))

    def __str__(self) -> str:
        return f"{self.low_s:g} to {self.high_s:g} s"


@dataclass(frozen=True, slots=True)
class Rate:
    """One row of the fault model: so many a year in normal weather for each host, rack or pool."""

    kind: Kind
    scope: str
    a_year: float
    length: LogNormal | Uniform
    ours: str = ""
    """What SCIENCE.md 1.2 leaves open and is therefore our own guess."""


RATES: tuple[Rate, ...] = (
    Rate(Kind.STALL, "host", 3650.0, LogNormal(0.2, 1.1)),
    Rate(Kind.RESTART, "host", 12.0, Uniform(3.0, 20.0), "no goodbye is said"),
    Rate(Kind.THRASH, "host", 6.0, LogNormal(8.0, 0.8), "sigma"),
    Rate(Kind.LOSS, "host", 52.0, LogNormal(20.0, 1.0), "length"),
    Rate(Kind.LINK, "host", 4.0, LogNormal(6.0, 1.2)),
    Rate(Kind.ONEWAY, "host", 2.0, LogNormal(30.0, 1.0), "length; only towards the management side"),
    Rate(Kind.UPLINK, "rack", 6.0, LogNormal(5.0, 1.0), "sigma"),
    Rate(Kind.CORE, "pool", 6.0, LogNormal(5.0, 1.0), "length: as an uplink's"),
    Rate(Kind.BUS, "pool", 12.0, Uniform(2.0, 12.0), "all hosts are unheard meanwhile"),
    Rate(Kind.OBSERVER_STALL, "pool", 730.0, LogNormal(0.3, 1.5)),
    Rate(Kind.OBSERVER_CUT, "pool", 2.0, Uniform(30.0, 300.0)),
)


class Fault(NamedTuple):
    kind: Kind
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class PoolTime:
    """What befell one pool for `seconds`. Faults of one list are sorted by their beginning."""

    seconds: float
    hosts: tuple[tuple[Fault, ...], ...]
    racks: tuple[tuple[Fault, ...], ...]
    pool: tuple[Fault, ...]
    """Core, bus and the observer's isolation: every host is unheard."""
    stalls: tuple[Fault, ...]
    """The observer's own."""

    @property
    def host_years(self) -> float:
        return len(self.hosts) * self.seconds / YEAR_S

    def common(self, host: int) -> tuple[Fault, ...]:
        """Faults that this host shares with others."""
        return self.racks[rack_of(host)] + self.pool


CONVERGED = frozenset(host for host in range(HOSTS) if host % 10 >= round(10 * SEPARATE_STORAGE))
"""Hosts whose storage traffic goes over the management link, spread evenly over the racks."""


def rack_of(host: int) -> int:
    return host * RACKS // HOSTS


def block_years(host_years: float) -> tuple[float, ...]:
    """Pool-years of each block, so that their host-years add up to what was asked for."""
    years = host_years / HOSTS
    whole = int(years / BLOCK_YEARS + 1e-9)
    rest = years - whole * BLOCK_YEARS
    return (BLOCK_YEARS,) * whole + ((rest,) if rest > 1e-9 else ())


def stream(*names: object) -> Random:
    """A generator of its own for these names; the same in every process."""
    return Random("/".join(str(name) for name in names))


def draw(rng: Random, weather: Weather, years: float, stalls_from_s: float) -> PoolTime:
    """What befalls one pool in so many years. Stalls (of agents, of the observer) shorter than `stalls_from_s` are
    thinned out before they are drawn, which changes nothing for the others."""
    seconds = years * YEAR_S
    hosts = tuple(_drawn(rng, weather, "host", seconds, stalls_from_s) for _ in range(HOSTS))
    racks = tuple(_drawn(rng, weather, "rack", seconds, stalls_from_s) for _ in range(RACKS))
    pool = _drawn(rng, weather, "pool", seconds, stalls_from_s)
    return PoolTime(
        seconds,
        hosts,
        racks,
        tuple(fault for fault in pool if fault.kind is not Kind.OBSERVER_STALL),
        tuple(fault for fault in pool if fault.kind is Kind.OBSERVER_STALL),
    )


def _drawn(
    rng: Random, weather: Weather, scope: str, seconds: float, stalls_from_s: float
) -> tuple[Fault, ...]:
    """A Poisson process of each kind of this scope."""
    faults = []
    for rate in RATES:
        if rate.scope != scope:
            continue
        from_s = stalls_from_s if rate.kind in (Kind.STALL, Kind.OBSERVER_STALL) else 0.0
        a_second = rate.a_year * weather.factor * rate.length.tail(from_s) / YEAR_S
        at = rng.expovariate(a_second)
        while at < seconds:
            faults.append(Fault(rate.kind, at, at + rate.length.draw(rng, from_s)))
            at += rng.expovariate(a_second)
    return tuple(sorted(faults, key=lambda fault: fault.start))
