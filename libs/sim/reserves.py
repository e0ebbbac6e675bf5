"""Random pools with hosts on standby: off until the pool is short, and off again once it is not."""

from __future__ import annotations

from random import Random
from typing import Any

from libs.sim.drawing import Step

SHARE = 0.1
"""Of pools that have such hosts."""
TIGHT = 0.7
"""Share of these whose other hosts are as good as full: what fails finds no room."""
FAULTS = ("power_on", "power_on", "power_on", "crash", "power_off", "reboot", "kill_agent", "break_fencing")


def reserved(
    chance: Random, pool: dict[str, Any], faults: list[Step], times_s: tuple[float, float]
) -> tuple[dict[str, Any], list[Step], dict[str, Any]]:
    """The pool with one host or two on standby, what befalls them too, and how they are kept. Drawn by a stream of its
    own: what the other parts draw stays as it was."""
    if chance.random() >= SHARE:
        return pool, faults, {}
    like = pool["hosts"][0]
    power = [one for one in like["fencing"] if one["method"] == "power"]
    names = ["s1", "s2"][: chance.choice((1, 1, 2))]
    hosts = [{**like, "name": name, "fencing": power, "standby": True} for name in names]
    if chance.random() < TIGHT:
        used = {host["name"]: 0 for host in pool["hosts"]}
        for vm in pool["vms"]:
            used[vm["host"]] += vm["memory_mib"]
        tight = [{**host, "memory_mib": max(256, used[host["name"]] + 128)} for host in pool["hosts"]]
        pool = {**pool, "hosts": tight}
    for host in hosts:
        host.pop("labels", None)
        host.pop("agent", None)
    more: list[Step] = []
    for _ in range(chance.choice((0, 1, 1, 2))):
        name, do = chance.choice(names), chance.choice(FAULTS)
        how = {"how": chance.choice(("dead", "refuse", "hang"))} if do == "break_fencing" else {}
        more.append({"at_s": round(chance.uniform(*times_s), 3), "do": do, "host": name, **how})
    settings = {
        "boot_s": chance.choice((6.0, 25.0)),
        "idle_s": chance.choice((0.0, 4.0, 12.0)),
        "overcommitted_s": 5.0,
    }
    steps = sorted([*faults, *more], key=lambda step: step["at_s"])
    return {**pool, "hosts": [*pool["hosts"], *hosts]}, steps, {"standby": settings}
