"""What the simulator gives to the services that it runs: the ports of one simulated process.

The simulator does not import the services: whoever runs it hands in how they are put together (`Plane`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from libs.config.entries import HostEntry
from libs.config.settings import Settings
from libs.jetstream.lease import JetStreamLease
from libs.model import Incarnation
from libs.power.devices import FenceDevices
from libs.sim.bus import SimBus, SimStore
from libs.sim.loop import SimClock
from libs.sim.storage import SimSlots
from libs.sim.virt import SimHypervisor, SimHypervisors, SimProbes

Work = list[Coroutine[Any, Any, None]]


@dataclass(slots=True)
class SimPorts:
    """The ports of one process of one service."""

    settings: Settings
    service: str
    bus: SimBus
    clock: SimClock
    power: FenceDevices
    hypervisors: SimHypervisors
    plane_started: float
    me: str
    predecessor: str | None
    """The life of this process before this one, as its supervisor knows it."""
    leases: list[JetStreamLease] = field(default_factory=list)
    on_ended: list[Callable[[str], None]] = field(default_factory=list)
    """Told of hosts whose agent's connection ended, as the server's notices do."""
    mind: Callable[[], object] | None = None
    """What its decider holds at this moment: whoever wires the service sets it."""

    def store(self, bucket: str) -> SimStore:
        return SimStore(self.bus, bucket)

    def lease(self) -> JetStreamLease:
        """The production lease over a simulated store and clock."""
        lease = JetStreamLease(
            self.store("leaders"), self.service, self.clock, me=self.me, predecessor=self.predecessor
        )
        self.leases.append(lease)
        return lease


@dataclass(frozen=True, slots=True)
class AgentLife:
    """One life of one host's agent."""

    entry: HostEntry
    at: Incarnation
    life: str
    hypervisor: SimHypervisor
    slots: dict[str, SimSlots]
    probes: SimProbes
    on_stir: Callable[[Callable[[], None]], None]
    """Register to be called whenever libvirt says that something changed."""


@dataclass(frozen=True, slots=True)
class Plane:
    """How the services are put together: the production wiring over simulated ports."""

    services: tuple[str, ...]
    service: Callable[[SimPorts], Awaitable[Work]]
    agent: Callable[[SimPorts, AgentLife], Awaitable[Work]]
