"""The agent of one host put together, the same in both worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from libs.config.entries import HostEntry
from libs.config.settings import Settings
from libs.core.ports import Greetings, Hypervisors, Probes, PromiseMemory, Slots, Watchdog
from libs.core.shell import Shell
from libs.core.wiring import Ports, Wiring
from libs.model import Incarnation
from libs.restored.memory import MarkMemory
from services.heartbeat.act import Door, Hands, LocalHypervisor
from services.heartbeat.decide import Agent
from services.heartbeat.heldback import HeldBack, Passed
from services.heartbeat.keeper import Keeper
from services.heartbeat.orders import REQUESTS, Renewed
from services.heartbeat.state import AgentState
from services.heartbeat.watchdog import Dog

LOOK_SHARE = 0.78
"""Of the time that whoever asks a peer waits: the rest is for the way there and back."""


PEERS_MOST = 31
"""Whom a host greets each second where neither the bus nor a slot vouches for it."""


def peers_of(settings: Settings, host: str) -> tuple[str, ...]:
    """Who may vouch for a host: all others with an agent; in a large pool some of them, spread evenly over the pool
    file, in which neighbours tend to be cut off together."""
    names = [one.name for one in settings.hosts if one.agent]
    first = names.index(host) + 1 if host in names else 0
    others = [name for name in (*names[first:], *names[:first]) if name != host]
    most = min(PEERS_MOST, len(others))
    return tuple(others[index * len(others) // most] for index in range(most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What an agent finds on its own host, beside libvirt. Of a host that is watched from elsewhere there is next to nothing."""

    slots: Mapping[str, Slots] = field(default_factory=dict)
    """By datastore."""
    greetings: Greetings | None = None
    device: Watchdog | None = None
    promised: PromiseMemory | None = None
    """What its disk remembers of its watchdog's promise."""
    marks: Path | None = None
    """Below it lies what it remembers of the plane's data."""
    former: tuple[str, ...] = ()
    """Names that a host without an agent had before."""
    held: HeldBack | None = None
    """What the gate before its libvirt held back."""
    hardware: str = ""
    """Tells its machine from others."""
    passed: Passed | None = None
    """What the host itself remembers of the gate."""
    door: Door | None = None
    """Where its libvirt asks before it takes a VM in."""


def agent(
    ports: Ports,
    entry: HostEntry,
    at: Incarnation,
    life: str,
    hypervisor: LocalHypervisor,
    neighbours: Hypervisors,
    probes: Probes,
    local: Local,
) -> tuple[Shell[AgentState], Hands, MarkMemory]:
    """The agent's shell; its hands, which also answer what peers are asked; and what it remembers of the plane's data. That
    one is to listen before the shell runs."""
    file = local.marks / f"{entry.name}.json" if local.marks is not None else None
    memory = MarkMemory(ports.bus, lambda: shell.hear(Renewed(key="mark")), file)
    hands = _hands(ports, entry, at, hypervisor, neighbours, probes, local, memory)
    dog = _dog(ports.settings, entry, at, life, local)
    decider = Agent(
        at=at,
        life=life,
        settings=ports.settings.heartbeats,
        memory_mib=entry.memory_mib,
        memory_reserved_mib=entry.memory_reserved_mib,
        cpus=entry.cpus,
        datastores=tuple(sorted(local.slots)),
        guests=ports.settings.guests,
        dog=dog,
        former=local.former,
        hardware=local.hardware,
    )
    wiring = Wiring(
        service=f"heartbeat-{entry.name}",
        bus=ports.bus,
        clock=ports.clock,
        meter=ports.meter,
        signals=(
            f"stray.{entry.name}",
            *(() if local.door is None else (f"let_in.{entry.name}",)),
            *(() if dog is None else (f"heard.{entry.name}",)),
        ),
        perform=hands.perform,
        requests=REQUESTS,
    )
    shell = Shell(decider, wiring)
    return shell, hands, memory


def _hands(
    ports: Ports,
    entry: HostEntry,
    at: Incarnation,
    hypervisor: LocalHypervisor,
    neighbours: Hypervisors,
    probes: Probes,
    local: Local,
    memory: MarkMemory,
) -> Hands:
    keeper = None
    if local.device is not None:
        watchdogs = ports.store("watchdogs")
        keeper = Keeper(at, local.device, watchdogs, probes, ports.clock, local.promised)
    return Hands(
        hypervisor,
        neighbours,
        ports.store("inventory"),
        ports.store("definitions"),
        ports.store("leases"),
        ports.bus,
        at,
        boots_known=entry.agent,
        slots=local.slots,
        probes=probes,
        probe_s=LOOK_SHARE * ports.settings.detection.ask_timeout_s,
        clock=ports.clock,
        greetings=local.greetings,
        keeper=keeper,
        held=local.held,
        latest=lambda: memory.led,
        door=local.door,
        passed=local.passed,
    )


def _dog(settings: Settings, entry: HostEntry, at: Incarnation, life: str, local: Local) -> Dog | None:
    if local.device is None or entry.watchdog is None:
        return None
    recalled = () if local.promised is None else local.promised.recall(at)
    stores = tuple(sorted(local.slots))
    return Dog(at, life, entry.watchdog.timeout_s, peers_of(settings, entry.name), stores, recalled)
