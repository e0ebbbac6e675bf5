"""Misfortunes of what lies between: networks, libvirt's answers, clocks. See misfortunes.py."""

from __future__ import annotations

from libs.sim.drawing import Draw, Step
from libs.sim.hostfaults import later, power_off


def partition(draw: Draw) -> list[Step]:
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


def weather(draw: Draw) -> list[Step]:
    chance = draw.chance
    made: Step = chance.choice(
        (
            {"do": "loss", "percent": chance.choice((5, 20, 40))},
            {"do": "delay", "seconds": chance.choice((0.2, 1.0, 3.0))},
            {"do": "delay", "how": "guests", "percent": chance.choice((10, 40))},
        )
    )
    return [{**draw.when(), **made}]


def libvirt(draw: Draw) -> list[Step]:
    """libvirt is at its worst while something is to be started."""
    chance = draw.chance
    made: Step = chance.choice(
        (
            {"do": "loss", "how": "libvirt", "percent": chance.choice((10, 30, 60))},
            {"do": "delay", "how": "libvirt", "percent": chance.choice((20, 60))},
            {"do": "delay", "how": "libvirt", "percent": 0, "host": draw.host()},
            {"do": "loss", "how": "garbage", "percent": chance.choice((20, 60, 100))},
        )
    )
    return [{**draw.when(), **made}, *later(draw, power_off)]


def readings(draw: Draw) -> list[Step]:
    """What was started is not to be seen: the answers to the question whether it runs are lost."""
    lost: Step = {**draw.when(), "do": "loss", "how": "readings", "percent": draw.chance.choice((30, 60, 80))}
    if draw.vms and draw.chance.random() < 0.4:
        return [lost, {"at_s": draw.soon(0.0, 1.0), "do": "crash_vm", "vm": draw.chance.choice(draw.vms)}]
    return [lost, *later(draw, power_off)]


def clock(draw: Draw) -> list[Step]:
    """The wall clock of a host is stepped, or of a management machine; and then something fails."""
    chance = draw.chance
    stepped: Step = {**draw.when(), "do": "step_clock", "seconds": chance.choice((-3600, 3600, -5, 5))}
    if chance.random() < 0.5:
        return [{**stepped, "host": draw.host()}]
    machine = {"service": "plane", "replica": chance.randrange(draw.replicas)}
    return [{**stepped, **machine}, *(later(draw, power_off) if chance.random() < 0.6 else ())]
