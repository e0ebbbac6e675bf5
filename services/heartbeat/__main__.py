"""Process of the host agent; or, without --host, of the agentless watch over all hosts that have no agent."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import structlog

from libs.config.entries import HostEntry
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.core.absent import AbsentPorts
from libs.core.clock import SystemClock
from libs.core.ports import Clock, UnavailableError, Watchdog
from libs.events.signals import Goodbye
from libs.hardware import hardware
from libs.model import Incarnation
from libs.probe import DirectProbes, ProbeServer
from libs.promisefile import PromiseFile
from libs.restored.passed import PassedFile
from libs.service import Context, run, this_machine
from libs.storage.slots import slots_of
from libs.virt.autostart import autostart_of
from libs.virt.door import LibvirtDoor
from libs.virt.events import register, watch
from libs.virt.held import LibvirtHeld
from libs.virt.host import LibvirtHost
from libs.virt.hosts import LibvirtHosts
from libs.virt.remote import is_local
from libs.watchdogs import watchdog_at
from services.heartbeat.agentless import watch as watch_host
from services.heartbeat.keeper import Keeper
from services.heartbeat.orders import ArrivalAsked, Departed, Fired, Stirred
from services.heartbeat.wiring import Local, agent

ASK_MANAGER_S = 1.0
WITHDRAW_S = 4.0
"""Less than any watchdog takes."""
log = structlog.get_logger()
Work = list[Coroutine[Any, Any, None]]


class Agents:
    """The agents of this process: one of the host that it runs on, or one for each agentless host."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._announced: list[tuple[Incarnation, str]] = []
        self._keepers: list[Keeper] = []
        self._device: Watchdog | None = None
        """Held by this process for as long as it lives: nobody else could open it meanwhile."""

    async def wire(self, context: Context) -> Work:
        register(asyncio.get_running_loop())
        settings = context.settings
        if self._name is not None:
            entry = settings.host(self._name)
            at = Incarnation(host=entry.name, boot=entry.boot())
            hypervisor = self._libvirt(settings, context.clock, entry, entry.local_uri)
            return await self._agent(context, entry, at, hypervisor)
        watched = [entry for entry in settings.hosts if not entry.agent]
        if not watched:
            raise BadInputError("hosts: every host has an agent of its own: nothing to watch from here")
        return [self._watch(context, entry) for entry in watched]

    def _libvirt(self, settings: Settings, clock: Clock, entry: HostEntry, uri: str) -> LibvirtHost:
        stores = settings.datastores_of(entry.name)
        places = {store.name: store.path for store in stores if not store.block}
        here = self._name is not None or is_local(uri)
        conf = entry.qemu_conf if here else None
        defaults = settings.vm_defaults
        return LibvirtHost(entry.name, uri, defaults, clock.monotonic, places=places, qemu_conf=conf)

    async def _watch(self, context: Context, entry: HostEntry) -> None:
        def lost(name: str) -> None:
            self._announced = [one for one in self._announced if one[0].host != name]
            log.warning("host does not answer, its heartbeat stops", host=name)

        await watch_host(
            lambda: self._libvirt(context.settings, context.clock, entry, entry.uri),
            context.store("inventory"),
            context.store("state"),
            context.settings.heartbeats.interval_s,
            lambda host, at, former: self._agent(context, entry, at, host, former),
            lost,
            clock=context.clock.monotonic,
            machine=this_machine(),
        )

    async def _agent(
        self,
        context: Context,
        entry: HostEntry,
        at: Incarnation,
        host: LibvirtHost,
        former: tuple[str, ...] = (),
    ) -> Work:
        settings = context.settings
        life = uuid.uuid4().hex[:12]
        neighbours = LibvirtHosts(
            neighbours_of(settings, entry.name), settings.vm_defaults, context.bus, context.clock
        )
        probes = DirectProbes({one.name: one for one in settings.hosts}.get)
        serving = ProbeServer(at, context.clock)
        own = self._name is not None  # agentless: what we reach from here says nothing of the host
        door = self._door(settings, entry) if own else None
        if own:
            local = self._local(settings, entry, host, serving, door)
        else:
            local = Local(greetings=serving, former=former)
        shell, hands, memory = agent(context, entry, at, life, host, neighbours, probes, local)
        await memory.listen()
        if own and entry.probe is not None:
            await _serve_probes(entry.probe, entry.name, serving)
        if hands.keeper is not None:
            self._keepers.append(hands.keeper)
        watch(
            host,
            lambda: shell.hear(Stirred(key="libvirt")),
            lambda vm, run, action: shell.hear(Fired(key="watchdog", vm=vm, run=run, action=action)),
            lambda vm: shell.hear(Departed(key="libvirt", vm=vm)),
        )
        if door is not None:
            await door.open(lambda ask, report: shell.hear(ArrivalAsked(key=ask, report=report)))
        answering = await context.bus.answer(f"ask.{entry.name}", hands.answer)
        self._announced.append((at, life))

        async def work() -> None:
            try:
                await shell.run()
            finally:
                await answering.stop()
                await memory.stop()
                await serving.stop()
                if door is not None:
                    await door.close()

        return [work()]

    def _local(
        self,
        settings: Settings,
        entry: HostEntry,
        host: LibvirtHost,
        serving: ProbeServer,
        door: LibvirtDoor | None,
    ) -> Local:
        """What our host itself offers."""
        device, promised = self._watchdog(settings, entry)
        return Local(
            slots=slots_of(settings, entry.name),
            greetings=serving,
            device=device,
            promised=promised,
            marks=settings.data_dir / "marks",
            held=LibvirtHeld(host, autostart_of(entry, settings.data_dir)),
            hardware=hardware(),
            passed=PassedFile(settings.data_dir / "gate" / entry.name),
            door=door,
        )

    @staticmethod
    def _door(settings: Settings, entry: HostEntry) -> LibvirtDoor | None:
        if entry.arrivals is None:
            return None
        return LibvirtDoor(entry.arrivals, entry.arrivals_hook, settings.vm_defaults)

    def _watchdog(self, settings: Settings, entry: HostEntry) -> tuple[Watchdog | None, PromiseFile]:
        if self._device is None and entry.watchdog is not None:
            self._device = watchdog_at(entry.watchdog.device)
        return self._device, PromiseFile(settings.data_dir / "promises" / f"{entry.name}.json")

    async def keep_alive(self, settings: Settings) -> None:
        """While there is no bus: what an earlier life of this agent armed is fed on our slots and peers alone (rule 4). The
        agent itself, on ports without a bus, which it does not get through its gate with."""
        if self._name is None:
            return
        entry, clock = settings.host(self._name), SystemClock()
        at = Incarnation(host=entry.name, boot=entry.boot())
        device, promised = self._watchdog(settings, entry)
        if device is None or not promised.recall(at):
            return
        log.warning("there is no bus: the watchdog is fed on storage and peers alone", host=entry.name)
        serving = ProbeServer(at, clock)
        ports = AbsentPorts(settings, "heartbeat", clock)
        neighbours = LibvirtHosts(neighbours_of(settings, entry.name), settings.vm_defaults, ports.bus, clock)
        slots = slots_of(settings, entry.name)
        shell, _, _ = agent(
            ports,
            entry,
            at,
            uuid.uuid4().hex[:12],
            self._libvirt(settings, clock, entry, entry.local_uri),
            neighbours,
            DirectProbes({one.name: one for one in settings.hosts}.get),
            Local(slots=slots, greetings=serving, device=device, promised=promised),
        )
        if entry.probe is not None:
            await _serve_probes(entry.probe, entry.name, serving)
        try:
            await shell.run()
        finally:
            await serving.stop()

    async def goodbye(self, context: Context) -> None:
        """Our silence from now on says nothing about the host, and its watchdog is not to reset it: where nobody can
        count on that any more."""
        for keeper in self._keepers:
            try:
                async with asyncio.timeout(WITHDRAW_S):
                    wrong = await keeper.withdraw()
            except (UnavailableError, TimeoutError) as error:
                wrong = f"its promise could not be withdrawn: {error or 'no answer in time'}"
            if wrong:
                log.error(
                    "the watchdog goes on: the host is reset unless its agent is started again", reason=wrong
                )
        for_good = self._name is not None and await _going_down()
        for at, life in self._announced:
            goodbye = Goodbye(at=at, agent=life, grace_s=10.0, for_good=for_good)
            await context.bus.send(f"goodbye.{at.host}", goodbye)
        with contextlib.suppress(UnavailableError, TimeoutError):
            await context.bus.client.flush(timeout=1)


def neighbours_of(settings: Settings, host: str) -> list[HostEntry]:
    """The other hosts, each with its libvirt as a host reaches it."""
    return [
        other.model_copy(update={"uri": other.peer_uri or other.uri})
        for other in settings.hosts
        if other.name != host
    ]


async def _serve_probes(address: str, host: str, server: ProbeServer) -> None:
    try:
        await server.start(address)
    except OSError as error:
        raise BadInputError(f"hosts.{host}.probe: {address}: {error.strerror}") from error


async def _going_down() -> bool:
    """True where we are stopped since the whole host is, by its own service manager's word."""
    try:
        asked = await asyncio.create_subprocess_exec(
            *("systemctl", "is-system-running"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(ASK_MANAGER_S):
            said, _ = await asked.communicate()
    except (OSError, TimeoutError):
        return False
    return said.strip() == b"stopping"


def main(config: Path, host: str | None = None) -> int:
    agents = Agents(host)
    return run("heartbeat", config, agents.wire, agents.goodbye, host, agents.keep_alive)
