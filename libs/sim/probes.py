"""Agents asked directly, past the bus, by the agent of another host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from libs.model import Answer, Incarnation
from libs.sim.hosts import Os
from libs.sim.loop import Process
from libs.sim.virt import KERNEL_ALONE, Virt


class SimProbes:
    """The other hosts' agents, asked directly by one process."""

    def __init__(
        self,
        virt: Virt,
        process: Process,
        listens: Callable[[str], bool],
        note: Callable[[str, str], None] = lambda host, who: None,
    ) -> None:
        """`listens`: whether the agent of this host runs; `note`: it is told who greets it."""
        self._virt, self._process, self._listens, self._note = virt, process, listens, note

    async def ask(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        """See ports.Probes. A kernel refuses for an agent that is away; a hung host takes and says nothing."""
        virt, network = self._virt, self._virt.network
        found = virt.machines.hosts.get(host)
        if found is None or found.agentless:
            return Answer.UNKNOWN, "no address for probes"
        began = virt.loop.time()
        self._process.enter()
        await virt.loop.nap(network.latency())
        self._process.enter()
        linked = network.both_ways(self._process.node, host)
        heard = linked and found.os in (Os.UP, Os.HUNG) and not network.lost()
        if heard and found.os is Os.UP:
            if self._listens(host):
                return Answer.UP, "its agent answers"
            return Answer.REFUSED, "its kernel refuses, no agent listens"
        await asyncio.sleep(max(0.0, began + timeout_s - virt.loop.time()))
        self._process.enter()
        if heard:
            return Answer.HANGS, f"no answer in {timeout_s} s: {KERNEL_ALONE}"
        return Answer.SILENT, f"no answer in {timeout_s} s"

    async def greet(self, host: str, me: Incarnation, timeout_s: float) -> bool:
        """See ports.Probes: noted there first, and then said to be."""
        virt, network, here = self._virt, self._virt.network, self._process.node
        found = virt.machines.hosts.get(host)
        self._process.enter(routine=True)
        await virt.loop.nap(network.latency())
        self._process.enter(routine=True)
        reached = network.both_ways(here, host) and not network.lost()
        if found is None or found.os is not Os.UP or not reached or not self._listens(host):
            await asyncio.sleep(timeout_s)
            return False
        self._note(host, me.host)
        await virt.loop.nap(network.latency())
        self._process.enter(routine=True)
        return network.reaches(host, here) and not network.lost()
