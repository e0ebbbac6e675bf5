"""Random worlds without much room, in which a host fails while all that is said comes late: others are moved and stopped
for what it ran, and what was read before that is heard after it.

Drawn with luck of their own: what the other parts draw stays as it was."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from libs.sim.drawing import Step

SHARE = 0.1
ALONE = 0.5
DIES_S = (1.5, 4.0)
SLOW_AFTER_S = (0.3, 3.5)
"""Later it is found sooner, and what follows is slow; earlier all of it is."""
FREE_MIB = (64, 128, 192, 256, 384)
DELAYS_S = (0.1, 0.3, 0.6, 1.2)


def cramped(
    chance: Random, pool: dict[str, Any], faults: list[Step], placement: dict[str, Any]
) -> tuple[dict[str, Any], list[Step], dict[str, Any]]:
    """The pool, what happens and how room is made, with or without such a misfortune."""
    if chance.random() >= SHARE or len(pool["hosts"]) < 3 or not pool["vms"]:
        return pool, faults, placement
    used = Counter[str]()
    for vm in pool["vms"]:
        used[vm["host"]] += vm["memory_mib"]
    hosts = [
        {**host, "memory_mib": max(256, used[host["name"]] + chance.choice(FREE_MIB))}
        for host in pool["hosts"]
    ]
    at_s, dies = chance.uniform(*DIES_S), chance.choice(sorted(used))
    steps: list[Step] = [
        {"at_s": round(at_s, 3), "do": chance.choice(("power_off", "power_off", "crash")), "host": dies},
        {
            "at_s": round(at_s + chance.uniform(*SLOW_AFTER_S), 3),
            "do": "delay",
            "seconds": chance.choice(DELAYS_S),
        },
    ]
    if chance.random() < 0.3:
        who = {"service": chance.choice(("placement", "executor")), "replica": 0}
        steps.append({"at_s": round(at_s + chance.uniform(1.5, 8.0), 3), "do": "kill_service", **who})
    befalls = steps if chance.random() < ALONE else [*faults, *steps]
    policy = {**placement, "migrations": chance.random() < 0.7, "preemption": True}
    return {**pool, "hosts": hosts}, sorted(befalls, key=lambda step: step["at_s"]), policy
