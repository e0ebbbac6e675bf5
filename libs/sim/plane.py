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
from libs.model import Incarnation, Mark
from libs.power.devices import FenceDevices
from libs.restored.guard import Guard
from libs.restored.mark import BUCKET
from libs.sim.arrivals import SimDoor
from libs.sim.bootgate import SimHeld, SimPassed
from libs.sim.bus import SimBus, SimStore
from libs.sim.loop import Process, SimClock
from libs.sim.probes import SimProbes
from libs.sim.reached import SimReached
from libs.sim.storage import SimSlots
from libs.sim.virt import SimHypervisor, SimHypervisors
from libs.sim.watchdogs import SimGreetings, SimPromises, SimWatchdog

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
    machine: str = ""
    """The machine whose clock it has."""
    leases: list[JetStreamLease] = field(default_factory=list)
    works: Work = field(default_factory=list)
    on_ended: list[Callable[[str], None]] = field(default_factory=list)
    """Told of hosts whose agent's connection ended, as the server's notices do."""
    meter: None = None
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

    def guard(self) -> Guard:
        """The production guard over a simulated store and clock."""
        guard = Guard(self.bus, self.store(BUCKET), self.clock)
        self.beside(guard.run)
        return guard

    def beside(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.works.append(work())


@dataclass(slots=True)
class Slot:
    """One process that a supervisor keeps running."""

    name: str
    node: str
    """The machine on which it runs."""
    replica: int = 0
    host: str = ""
    """Of an agent: whose."""
    process: Process | None = None
    lives: int = 0
    wanted: bool = True
    generation: int = 0
    alone: int = 1
    """The first life under the present supervisor, which knows of none before it."""
    ports: SimPorts | None = None


@dataclass(frozen=True, slots=True)
class AgentLife:
    """One life of one host's agent."""

    entry: HostEntry
    at: Incarnation
    life: str
    hypervisor: SimHypervisor
    held: SimHeld
    passed: SimPassed
    slots: dict[str, SimSlots]
    probes: SimProbes
    greetings: SimGreetings
    watchdog: SimWatchdog | None
    """Of the host, where it has one."""
    promised: SimPromises
    mark: Mark
    """As the file of its host holds it."""
    keep_mark: Callable[[Mark], None]
    door: SimDoor
    """Where its libvirt asks before it takes a VM in."""
    on_stir: Callable[[Callable[[], None]], None]
    """Register to be called whenever libvirt says that something changed."""
    on_fired: Callable[[Callable[[str, int], None]], None]
    """Register to be called with VM and run whenever libvirt says that a guest's watchdog fired."""


@dataclass(frozen=True, slots=True)
class WatchLife:
    """One life of the process that beats for one host without an agent."""

    entry: HostEntry
    life: Callable[[], str]
    reach: Callable[[], SimReached]
    """A new connection to whatever boot answers."""
    named: Callable[[], str]
    begun: Callable[[], str]
    """As `named`, of a boot that certainly began after the one before it."""
    clock: Callable[[], float]
    """By which the hosts' kernels age."""
    probes: SimProbes
    on_stir: Callable[[Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class Plane:
    """How the services are put together: the production wiring over simulated ports."""

    services: tuple[str, ...]
    service: Callable[[SimPorts], Awaitable[Work]]
    agent: Callable[[SimPorts, AgentLife], Awaitable[Work]]
    keep_alive: Callable[[SimPorts, AgentLife], Coroutine[Any, Any, None]]
    """What an agent does while there is no bus."""
    watch: Callable[[SimPorts, WatchLife], Awaitable[Work]]
