"""Misfortunes of a random world: each maker draws the steps of one, and of what comes along with it.

Rare alone, most bugs show where two faults meet: a maker therefore draws the second one within moments. The makers
stand in the modules beside this one, a subject a module.
"""

from __future__ import annotations

from collections.abc import Callable

from libs.sim import handfaults, hostfaults, linkfaults, planefaults, vmfaults, wordfaults
from libs.sim.drawing import Draw, Step
from libs.sim.manyhosts import flapping, rack, released, storm

MAKERS: dict[str, tuple[int, Callable[[Draw], list[Step]]]] = {
    "power_off": (6, hostfaults.power_off),
    "crash": (2, hostfaults.on_host("crash")),
    "hang": (2, hostfaults.on_host("hang")),
    "reboot": (2, hostfaults.reboot),
    "agent": (3, hostfaults.agent),
    "gate": (3, hostfaults.gate),
    "fencing": (2, hostfaults.fencing),
    "lie": (3, hostfaults.lie),
    "partition": (4, linkfaults.partition),
    "weather": (2, linkfaults.weather),
    "libvirt": (3, linkfaults.libvirt),
    "readings": (5, linkfaults.readings),
    "plane": (6, planefaults.plane),
    "plane_lost": (2, planefaults.plane_lost),
    "pause": (2, planefaults.pause),
    "deaf": (5, planefaults.deaf),
    "bus": (6, planefaults.bus),
    "room": (4, vmfaults.room),
    "storm": (2, storm),
    "released": (2, released),
    "rack": (2, rack),
    "flapping": (3, flapping),
    "maintenance": (3, wordfaults.maintenance),
    "confirmed": (2, wordfaults.confirmed),
    "removed": (2, wordfaults.removed),
    "vm": (3, planefaults.vm),
    "by_hand": (3, handfaults.by_hand),
    "guest": (8, vmfaults.guest),
    "grey": (3, vmfaults.grey),
    "fail_start": (2, vmfaults.fail_start),
    "storage": (8, vmfaults.storage),
    "clock": (2, linkfaults.clock),
}
"""By name: how often, and who draws it."""
