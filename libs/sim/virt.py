"""libvirt's twin: a connection to one boot of one host, with calls that are late, hang, fail or are lost."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from random import Random
from typing import TypeVar

from libs.core.ports import StartRefusedError, UnavailableError
from libs.model import Answer, Incarnation, StopReason, VmDefinition, VmReport
from libs.sim.loop import Process, SimLoop
from libs.sim.machines import Machines, Os, SimHost
from libs.sim.network import Network

T = TypeVar("T")
CALL_S, START_S = 5.0, 30.0
QEMU_START_S = (0.05, 0.6)


class Trouble:
    """How kind libvirt is at the moment: shares of calls. Set by the world."""

    def __init__(self) -> None:
        self.slow_start = 0.0
        """Starts that take longer than any caller waits, and succeed."""
        self.lost_answer = 0.0
        self.refused_start = 0.0


class Virt:
    """What all connections share."""

    def __init__(self, loop: SimLoop, network: Network, machines: Machines, chance: Random) -> None:
        self.loop, self.network, self.machines, self.chance = loop, network, machines, chance
        self.trouble = Trouble()
        self.on_start: list[Callable[[SimHost, str, int], None]] = []
        """A start call was issued: host, VM, token."""


class SimHypervisor:
    """Hypervisor of one boot of one host, for one process."""

    def __init__(self, virt: Virt, process: Process, at: Incarnation) -> None:
        self._virt, self._process, self._at = virt, process, at
        self._runs: dict[str, int] = {}

    def _host(self, what: str) -> SimHost:
        host = self._virt.machines.present(self._at)
        if host is None or host.os is not Os.UP:
            raise UnavailableError(f"{self._at.host}: {what}: connection closed")
        return host

    def _links(self) -> tuple[bool, bool]:
        network, here, there = self._virt.network, self._process.node, self._at.host
        if here == there:
            return True, True
        return network.reaches(here, there), network.reaches(there, here)

    async def call(self, what: str, work: Callable[[SimHost], T], timeout_s: float = CALL_S) -> T:
        """Raises UnavailableError; `work` may have been done all the same."""
        self._process.enter()
        began = self._virt.loop.time()
        await asyncio.sleep(self._virt.network.latency())
        self._process.enter()
        forth, back = self._links()
        present = self._virt.machines.hosts[self._at.host]
        if not forth or (present.at == self._at and (present.libvirt_hangs or present.os is Os.HUNG)):
            await self._time_out(what, began, timeout_s)
        result = work(self._host(what))
        if not back or self._virt.chance.random() < self._virt.trouble.lost_answer:
            await self._time_out(what, began, timeout_s)
        return result

    async def _time_out(self, what: str, began: float, timeout_s: float) -> None:
        await asyncio.sleep(max(0.0, began + timeout_s - self._virt.loop.time()))
        self._process.enter()
        raise UnavailableError(f"{self._at.host}: {what}: no answer in {timeout_s} s")

    # -- reading

    async def node(self) -> tuple[int, int]:
        return await self.call("node info", lambda host: (host.memory_mib, host.cpus))

    async def reports(self) -> list[VmReport]:
        return await self.call(
            "list", lambda host: [self._report(host, uuid) for uuid in sorted(host.domains)]
        )

    async def report(self, uuid: str) -> VmReport | None:
        return await self.call(
            "report", lambda host: self._report(host, uuid) if uuid in host.domains else None
        )

    def _report(self, host: SimHost, uuid: str) -> VmReport:
        domain = host.domains[uuid]
        if domain.state.active:
            self._runs[uuid] = domain.run
        return VmReport(
            uuid=uuid,
            name=domain.spec.name,
            state=domain.state,
            stop_reason=StopReason.NONE if domain.state.active else domain.stop_reason,
            run=self._runs.get(uuid, 0),
            token=domain.token,
            memory_mib=domain.spec.memory_mib,
            vcpus=domain.spec.vcpus,
            policy=domain.spec.policy,
        )

    def remember_runs(self, runs: dict[str, int]) -> None:
        """See services.heartbeat.act.LocalHypervisor."""
        self._runs = {**runs, **self._runs}

    async def definitions(self) -> list[VmDefinition]:
        def read(host: SimHost) -> list[VmDefinition]:
            return [definition(self._virt.machines, uuid) for uuid in sorted(host.domains)]

        return await self.call("definitions", read, 2 * CALL_S)

    # -- acting

    async def start(self, definition: VmDefinition, token: int) -> None:
        """The request, once it has arrived, runs on the host by itself: no death of ours recalls it."""
        virt, loop = self._virt, self._virt.loop
        began = loop.time()
        answer: asyncio.Future[str] = loop.create_future()

        def arrive(host: SimHost) -> None:
            for told in virt.on_start:
                told(host, definition.uuid, token)
            slow = virt.chance.random() < virt.trouble.slow_start
            wait_s = (
                virt.chance.uniform(START_S, START_S + 8.0) if slow else virt.chance.uniform(*QEMU_START_S)
            )
            loop.world_later(wait_s, self._started, host.at, definition.uuid, token, answer)

        await self.call("start", arrive, START_S)
        try:
            async with asyncio.timeout(max(0.0, began + START_S - loop.time())):
                refused = await answer
        except TimeoutError:
            raise UnavailableError(f"{self._at.host}: start: no answer in {START_S} s") from None
        self._process.enter()
        if refused == "lost":
            raise UnavailableError(f"{self._at.host}: start: connection closed")
        if refused:
            raise StartRefusedError(f"{self._at.host}: {refused}")

    def _started(self, at: Incarnation, uuid: str, token: int, answer: asyncio.Future[str]) -> None:
        """On the host, whoever asked: QEMU begins, or does not."""
        machines, trouble = self._virt.machines, self._virt.trouble
        host = machines.present(at)
        spec = machines.specs[uuid]
        if host is None or host.os not in (Os.UP, Os.HUNG):
            said = "lost"
        elif (domain := host.domains.get(uuid)) is not None and domain.state.active:
            said = "domain is already running"
        elif host.fails.get(uuid, 0) > 0 or self._virt.chance.random() < trouble.refused_start:
            host.fails[uuid] = host.fails.get(uuid, 1) - 1
            said = "internal error: process exited while connecting to monitor"
        else:
            machines.begin(host, spec, token)
            said = ""
        if not answer.done():
            answer.set_result(said)

    async def destroy(self, uuid: str) -> None:
        await self.call(
            "destroy",
            lambda host: self._virt.machines.end(host, uuid, StopReason.ON_PURPOSE),
            START_S,
        )


def definition(machines: Machines, uuid: str) -> VmDefinition:
    """The copy of a VM's definition: opaque to all but the hypervisor."""
    spec = machines.specs[uuid]
    digest = hashlib.sha256(uuid.encode()).hexdigest()
    return VmDefinition(
        uuid=uuid, name=spec.name, xml=f"<domain><name>{spec.name}</name></domain>", sha256=digest
    )


class SimHypervisors:
    """Connections of one process to the hosts."""

    def __init__(self, virt: Virt, process: Process) -> None:
        self._virt, self._process = virt, process
        self._open: dict[Incarnation, SimHypervisor] = {}

    async def at(self, incarnation: Incarnation, timeout_s: float) -> SimHypervisor:
        """Proven to lead to this very boot, or UnavailableError."""
        if incarnation.host not in self._virt.machines.hosts:
            raise UnavailableError(f"no host is called {incarnation.host}")
        hypervisor = self._open.get(incarnation) or SimHypervisor(self._virt, self._process, incarnation)
        await hypervisor.call("ping", lambda host: None, timeout_s)
        self._open = {at: one for at, one in self._open.items() if at.host != incarnation.host}
        self._open[incarnation] = hypervisor
        return hypervisor

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        """One round trip to whatever boot of the host answers."""
        found = self._virt.machines.hosts.get(host)
        if found is None:
            return Answer.UNKNOWN, f"no host is called {host}"
        began = self._virt.loop.time()
        self._process.enter()
        await asyncio.sleep(self._virt.network.latency())
        self._process.enter()
        network = self._virt.network
        linked = self._process.node == host or network.both_ways(self._process.node, host)
        if linked and found.os is Os.UP and not found.libvirt_hangs and not network.lost():
            return Answer.UP, "libvirt answers"
        await asyncio.sleep(max(0.0, began + timeout_s - self._virt.loop.time()))
        self._process.enter()
        return Answer.SILENT, f"no answer in {timeout_s} s"
