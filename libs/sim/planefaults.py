"""Misfortunes of the management plane, of the bus, and of VMs by a person or by chance, which make each other worse. See misfortunes.py."""

from __future__ import annotations

from dataclasses import replace

from libs.sim.drawing import Draw, Step
from libs.sim.hostfaults import later, power_off


def plane(draw: Draw) -> list[Step]:
    """A service dies: now, or at one of its next calls to the world."""
    chance = draw.chance
    step = {**draw.when(), "do": "kill_service", **_service(draw)}
    if chance.random() < 0.3:
        return [step]
    return [{**step, "count": chance.randint(1, 12)}, *later(draw, chance.choice((power_off, vm)))]


def plane_lost(draw: Draw) -> list[Step]:
    """The management machine itself: all services at once, for a while; and a host just before, or meanwhile."""
    chance = draw.chance
    away_s = round(chance.choice((0.5, 3.0, 8.0)) * chance.uniform(0.8, 1.5), 3)
    lost: Step = {**draw.when(), "do": "kill_service", "service": "plane", "seconds": away_s}
    if chance.random() < 0.4:
        return [lost]
    at_s = round(max(1.0, draw.at_s + chance.uniform(-3.0, away_s + 2.0)), 3)
    return [lost, *power_off(replace(draw, at_s=at_s))]


def _service(draw: Draw) -> Step:
    service = draw.chance.choice(("detector", "fencer", "placement", "executor", "executor"))
    return {"service": service, "replica": draw.chance.randrange(draw.replicas)}


def pause(draw: Draw) -> list[Step]:
    chance = draw.chance
    seconds = round(chance.choice((0.5, 1.5, 2.0, 4.0, 9.0)) * chance.uniform(0.8, 1.5), 3)
    return [{**draw.when(), "do": "pause_service", **_service(draw), "seconds": seconds}]


def deaf(draw: Draw) -> list[Step]:
    """The observer stands still for a moment, most often just while something is cut off, or was."""
    chance = draw.chance
    seconds = round(chance.uniform(1.4, 3.2), 3)
    paused: Step = {"do": "pause_service", "service": "detector", "replica": 0, "seconds": seconds}
    steps: list[Step] = [{**draw.when(), **paused}]
    if chance.random() < 0.5:
        host = draw.host()
        cut_s = round(max(0.5, draw.at_s + chance.uniform(-1.6, 1.0)), 3)
        steps.append({"at_s": cut_s, "do": "partition", "groups": [[host], ["bus"]]})
        steps.append({"at_s": round(draw.at_s + seconds * chance.uniform(0.5, 1.2), 3), "do": "heal"})
    else:
        steps.append({"at_s": draw.soon(5.0, 7.0), **paused})
    return steps


def bus(draw: Draw) -> list[Step]:
    chance = draw.chance
    node = chance.randrange(3)
    fate = chance.random()
    if fate < 0.3:  # its leader is lost in the midst of something
        return [*power_off(draw), {"at_s": draw.soon(0.0, 3.0), "do": "delay", "how": "bus", "seconds": 0}]
    if fate < 0.7:  # answers are lost, with and without effect
        lossy: Step = {**draw.when(), "do": "loss", "how": "bus", "percent": chance.choice((10, 30, 50))}
        return [lossy, *later(draw, chance.choice((power_off, power_off, vm)))]
    steps: list[Step] = [{**draw.when(), "do": "kill_bus", "node": node}]
    if fate > 0.85:
        steps.append({**draw.when(), "do": "kill_bus", "node": (node + 1) % 3})
        if chance.random() < 0.5:
            steps.append({"at_s": draw.soon(1.0, 8.0), "do": "start_bus", "node": node})
    return steps


def vm(draw: Draw) -> list[Step]:
    if not draw.vms:
        return []
    chance = draw.chance
    do = chance.choice(("crash_vm", "crash_vm", "shutdown_guest", "hang_guest", "destroy_vm", "save_vm"))
    vm = chance.choice(draw.vms)
    times = chance.choice((1, 1, 1, 4)) if do == "crash_vm" else 1
    steps = [{"at_s": round(draw.at_s + 1.5 * again, 3), "do": do, "vm": vm} for again in range(times)]
    if chance.random() < 0.4:  # something else goes wrong while it is dealt with
        steps += chance.choice((power_off, bus, plane_lost, pause))(replace(draw, at_s=draw.soon(0.0, 1.5)))
    return steps
