"""All blocks of all weathers, on as many processes as wanted. What comes out does not depend on how many."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from infra.detection.crashes import Crashes, Key, Times
from infra.detection.estimators import LATE_S, false_suspicions
from infra.detection.model import Weather, block_years, draw, stream
from infra.detection.stages import Count, Pipeline, Stage
from infra.detection.walking import Profile
from libs.config.settings import PROFILES, Detection, Heartbeats

Progress = Callable[[int, int], None]


def profiles(changed: dict[str, float] | None = None) -> tuple[Profile, ...]:
    """Those of Rekindle. `changed`: settings of detection to try instead of a profile's own."""
    return tuple(
        Profile(
            name,
            Heartbeats.model_validate(sections.get("heartbeats", {})),
            Detection.model_validate({**sections.get("detection", {}), **(changed or {})}),
        )
        for name, sections in PROFILES.items()
    )


class Task(NamedTuple):
    seed: int
    weather: Weather
    block: int
    years: float
    estimate: bool
    """Play it to the estimators instead."""
    profiles: tuple[Profile, ...]


@dataclass(frozen=True, slots=True)
class Tally:
    """What was counted, of one profile in one weather."""

    host_years: float = 0.0
    counts: dict[Stage, Count] = field(default_factory=dict)
    times: dict[Key, Times] = field(default_factory=dict)

    def plus(self, other: Tally) -> Tally:
        counts = {stage: self.counts.get(stage, Count()).plus(count) for stage, count in other.counts.items()}
        keys = [*self.times, *(key for key in other.times if key not in self.times)]
        times = {key: self.times.get(key, Times()).plus(other.times.get(key, Times())) for key in keys}
        return Tally(self.host_years + other.host_years, {**self.counts, **counts}, times)


@dataclass(frozen=True, slots=True)
class Estimated:
    """False suspicions of the estimators in one weather."""

    host_years: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)

    def plus(self, other: Estimated) -> Estimated:
        counts = {name: self.counts.get(name, 0) + count for name, count in other.counts.items()}
        return Estimated(self.host_years + other.host_years, {**self.counts, **counts})


@dataclass(frozen=True, slots=True)
class Results:
    host_years: float
    seed: int
    profiles: tuple[Profile, ...]
    tallies: dict[tuple[str, Weather], Tally]
    estimated: dict[Weather, Estimated]
    changed: dict[str, float]


Part = tuple[Task, dict[str, Tally], Estimated | None]


def perform(task: Task) -> Part:
    """One block, in whichever process."""
    names = (task.seed, task.weather, task.block)
    if task.estimate:
        balanced = next(one for one in task.profiles if one.name == "balanced")
        rng = stream(*names, "estimators")
        time = draw(rng, task.weather, task.years, LATE_S)
        counts = false_suspicions(rng, time, balanced.beats.interval_s)
        return task, {}, Estimated(time.host_years, counts)
    time = draw(
        stream(*names), task.weather, task.years, min(profile.stalls_from_s for profile in task.profiles)
    )
    tallies = {}
    for profile in task.profiles:
        pipeline = Pipeline(time, profile, stream(*names, profile.name))
        counted = pipeline.run()
        tallies[profile.name] = Tally(time.host_years, counted, Crashes(pipeline).run())
    return task, tallies, None


def tasks(host_years: float, seed: int, known: tuple[Profile, ...]) -> list[Task]:
    """Long ones first, so that all processes end together."""
    found = []
    for weather in reversed(Weather):
        for block, years in enumerate(block_years(host_years)):
            found.append(Task(seed, weather, block, years, False, known))
        for block, years in enumerate(block_years(host_years)):
            found.append(Task(seed, weather, block, years, True, known))
    return found


def run(
    host_years: float,
    seed: int,
    *,
    jobs: int | None = None,
    progress: Progress = lambda done, of: None,
    changed: dict[str, float] | None = None,
) -> Results:
    """So many host-years in each weather, each judged with the settings of each profile."""
    known = profiles(changed)
    todo = tasks(host_years, seed, known)
    jobs = min(jobs or os.cpu_count() or 1, len(todo))
    if jobs == 1:
        return _summed(host_years, seed, known, map(perform, todo), len(todo), progress, changed or {})
    # a block makes a million small tuples and no cycles: looking for these took a quarter of the time
    with ProcessPoolExecutor(jobs, initializer=gc.disable) as processes:
        parts = processes.map(perform, todo)
        return _summed(host_years, seed, known, parts, len(todo), progress, changed or {})


def _summed(
    host_years: float,
    seed: int,
    known: tuple[Profile, ...],
    parts: Iterable[Part],
    many: int,
    progress: Progress,
    changed: dict[str, float],
) -> Results:
    tallies = {(profile.name, weather): Tally() for profile in known for weather in Weather}
    estimated = {weather: Estimated() for weather in Weather}
    for done, (task, found, counts) in enumerate(parts, 1):
        for name, tally in found.items():
            tallies[name, task.weather] = tallies[name, task.weather].plus(tally)
        if counts is not None:
            estimated[task.weather] = estimated[task.weather].plus(counts)
        progress(done, many)
    assert all(abs(tally.host_years - host_years) < 1e-6 for tally in tallies.values())
    return Results(host_years, seed, known, tallies, estimated, changed)
