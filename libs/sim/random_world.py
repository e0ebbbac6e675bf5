"""A pool and its bad day, drawn from a seed, as a scenario: what fails can be written down and made shorter."""

from __future__ import annotations

from random import Random
from typing import Any

from libs.scenario.model import Scenario, StepEntry
from libs.sim.drawing import Draw, Step
from libs.sim.misfortunes import MAKERS

FAULTS_S = (1.5, 11.0)
"""When faults happen, after the pool is ready."""
HEAL_S = 13.0
END_S = 95.0
MENDED_BY = {
    "power_off": "power_on",
    "crash": "reboot",
    "hang": "reboot",
    "kill_agent": "start_agent",
    "break_fencing": "mend_fencing",
    "kill_bus": "start_bus",
    "stall_storage": "restore_storage",
}
WEATHER = ("partition", "delay", "loss")
SETTINGS: dict[str, Any] = {
    # shorter than production's where nothing but the length of a run depends on it
    "fencing": {"retry_first_s": 0.5, "retry_max_s": 4.0},
    "restart": {"retry_first_s": 0.5, "retry_max_s": 4.0},
    "detection": {
        "quiet_after_start_s": 8.0,
        "confirm_silence_s": 5.0,
        "confirm_hung_s": 6.0,
        "datastore_lost_s": 4.0,
        "failures_max": 2,
        "quarantine_s": 15.0,
    },
    "heartbeats": {"slot_timeout_s": 0.8},
    "guests": {"ping_every_s": 2.0, "silent_after_s": 6.0},
}
SLOTTED = 0.75
"""Share of pools whose hosts keep slots on a shared datastore."""
TWO_STORES = 0.35
"""Share of pools that have two datastores with names."""
POLICIES = ("restart", "restart", "restart", "restart", "best_effort", "none")
PRIORITIES = ("highest", "high", "medium", "medium", "low", "lowest")


def draw(seed: int) -> Scenario:
    """The same world for the same seed, always."""
    chance = Random(f"{seed}/world")
    pool = _pool(chance)
    faults = sorted(_faults(chance, pool), key=lambda step: step["at_s"])
    guests = {**SETTINGS["guests"], "grey": chance.choice(("alert", "drain"))}
    slots: dict[str, Any] = {} if chance.random() < SLOTTED else {"datastores": []}
    return compose(
        {
            "schema": "rekindle.scenario.v1",
            "name": f"random world {seed}",
            "seed": seed,
            "duration_s": END_S,
            "settings": {**SETTINGS, "guests": guests, **slots},
            **pool,
        },
        faults,
    )


def compose(body: dict[str, Any], faults: list[Step]) -> Scenario:
    """The scenario of these faults, and of all that mends them."""
    return Scenario.model_validate({**body, "steps": [*faults, *mends(faults)]})


def parts(scenario: Scenario) -> tuple[dict[str, Any], list[Step]]:
    """A random world's scenario taken apart again: its pool, and its faults without what mends them."""
    body: dict[str, Any] = {"schema": scenario.format}
    body.update(
        scenario.model_dump(mode="json", exclude_defaults=True, exclude={"format", "steps", "expect"})
    )
    return body, [written(step) for step in scenario.steps if step.at_s < HEAL_S]


def written(step: StepEntry) -> Step:
    """A step as it stands in a file."""
    return step.model_dump(mode="json", exclude_defaults=True)


def mends(faults: list[Step]) -> list[Step]:
    """What heals the world at HEAL_S: one step for each thing that is broken, and one for the weather."""
    healing: list[Step] = []
    for fault in faults:
        mend = MENDED_BY.get(fault["do"])
        if mend is None or fault.get("how") == "for_good":
            continue
        subject: Step = {key: fault[key] for key in ("host", "node", "datastore") if key in fault}
        step: Step = {"at_s": HEAL_S, "do": mend, **subject}
        if step not in healing:
            healing.append(step)
    if any(fault["do"] in WEATHER for fault in faults):
        healing.append({"at_s": HEAL_S, "do": "heal"})
    return healing


def _pool(chance: Random) -> dict[str, Any]:
    hosts = [f"h{number + 1}" for number in range(chance.choice((2, 3, 3, 4, 4, 5, 6)))]
    memory = chance.choice((4096, 4096, 1536, 1536, 1024))
    vms = []
    free = {host: memory for host in hosts}
    for number in range(chance.randint(2, 2 * len(hosts))):
        size = chance.choice((128, 256, 512, 768))
        host = chance.choice(hosts)
        if free[host] < size:
            continue
        free[host] -= size
        vms.append(
            {
                "name": f"vm{number + 1}",
                "host": host,
                "memory_mib": size,
                "protection": chance.choice(POLICIES),
                "priority": chance.choice(PRIORITIES),
                "isolation": chance.choice(("leave", "leave", "shutdown")),
                "on_guest_failure": "alert" if chance.random() < 0.15 else "restart",
                "agent": chance.random() < 0.6,
                "autostart": chance.random() < 0.3,
            }
        )
    levels = chance.choice((1, 1, 1, 2))
    fencing = [{"method": "power", "level": level + 1, "timeout_s": 2.0} for level in range(levels)]
    if hosts[1:] and chance.random() < TWO_STORES:
        has = sorted(chance.sample(hosts, chance.randint(2, len(hosts))))
        for vm in vms:
            vm["datastore"] = "san" if vm["host"] in has and chance.random() < 0.5 else "nfs"
        stores = {"datastores": [{"name": "nfs"}, {"name": "san", "hosts": has}]}
    else:
        stores = {}
    return {
        **stores,
        "management": {"replicas": chance.choice((1, 1, 2))},
        "hosts": [{"name": host, "memory_mib": memory, "cpus": 4, "fencing": fencing} for host in hosts],
        "vms": vms,
    }


def _faults(chance: Random, pool: dict[str, Any]) -> list[Step]:
    hosts = [host["name"] for host in pool["hosts"]]
    vms = [vm["name"] for vm in pool["vms"]]
    homes = {vm["name"]: vm["host"] for vm in pool["vms"]}
    autostart = frozenset(vm["name"] for vm in pool["vms"] if vm["autostart"])
    stores = {one["name"]: one.get("hosts", hosts) for one in pool.get("datastores", ())}
    makers = [maker for often, maker in MAKERS.values() for _ in range(often)]
    steps: list[Step] = []
    for _ in range(chance.choice((1, 2, 2, 3, 3, 4, 5, 7))):
        # misfortunes come together: half of them within moments of the one before
        near = steps and chance.random() < 0.5
        at_s = steps[-1]["at_s"] + chance.expovariate(1.0) if near else chance.uniform(*FAULTS_S)
        at_s = round(min(at_s, FAULTS_S[1]), 3)
        drawn = Draw(chance, hosts, vms, homes, autostart, pool["management"]["replicas"], at_s, stores)
        steps += chance.choice(makers)(drawn)
    return [step for step in steps if step["at_s"] < HEAL_S]
