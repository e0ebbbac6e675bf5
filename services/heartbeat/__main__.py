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
from libs.core.ports import UnavailableError
from libs.events.signals import Goodbye
from libs.model import Incarnation
from libs.probe import DirectProbes, ProbeServer
from libs.service import Context, run
from libs.storage.slots import slots_of
from libs.virt.events import register, watch
from libs.virt.host import LibvirtHost
from libs.virt.hosts import LibvirtHosts
from services.heartbeat.agentless import Watched
from services.heartbeat.orders import Fired, Stirred
from services.heartbeat.wiring import agent

ASK_MANAGER_S = 1.0
log = structlog.get_logger()
Work = list[Coroutine[Any, Any, None]]


def _boot(host: HostEntry) -> str:
    try:
        return host.boot_id_path.read_text().strip()
    except OSError as error:
        raise BadInputError(
            f"hosts.{host.name}.boot_id_path: {host.boot_id_path}: {error.strerror}"
        ) from error


class Agents:
    """The agents of this process: one of the host that it runs on, or one for each agentless host."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._announced: list[tuple[Incarnation, str]] = []

    async def wire(self, context: Context) -> Work:
        register(asyncio.get_running_loop())
        settings = context.settings
        if self._name is not None:
            entry = settings.host(self._name)
            at = Incarnation(host=entry.name, boot=_boot(entry))
            return await self._agent(context, entry, at, self._libvirt(context, entry, entry.local_uri))
        watched = [entry for entry in settings.hosts if not entry.agent]
        if not watched:
            raise BadInputError("hosts: every host has an agent of its own: nothing to watch from here")
        return [self._watch(context, entry) for entry in watched]

    def _libvirt(self, context: Context, entry: HostEntry, uri: str) -> LibvirtHost:
        stores = context.settings.datastores_of(entry.name)
        places = {store.name: store.path for store in stores if not store.block}
        defaults, clock = context.settings.vm_defaults, context.clock.monotonic
        return LibvirtHost(entry.name, uri, defaults, clock, places=places)

    async def _watch(self, context: Context, entry: HostEntry) -> None:
        """Beat for a host as long as its libvirt answers; each time that it comes back, anew."""
        while True:
            host = self._libvirt(context, entry, entry.uri)  # a new one: callbacks belong to one life
            watched = Watched(host, context.store("inventory"))
            at = await watched.until_up()
            work = await self._agent(context, entry, at, host)
            tasks = [asyncio.create_task(one) for one in work]
            lost = asyncio.create_task(watched.until_lost(context.settings.heartbeats.interval_s))
            try:
                done, _ = await asyncio.wait([lost, *tasks], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (lost, *tasks):
                    task.cancel()
                await asyncio.gather(lost, *tasks, return_exceptions=True)
                self._announced = [one for one in self._announced if one[0].host != entry.name]
            log.warning("host does not answer, its heartbeat stops", host=entry.name)

    async def _agent(self, context: Context, entry: HostEntry, at: Incarnation, host: LibvirtHost) -> Work:
        settings = context.settings
        life = uuid.uuid4().hex[:12]
        neighbours = LibvirtHosts(
            neighbours_of(settings, entry.name), settings.vm_defaults, context.bus, context.clock
        )
        own = self._name is not None  # agentless: what we reach from here says nothing of the host
        slots = slots_of(settings, entry.name) if own else {}
        probes = DirectProbes({one.name: one for one in settings.hosts}.get)
        shell, hands = agent(context, entry, at, life, host, neighbours, slots, probes)
        serving = await _serve_probes(entry, at) if own and entry.probe is not None else None
        watch(
            host,
            lambda: shell.hear(Stirred(key="libvirt")),
            lambda vm, run, action: shell.hear(Fired(key="watchdog", vm=vm, run=run, action=action)),
        )
        answering = await context.bus.answer(f"ask.{entry.name}", hands.answer)
        self._announced.append((at, life))

        async def work() -> None:
            try:
                await shell.run()
            finally:
                await answering.stop()
                if serving is not None:
                    await serving.stop()

        return [work()]

    async def goodbye(self, context: Context) -> None:
        """Our silence from now on says nothing about the host."""
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


async def _serve_probes(entry: HostEntry, at: Incarnation) -> ProbeServer:
    assert entry.probe is not None
    server = ProbeServer(at)
    try:
        await server.start(entry.probe)
    except OSError as error:
        raise BadInputError(f"hosts.{entry.name}.probe: {entry.probe}: {error.strerror}") from error
    return server


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
    return run("heartbeat", config, agents.wire, agents.goodbye, host)
