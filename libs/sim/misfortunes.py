"""Misfortunes of a random world: each maker draws the steps of one, and of what comes along with it.

Rare alone, most bugs show where two faults meet: a maker therefore draws the second one within moments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from libs.sim.drawing import Draw, Step
from libs.sim.manyhosts import flapping, released, storm
from libs.sim.power import HOWS

NEVER = 1_000_000
GUEST_FAILURES = ("guest_silent", "guest_silent", "guest_panic", "guest_io_error")


def _power_off(draw: Draw) -> list[Step]:
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


def _on_host(do: str) -> Callable[[Draw], list[Step]]:
    """Half of them come back only when they were fenced and a person looks after them."""

    def made(draw: Draw) -> list[Step]:
        how = {"how": "for_good"} if draw.chance.random() < 0.5 else {}
        return [{**draw.when(), "do": do, "host": draw.host(), **how}]

    return made


def _reboot(draw: Draw) -> list[Step]:
    how = {"how": "fast"} if draw.chance.random() < 0.5 else {}
    return [{**draw.when(), "do": "reboot", "host": draw.host(), **how}]


def _agent(draw: Draw) -> list[Step]:
    """It dies: for good, for a while, or at one of its next calls to the world, and is started again."""
    chance = draw.chance
    step: Step = {**draw.when(), "do": "kill_agent", "host": draw.host()}
    fate = chance.random()
    if fate < 0.3:
        return [step]
    if fate < 0.6:
        return [step, {"at_s": draw.soon(0.5, 6.0), "do": "start_agent", "host": step["host"]}]
    struck = {**step, "count": chance.randint(1, 12)}
    if chance.random() < 0.5:
        return [struck, *_later(draw, _power_off)]
    # its first calls after a boot are those of the gate
    reboot: Step = {**draw.when(), "do": "reboot", "host": step["host"], "how": "fast"}
    again = [{**struck, "at_s": draw.soon(1.6, 4.0)} for _ in range(2)]
    return [reboot, *again]


def _gate(draw: Draw) -> list[Step]:
    """A host comes back with what it started by itself, and libvirt does not stop that at once."""
    own = [vm for vm in draw.vms if vm in draw.autostart]
    if not own:
        return _reboot(draw)
    vm = draw.chance.choice(own)
    host = draw.homes[vm]
    steps: list[Step] = []
    fate = draw.chance.random()
    if 0.6 < fate < 0.7:  # or with what was saved there
        vm = draw.chance.choice(draw.vms)
        host = draw.homes[vm]
        steps.append({**draw.when(), "do": "save_vm", "vm": vm})
    if fate > 0.8:  # libvirt cannot tell what runs
        steps.append(
            {**draw.when(), "do": "loss", "how": "garbage", "percent": draw.chance.choice((60, 100))}
        )
    if fate < 0.6:
        # a few tries help; or it outlasts the gate; or nothing helps but the next boot
        count = draw.chance.choice((draw.chance.randint(1, 6), 25, NEVER))
        steps.append({**draw.when(), "do": "fail_stop", "vm": vm, "count": count})
    if draw.chance.random() < 0.5:
        steps.append({**draw.when(), "do": "reboot", "host": host, "how": "fast"})
        return steps
    steps.append({**draw.when(), "do": "power_off", "host": host})
    return [*steps, {"at_s": draw.soon(0.2, 4.0), "do": "power_on", "host": host}]


def _fencing(draw: Draw) -> list[Step]:
    """A broken device matters when its host fails, too."""
    host, chance = draw.host(), draw.chance
    how = chance.choice([how for how in HOWS if how != "lie"])  # of liars see _lie
    steps: list[Step] = [{**draw.when(), "do": "break_fencing", "host": host, "how": how}]
    if chance.random() < 0.8:
        do = chance.choice(("power_off", "crash", "hang", "reboot"))
        later: Step = {"at_s": round(draw.at_s + chance.uniform(0.0, 2.0), 3), "do": do, "host": host}
        # with its device mended, a host that stays as it is must be fenced after all
        stays = do in ("crash", "hang") and chance.random() < 0.6
        steps.append({**later, "how": "for_good"} if stays else later)
    return steps


def _lie(draw: Draw) -> list[Step]:
    """A device says off whatever is, while its host is doubted for some reason."""
    chance, host = draw.chance, draw.host()
    fate = chance.random()
    broken: Step = {**draw.when(), "do": "break_fencing", "host": host, "how": "lie"}
    at_s = draw.soon(0.0, 1.0)
    if fate < 0.35:  # it comes back in the midst of being fenced
        cut: Step = {"at_s": at_s, "do": "partition", "groups": [[host], ["bus"]]}
        return [broken, cut, {"at_s": draw.soon(1.5, 8.0), "do": "heal"}]
    if fate < 0.7:
        down: Step = {"at_s": at_s, "do": "kill_agent", "host": host}
        return [broken, down, {"at_s": draw.soon(2.0, 5.0), "do": "start_agent", "host": host}]
    if fate < 0.85:
        return [broken, {"at_s": at_s, "do": chance.choice(("hang", "crash")), "host": host}]
    return [broken, *_later(draw, _power_off)]


def _partition(draw: Draw) -> list[Step]:
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


def _weather(draw: Draw) -> list[Step]:
    chance = draw.chance
    made: Step = chance.choice(
        (
            {"do": "loss", "percent": chance.choice((5, 20, 40))},
            {"do": "delay", "seconds": chance.choice((0.2, 1.0, 3.0))},
            {"do": "delay", "how": "guests", "percent": chance.choice((10, 40))},
        )
    )
    return [{**draw.when(), **made}]


def _libvirt(draw: Draw) -> list[Step]:
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
    return [{**draw.when(), **made}, *_later(draw, _power_off)]


def _readings(draw: Draw) -> list[Step]:
    """What was started is not to be seen: the answers to the question whether it runs are lost."""
    lost: Step = {**draw.when(), "do": "loss", "how": "readings", "percent": draw.chance.choice((30, 60, 80))}
    if draw.vms and draw.chance.random() < 0.4:
        return [lost, {"at_s": draw.soon(0.0, 1.0), "do": "crash_vm", "vm": draw.chance.choice(draw.vms)}]
    return [lost, *_later(draw, _power_off)]


def _later(draw: Draw, maker: Callable[[Draw], list[Step]]) -> list[Step]:
    """Another fault within moments."""
    at_s = round(draw.at_s + draw.chance.uniform(0.0, 1.0), 3)
    return maker(replace(draw, at_s=at_s))


def _plane(draw: Draw) -> list[Step]:
    """A service dies: now, or at one of its next calls to the world."""
    chance = draw.chance
    step = {**draw.when(), "do": "kill_service", **_service(draw)}
    if chance.random() < 0.3:
        return [step]
    return [{**step, "count": chance.randint(1, 12)}, *_later(draw, chance.choice((_power_off, _vm)))]


def _plane_lost(draw: Draw) -> list[Step]:
    """The management machine itself: all services at once, for a while; and a host just before, or meanwhile."""
    chance = draw.chance
    away_s = round(chance.choice((0.5, 3.0, 8.0)) * chance.uniform(0.8, 1.5), 3)
    lost: Step = {**draw.when(), "do": "kill_service", "service": "plane", "seconds": away_s}
    if chance.random() < 0.4:
        return [lost]
    at_s = round(max(1.0, draw.at_s + chance.uniform(-3.0, away_s + 2.0)), 3)
    return [lost, *_power_off(replace(draw, at_s=at_s))]


def _service(draw: Draw) -> Step:
    service = draw.chance.choice(("detector", "fencer", "placement", "executor", "executor"))
    return {"service": service, "replica": draw.chance.randrange(draw.replicas)}


def _pause(draw: Draw) -> list[Step]:
    chance = draw.chance
    seconds = round(chance.choice((0.5, 1.5, 2.0, 4.0, 9.0)) * chance.uniform(0.8, 1.5), 3)
    return [{**draw.when(), "do": "pause_service", **_service(draw), "seconds": seconds}]


def _deaf(draw: Draw) -> list[Step]:
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


def _bus(draw: Draw) -> list[Step]:
    chance = draw.chance
    node = chance.randrange(3)
    fate = chance.random()
    if fate < 0.3:  # its leader is lost in the midst of something
        return [*_power_off(draw), {"at_s": draw.soon(0.0, 3.0), "do": "delay", "how": "bus", "seconds": 0}]
    if fate < 0.7:  # answers are lost, with and without effect
        lossy: Step = {**draw.when(), "do": "loss", "how": "bus", "percent": chance.choice((10, 30, 50))}
        return [lossy, *_later(draw, chance.choice((_power_off, _power_off, _vm)))]
    steps: list[Step] = [{**draw.when(), "do": "kill_bus", "node": node}]
    if fate > 0.85:
        steps.append({**draw.when(), "do": "kill_bus", "node": (node + 1) % 3})
        if chance.random() < 0.5:
            steps.append({"at_s": draw.soon(1.0, 8.0), "do": "start_bus", "node": node})
    return steps


def _room(draw: Draw) -> list[Step]:
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


def _vm(draw: Draw) -> list[Step]:
    if not draw.vms:
        return []
    chance = draw.chance
    do = chance.choice(("crash_vm", "crash_vm", "shutdown_guest", "hang_guest", "destroy_vm", "save_vm"))
    vm = chance.choice(draw.vms)
    times = chance.choice((1, 1, 1, 4)) if do == "crash_vm" else 1
    steps = [{"at_s": round(draw.at_s + 1.5 * again, 3), "do": do, "vm": vm} for again in range(times)]
    if chance.random() < 0.4:  # something else goes wrong while it is dealt with
        steps += chance.choice((_power_off, _bus, _plane_lost, _pause))(
            replace(draw, at_s=draw.soon(0.0, 1.5))
        )
    return steps


def _guest(draw: Draw) -> list[Step]:
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
        steps += chance.choice((_power_off, _bus, _plane_lost, _pause, _libvirt, _struck))(again)
    return steps


def _struck(draw: Draw) -> list[Step]:
    """Who starts and stops VMs dies at one of its next calls to the world."""
    service = draw.chance.choice(("placement", "executor", "executor"))
    who = {"service": service, "replica": draw.chance.randrange(draw.replicas)}
    return [{**draw.when(), "do": "kill_service", **who, "count": draw.chance.randint(1, 14)}]


def _grey(draw: Draw) -> list[Step]:
    """All guests of a host fail at once, and it may be the host."""
    chance, host = draw.chance, draw.host()
    mine = [vm for vm in draw.vms if draw.homes[vm] == host]
    do = chance.choice(GUEST_FAILURES)
    steps: list[Step] = [{"at_s": draw.soon(0.0, 0.4), "do": do, "vm": vm} for vm in mine]
    if chance.random() < 0.3:
        steps += chance.choice((_power_off, _plane_lost, _struck))(replace(draw, at_s=draw.soon(0.5, 3.5)))
    return steps


def _fail_start(draw: Draw) -> list[Step]:
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


def _storage(draw: Draw) -> list[Step]:
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
        steps += chance.choice((_power_off, _vm, _agent, _plane, _plane_lost, _struck, _pause, _guest))(again)
    return steps


def _clock(draw: Draw) -> list[Step]:
    return [
        {**draw.when(), "do": "step_clock", "host": draw.host(), "seconds": draw.chance.choice((-3600, 3600))}
    ]


MAKERS: dict[str, tuple[int, Callable[[Draw], list[Step]]]] = {
    "power_off": (6, _power_off),
    "crash": (2, _on_host("crash")),
    "hang": (2, _on_host("hang")),
    "reboot": (2, _reboot),
    "agent": (3, _agent),
    "gate": (3, _gate),
    "fencing": (2, _fencing),
    "lie": (3, _lie),
    "partition": (4, _partition),
    "weather": (2, _weather),
    "libvirt": (3, _libvirt),
    "readings": (5, _readings),
    "plane": (6, _plane),
    "plane_lost": (2, _plane_lost),
    "pause": (2, _pause),
    "deaf": (5, _deaf),
    "bus": (6, _bus),
    "room": (4, _room),
    "storm": (2, storm),
    "released": (2, released),
    "flapping": (3, flapping),
    "vm": (3, _vm),
    "guest": (8, _guest),
    "grey": (3, _grey),
    "fail_start": (2, _fail_start),
    "storage": (8, _storage),
    "clock": (1, _clock),
}
"""By name: how often, and who draws it."""
