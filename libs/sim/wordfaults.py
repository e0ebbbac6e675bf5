"""What operators say in the midst of a bad day. See misfortunes.py; of storms see manyhosts.py."""

from __future__ import annotations

from dataclasses import replace

from libs.sim.drawing import Draw, Step
from libs.sim.hostfaults import later, power_off
from libs.sim.planefaults import bus, plane, plane_lost, vm


def maintenance(draw: Draw) -> list[Step]:
    """A host is closed to new VMs, before or while it or another one fails; and opened again, or not."""
    chance, host = draw.chance, draw.host()
    steps: list[Step] = [{**draw.when(), "do": "enter_maintenance", "host": host}]
    if chance.random() < 0.3:
        steps.append({"at_s": draw.soon(0.3, 4.0), "do": "power_off", "host": host})
    else:
        steps += chance.choice((power_off, power_off, plane, vm))(replace(draw, at_s=draw.soon(-0.5, 2.0)))
    if chance.random() < 0.6:
        steps.append({"at_s": draw.soon(0.5, 7.0), "do": "exit_maintenance", "host": host})
    return steps


def confirmed(draw: Draw) -> list[Step]:
    """No device can prove that a host is down; an operator who has seen it says so, sooner or later, once or twice."""
    chance, host = draw.chance, draw.host()
    at_s = min(draw.at_s, round(chance.uniform(1.5, 4.0), 3))
    again = replace(draw, at_s=at_s)
    steps: list[Step] = [
        {"at_s": at_s, "do": "break_fencing", "host": host, "how": chance.choice(("dead", "hang", "refuse"))},
        {"at_s": again.soon(0.0, 0.5), "do": "power_off", "host": host, "how": "for_good"},
    ]
    for _ in range(chance.choice((1, 1, 2))):
        steps.append({"at_s": again.soon(2.5, 8.0), "do": "confirm_failed", "host": host})
    if chance.random() < 0.5:
        steps += chance.choice((plane, plane_lost, bus))(replace(draw, at_s=again.soon(1.0, 6.0)))
    return steps


def removed(draw: Draw) -> list[Step]:
    """A host that has failed is taken out of the pool; and comes back as a new one, or never."""
    chance, host = draw.chance, draw.host()
    at_s = min(draw.at_s, round(chance.uniform(1.5, 3.0), 3))
    again = replace(draw, at_s=at_s)
    word: Step = {"at_s": again.soon(3.5, 8.0), "do": "remove_host", "host": host}
    steps: list[Step] = [{"at_s": at_s, "do": "power_off", "host": host, "how": "for_good"}, word]
    if chance.random() < 0.5:
        steps.append({"at_s": again.soon(6.0, 9.5), "do": "power_on", "host": host})
    if chance.random() < 0.4:
        steps += later(replace(draw, at_s=word["at_s"]), chance.choice((power_off, plane, plane_lost)))
    return steps
