"""Whom of the pool there is something to look at. With thousands of hosts a walk over all of them at each tick would be a
third of a processor, so that one is remembered: until one whom it found at rest can have something to be looked at, only
those are looked at whom it found unwell. Whatever else may make a host unwell voids it (decide.py:step)."""

from __future__ import annotations

import math

from libs.core.evolve import replace
from libs.model import HostState
from services.detector.state import UNSCANNED, UNSEEN, DetectorState, HostRecord, Scan

State = DetectorState
ROUNDING_S = 1e-6
"""A sum and a difference of the same times may differ by their last bit."""


def scanned(state: State, hosts: tuple[str, ...], suspect_after_s: float, now: float) -> Scan:
    """The remembered walk, or a new one where it is not good any more."""
    if now < state.scan.until - ROUNDING_S:
        return state.scan
    unwell, until = [], math.inf
    for host in hosts:
        due_at = rests_until(state, host, suspect_after_s)
        if now < due_at - ROUNDING_S:
            until = min(until, due_at)
        else:
            unwell.append(host)
    return Scan(tuple(unwell), until)


def rests_until(state: State, host: str, suspect_after_s: float) -> float:
    """Before it there is nothing to look at, unless something else than a heartbeat comes: `_look` of decide.py would change
    nothing. -inf where there is, inf where only hearing it can change that."""
    record, view = state.records.get(host), state.views.get(host) or UNSEEN
    if not isinstance(record, HostRecord) or record.at is None:
        return math.inf  # not joined: it cannot fall silent
    if view.doubted or record.state not in (HostState.HEALTHY, HostState.UNKNOWN):
        return -math.inf
    if view.heard_at is not None:
        well = record.state is HostState.HEALTHY and view.seen == record.at
        return view.heard_at + suspect_after_s if well else -math.inf
    silent_at = state.listening_since + suspect_after_s
    return silent_at if record.state is HostState.HEALTHY else max(silent_at, state.quiet_until)


def well(state: State, host: str, suspect_after_s: float, now: float) -> bool:
    """Nothing to look at. True of nearly every host."""
    return now < rests_until(state, host, suspect_after_s) - ROUNDING_S


def kept(before: State, state: State, host: str, suspect_after_s: float, now: float) -> State:
    """After a heartbeat, the walk that is remembered, where it is still good: of no other host a heartbeat makes anything
    that is to be looked at, and this one is most often well by it. Thousands join one after the other, and a walk for each
    tick of that time is what they would wait for."""
    if state.records is before.records or state.scan is UNSCANNED:
        return state
    due_at = rests_until(state, host, suspect_after_s)
    if due_at <= now:
        return replace(state, scan=UNSCANNED)
    if due_at >= state.scan.until:
        return state
    return replace(state, scan=replace(state.scan, until=due_at))
