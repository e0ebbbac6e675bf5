"""The agent of one host put together, the same in both worlds."""

from __future__ import annotations

from collections.abc import Mapping

from libs.config.entries import HostEntry
from libs.core.ports import Hypervisors, Probes, Slots
from libs.core.shell import Shell
from libs.core.wiring import Ports, Wiring
from libs.model import Incarnation
from services.heartbeat.act import Hands, LocalHypervisor
from services.heartbeat.decide import Agent, AgentState
from services.heartbeat.orders import REQUESTS

LOOK_SHARE = 0.78
"""Of the time that whoever asks a peer waits: the rest is for the way there and back."""


def agent(
    ports: Ports,
    entry: HostEntry,
    at: Incarnation,
    life: str,
    hypervisor: LocalHypervisor,
    neighbours: Hypervisors,
    slots: Mapping[str, Slots],
    probes: Probes,
) -> tuple[Shell[AgentState], Hands]:
    """The agent's shell, and its hands, which also answer what peers are asked."""
    hands = Hands(
        hypervisor,
        neighbours,
        ports.store("inventory"),
        ports.store("definitions"),
        ports.store("leases"),
        ports.bus,
        at,
        boots_known=entry.agent,
        slots=slots,
        probes=probes,
        probe_s=LOOK_SHARE * ports.settings.detection.ask_timeout_s,
    )
    decider = Agent(
        at=at,
        life=life,
        settings=ports.settings.heartbeats,
        memory_mib=entry.memory_mib,
        memory_reserved_mib=entry.memory_reserved_mib,
        cpus=entry.cpus,
        datastores=tuple(sorted(slots)),
        guests=ports.settings.guests,
    )
    wiring = Wiring(
        service=f"heartbeat-{entry.name}",
        bus=ports.bus,
        clock=ports.clock,
        perform=hands.perform,
        requests=REQUESTS,
    )
    return Shell(decider, wiring), hands
