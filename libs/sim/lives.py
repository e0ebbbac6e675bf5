"""What runs in the processes of the simulated world: each life of a service or an agent, with its ports, as production code."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from libs.core.cancelling import ended
from libs.model import BEGUN, GUESSED, Mark
from libs.power.devices import FenceDevices
from libs.power.levels import Device
from libs.sim.arrivals import SimDoor
from libs.sim.bootgate import SimHeld, SimPassed
from libs.sim.bus import SimBus
from libs.sim.hosts import SimHost
from libs.sim.loop import Process, SimClock
from libs.sim.plane import AgentLife, SimPorts, Slot, WatchLife, Work
from libs.sim.power import Outlet, SimDevice
from libs.sim.probes import SimProbes
from libs.sim.reached import SimReached
from libs.sim.storage import SimSlots
from libs.sim.virt import FASTER, SimHypervisor, SimHypervisors
from libs.sim.watchdogs import SimGreetings, SimPromises, SimWatchdog

if TYPE_CHECKING:
    from libs.sim.world import World

AGENT_RETRY_S = 0.3


class Lives:
    """Begins them; and tells the agents of what their libvirt tells."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._zeros: dict[str, float] = {}
        """By machine what its clock said when the world began."""
        self._rates: dict[str, float] = {}
        self._greetings: dict[str, SimGreetings] = {}
        self._power = world.chance("power")
        self._drills = world.chance("drills")
        self._stirs: dict[str, tuple[Process, Callable[[], None]]] = {}
        self._fires: dict[str, tuple[Process, Callable[[str, int], None]]] = {}

    def _ports(self, slot: Slot, process: Process) -> SimPorts:
        zero_s = self._zeros.setdefault(slot.node, self._world.starting.uniform(100.0, 9e5))
        # of those between whom a promise stands; the others' may as well be true
        drifts = bool(self._world.watchdogs.of) and slot.name in ("heartbeat", "fencer")
        rate = self._rates.setdefault(slot.node, self._world.rate()) if drifts else 1.0
        clock = SimClock(self._world.loop, zero_s, lambda: self._world.wall_steps.get(slot.node, 0.0), rate)
        devices = self._devices(lambda outlet: SimDevice(outlet, process, self._power))
        drilled = self._devices(
            lambda outlet: SimDevice(outlet, process, self._drills, f"drill of {process.name}")
        )
        levels = {host.name: host.levels for host in self._world.settings.hosts}
        return SimPorts(
            settings=self._world.settings,
            service=slot.name,
            bus=SimBus(self._world.broker, process, slot.name),
            clock=clock,
            power=FenceDevices(devices, self._world.settings.fencing, levels, drilled),
            hypervisors=SimHypervisors(self._world.virt, process),
            plane_started=zero_s + self._world.plane_began * rate,
            me=f"{process.name}#{slot.lives}",
            predecessor=f"{process.name}#{slot.lives - 1}" if slot.lives > slot.alone else None,
            machine=slot.node,
        )

    def _devices(self, way: Callable[[Outlet], SimDevice]) -> dict[str, list[Device]]:
        return {host: [way(outlet) for outlet in outlets] for host, outlets in self._world.outlets.items()}

    async def service(self, slot: Slot, process: Process) -> None:
        ports = slot.ports = self._ports(slot, process)
        await self._run(ports, await self._connected(ports, lambda: self._world.plane.service(ports)))

    async def agent(self, slot: Slot, process: Process) -> None:
        ports = slot.ports = self._ports(slot, process)
        host = self._world.machines.hosts[slot.host]
        at = host.at

        def on_stir(stirred: Callable[[], None]) -> None:
            self._stirs[host.name] = (process, stirred)

        def on_fired(fired: Callable[[str, int], None]) -> None:
            self._fires[host.name] = (process, fired)

        if host.agentless:
            watching = self._watching(slot, process, host, on_stir)
            await self._run(
                ports, await self._connected(ports, lambda: self._world.plane.watch(ports, watching))
            )
            return
        device = self._world.watchdogs.of.get(host.name)
        greetings = self._greetings[host.name] = SimGreetings(ports.clock)

        def keep_mark(mark: Mark) -> None:
            host.mark = mark

        hypervisor = SimHypervisor(self._world.virt, process, at)
        life = AgentLife(
            entry=self._world.settings.host(host.name),
            at=at,
            life=f"{host.name}-life{slot.lives}",
            hypervisor=hypervisor,
            held=SimHeld(self._world.machines, process, hypervisor, host.name),
            passed=SimPassed(process, host),
            slots=self._slots(host.name, process),
            probes=SimProbes(self._world.virt, process, self._agent_listens, self._greeted),
            greetings=greetings,
            watchdog=None if device is None else SimWatchdog(device, process),
            promised=SimPromises(host, process),
            mark=host.mark,
            keep_mark=keep_mark,
            door=SimDoor(self._world.virt.doors, process, host.name),
            on_stir=on_stir,
            on_fired=on_fired,
        )
        work = await self._connected(
            ports,
            lambda: self._world.plane.agent(ports, life),
            lambda: self._world.plane.keep_alive(ports, life),
        )
        await self._run(ports, work)

    def _watching(
        self, slot: Slot, process: Process, host: SimHost, on_stir: Callable[[Callable[[], None]], None]
    ) -> WatchLife:
        """What beats for a host without an agent: it alone says what the boots of this host are called."""
        begun = itertools.count(1)

        return WatchLife(
            entry=self._world.settings.host(host.name),
            life=lambda: f"{host.name}-life{slot.lives}.{next(begun)}",
            reach=lambda: SimReached(self._world.virt, process, host.at),
            named=lambda: self._world.machines.rename(host, GUESSED),
            begun=lambda: self._world.machines.rename(host, BEGUN),
            clock=lambda: FASTER * self._world.loop.time(),
            probes=SimProbes(self._world.virt, process, self._agent_listens),
            on_stir=on_stir,
        )

    def _slots(self, host: str, process: Process) -> dict[str, SimSlots]:
        timeout_s = self._world.settings.heartbeats.slot_timeout_s
        everybody = tuple(one.name for one in self._world.settings.hosts)
        return {
            store.name: SimSlots(
                self._world.machines.datastores[store.name],
                store.name,
                process,
                self._world.loop,
                timeout_s,
                store.hosts or everybody,
            )
            for store in self._world.settings.datastores_of(host)
        }

    def _greeted(self, host: str, who: str) -> None:
        self._greetings[host].note(who)

    def _agent_listens(self, host: str) -> bool:
        process = self._world.slots[f"heartbeat@{host}"].process
        return process is not None and not process.stopped

    async def _connected(
        self,
        ports: SimPorts,
        wire: Callable[[], object],
        meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> Work:
        """As libs.service: a process waits for the bus, and that it answers, before anything else."""
        waiting = None if meanwhile is None or self._answers(ports) else asyncio.create_task(meanwhile())
        while not self._answers(ports):
            await asyncio.sleep(AGENT_RETRY_S)
            if waiting is not None and waiting.done():
                waiting.result()
        if waiting is not None:
            await ended(waiting)
        work = wire()
        assert asyncio.iscoroutine(work)
        made: Work = await work
        return made

    def _answers(self, ports: SimPorts) -> bool:
        """It is connected, and the stream and buckets can be looked at."""
        bus = ports.bus
        return bus.connected and self._world.broker.answers and bus.minority_since is None

    async def _run(self, ports: SimPorts, work: Work) -> None:
        """As libs.service.run: the work and the leases, until one of them ends."""
        tasks = [asyncio.create_task(one) for one in work]
        tasks += [asyncio.create_task(lease.run()) for lease in ports.leases]
        tasks += [asyncio.create_task(one) for one in ports.works]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done:
                task.result()

    def stirred(self, host: SimHost) -> None:
        process, stirred = self._stirs.get(host.name, (None, None))
        if process is not None and stirred is not None and process.alive:
            self._world.loop.call_later(0.002, stirred, context=process.context)

    def fired(self, host: SimHost, vm: str, run: int) -> None:
        process, fired = self._fires.get(host.name, (None, None))
        if process is not None and fired is not None and process.alive:
            self._world.loop.call_later(0.002, fired, vm, run, context=process.context)
