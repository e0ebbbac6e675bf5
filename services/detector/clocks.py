"""How long ago a host was surely in its boot, told to detectors whose own clock does not know it.

A monotonic clock is one machine's. Every heartbeat shows its host's, so what the clocks of some other hosts showed when this
one was known to be in its boot is stored with it: a detector that begins on any machine hears these hosts, and reads
on their clocks how long ago that was. No wall clock is asked: one that was set back would make a boot look older than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from libs.core.decider import Step
from libs.model import HostState
from services.detector.moves import move
from services.detector.state import DetectorState, Heard, HostRecord

State = DetectorState
KEPT = 2
"""Clocks stored with a host. One that stood still, or lies, is outvoted by the one that shows more; one that is heard is enough."""
FRESH_S = 30.0
ANEW_S = 60.0
"""What is stored is written anew after so long, and then whenever it is half as old as the boot is known to be: a look
is believed where the kernel has run for longer than that is ago, so it must not be nearly as old as the boot."""
AT_ONCE = 16
"""Hosts of which that is written at one look, so that a takeover is no burst."""


def heard(state: State, host: str, at: float, clocked: Sequence[str], *, anew: bool) -> Heard | None:
    """What is stored of a host that was in its boot at `at` (s, by our own clock). `clocked`: hosts whose heartbeats show the
    clock of their own machine; `anew`: this boot was not known before. None where nobody could tell later what that was."""
    clocks: dict[str, float] = {}
    first = crc32(host.encode())  # not the same few for all
    for index in range(len(clocked)):
        other = clocked[(first + index) % len(clocked)]
        view = state.views.get(other)
        if other == host or view is None or view.heard_at is None or view.seen is None:
            continue
        if view.clock_s is not None and abs(at - view.heard_at) < FRESH_S:
            clocks[view.seen.boot] = round(view.clock_s + at - view.heard_at, 3)
        if len(clocks) == KEPT:
            break
    if not state.machine and not clocks:
        return None
    former = None if anew else state.record(host).heard
    ago_s = None if former is None else _ago_s(state, former, at)
    span_s = 0.0 if former is None or ago_s is None else former.span_s + ago_s
    return Heard(machine=state.machine, at=at, clocks=clocks, span_s=round(span_s, 3))


def known_s(state: State, host: str, now: float) -> float | None:
    """How long ago it was surely in the boot of its record: by what we heard ourselves, else by what is stored. None where
    nobody can say."""
    record, view = state.record(host), state.view(host)
    if view.heard_at is not None and view.seen == record.at:
        return max(0.0, now - view.heard_at)
    return None if record.heard is None else _ago_s(state, record.heard, now)


def look(state: State, hosts: Sequence[str], clocked: Sequence[str], now: float) -> Step[State]:
    """Write anew what is stored of hosts that are well, where it is old."""
    left = AT_ONCE
    for host in hosts:
        record, view = state.records.get(host), state.views.get(host)
        if not isinstance(record, HostRecord) or record.state is not HostState.HEALTHY or view is None:
            continue
        if view.heard_at is None or view.seen != record.at or not _old(state, record, view.heard_at):
            continue
        after = renewed(state, record, view.heard_at, clocked)
        if after is not record:
            state, left = move(state, after, None).state, left - 1
        if not left:
            break
    return Step(state)


def renewed(state: State, record: HostRecord, at: float, clocked: Sequence[str]) -> HostRecord:
    """The record of a host that was in its boot at `at`, where what is stored of that is old."""
    if not _old(state, record, at):
        return record
    found = heard(state, record.host, at, clocked, anew=False)
    if found is None:
        return record
    hardware = record.hardware or state.view(record.host).hardware
    return record.model_copy(update={"heard": found, "hardware": hardware})


def _old(state: State, record: HostRecord, at: float) -> bool:
    stored = record.heard
    if stored is None:
        return True
    mine = stored.machine == state.machine
    if mine and 0.0 <= at - stored.at < ANEW_S:  # nearly all, nearly always
        return False
    ago_s = _ago_s(state, stored, at)
    return ago_s is None or ago_s >= max(ANEW_S, stored.span_s)


def _ago_s(state: State, stored: Heard, now: float) -> float | None:
    """By our own clock where a detector on this machine stored it, else by the clocks of the hosts that are stored with it."""
    if state.machine and stored.machine == state.machine:
        return now - stored.at if stored.at <= now else None
    if not stored.clocks:
        return None
    ages = [age for boot in stored.clocks if (age := _age(state, boot, stored, now)) is not None]
    return max(ages) if ages and min(ages) >= 0 else None


def _age(state: State, boot: str, stored: Heard, now: float) -> float | None:
    """How long ago that was by the clock of this boot; None where it is not heard any more."""
    view = state.views.get(state.boots.get(boot, ""))
    if view is None or view.clock_s is None or view.heard_at is None or view.seen is None:
        return None
    return view.clock_s + now - view.heard_at - stored.clocks[boot] if view.seen.boot == boot else None
