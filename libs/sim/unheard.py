"""Random worlds in which a person migrates a VM between two hosts that nobody hears, or in a moment will not; and then one fails.

Drawn with luck of their own: what the other parts draw stays as it was."""

from __future__ import annotations

from random import Random
from typing import Any

from libs.sim.drawing import Step

SHARE = 0.06
ALONE = 0.7
EARLY_S = (3.0, 7.0)
ENDS = ("power_off", "power_off", "power_off", "crash", "reboot", "hang")


def unheard(chance: Random, pool: dict[str, Any], faults: list[Step]) -> list[Step]:
    """What happens, with or without such a misfortune. Where a host has no agent nobody asks before it takes a VM in."""
    hosts = [host["name"] for host in pool["hosts"] if host.get("agent", True) and not host.get("standby")]
    vms = [vm for vm in pool["vms"] if vm["host"] in hosts]
    if chance.random() >= SHARE or len(hosts) < 3 or not vms:
        return faults
    at_s, vm = chance.uniform(*EARLY_S), chance.choice(vms)
    source = vm["host"]
    target = chance.choice([host for host in hosts if host != source])
    others = [host["name"] for host in pool["hosts"] if host["name"] not in (source, target)]
    groups = chance.choice(([[source, target], ["bus"]], [[source, target], ["bus", "m0", *others]]))

    def at(least_s: float, most_s: float) -> float:
        return round(at_s + chance.uniform(least_s, most_s), 3)

    seconds = chance.choice((0.4, 1.5))
    steps: list[Step] = [
        {"at_s": round(at_s, 3), "do": "partition", "groups": groups},
        {"at_s": at(-2.0, 0.7), "do": "migrate_vm", "vm": vm["name"], "host": target, "seconds": seconds},
    ]
    if chance.random() < 0.3:  # it goes on, or back
        there = chance.choice([host for host in hosts if host != target])
        steps.append(
            {"at_s": at(0.2, 2.5), "do": "migrate_vm", "vm": vm["name"], "host": there, "seconds": 0.4}
        )
    ended = source if chance.random() < 0.8 else target
    steps.append({"at_s": at(0.3, 4.0), "do": chance.choice(ENDS), "host": ended})
    fate = chance.random()
    if fate < 0.25:
        who = {"service": chance.choice(("placement", "executor")), "replica": 0}
        steps.append({"at_s": at(-2.0, 5.0), "do": "kill_service", **who})
    elif fate < 0.4:
        steps.append({"at_s": at(-2.0, 2.0), "do": "kill_agent", "host": target})
        steps.append({"at_s": at(2.0, 4.0), "do": "start_agent", "host": target})
    elif fate < 0.55:
        steps.append({"at_s": at(2.0, 5.5), "do": "heal"})
    return sorted(steps if chance.random() < ALONE else [*faults, *steps], key=lambda step: step["at_s"])
