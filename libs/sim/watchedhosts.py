"""Random worlds whose hosts have watchdogs, and the misfortunes that show what these are worth.

Drawn with luck of their own: a world without watchdogs is what it was before there were any."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from libs.sim.drawing import Step

SHARE = 0.3
"""Of pools whose hosts have watchdogs."""
MISFORTUNE = 0.75
ALONE = 0.7
EARLY_S = (1.5, 4.0)
"""So early that a promise can run out before all is healed."""
Pool = dict[str, Any]


def watched(chance: Random, pool: Pool, faults: list[Step]) -> tuple[Pool, list[Step]]:
    """The pool with or without watchdogs, and what happens to it. A promise takes seconds to run out: where much else
    goes wrong meanwhile it seldom decides anything, so most of these misfortunes come alone."""
    if chance.random() >= SHARE:
        return pool, faults
    hosts = []
    for host in pool["hosts"]:
        dog: dict[str, Any] = {"method": "watchdog", "timeout_s": 5.0, "level": 3}
        if chance.random() < 0.3:  # 8 or 10 s really: who counts on what was asked for counts wrong
            dog["coarse_s"] = chance.choice((4.0, 10.0))
        # one host in ten has none, and is never presumed anything
        has = chance.random() < 0.9 and host.get("agent", True)
        hosts.append({**host, "fencing": [*host["fencing"], dog]} if has else host)
    pool = {**pool, "hosts": hosts}
    if chance.random() >= MISFORTUNE:
        return pool, faults
    at_s = round(chance.uniform(*EARLY_S), 3)
    steps = chance.choice(MAKERS)(chance, pool, at_s)
    if chance.random() < 0.4:  # what is heard late may be fed on late
        slow_s = round(chance.uniform(0.2, 0.6), 3)
        steps.append({"at_s": round(at_s - 1.0, 3), "do": "delay", "seconds": slow_s})
    return pool, steps if chance.random() < ALONE else [*faults, *steps]


def _dead_devices(hosts: list[str], at_s: float) -> list[Step]:
    return [
        {"at_s": at_s, "do": "break_fencing", "host": host, "method": "power", "how": "dead"}
        for host in hosts
    ]


def _down(chance: Random, pool: Pool, at_s: float) -> list[Step]:
    """A host ends, and its fence device with it."""
    host = chance.choice(_names(pool))
    do = chance.choice(("power_off", "power_off", "crash", "hang"))
    end: Step = {"at_s": at_s, "do": do, "host": host}
    if chance.random() < 0.5:
        end["how"] = "for_good"
    steps = [*_dead_devices([host], at_s), end]
    fate = chance.random()
    if fate < 0.3:  # who counts is another, or has stood still
        who = {"service": "fencer", "replica": chance.randrange(pool["management"]["replicas"])}
        steps.append({"at_s": _later(chance, at_s, 2.0, 8.0), "do": "kill_service", **who})
    elif fate < 0.5:
        paused = {
            "do": "pause_service",
            "service": "fencer",
            "replica": 0,
            "seconds": chance.choice((1.0, 4.0)),
        }
        steps.append({"at_s": _later(chance, at_s, 1.0, 8.0), **paused})
    return steps


def _cut_off(chance: Random, pool: Pool, at_s: float) -> list[Step]:
    """One host, or two that see each other, without bus, storage and all others; for a while, or until all is healed."""
    names = _names(pool)
    cut = chance.sample(names, 2 if len(names) >= 5 and chance.random() < 0.7 else 1)
    others = [name for name in names if name not in cut]
    steps: list[Step] = [
        *_dead_devices(cut, at_s),
        {"at_s": at_s, "do": "partition", "groups": [cut, ["bus", *others]]},
    ]
    if chance.random() < 0.8:
        steps += [{"at_s": at_s, "do": "stall_storage", "host": host} for host in cut]
    if chance.random() < 0.4:
        back_s = _later(chance, at_s, 1.0, 9.0)
        steps.append({"at_s": back_s, "do": "heal"})
        steps += [{"at_s": back_s, "do": "restore_storage", "host": host} for host in cut]
    return steps


def _gasp(chance: Random, pool: Pool, at_s: float) -> list[Step]:
    """A host is cut off while a write to its slot hangs, and that one is taken a moment later: the last that vouches for
    it, as old as it may be."""
    host, *others = chance.sample(_names(pool), len(pool["hosts"]))
    taken_s = round(at_s + 0.45, 3)
    return [
        *_dead_devices([host], at_s),
        {"at_s": round(at_s - 0.3, 3), "do": "stall_storage", "host": host},
        {"at_s": at_s, "do": "partition", "groups": [[host], ["bus", *others]]},
        {"at_s": taken_s, "do": "restore_storage", "host": host},
        {"at_s": taken_s, "do": "stall_storage", "host": host},
    ]


def _half_cut(chance: Random, pool: Pool, at_s: float) -> list[Step]:
    """Seen by some and not by others: by the bus alone, by its peers alone, by one half of them, or one way only."""
    names = _names(pool)
    host, *others = chance.sample(names, len(names))
    half = others[: len(others) // 2]
    groups = chance.choice(([[host], ["bus"]], [[host], others], [[host], ["bus", *half]]))
    step: Step = {"at_s": at_s, "do": "partition", "groups": groups}
    if chance.random() < 0.4:
        step["how"] = "one_way"
    stall: Step = {"at_s": _later(chance, at_s, 0.0, 3.0), "do": "stall_storage", "host": host}
    return [*_dead_devices([host], at_s), step, *([stall] if chance.random() < 0.7 else [])]


def _plane_away(chance: Random, pool: Pool, at_s: float) -> list[Step]:
    """Longer than any watchdog waits: the services, or the servers of the bus. Nobody is reset for that, an agent that is
    started anew meanwhile included."""
    if chance.random() < 0.5:
        away_s = round(chance.uniform(7.0, 9.5), 3)
        return [{"at_s": at_s, "do": "kill_service", "service": "plane", "seconds": away_s}]
    steps: list[Step] = [{"at_s": at_s, "do": "kill_bus", "node": node} for node in range(3)]
    if chance.random() < 0.6:
        names = _names(pool)
        for host in chance.sample(names, chance.randint(1, len(names))):
            killed_s = _later(chance, at_s, -0.5, 2.0)
            steps.append({"at_s": killed_s, "do": "kill_agent", "host": host})
            steps.append({"at_s": _later(chance, killed_s, 0.2, 1.5), "do": "start_agent", "host": host})
    return steps


def _storage_away(chance: Random, pool: Pool, at_s: float) -> list[Step]:
    """The slots of all, and the plane in its midst: peers are left."""
    lost: Step = {"at_s": at_s, "do": "kill_service", "service": "plane", "seconds": 8.0}
    return [{"at_s": at_s, "do": "stall_storage"}, lost]


def _names(pool: Pool) -> list[str]:
    return [host["name"] for host in pool["hosts"]]


def _later(chance: Random, at_s: float, least_s: float, most_s: float) -> float:
    return round(at_s + chance.uniform(least_s, most_s), 3)


MAKERS: tuple[Callable[[Random, Pool, float], list[Step]], ...] = (
    _down,
    _down,
    _cut_off,
    _cut_off,
    _gasp,
    _gasp,
    _half_cut,
    _plane_away,
    _storage_away,
)
