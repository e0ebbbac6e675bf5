"""The simulated pool: hosts, bus and network as twins, the services as production code in simulated processes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from random import Random

from libs.core.ports import UnavailableError
from libs.events.hosts import HostJoined
from libs.events.signals import Heartbeat, Signal
from libs.model import StopReason
from libs.scenario.model import Scenario
from libs.scenario.pool import ScenarioHost
from libs.sim.bootgate import BootGate
from libs.sim.broker import Broker
from libs.sim.bus import SimBus
from libs.sim.definitions import spec_of
from libs.sim.hosts import Domain, Os, SimHost, Stop
from libs.sim.lives import Lives
from libs.sim.loop import Process, SimLoop
from libs.sim.machines import Machines
from libs.sim.network import BUS, Network
from libs.sim.operator import SimOperator
from libs.sim.plane import Plane, Slot
from libs.sim.poolfile import FENCE_TIMEOUT_S, settings_of
from libs.sim.power import Outlet, outlets_of
from libs.sim.storage import SHARED, Datastore
from libs.sim.virt import Virt
from libs.sim.watchdogs import Watchdogs
from libs.sim.workflow import SimWorkflow

START_S = (0.3, 1.2)
"""A process's start, from its supervisor's decision to its first call."""
PLANE_UP_S = 1.0
"""Until then every service has begun, and leads or knows who does, but for rare bad luck."""
SEEN_S = 1.0
BUS_NODES = 3
WATCHES = "m0"
"""The machine from which hosts without an agent are watched."""
DRIFT = 0.004
"""By which share any clock of a pool with watchdogs runs too fast or too slow: two run apart by twice that."""
NAMESPACE = uuid.UUID("6f7b1f0e-5f3b-4f0d-9d38-3b1f7a1c9e55")


def vm_uuid(name: str) -> str:
    """The same for the same name in every world."""
    return str(uuid.uuid5(NAMESPACE, name))


class World:
    """One pool over one seed. `crashed` is told of every process that ended by an error of its own."""

    def __init__(self, scenario: Scenario, seed: int, plane: Plane, loop: SimLoop) -> None:
        self.scenario, self.seed, self.plane, self.loop = scenario, seed, plane, loop
        self.network = Network(self.chance("network"), self.chance("canary"), self.chance("marks"))
        self.broker = Broker(loop, self.network, self.chance("broker"), BUS_NODES)
        self.machines = Machines(loop, self.chance("machines"))
        self.machines.gate = BootGate(loop, self.network, self.broker)
        if scenario.datastores:
            self.machines.datastores = {one.name: Datastore(loop) for one in scenario.datastores}
        self.virt = Virt(loop, self.network, self.machines, self.chance("virt"))
        self.members = list(scenario.hosts)
        self.settings = settings_of(self.members, scenario)
        self.machines.slotted = {one.name: one.hosts for one in self.settings.datastores}
        self.outlets: dict[str, list[Outlet]] = {}
        self.watchdogs = Watchdogs(loop, self.machines)
        self._drift = self.chance("drift")
        self.slots: dict[str, Slot] = {}
        self.wall_steps: dict[str, float] = {}
        self.stopped_on_purpose: dict[str, Stop] = {}
        """VMs that a person or their guest shut down, and when."""
        self.crashed: list[tuple[str, BaseException]] = []
        self.on_announce: list[Callable[[SimHost], None]] = []
        self.plane_began = 0.0
        """When the management plane last began: its supervisor, not one of its services."""
        self.on_plane_lost: list[Callable[[], None]] = []
        self.starting = self.chance("starting")
        """The luck of what begins: when, and by which clock."""
        for host in scenario.hosts:
            self._build(host)
        self.machines.lock_manager = scenario.lock_manager or ""
        for vm in scenario.vms:
            datastore = vm.datastore or ("" if scenario.datastores else SHARED)
            spec = spec_of(vm, vm_uuid(vm.name), datastore)
            self.machines.specs[spec.uuid] = spec
            domain = Domain(spec, autostart=vm.autostart)
            self.machines.hosts[vm.host].domains[spec.uuid] = domain
        self.operator = SimOperator(self)
        if scenario.workflow is not None:
            SimWorkflow(self, scenario.workflow)
        self._lives = Lives(self)
        self.machines.on_os.append(self._os_changed)
        self.machines.on_stir.append(self._lives.stirred)
        self.machines.on_fired.append(self._lives.fired)
        self.broker.on_send.append(self._sent)

    def chance(self, of: str) -> Random:
        """One seed, a stream of chance for each part: what one part draws does not shift another's luck."""
        return Random(f"{self.seed}/{of}")

    def rate(self) -> float:
        """Of one clock against true time."""
        return self._drift.uniform(1 - DRIFT, 1 + DRIFT)

    def _build(self, host: ScenarioHost) -> None:
        built = SimHost(host.name, host.memory_mib, host.memory_reserved_mib, host.cpus, host.offers)
        built.agentless, built.gate = not host.agent, host.gate
        if host.standby:
            built.power, built.os = False, Os.DOWN
        self.machines.hosts[host.name] = built
        self.outlets[host.name] = outlets_of(self.loop, self.machines, host, FENCE_TIMEOUT_S)
        for entry in host.fencing:
            if entry.method == "watchdog":
                self.watchdogs.put_into(host.name, self.rate(), entry.coarse_s or 0.0)
        self.slots[f"heartbeat@{host.name}"] = Slot(
            "heartbeat", host.name if host.agent else WATCHES, host=host.name
        )

    # -- beginning

    def start(self, *, plane_first: bool = False) -> None:
        """Everything is powered; VMs run; services and agents are started, at once or the plane first.

        An agent that starts beside the plane tells its inventory before the executor leads, and again after five
        seconds, in which nothing could be tried yet. That race is left to the scenarios, and to agents and
        services that are killed; ten thousand drawn worlds need not begin with it."""
        for vm in self.scenario.vms:
            host = self.machines.hosts[vm.host]
            self.machines.begin(host, self.machines.specs[vm_uuid(vm.name)], 0)
        for replica in range(self.scenario.management.replicas):
            for name in self.plane.services:
                self.slots[f"{name}/{replica}"] = Slot(name, f"m{replica}", replica)
        for slot in self.slots.values():
            if plane_first and slot.name == "heartbeat":
                self.loop.world_later(PLANE_UP_S, self.launch, slot)
            else:
                self.launch(slot)

    def lacking(self) -> str:
        """What is missing until the pool is known to the plane; "" where nothing is."""
        joined = {one.fact.at.host for one in self.broker.facts if isinstance(one.fact, HostJoined)}
        off = {host.name for host in self.members if host.standby}
        silent = [name for name in self.machines.hosts if name not in joined | off]
        if silent:
            return f"not joined: {', '.join(silent)}"
        leased = {row.key for row in self.broker.scan("leases", "")}
        without = [spec.name for spec in self.machines.specs.values() if spec.uuid not in leased]
        if without:
            return f"without a run lease: {', '.join(without)}"
        held = {row.key for row in self.broker.scan("leaders", "")}
        vacant = [name for name in self.plane.services if name not in held]
        return f"vacant: {', '.join(vacant)}" if vacant else ""

    # -- processes

    def launch(self, slot: Slot, after_s: float | None = None) -> None:
        """Start the slot's process, a process's start from now."""
        slot.generation += 1
        wait_s = self.starting.uniform(*START_S) if after_s is None else after_s
        self.loop.world_later(wait_s, self._launch, slot, slot.generation)

    def _launch(self, slot: Slot, generation: int) -> None:
        if slot.process is not None or not slot.wanted or slot.generation != generation:
            return
        agent = slot.name == "heartbeat"
        if slot.host and slot.node == slot.host and self.machines.hosts[slot.host].os is not Os.UP:
            return  # it is started when the host is up
        slot.lives += 1
        name = f"heartbeat@{slot.host}" if agent else f"{slot.name}/{slot.replica}"
        process = slot.process = Process(self.loop, name, slot.node)
        process.struck = lambda _: self.kill(slot)
        body = self._lives.agent(slot, process) if agent else self._lives.service(slot, process)
        main = process.spawn(body, name)
        main.add_done_callback(lambda task: self._ended(slot, process, task))

    def _ended(self, slot: Slot, process: Process, task: asyncio.Task[None]) -> None:
        if not process.alive:
            if not task.cancelled():
                task.exception()  # an error while being killed is nobody's
            return
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, UnavailableError):
            self.crashed.append((process.name, error))
        self.kill(slot)

    def kill(self, slot: Slot, *, restart: bool = True) -> None:
        """As SIGKILL; its supervisor starts it again."""
        process, slot.process = slot.process, None
        if process is not None:
            process.kill()
            if slot.host == slot.node and self.machines.hosts[slot.host].os is Os.UP:
                self._notice(slot.node)
            self.broker.clients = [one for one in self.broker.clients if one.process is not process]
            for consumer in self.broker.consumers.values():
                consumer.pullers = [one for one in consumer.pullers if one.client.process is not process]
        if restart and slot.wanted:
            self.launch(slot)

    def _notice(self, host: str) -> None:
        """Its kernel closes a dead agent's connection, and the server says so to whoever listens; who loses its
        power says nothing. At most once: a notice that does not get through is not repeated."""
        if not self.network.both_ways(host, BUS) or self.network.lost():
            return
        for slot in self.slots.values():
            process, ports = slot.process, slot.ports
            if process is None or ports is None or not process.alive or not ports.bus.connected:
                continue
            for told in ports.on_ended:
                self.loop.call_later(self.network.latency(), told, host, context=process.context)

    # -- the plane as a whole

    def _services(self) -> list[Slot]:
        return [slot for slot in self.slots.values() if slot.node != slot.host]

    @property
    def plane_away(self) -> bool:
        """Not one service of the plane runs."""
        return all(slot.process is None for slot in self._services())

    def lose_plane(self, away_s: float) -> None:
        """Supervisor and all services end at once; after a while a new supervisor starts them."""
        for told in self.on_plane_lost:
            told()
        for slot in self._services():
            slot.wanted = False
            self.kill(slot, restart=False)
        self.plane_began = self.loop.time() + away_s
        self.loop.world_later(away_s, self._plane_back)

    def _plane_back(self) -> None:
        if self.loop.time() < self.plane_began:
            return  # lost once more in the meantime
        for slot in self._services():
            slot.wanted, slot.alone = True, slot.lives + 1
            self.launch(slot)

    def minds(self) -> list[tuple[str, object]]:
        """What each living decider holds, by process."""
        return [
            (slot.process.name, slot.ports.mind())
            for slot in self.slots.values()
            if slot.process is not None and slot.ports is not None and slot.ports.mind is not None
        ]

    # -- what the world does to its processes

    def _os_changed(self, host: SimHost) -> None:
        """Agents live and die with their host; in a hung one nothing runs any more."""
        slot = self.slots[f"heartbeat@{host.name}"]
        if host.agentless:
            return
        if host.os is not Os.UP:
            self.kill(slot, restart=False)
        elif host.agent:
            self.launch(slot)

    def _sent(self, client: SimBus, signal: Signal) -> None:
        if not isinstance(signal, Heartbeat):
            return
        host = self.machines.hosts[signal.at.host]
        if host.announced != signal.at.boot and host.at == signal.at:
            host.announced = signal.at.boot
            for told in self.on_announce:
                told(host)

    def shut_down(self, host: SimHost, vm: str, *, saved: bool = False, destroyed: bool = False) -> None:
        """Somebody means this VM to be down from now on. `saved`: as it is, until that host boots. `destroyed`: by
        virsh destroy, not in the guest."""
        seen = self.loop.time() - host.domains[vm].since > SEEN_S
        self.stopped_on_purpose[vm] = Stop(host.name, self.loop.time(), destroyed, seen)
        if saved:
            self.machines.save(host, vm)
        else:
            self.machines.end(host, vm, StopReason.ON_PURPOSE, destroyed=destroyed)

    def add_host(self, host: ScenarioHost) -> None:
        """A person adds a host to the pool file and restarts the plane."""
        self.members.append(host)
        self.settings = settings_of(self.members, self.scenario)
        self._build(host)
        for slot in self.slots.values():
            if slot.name != "heartbeat":
                self.kill(slot)
            elif slot.host == host.name:
                self.launch(slot)
