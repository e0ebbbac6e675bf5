"""Guests asked over the network, simulated: one that has booted, serves by now and is well takes connections and has every
page."""

from __future__ import annotations

import asyncio

from libs.model import Health
from libs.readiness import Target
from libs.sim.definitions import address_of
from libs.sim.hosts import Domain, SimHost
from libs.sim.virt import SimHypervisors


class SimGuestProbes:
    """As one process asks them. An address that a policy names is the name of a VM here."""

    def __init__(self, connections: SimHypervisors) -> None:
        self._virt, self._process = connections._virt, connections._process

    async def ask(self, target: Target, address: str, timeout_s: float) -> tuple[bool, str]:
        """See ports.GuestProbes."""
        virt, network = self._virt, self._virt.network
        began = virt.loop.time()
        self._process.enter()
        await virt.loop.nap(network.latency())
        self._process.enter()
        found = self._at(address)
        if found is not None and network.both_ways(self._process.node, found[0].name) and not network.lost():
            serves = found[1].up and began >= found[1].up_at + found[1].spec.serves_after_s
            if serves and found[1].health is Health.OK:
                return True, "it takes connections"
            if not serves:
                return False, "connection refused"
        await asyncio.sleep(max(0.0, began + timeout_s - virt.loop.time()))
        self._process.enter()
        return False, f"no answer in {timeout_s:g} s"

    def _at(self, address: str) -> tuple[SimHost, Domain] | None:
        for host in self._virt.machines.hosts.values():
            for domain in host.active():
                if address in (address_of(domain.spec), domain.spec.name):
                    return host, domain
        return None
