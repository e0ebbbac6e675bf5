"""Misfortunes of one host: its power, its agent, its boot gate and its fence devices. See misfortunes.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from libs.sim.drawing import Draw, Step
from libs.sim.power import HOWS

NEVER = 1_000_000


def power_off(draw: Draw) -> list[Step]:
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


def on_host(do: str) -> Callable[[Draw], list[Step]]:
    """Half of them come back only when they were fenced and a person looks after them."""

    def made(draw: Draw) -> list[Step]:
        how = {"how": "for_good"} if draw.chance.random() < 0.5 else {}
        return [{**draw.when(), "do": do, "host": draw.host(), **how}]

    return made


def reboot(draw: Draw) -> list[Step]:
    how = {"how": "fast"} if draw.chance.random() < 0.5 else {}
    return [{**draw.when(), "do": "reboot", "host": draw.host(), **how}]


def agent(draw: Draw) -> list[Step]:
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
        return [struck, *later(draw, power_off)]
    # its first calls after a boot are those of the gate
    reboot: Step = {**draw.when(), "do": "reboot", "host": step["host"], "how": "fast"}
    again = [{**struck, "at_s": draw.soon(1.6, 4.0)} for _ in range(2)]
    return [reboot, *again]


def gate(draw: Draw) -> list[Step]:
    """A host comes back with what it started by itself, and libvirt does not stop that at once."""
    own = [vm for vm in draw.vms if vm in draw.autostart]
    if not own:
        return reboot(draw)
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


def fencing(draw: Draw) -> list[Step]:
    """A broken device matters when its host fails, too."""
    host, chance = draw.host(), draw.chance
    how = chance.choice([how for how in HOWS if how != "lie"])  # of liars see lie
    steps: list[Step] = [{**draw.when(), "do": "break_fencing", "host": host, "how": how}]
    if chance.random() < 0.8:
        do = chance.choice(("power_off", "crash", "hang", "reboot"))
        later: Step = {"at_s": round(draw.at_s + chance.uniform(0.0, 2.0), 3), "do": do, "host": host}
        # with its device mended, a host that stays as it is must be fenced after all
        stays = do in ("crash", "hang") and chance.random() < 0.6
        steps.append({**later, "how": "for_good"} if stays else later)
    return steps


def lie(draw: Draw) -> list[Step]:
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
    return [broken, *later(draw, power_off)]


def later(draw: Draw, maker: Callable[[Draw], list[Step]]) -> list[Step]:
    """Another fault within moments."""
    at_s = round(draw.at_s + draw.chance.uniform(0.0, 1.0), 3)
    return maker(replace(draw, at_s=at_s))
