"""From faults to silences: from when to when no heartbeat of a host arrives."""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

from infra.detection.model import LOSS, RTO_S, Fault, Kind, PoolTime

RECONNECT_S = 1.3
"""A client that lost its connection is back at most so long after its path (a try of 1 s, a pause of 0.25 s)."""
PROCESS = (Kind.STALL, Kind.RESTART, Kind.THRASH)
"""The sender itself stands: what it missed is never sent, and it speaks as soon as it can."""
LOSSES_MOST = 12


class Silence(NamedTuple):
    """No heartbeat between `last`, when one arrived, and `heard`, when the next did."""

    last: float
    heard: float
    faults: tuple[Fault, ...]


def silences(
    rng: Random, time: PoolTime, host: int, interval_s: float, longer_than_s: float
) -> list[Silence]:
    """All silences of one host that are longer than that, in order. Those that touch are one."""
    found: list[Silence] = []
    for fault in time.hosts[host]:
        if fault.kind is Kind.LOSS:
            found += _chains(rng, fault, interval_s, longer_than_s)
        elif fault.end - fault.start + interval_s > longer_than_s:
            found += _one(rng, fault, interval_s, longer_than_s)
    for fault in time.common(host):
        found += _one(rng, fault, interval_s, longer_than_s)
    return merged(found)


def merged(found: list[Silence]) -> list[Silence]:
    """In order, those that overlap made one."""
    found.sort(key=lambda silence: silence.last)
    result: list[Silence] = []
    for silence in found:
        if result and silence.last < result[-1].heard:
            before = result[-1]
            faults = before.faults if silence.faults[0] in before.faults else before.faults + silence.faults
            result[-1] = Silence(before.last, max(before.heard, silence.heard), faults)
        else:
            result.append(silence)
    return result


def _one(rng: Random, fault: Fault, interval_s: float, longer_than_s: float) -> list[Silence]:
    missed = fault.start + interval_s * rng.random()
    if fault.end <= missed:
        return []  # over before a heartbeat was due
    if fault.kind in PROCESS:
        heard = fault.end
    elif fault.kind in (Kind.BUS, Kind.OBSERVER_CUT):
        heard = fault.end + interval_s * rng.random()
    else:
        heard = min(resent(missed, fault.end), fault.end + RECONNECT_S * rng.random())
    last = missed - interval_s
    return [Silence(last, heard, (fault,))] if heard - last > longer_than_s else []


def resent(sent: float, over: float) -> float:
    """When TCP tries again for the first time after the path is back: its pauses double."""
    again, pause_s = sent, RTO_S
    while again < over:
        again += pause_s
        pause_s *= 2.0
    return again


def losses_for(interval_s: float, longer_than_s: float) -> int:
    """How many times in a row a segment must be lost for a silence longer than that."""
    lost = 1
    while interval_s + RTO_S * (2**lost - 1) <= longer_than_s:
        lost += 1
    return lost


def _chains(rng: Random, burst: Fault, interval_s: float, longer_than_s: float) -> list[Silence]:
    """Segments lost so often in a row that the host is silent for longer than that. Only these are drawn: the number
    of heartbeats before the next is geometric."""
    need = losses_for(interval_s, longer_than_s)
    scale = math.log1p(-(LOSS**need))
    found: list[Silence] = []
    sent = burst.start + interval_s * rng.random()
    while True:
        sent += interval_s * int(math.log(1.0 - rng.random()) / scale)
        if sent + RTO_S * (2 ** (need - 1) - 1) >= burst.end:
            return found  # the last of these tries would pass
        lost = need
        while sent + RTO_S * (2**lost - 1) < burst.end and lost < LOSSES_MOST and rng.random() < LOSS:
            lost += 1
        heard = sent + RTO_S * (2**lost - 1)
        found.append(Silence(sent - interval_s, heard, (burst,)))
        sent += interval_s * math.ceil((heard - sent) / interval_s)
