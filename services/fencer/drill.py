"""The fence path drill: the power status of each device is read every few minutes, so that a path that is broken is known
before it is needed.

The devices of one host are read side by side, few hosts at once, and no host while it is being fenced or tested: that
shows more than a drill would. A path is held broken after two readings that failed; the second comes soon.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable

from libs.config.settings import FencingSettings
from libs.core.decider import Act, Publish, Step
from libs.core.evolve import replace
from libs.events.hosts import FencePathBroken, FencePathMended
from services.fencer.state import (
    FencerState,
    PathReading,
    PathRecord,
    PathSeen,
    PathsRead,
    ReadPaths,
)

FAILURES = 2
FIRST_SHARE, AGAIN_SHARE, JITTER = 0.1, 0.1, 0.1
"""Of the time between two rounds: until all hosts have had their first, after a reading that failed, and by how much
rounds are moved apart."""


def at_once(settings: FencingSettings) -> int:
    """How many hosts may be drilled at once: a quarter of the agents that may run, so that a fencing always has turns
    and a large pool's first round costs a few processes at a time."""
    return max(1, settings.parallel_max // 4)


def begin(settings: FencingSettings, state: FencerState, hosts: Iterable[str], now: float) -> FencerState:
    """All hosts' first rounds, spread."""
    if settings.drill_every_s == 0:
        return state
    spread_s = FIRST_SHARE * settings.drill_every_s
    due = {host: now + spread_s * _share(host, 0) for host in hosts}
    return replace(state, drill_at=type(state.drill_at)(due), drilling=type(state.drilling)())


def wake_at(settings: FencingSettings, state: FencerState) -> float | None:
    """The next round; None where none may begin before another ends."""
    if len(state.drilling) >= at_once(settings):
        return None
    return min(state.drill_at.values(), default=None)


def due(
    settings: FencingSettings, state: FencerState, deadlines_s: dict[str, float], now: float
) -> Step[FencerState]:
    """Begin what is due, as far as may run at once."""
    effects: list[Act] = []
    for host, at in sorted(state.drill_at.items(), key=lambda one: (one[1], one[0])):
        if at > now or len(state.drilling) >= at_once(settings):
            break
        if state.switched(host):
            later = now + max(1.0, AGAIN_SHARE * settings.drill_every_s)
            state = replace(state, drill_at=state.drill_at.insert(host, later))
            continue
        number = state.round + 1
        state = replace(
            state,
            round=number,
            drill_at=state.drill_at.remove(host),
            drilling=state.drilling.insert(host, number),
        )
        request = ReadPaths(key=f"paths/{host}/{number}", deadline_s=deadlines_s[host], host=host)
        effects.append(Act(None, request))
    return Step(state, tuple(effects))


def read(settings: FencingSettings, state: FencerState, outcome: PathsRead, now: float) -> Step[FencerState]:
    """What a round brought."""
    host = outcome.host
    if state.drilling.get(host) is None or outcome.key != f"paths/{host}/{state.drilling[host]}":
        return Step(state)
    number = state.drilling[host]
    state = replace(state, drilling=state.drilling.remove(host))
    known = state.records.get(PathRecord.PREFIX + host)
    before = known if isinstance(known, PathRecord) else PathRecord(host=host, paths=())
    if not outcome.readings:  # nothing is known of any of its devices
        return Step(_again(settings, state, host, number, now, soon=True))
    after, told = _judged(before, outcome)
    state = replace(state, records=state.records.insert(PathRecord.PREFIX + host, after))
    soon = any(path.failures > 0 and not path.broken for path in after.paths)
    state = _again(settings, state, host, number, now, soon=soon)
    return Step(state, tuple(told))


def _again(
    settings: FencingSettings, state: FencerState, host: str, number: int, now: float, *, soon: bool
) -> FencerState:
    moved = 1.0 + JITTER * (2.0 * _share(host, number) - 1.0)
    wait_s = max(1.0, settings.drill_every_s * (AGAIN_SHARE if soon else moved))
    return replace(state, drill_at=state.drill_at.insert(host, now + wait_s))


def _judged(before: PathRecord, outcome: PathsRead) -> tuple[PathRecord, list[Publish]]:
    """The record after these readings, and what people are told: of each path once that it broke, once that it is
    mended."""
    known = {(path.level, path.name): path for path in before.paths}
    number, paths, told = before.number, [], []
    name = PathRecord.PREFIX + before.host
    for reading in outcome.readings:
        was = known.get((reading.level, reading.name)) or PathSeen(name=reading.name, level=reading.level)
        path = _seen(was, reading, outcome.at)
        if path.broken is not was.broken:
            number += 1
            told.append(Publish(name, _fact(before.host, number, path)))
        paths.append(path)
    return PathRecord(host=before.host, paths=tuple(paths), number=number), told


def _seen(was: PathSeen, reading: PathReading, at: str) -> PathSeen:
    if reading.works:
        return PathSeen(name=was.name, level=was.level, proven_at=at, detail=reading.detail)
    failures = min(was.failures + 1, FAILURES)
    broken = was.broken or failures >= FAILURES
    return was.model_copy(update={"failures": failures, "broken": broken, "detail": reading.detail})


def _fact(host: str, number: int, path: PathSeen) -> FencePathBroken | FencePathMended:
    if not path.broken:
        return FencePathMended(
            host=host, number=number, device=path.name, level=path.level, rule="its power status was read"
        )
    return FencePathBroken(
        host=host,
        number=number,
        device=path.name,
        level=path.level,
        reason=path.detail,
        rule=f"{FAILURES} readings running failed",
    )


def _share(host: str, number: int) -> float:
    """From 0 to 1, the same for the same host and round: chance is no part of a decider."""
    return (zlib.crc32(f"{host}/{number}".encode()) % 1000) / 1000.0


def forget(state: FencerState, hosts: Collection[str]) -> FencerState:
    """Paths of hosts that are in the pool file no longer, or have no device any more."""
    gone = [
        name
        for name, record in state.records.items()
        if isinstance(record, PathRecord) and record.host not in hosts
    ]
    for name in gone:
        state = replace(state, records=state.records.remove(name))
    return state
