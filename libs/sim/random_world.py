"""A pool and its bad day, drawn from a seed, as a scenario: what fails can be written down and made shorter."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from libs.scenario.model import Scenario, StepEntry
from libs.sim.cramped import cramped
from libs.sim.drawing import Draw, Step
from libs.sim.misfortunes import MAKERS
from libs.sim.offering import offering
from libs.sim.reserves import reserved
from libs.sim.unheard import unheard
from libs.sim.watchedhosts import watched

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
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "balanced": {},
    "fast": {},
    # its own figures, but that a verdict and a loss are believed within the time of a run
    "careful": {"detection": {"confirm_silence_s": 9.0, "confirm_hung_s": 10.0, "datastore_lost_s": 6.0}},
}
"""What differs from SETTINGS with each."""
RARE_PROFILES = ("fast", "fast", "careful")
PROFILED, RACKED, MANY, THIRD = 0.15, 0.3, 0.04, 0.08
"""Shares of pools: with another profile, with racks, with more than six hosts, with three replicas of each service."""
AGENTLESS = 0.08
"""Share of pools with hosts that have no agent."""
SLOTTED = 0.75
"""Share of pools whose hosts keep slots on a shared datastore."""
BOTH_LEVELS = 0.4
"""Share of pools whose hosts have a BMC, and one or two outlets behind it."""
TESTED = 0.1
"""Share of worlds in which an operator has a host fenced for a test."""
DRAINED = 0.5
"""Share of maintenances, and of fence tests that are not forced, before which the host's VMs are to move away."""
GATELESS = 0.3
"""Share of pools on whose hosts nothing stands before libvirt: what starts by itself is the agents' to stop."""
MOVED, PREEMPTED, WATCHED = 0.8, 0.4, 0.5
"""Shares of pools that may move healthy VMs to make room, that may stop such as matter less, and that watch what they
could take."""
TIGHT = 0.15
"""Share of pools without much room."""
TWO_STORES = 0.35
"""Share of pools that have two datastores with names."""
POLICIES = ("restart", "restart", "restart", "restart", "best_effort", "none")
PRIORITIES = ("highest", "high", "medium", "medium", "low", "lowest")


def draw(seed: int) -> Scenario:
    """The same world for the same seed, always."""
    chance, traits = Random(f"{seed}/world"), Random(f"{seed}/traits")
    profile = traits.choice(RARE_PROFILES) if traits.random() < PROFILED else "balanced"
    pool = _pool(chance, traits)
    faults = _faults(chance, pool)
    pool = _agentless(Random(f"{seed}/agentless"), pool)
    pool, faults = watched(Random(f"{seed}/watchdogs"), pool, faults)
    if Random(f"{seed}/gates").random() < GATELESS:
        pool["hosts"] = [{**host, "gate": False} for host in pool["hosts"]]
    faults = sorted(faults, key=lambda step: step["at_s"])
    guests = {**SETTINGS["guests"], "grey": chance.choice(("alert", "drain"))}
    slots: dict[str, Any] = {} if chance.random() < SLOTTED else {"datastores": []}
    settings = {**SETTINGS, "guests": guests, **slots}
    if profile != "balanced":
        settings = {**settings, "profile": profile}
        settings |= {part: {**SETTINGS[part], **more} for part, more in PROFILES[profile].items()}
    pool = _tight(Random(f"{seed}/tight"), pool)
    room = _room(Random(f"{seed}/room"))
    pool, faults, settings["placement"] = cramped(Random(f"{seed}/cramped"), pool, faults, room)
    armed = _armed(Random(f"{seed}/fence levels"), pool, faults)
    settings["fencing"] = {**SETTINGS["fencing"], **settings.get("fencing", {}), **armed}
    _draining(Random(f"{seed}/drains"), faults)
    pool = offering(Random(f"{seed}/offers"), pool)
    pool, faults, kept = reserved(Random(f"{seed}/standby"), pool, faults, FAULTS_S)
    settings |= kept
    faults = unheard(Random(f"{seed}/unheard"), pool, faults)
    return compose(
        {
            "schema": "rekindle.scenario.v1",
            "name": f"random world {seed}",
            "seed": seed,
            "duration_s": END_S,
            "settings": settings,
            **pool,
        },
        faults,
    )


def _tight(chance: Random, pool: dict[str, Any]) -> dict[str, Any]:
    """Where room is scarce, what is left of it lies in pieces: whoever loses its host finds some once others have moved."""
    if chance.random() >= TIGHT:
        return pool
    used = Counter[str]()
    for vm in pool["vms"]:
        used[vm["host"]] += vm["memory_mib"]
    hosts = [
        {**host, "memory_mib": used[host["name"]] + chance.choice((256, 384, 512, 640))}
        for host in pool["hosts"]
    ]
    return {**pool, "hosts": hosts}


def _room(chance: Random) -> dict[str, Any]:
    """Whether healthy VMs may be moved for others, and such as matter less stopped; and whether plans are kept ready."""
    policy = {"migrations": chance.random() < MOVED, "preemption": chance.random() < PREEMPTED}
    return {**policy, "failures_to_tolerate": int(chance.random() < WATCHED)}


def _armed(chance: Random, pool: dict[str, Any], faults: list[Step]) -> dict[str, Any]:
    """Fence levels of several devices, of which one alone may break; levels that race; drills; and an operator who has a
    host fenced for a test. Returns settings. Drawn by a stream of its own: what the other parts draw stays as it was."""
    if chance.random() < BOTH_LEVELS:
        bmc = {"method": "power", "name": "bmc", "level": 1, "timeout_s": 2.0}
        feeds = [{**bmc, "name": name, "level": 2} for name in ("pdu-a", "pdu-b")][: chance.choice((1, 2, 2))]
        for host in pool["hosts"]:
            dogs = [one for one in host["fencing"] if one["method"] == "watchdog"]
            host["fencing"] = [bmc, *feeds, *dogs]
        own = [host["name"] for host in pool["hosts"]]
        for fault in faults:
            whole = fault["do"] == "break_fencing" and fault["host"] in own and "method" not in fault
            if whole and chance.random() < 0.7:
                fault["method"] = chance.choice(("bmc", "bmc", feeds[-1]["name"]))
    if chance.random() < TESTED:
        at_s, host = round(chance.uniform(*FAULTS_S), 3), chance.choice(pool["hosts"])["name"]
        force = {"how": "force"} if chance.random() < 0.5 else {}
        faults.append({"at_s": at_s, "do": "fence_test", "host": host, **force})
        faults.sort(key=lambda step: step["at_s"])
    drawn: dict[str, Any] = {"next_level_after_s": chance.choice((10.0, 0.0, 0.7, None))}
    return {**drawn, "drill_every_s": chance.choice((0, 0, 5.0))}


def _draining(chance: Random, faults: list[Step]) -> None:
    """Some of the hosts that are put into maintenance, or fenced for a test, are to be emptied."""
    for fault in faults:
        if (
            fault["do"] in ("enter_maintenance", "fence_test")
            and "how" not in fault
            and chance.random() < DRAINED
        ):
            fault["how"] = "drain"


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


def _pool(chance: Random, traits: Random) -> dict[str, Any]:
    """`traits`: the luck of what most pools have not, so that the others are drawn as if there were no such things."""
    count = chance.choice((2, 3, 3, 4, 4, 5, 6))
    if traits.random() < MANY:
        count = traits.randint(7, 12)
    hosts = [f"h{number + 1}" for number in range(count)]
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
    replicas = chance.choice((1, 1, 2))
    members = [{"name": host, "memory_mib": memory, "cpus": 4, "fencing": fencing} for host in hosts]
    return {
        **stores,
        "management": {"replicas": 3 if traits.random() < THIRD else replicas},
        "hosts": _racked(members, traits) if traits.random() < RACKED else members,
        "vms": vms,
    }


def _agentless(chance: Random, pool: dict[str, Any]) -> dict[str, Any]:
    """Where there are such, some hosts have no agent, or none has one."""
    if chance.random() >= AGENTLESS:
        return pool
    share = chance.choice((0.3, 0.6, 1.0))
    hosts = [{**host, "agent": False} if chance.random() < share else host for host in pool["hosts"]]
    return {**pool, "hosts": hosts}


def _racked(members: list[dict[str, Any]], traits: Random) -> list[dict[str, Any]]:
    """In two or three racks, and now and then one host of which nobody has said where it stands."""
    racks = [f"r{number + 1}" for number in range(traits.choice((2, 2, 3)))]
    return [
        host if traits.random() < 0.1 else {**host, "labels": {"rack": traits.choice(racks)}}
        for host in members
    ]


def _faults(chance: Random, pool: dict[str, Any]) -> list[Step]:
    hosts = [host["name"] for host in pool["hosts"]]
    vms = [vm["name"] for vm in pool["vms"]]
    homes = {vm["name"]: vm["host"] for vm in pool["vms"]}
    autostart = frozenset(vm["name"] for vm in pool["vms"] if vm["autostart"])
    stores = {one["name"]: one.get("hosts", hosts) for one in pool.get("datastores", ())}
    racks: dict[str, list[str]] = {}
    for host in pool["hosts"]:
        if "labels" in host:
            racks.setdefault(host["labels"]["rack"], []).append(host["name"])
    makers = [maker for often, maker in MAKERS.values() for _ in range(often)]
    steps: list[Step] = []
    for _ in range(chance.choice((1, 2, 2, 3, 3, 4, 5, 7))):
        # misfortunes come together: half of them within moments of the one before
        near = steps and chance.random() < 0.5
        at_s = steps[-1]["at_s"] + chance.expovariate(1.0) if near else chance.uniform(*FAULTS_S)
        at_s = round(min(at_s, FAULTS_S[1]), 3)
        replicas = pool["management"]["replicas"]
        drawn = Draw(chance, hosts, vms, homes, autostart, replicas, at_s, stores, racks)
        steps += chance.choice(makers)(drawn)
    back = {step.get("host") for step in steps if step["do"] in ("power_on", "reboot")}
    return [
        step
        for step in steps
        # an operator's word is true here: of what it is worth where it is not, no service could tell
        if step["at_s"] < HEAL_S and not (step["do"] == "confirm_failed" and step["host"] in back)
    ]
