"""Misfortunes of guests, of starts, and of what VMs lie on. See misfortunes.py."""

from __future__ import annotations

from dataclasses import replace

from libs.sim.drawing import Draw, Step
from libs.sim.hostfaults import NEVER, agent, power_off
from libs.sim.linkfaults import libvirt
from libs.sim.planefaults import bus, pause, plane, plane_lost, vm

GUEST_FAILURES = ("guest_silent", "guest_silent", "guest_panic", "guest_io_error")


def room(draw: Draw) -> list[Step]:
    """Too little is left, and then one host after another comes back."""
    chance = draw.chance
    gone = chance.sample(draw.hosts, max(1, len(draw.hosts) - 1) if len(draw.hosts) < 4 else 2)
    steps: list[Step] = []
    for number, host in enumerate(gone):
        off: Step = {"at_s": round(draw.at_s + 2.5 * number, 3), "do": "power_off", "host": host}
        back = chance.random() < 0.5
        steps.append(off if back or number == 0 else {**off, "how": "for_good"})
        if back:
            steps.append({"at_s": draw.soon(4.0, 9.0), "do": "power_on", "host": host})
    return steps


def guest(draw: Draw) -> list[Step]:
    """A guest fails while its QEMU lives, once or again and again, and something else with it."""
    if not draw.vms:
        return []
    chance, vm = draw.chance, draw.chance.choice(draw.vms)
    do = chance.choice(GUEST_FAILURES)
    steps: list[Step] = [{**draw.when(), "do": do, "vm": vm}]
    fate = chance.random()
    if fate < 0.2:
        times = chance.choice((2, 5))
        return [{"at_s": round(draw.at_s + 3.3 * again, 3), "do": do, "vm": vm} for again in range(times)]
    if fate < 0.45:  # it does not let itself be stopped: once or more often, or until its host boots
        count = chance.choice((chance.randint(1, 4), NEVER))
        steps.append({**draw.when(), "do": "fail_stop", "vm": vm, "count": count})
    if 0.4 < fate < 0.55:  # a person is about to do something about it
        by_hand = chance.choice(("shutdown_guest", "destroy_vm", "save_vm"))
        steps.append({"at_s": draw.soon(1.8, 3.4), "do": by_hand, "vm": vm})
    if fate > 0.5:
        again = replace(draw, at_s=draw.soon(1.6, 3.2))
        steps += chance.choice((power_off, bus, plane_lost, pause, libvirt, struck))(again)
    return steps


def struck(draw: Draw) -> list[Step]:
    """Who starts and stops VMs dies at one of its next calls to the world."""
    service = draw.chance.choice(("placement", "executor", "executor"))
    who = {"service": service, "replica": draw.chance.randrange(draw.replicas)}
    return [{**draw.when(), "do": "kill_service", **who, "count": draw.chance.randint(1, 14)}]


def grey(draw: Draw) -> list[Step]:
    """All guests of a host fail at once, and it may be the host."""
    chance, host = draw.chance, draw.host()
    mine = [vm for vm in draw.vms if draw.homes[vm] == host]
    do = chance.choice(GUEST_FAILURES)
    steps: list[Step] = [{"at_s": draw.soon(0.0, 0.4), "do": do, "vm": vm} for vm in mine]
    if chance.random() < 0.3:
        steps += chance.choice((power_off, plane_lost, struck))(replace(draw, at_s=draw.soon(0.5, 3.5)))
    return steps


def fail_start(draw: Draw) -> list[Step]:
    """A VM that is about to be started somewhere does not start."""
    if not draw.vms:
        return []
    chance, vm = draw.chance, draw.chance.choice(draw.vms)
    step: Step = {**draw.when(), "do": "fail_start", "vm": vm, "count": chance.randint(1, 3)}
    others = [other for other in draw.vms if other != vm and draw.homes[other] == draw.homes[vm]]
    if others and chance.random() < 0.4:
        return _crashed_again(draw, {**step, "count": 3}, chance.choice(others))
    first = step if chance.random() < 0.5 else {**step, "host": draw.host()}
    at_s = round(draw.at_s + chance.uniform(0.0, 1.0), 3)
    if chance.random() < 0.5:
        return [first, {"at_s": at_s, "do": "power_off", "host": draw.homes[vm]}]
    return [first, {"at_s": at_s, "do": "crash_vm", "vm": vm}]


def _crashed_again(draw: Draw, fails: Step, vm: str) -> list[Step]:
    """While its neighbour cannot be restarted, a VM that was crashes, and the host that took it may fail, too."""
    home = draw.homes[vm]
    host = draw.chance.choice([host for host in draw.hosts if host != home])
    at_s = draw.soon(3.2, 4.6)
    off_s = round(at_s + draw.chance.uniform(0.05, 0.15), 3)
    return [
        fails,
        {**draw.when(), "do": "power_off", "host": home},
        {"at_s": at_s, "do": "crash_vm", "vm": vm},
        {"at_s": off_s, "do": "power_off", "host": host},
    ]


def storage(draw: Draw) -> list[Step]:
    """A datastore stalls on a host, on a few or on all, for a moment or until it is mended; and something with it."""
    chance = draw.chance
    if chance.random() < 0.7:  # so early that it is believed before it is mended
        draw = replace(draw, at_s=round(min(draw.at_s, chance.uniform(1.5, 5.0)), 3))
    stall: Step = {**draw.when(), "do": "stall_storage"}
    hosts = draw.hosts
    if draw.stores and chance.random() < 0.7:
        stall["datastore"] = chance.choice(sorted(draw.stores))
        hosts = draw.stores[stall["datastore"]]
    if chance.random() < 0.6:
        stall["how"] = "killable"
    fate = chance.random()
    if fate < 0.25:
        steps = [stall]
    else:
        several = chance.sample(hosts, min(len(hosts), 1 if fate < 0.8 else 2))
        steps = [{**stall, "host": host, "at_s": draw.soon(0.0, 0.3)} for host in several]
    if chance.random() < 0.3:
        back_s = draw.soon(0.5, 9.0)
        steps += [
            {key: value for key, value in one.items() if key != "how"}
            | {"at_s": back_s, "do": "restore_storage"}
            for one in steps
        ]
    if chance.random() < 0.5:
        again = replace(draw, at_s=draw.soon(0.0, 7.0))
        steps += chance.choice((power_off, vm, agent, plane, plane_lost, struck, pause, guest))(again)
    return steps
