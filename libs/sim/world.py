"""The simulated pool: hosts, bus and network as twins, the services as production code in simulated processes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from pydantic import ValidationError

from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.events.hosts import HostJoined
from libs.events.signals import Heartbeat, Signal
from libs.model import StopReason
from libs.power.devices import FenceDevices
from libs.scenario.model import Scenario, ScenarioHost
from libs.sim.broker import Broker
from libs.sim.bus import SimBus
from libs.sim.loop import Process, SimClock, SimLoop
from libs.sim.machines import Domain, Machines, Os, SimHost, VmSpec
from libs.sim.network import BUS, Network
from libs.sim.operator import SimOperator
from libs.sim.plane import AgentLife, Plane, SimPorts, Work
from libs.sim.power import Outlet, SimDevice
from libs.sim.storage import SHARED, Datastore, SimSlots
from libs.sim.virt import SimHypervisor, SimHypervisors, SimProbes, Virt

START_S = (0.3, 1.2)
"""A process's start, from its supervisor's decision to its first call."""
PLANE_UP_S = 1.0
"""Until then every service has begun, and leads or knows who does, but for rare bad luck."""
AGENT_RETRY_S = 0.3
FENCE_TIMEOUT_S = 4.0
SEEN_S = 1.0
BUS_NODES = 3
NAMESPACE = uuid.UUID("6f7b1f0e-5f3b-4f0d-9d38-3b1f7a1c9e55")


def vm_uuid(name: str) -> str:
    """The same for the same name in every world."""
    return str(uuid.uuid5(NAMESPACE, name))


@dataclass(frozen=True, slots=True)
class Stop:
    """A VM was shut down on purpose, where and when."""

    host: str
    at: float
    destroyed: bool
    """By virsh destroy: while we evict it, that cannot be told from our own doing."""
    seen: bool
    """It had run for a while: the end of one that has only just begun looks like a start that failed."""


@dataclass(slots=True)
class Slot:
    """One process that a supervisor keeps running."""

    name: str
    node: str
    replica: int = 0
    process: Process | None = None
    lives: int = 0
    wanted: bool = True
    generation: int = 0
    alone: int = 1
    """The first life under the present supervisor, which knows of none before it."""
    ports: SimPorts | None = None


class World:
    """One pool over one seed. `crashed` is told of every process that ended by an error of its own."""

    def __init__(self, scenario: Scenario, seed: int, plane: Plane, loop: SimLoop) -> None:
        self.scenario, self.seed, self.plane, self.loop = scenario, seed, plane, loop
        self.network = Network(self.chance("network"), self.chance("canary"))
        self.broker = Broker(loop, self.network, self.chance("broker"), BUS_NODES)
        self.machines = Machines(loop, self.chance("machines"))
        if scenario.datastores:
            self.machines.datastores = {one.name: Datastore(loop) for one in scenario.datastores}
        self.virt = Virt(loop, self.network, self.machines, self.chance("virt"))
        self.members = list(scenario.hosts)
        self.settings = settings_of(self.members, scenario)
        self.machines.slotted = {one.name: one.hosts for one in self.settings.datastores}
        self.outlets: dict[str, list[Outlet]] = {}
        self.slots: dict[str, Slot] = {}
        self.wall_steps: dict[str, float] = {}
        self.stopped_on_purpose: dict[str, Stop] = {}
        """VMs that a person or their guest shut down, and when."""
        self.crashed: list[tuple[str, BaseException]] = []
        self.on_announce: list[Callable[[SimHost], None]] = []
        self.plane_began = 0.0
        """When the management plane last began: its supervisor, not one of its services."""
        self.on_plane_lost: list[Callable[[], None]] = []
        self._zeros: dict[str, float] = {}
        self._starting = self.chance("starting")
        self._power = self.chance("power")
        self._stirs: dict[str, tuple[Process, Callable[[], None]]] = {}
        for host in scenario.hosts:
            self._build(host)
        for vm in scenario.vms:
            datastore = vm.datastore or ("" if scenario.datastores else SHARED)
            spec = VmSpec(vm_uuid(vm.name), vm.name, vm.memory_mib, vm.vcpus, vm.policy, vm.agent, datastore)
            self.machines.specs[spec.uuid] = spec
            domain = Domain(spec, autostart=vm.autostart)
            self.machines.hosts[vm.host].domains[spec.uuid] = domain
        self.operator = SimOperator(self)
        self.machines.on_os.append(self._os_changed)
        self.machines.on_stir.append(self._stirred)
        self.broker.on_send.append(self._sent)

    def chance(self, of: str) -> Random:
        """One seed, a stream of chance for each part: what one part draws does not shift another's luck."""
        return Random(f"{self.seed}/{of}")

    def _build(self, host: ScenarioHost) -> None:
        built = SimHost(host.name, host.memory_mib, host.memory_reserved_mib, host.cpus)
        self.machines.hosts[host.name] = built
        self.outlets[host.name] = [
            Outlet(
                self.loop,
                self.machines,
                host.name,
                entry.level,
                entry.timeout_s or FENCE_TIMEOUT_S,
                entry.method,
            )
            for entry in host.fencing
        ]
        self.slots[f"heartbeat@{host.name}"] = Slot("heartbeat", host.name)

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
        silent = [name for name in self.machines.hosts if name not in joined]
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
        wait_s = self._starting.uniform(*START_S) if after_s is None else after_s
        self.loop.world_later(wait_s, self._launch, slot, slot.generation)

    def _launch(self, slot: Slot, generation: int) -> None:
        if slot.process is not None or not slot.wanted or slot.generation != generation:
            return
        agent = slot.name == "heartbeat"
        if agent and self.machines.hosts[slot.node].os is not Os.UP:
            return  # it is started when the host is up
        slot.lives += 1
        name = f"heartbeat@{slot.node}" if agent else f"{slot.name}/{slot.replica}"
        process = slot.process = Process(self.loop, name, slot.node)
        process.struck = lambda _: self.kill(slot)
        body = self._agent(slot, process) if agent else self._service(slot, process)
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
            if slot.name == "heartbeat" and self.machines.hosts[slot.node].os is Os.UP:
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

    def _ports(self, slot: Slot, process: Process) -> SimPorts:
        zero_s = self._zeros.setdefault(slot.node, self._starting.uniform(100.0, 9e5))
        clock = SimClock(self.loop, zero_s, lambda: self.wall_steps.get(slot.node, 0.0))
        devices = {
            host: [SimDevice(outlet, process, self._power) for outlet in outlets]
            for host, outlets in self.outlets.items()
        }
        return SimPorts(
            settings=self.settings,
            service=slot.name,
            bus=SimBus(self.broker, process, slot.name),
            clock=clock,
            power=FenceDevices(devices, self.settings.fencing),
            hypervisors=SimHypervisors(self.virt, process),
            plane_started=zero_s + self.plane_began,
            me=f"{process.name}#{slot.lives}",
            predecessor=f"{process.name}#{slot.lives - 1}" if slot.lives > slot.alone else None,
        )

    async def _service(self, slot: Slot, process: Process) -> None:
        ports = slot.ports = self._ports(slot, process)
        await self._run(ports, await self._connected(ports, lambda: self.plane.service(ports)))

    async def _agent(self, slot: Slot, process: Process) -> None:
        ports = slot.ports = self._ports(slot, process)
        host = self.machines.hosts[slot.node]
        at = host.at

        def on_stir(stirred: Callable[[], None]) -> None:
            self._stirs[host.name] = (process, stirred)

        life = AgentLife(
            entry=self.settings.host(host.name),
            at=at,
            life=f"{host.name}-life{slot.lives}",
            hypervisor=SimHypervisor(self.virt, process, at),
            slots=self._slots(host.name, process),
            probes=SimProbes(self.virt, process, self._agent_listens),
            on_stir=on_stir,
        )
        await self._run(ports, await self._connected(ports, lambda: self.plane.agent(ports, life)))

    def _slots(self, host: str, process: Process) -> dict[str, SimSlots]:
        timeout_s = self.settings.heartbeats.slot_timeout_s
        return {
            store.name: SimSlots(
                self.machines.datastores[store.name], store.name, process, self.loop, timeout_s
            )
            for store in self.settings.datastores_of(host)
        }

    def _agent_listens(self, host: str) -> bool:
        process = self.slots[f"heartbeat@{host}"].process
        return process is not None and not process.stopped

    async def _connected(self, ports: SimPorts, wire: Callable[[], object]) -> Work:
        """As libs.service.connect: a process waits for the bus before anything else."""
        while not ports.bus.connected:  # noqa: ASYNC110  the connection's own state, as in production
            await asyncio.sleep(AGENT_RETRY_S)
        work = wire()
        assert asyncio.iscoroutine(work)
        made: Work = await work
        return made

    async def _run(self, ports: SimPorts, work: Work) -> None:
        """As libs.service.run: the work and the leases, until one of them ends."""
        tasks = [asyncio.create_task(one) for one in work]
        tasks += [asyncio.create_task(lease.run()) for lease in ports.leases]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done:
                task.result()

    # -- the plane as a whole

    def _services(self) -> list[Slot]:
        return [slot for slot in self.slots.values() if slot.name != "heartbeat"]

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
        if host.os is not Os.UP:
            self.kill(slot, restart=False)
        elif host.agent:
            self.launch(slot)

    def _stirred(self, host: SimHost) -> None:
        process, stirred = self._stirs.get(host.name, (None, None))
        if process is not None and stirred is not None and process.alive:
            self.loop.call_later(0.002, stirred, context=process.context)

    def _sent(self, client: SimBus, signal: Signal) -> None:
        if not isinstance(signal, Heartbeat):
            return
        host = self.machines.hosts[client.process.node]
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
            elif slot.node == host.name:
                self.launch(slot)


def settings_of(hosts: Sequence[ScenarioHost], scenario: Scenario) -> Settings:
    """The pool file of a simulated pool. Raises BadInputError for fencing or settings that it cannot have."""
    entries = []
    for host in hosts:
        unknown = [entry.method for entry in host.fencing if entry.method != "power"]
        if unknown:
            raise BadInputError(f"hosts.{host.name}.fencing: {unknown[0]} is not possible here yet")
        fencing = [
            {"agent": "sim", "level": entry.level, "timeout_s": entry.timeout_s or FENCE_TIMEOUT_S}
            for entry in host.fencing
        ]
        entries.append(
            {
                "name": host.name,
                "uri": f"qemu+tcp://{host.name}/system",
                "agent": True,
                "memory_mib": host.memory_mib,
                "memory_reserved_mib": host.memory_reserved_mib,
                "cpus": host.cpus,
                "labels": host.labels,
                "probe": f"{host.name}:7946",
                "fencing": fencing,
            }
        )
    stores = [{"name": one.name, "path": f"/{one.name}", "hosts": one.hosts} for one in scenario.datastores]
    shared = {"datastores": stores or [{"name": SHARED, "path": f"/{SHARED}"}]}
    try:
        return Settings.model_validate({"pool": "sim", **shared, **scenario.settings, "hosts": entries})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"settings.{where}: {first['msg']}") from error
