"""A bad day for a lab, drawn from a seed: rounds of faults, some on top of one another, each with what mends it.

Pure, and the same for the same seed and the same abilities of the machine. Every fault here is one that is mended again,
and none that two people would make of one VM at once: what must never be is that Rekindle makes it run twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from libs.scenario.model import SERVICES, StepEntry
from libs.sim.drawing import Draw, Step

ON_TOP = (1, 1, 1, 1, 2, 2, 3)
"""How many faults a round has, by chance."""
APART_S = 1.5
"""Mean time between the faults of one round."""
FIRST_S = 0.3
BUS = "bus"
PLANE = tuple(name for name in SERVICES if name != "heartbeat")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, its kind for people, and the steps that make and mend it."""

    kind: str
    steps: tuple[StepEntry, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """Faults that come together. All is mended and whole again before the next."""

    faults: tuple[Fault, ...]

    @property
    def steps(self) -> tuple[StepEntry, ...]:
        """In the order of their times, in seconds since the round began."""
        return tuple(
            sorted((step for fault in self.faults for step in fault.steps), key=lambda step: step.at_s)
        )

    @property
    def put_down(self) -> frozenset[str]:
        """VMs that a person stops in it: their time down is no failure's."""
        return frozenset(str(step.vm) for step in self.steps if step.do == "destroy_vm")

    @property
    def rebooted(self) -> tuple[str, ...]:
        """Hosts that reboot at once."""
        return tuple(
            sorted({str(step.host) for fault in self.faults if fault.kind == REBOOT for step in fault.steps})
        )


Maker = Callable[[Draw], list[Step]]
REBOOT = "host rebooted"


def _power(draw: Draw) -> list[Step]:
    host = draw.host()
    return [
        {**draw.when(), "do": "power_off", "host": host},
        {"at_s": draw.soon(1.0, 9.0), "do": "power_on", "host": host},
    ]


def _power_without_device(how: str) -> Maker:
    """The device fails just before its host loses its power, and is mended before or after that is back."""

    def make(draw: Draw) -> list[Step]:
        host = draw.host()
        return [
            {**draw.when(), "do": "break_fencing", "host": host, "how": how},
            {"at_s": draw.soon(0.0, 0.3), "do": "power_off", "host": host},
            {"at_s": draw.soon(3.0, 9.0), "do": "mend_fencing", "host": host},
            {"at_s": draw.soon(4.0, 11.0), "do": "power_on", "host": host},
        ]

    return make


def _then_reboot(do: str, least_s: float, most_s: float) -> Maker:
    def make(draw: Draw) -> list[Step]:
        host = draw.host()
        return [
            {**draw.when(), "do": do, "host": host},
            {"at_s": draw.soon(least_s, most_s), "do": "reboot", "host": host},
        ]

    return make


def _reboot(draw: Draw) -> list[Step]:
    return [{**draw.when(), "do": "reboot", "host": draw.host()}]


def _agent(draw: Draw) -> list[Step]:
    host = draw.host()
    return [
        {**draw.when(), "do": "kill_agent", "host": host},
        {"at_s": draw.soon(0.5, 7.0), "do": "start_agent", "host": host},
    ]


def _libvirt(draw: Draw) -> list[Step]:
    host = draw.host()
    return [
        {**draw.when(), "do": "hang_libvirt", "host": host},
        {"at_s": draw.soon(1.0, 9.0), "do": "resume_libvirt", "host": host},
    ]


def _killed(service: str) -> Maker:
    return lambda draw: [{**draw.when(), "do": "kill_service", "service": service}]


def _paused(draw: Draw) -> list[Step]:
    service = draw.chance.choice(PLANE)
    seconds = round(draw.chance.uniform(1.0, 5.0), 1)
    return [{**draw.when(), "do": "pause_service", "service": service, "seconds": seconds}]


def _bus(draw: Draw) -> list[Step]:
    return [{**draw.when(), "do": "kill_bus"}]


def _cut(one_way: bool) -> Maker:
    """One host from the bus and all others, one way from it or to it."""

    def make(draw: Draw) -> list[Step]:
        host = draw.host()
        groups = [[host], [BUS, *(other for other in draw.hosts if other != host)]]
        if one_way and draw.chance.random() < 0.5:
            groups.reverse()
        how = {"how": "one_way"} if one_way else {}
        return [
            {**draw.when(), "do": "partition", "groups": groups, **how},
            {"at_s": draw.soon(1.0, 9.0), "do": "heal"},
        ]

    return make


def _stall(everywhere: bool) -> Maker:
    def make(draw: Draw) -> list[Step]:
        where = {} if everywhere else {"host": draw.host()}
        return [
            {**draw.when(), "do": "stall_storage", **where},
            {"at_s": draw.soon(0.5, 7.0), "do": "restore_storage", **where},
        ]

    return make


def _vm_crash(draw: Draw) -> list[Step]:
    return [{**draw.when(), "do": "crash_vm", "vm": draw.chance.choice(draw.vms)}]


def _by_hand(draw: Draw) -> list[Step]:
    vm = draw.chance.choice(draw.vms)
    return [
        {**draw.when(), "do": "destroy_vm", "vm": vm},
        {"at_s": draw.soon(2.0, 6.0), "do": "start_vm", "vm": vm},
    ]


BY_HAND = ("VM crashed", "VM stopped and started by hand")
"""In no round with what fails a whole host: a person who starts a VM on one host while Rekindle starts it on another runs
it twice by his own hand, and a libvirt that stands still would let him wait for ever."""
GENTLE = (*BY_HAND, *(f"{name} killed" for name in PLANE), "service paused", "bus killed", "agent killed")
"""What leaves every host alive."""
ASKS_IN_VAIN = {"agent killed", "host hung"}
"""The first process of a host that hangs ends nobody's agent."""
MAKERS: dict[str, tuple[int, str, Maker]] = {
    "power cut": (3, "", _power),
    "power cut, device dead": (1, "", _power_without_device("dead")),
    "power cut, device refuses": (1, "", _power_without_device("refuse")),
    "power cut, device hangs": (1, "", _power_without_device("hang")),
    "host crashed": (2, "", _then_reboot("crash", 4.0, 10.0)),
    "host hung": (2, "", _then_reboot("hang", 2.0, 14.0)),
    REBOOT: (2, "", _reboot),
    "agent killed": (2, "", _agent),
    "libvirtd stopped": (2, "", _libvirt),
    **{f"{name} killed": (1, "", _killed(name)) for name in PLANE},
    "service paused": (1, "", _paused),
    "bus killed": (2, "", _bus),
    "link cut": (2, "network", _cut(one_way=False)),
    "link cut one way": (2, "network", _cut(one_way=True)),
    "datastore stalled": (1, "datastores", _stall(everywhere=False)),
    "datastore stalled everywhere": (1, "datastores", _stall(everywhere=True)),
    "VM crashed": (2, "", _vm_crash),
    "VM stopped and started by hand": (2, "", _by_hand),
}
"""By kind: how often it is drawn, what of the lab it needs, and its maker."""


def draw(seed: int, faults: int, hosts: list[str], vms: list[str], has: frozenset[str]) -> list[Round]:
    """Rounds with so many faults in all. `has` names what this machine's labs have of `network` and `datastores`."""
    chance = Random(f"{seed}/chaos")
    kinds = [kind for kind, (often, needs, _) in MAKERS.items() if needs in ("", *has) for _ in range(often)]
    rounds: list[Round] = []
    left = faults
    while left > 0:
        found: list[Fault] = []
        at_s = FIRST_S
        for _ in range(min(left, chance.choice(ON_TOP))):
            allowed = [kind for kind in kinds if _fits(kind, found)]
            kind = chance.choice(allowed)
            drawn = Draw(chance, hosts, vms, {}, frozenset(), 1, round(at_s, 3))
            steps = tuple(StepEntry.model_validate(step) for step in MAKERS[kind][2](drawn))
            found.append(Fault(kind, steps))
            at_s += chance.expovariate(1 / APART_S)
        rounds.append(Round(tuple(found)))
        left -= len(found)
    return rounds


def _fits(kind: str, found: list[Fault]) -> bool:
    others = {fault.kind for fault in found}
    if any({kind, other} == ASKS_IN_VAIN for other in others):
        return False
    if kind in BY_HAND:
        return others <= set(GENTLE)
    return kind in GENTLE or not others & set(BY_HAND)
