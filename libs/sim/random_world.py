"""A pool and its bad day, drawn from a seed, as a scenario: what fails can be written down and made shorter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from libs.scenario.model import Scenario, StepEntry
from libs.sim.power import HOWS

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
}
WEATHER = ("partition", "delay", "loss")
SETTINGS: dict[str, Any] = {
    # shorter than production's where nothing but the length of a run depends on it
    "fencing": {"retry_first_s": 0.5, "retry_max_s": 4.0},
    "restart": {"retry_first_s": 0.5, "retry_max_s": 4.0},
    "detection": {"quiet_after_start_s": 8.0, "confirm_silence_s": 5.0},
}
POLICIES = ("restart", "restart", "restart", "restart", "best_effort", "none")
PRIORITIES = ("highest", "high", "medium", "medium", "low", "lowest")
Step = dict[str, Any]


def draw(seed: int) -> Scenario:
    """The same world for the same seed, always."""
    chance = Random(f"{seed}/world")
    pool = _pool(chance)
    faults = sorted(_faults(chance, pool), key=lambda step: step["at_s"])
    return compose(
        {
            "schema": "rekindle.scenario.v1",
            "name": f"random world {seed}",
            "seed": seed,
            "duration_s": END_S,
            "settings": SETTINGS,
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
        subject: Step = {key: fault[key] for key in ("host", "node") if key in fault}
        step: Step = {"at_s": HEAL_S, "do": mend, **subject}
        if step not in healing:
            healing.append(step)
    if any(fault["do"] in WEATHER for fault in faults):
        healing.append({"at_s": HEAL_S, "do": "heal"})
    return healing


def _pool(chance: Random) -> dict[str, Any]:
    hosts = [f"h{number + 1}" for number in range(chance.choice((2, 3, 3, 4, 4, 5, 6)))]
    roomy = chance.random() < 0.6
    memory = 4096 if roomy else 1536
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
                "autostart": chance.random() < 0.3,
            }
        )
    levels = chance.choice((1, 1, 1, 2))
    fencing = [{"method": "power", "level": level + 1, "timeout_s": 2.0} for level in range(levels)]
    return {
        "management": {"replicas": chance.choice((1, 1, 2))},
        "hosts": [{"name": host, "memory_mib": memory, "cpus": 4, "fencing": fencing} for host in hosts],
        "vms": vms,
    }


@dataclass(frozen=True, slots=True)
class _Draw:
    """What a maker of faults is given."""

    chance: Random
    hosts: list[str]
    vms: list[str]
    homes: dict[str, str]
    replicas: int
    at_s: float

    def when(self) -> dict[str, Any]:
        return {"at_s": self.at_s}

    def host(self) -> str:
        return self.chance.choice(self.hosts)


def _faults(chance: Random, pool: dict[str, Any]) -> list[Step]:
    hosts = [host["name"] for host in pool["hosts"]]
    vms = [vm["name"] for vm in pool["vms"]]
    homes = {vm["name"]: vm["host"] for vm in pool["vms"]}
    kinds = [kind for kind, weight in KINDS.items() for _ in range(weight)]
    steps: list[Step] = []
    for _ in range(chance.choice((1, 2, 2, 3, 3, 4, 5, 7))):
        # misfortunes come together: half of them within moments of the one before
        near = steps and chance.random() < 0.5
        at_s = steps[-1]["at_s"] + chance.expovariate(1.0) if near else chance.uniform(*FAULTS_S)
        at_s = round(min(at_s, FAULTS_S[1]), 3)
        drawn = _Draw(chance, hosts, vms, homes, pool["management"]["replicas"], at_s)
        steps += MAKERS[chance.choice(kinds)](drawn)
    return [step for step in steps if step["at_s"] < HEAL_S]


def _power_off(draw: _Draw) -> list[Step]:
    host, chance = draw.host(), draw.chance
    fate = chance.random()
    first = {**draw.when(), "do": "power_off", "host": host}
    if fate < 0.35:
        return [{**first, "how": "for_good"}]
    if fate < 0.6:
        return [
            first,
            {"at_s": round(draw.at_s + chance.uniform(0.2, 8.0), 3), "do": "power_on", "host": host},
        ]
    return [first]


def _on_host(do: str) -> Callable[[_Draw], list[Step]]:
    """Half of them come back only when they were fenced and a person looks after them."""

    def made(draw: _Draw) -> list[Step]:
        how = {"how": "for_good"} if draw.chance.random() < 0.5 else {}
        return [{**draw.when(), "do": do, "host": draw.host(), **how}]

    return made


def _reboot(draw: _Draw) -> list[Step]:
    how = {"how": "fast"} if draw.chance.random() < 0.5 else {}
    return [{**draw.when(), "do": "reboot", "host": draw.host(), **how}]


def _agent(draw: _Draw) -> list[Step]:
    step = {**draw.when(), "do": "kill_agent", "host": draw.host()}
    back = {
        "at_s": round(draw.at_s + draw.chance.uniform(0.5, 6.0), 3),
        "do": "start_agent",
        "host": step["host"],
    }
    return [step, back] if draw.chance.random() < 0.5 else [step]


def _fencing(draw: _Draw) -> list[Step]:
    """A broken device matters when its host fails, too."""
    host, chance = draw.host(), draw.chance
    how = chance.choice([how for how in HOWS if how != "lie"])
    steps: list[Step] = [{**draw.when(), "do": "break_fencing", "host": host, "how": how}]
    if chance.random() < 0.8:
        do = chance.choice(("power_off", "crash", "hang", "reboot"))
        later: Step = {"at_s": round(draw.at_s + chance.uniform(0.0, 2.0), 3), "do": do, "host": host}
        # with its device mended, a host that stays as it is must be fenced after all
        stays = do in ("crash", "hang") and chance.random() < 0.6
        steps.append({**later, "how": "for_good"} if stays else later)
    return steps


def _partition(draw: _Draw) -> list[Step]:
    chance = draw.chance
    how = chance.choice((None, None, "one_way", "minority"))
    if how == "minority":
        groups = [[f"m{chance.randrange(draw.replicas)}"], ["bus"]]
    else:
        cut = chance.sample(draw.hosts, chance.choice((1, 1, 1, 2)) if len(draw.hosts) > 2 else 1)
        others = [host for host in draw.hosts if host not in cut]
        groups = chance.choice(
            ([cut, ["bus"]], [cut, ["bus", *others]], [cut, others], [["m0"], ["bus", *cut]])
        )
        if how == "one_way" and chance.random() < 0.5:
            groups = groups[::-1]
    step: Step = {**draw.when(), "do": "partition", "groups": groups}
    steps = [{**step, "how": how} if how else step]
    if chance.random() < 0.6:
        steps.append({"at_s": round(draw.at_s + chance.uniform(0.5, 12.0), 3), "do": "heal"})
    return steps


def _weather(draw: _Draw) -> list[Step]:
    chance = draw.chance
    made: Step = chance.choice(
        (
            {"do": "loss", "percent": chance.choice((5, 20, 40))},
            {"do": "loss", "how": "bus", "percent": chance.choice((10, 40))},
            {"do": "delay", "seconds": chance.choice((0.2, 1.0, 3.0))},
        )
    )
    return [{**draw.when(), **made}]


def _libvirt(draw: _Draw) -> list[Step]:
    """libvirt is at its worst while something is to be started."""
    chance = draw.chance
    made: Step = chance.choice(
        (
            {"do": "loss", "how": "libvirt", "percent": chance.choice((10, 30, 60))},
            {"do": "delay", "how": "libvirt", "percent": chance.choice((20, 60))},
            {"do": "delay", "how": "libvirt", "percent": 0, "host": draw.host()},
        )
    )
    return [{**draw.when(), **made}, *_later(draw, _power_off)]


def _later(draw: _Draw, maker: Callable[[_Draw], list[Step]]) -> list[Step]:
    """Another fault within moments."""
    at_s = round(draw.at_s + draw.chance.uniform(0.0, 1.0), 3)
    return maker(_Draw(draw.chance, draw.hosts, draw.vms, draw.homes, draw.replicas, at_s))


def _plane(draw: _Draw) -> list[Step]:
    """A service dies: now, or at one of its next calls to the world."""
    chance = draw.chance
    step = {**draw.when(), "do": "kill_service", **_service(draw)}
    if chance.random() < 0.3:
        return [step]
    return [{**step, "count": chance.randint(1, 12)}, *_later(draw, _power_off)]


def _service(draw: _Draw) -> Step:
    service = draw.chance.choice(("detector", "fencer", "placement", "executor", "executor"))
    return {"service": service, "replica": draw.chance.randrange(draw.replicas)}


def _pause(draw: _Draw) -> list[Step]:
    seconds = round(draw.chance.choice((0.5, 1.5, 4.0, 9.0)) * draw.chance.uniform(0.8, 1.5), 3)
    return [{**draw.when(), "do": "pause_service", **_service(draw), "seconds": seconds}]


def _bus(draw: _Draw) -> list[Step]:
    node = draw.chance.randrange(3)
    fate = draw.chance.random()
    if fate < 0.5:  # its leader is lost in the midst of something
        at_s = round(draw.at_s + draw.chance.uniform(0.0, 3.0), 3)
        return [*_power_off(draw), {"at_s": at_s, "do": "delay", "how": "bus", "seconds": 0}]
    steps: list[Step] = [{**draw.when(), "do": "kill_bus", "node": node}]
    if fate > 0.85:
        steps.append({**draw.when(), "do": "kill_bus", "node": (node + 1) % 3})
    return steps


def _storm(draw: _Draw) -> list[Step]:
    """Many hosts at once: a switch that fails, or a rack without power."""
    chance = draw.chance
    many = chance.sample(draw.hosts, max(1, round(len(draw.hosts) * chance.uniform(0.4, 0.9))))
    if chance.random() < 0.5:
        steps: list[Step] = [{**draw.when(), "do": "partition", "groups": [many, ["bus"]]}]
        if chance.random() < 0.5:
            steps.append({"at_s": round(draw.at_s + chance.uniform(2.0, 10.0), 3), "do": "heal"})
        return steps
    do = chance.choice(("power_off", "crash", "hang"))
    return [{"at_s": round(draw.at_s + chance.uniform(0, 0.5), 3), "do": do, "host": host} for host in many]


def _vm(draw: _Draw) -> list[Step]:
    if not draw.vms:
        return []
    chance = draw.chance
    do = chance.choice(("crash_vm", "crash_vm", "shutdown_guest", "hang_guest", "destroy_vm"))
    vm = chance.choice(draw.vms)
    times = chance.choice((1, 1, 1, 4)) if do == "crash_vm" else 1
    return [{"at_s": round(draw.at_s + 1.5 * again, 3), "do": do, "vm": vm} for again in range(times)]


def _fail_start(draw: _Draw) -> list[Step]:
    """A VM that is about to be started somewhere does not start."""
    if not draw.vms:
        return []
    chance, vm = draw.chance, draw.chance.choice(draw.vms)
    step: Step = {**draw.when(), "do": "fail_start", "vm": vm, "count": chance.randint(1, 3)}
    first = step if chance.random() < 0.5 else {**step, "host": draw.host()}
    at_s = round(draw.at_s + chance.uniform(0.0, 1.0), 3)
    if chance.random() < 0.5:
        return [first, {"at_s": at_s, "do": "power_off", "host": draw.homes[vm]}]
    return [first, {"at_s": at_s, "do": "crash_vm", "vm": vm}]


def _clock(draw: _Draw) -> list[Step]:
    return [
        {**draw.when(), "do": "step_clock", "host": draw.host(), "seconds": draw.chance.choice((-3600, 3600))}
    ]


MAKERS: dict[str, Callable[[_Draw], list[Step]]] = {
    "power_off": _power_off,
    "crash": _on_host("crash"),
    "hang": _on_host("hang"),
    "reboot": _reboot,
    "agent": _agent,
    "fencing": _fencing,
    "partition": _partition,
    "weather": _weather,
    "libvirt": _libvirt,
    "plane": _plane,
    "pause": _pause,
    "bus": _bus,
    "storm": _storm,
    "vm": _vm,
    "fail_start": _fail_start,
    "clock": _clock,
}
KINDS = {
    "power_off": 6,
    "crash": 2,
    "hang": 2,
    "reboot": 2,
    "agent": 2,
    "fencing": 2,
    "partition": 4,
    "weather": 2,
    "libvirt": 3,
    "plane": 6,
    "pause": 3,
    "bus": 2,
    "storm": 2,
    "vm": 3,
    "fail_start": 2,
    "clock": 1,
}
