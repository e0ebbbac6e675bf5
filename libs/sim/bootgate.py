"""The gate before a simulated host's libvirt: `rekindle gate` by the same rule, and what its agent gives back."""

from __future__ import annotations

from libs.core.ports import StartRefusedError
from libs.leases import held_back
from libs.model import HeldVm, RunLease
from libs.sim.broker import Broker
from libs.sim.hosts import SimHost
from libs.sim.loop import Process, SimLoop
from libs.sim.machines import Machines
from libs.sim.network import BUS, Network
from libs.sim.virt import SimHypervisor

ASK_S = 10.0
"""As the real gate asks: then the host goes on without an answer."""


class BootGate:
    """Asked by a host before its libvirt begins, again and again until it says yes."""

    def __init__(self, loop: SimLoop, network: Network, broker: Broker) -> None:
        self._loop, self._network, self._broker = loop, network, broker
        self._since: dict[str, tuple[int, float]] = {}

    def __call__(self, host: SimHost) -> bool:
        """False while it still waits for the store. True: what may not run is held back."""
        own = [
            domain for domain in host.domains.values() if domain.autostart or domain.spec.uuid in host.saved
        ]
        host.unasked = False
        if host.agentless or not host.gate or not own:
            return True
        answers = self._broker.answers and self._network.both_ways(host.name, BUS)
        boot, since = self._since.get(host.name, (0, 0.0))
        if boot != host.boots:
            boot, since = self._since[host.name] = (host.boots, self._loop.time())
        if not answers and self._loop.time() < since + ASK_S:
            return False
        host.unasked = not answers
        for domain in own:
            uuid = domain.spec.uuid
            lease = self._lease(uuid) if answers else None
            led = host.mark.number > 0 or self._broker.read("marks", "mark") is not None
            if held_back(lease, host.at, domain.spec.policy, answered=answers, led=led):
                host.held[uuid] = domain.autostart
                domain.autostart = False
                host.saved.discard(uuid)
        return True

    def _lease(self, uuid: str) -> RunLease | None:
        row = self._broker.read("leases", uuid)
        return None if row is None or row.value is None else RunLease.model_validate_json(row.value)


class SimPassed:
    """Twin of libs.restored.passed.PassedFile."""

    def __init__(self, process: Process, host: SimHost) -> None:
        self._process, self._host = process, host

    async def boot(self) -> str:
        self._process.enter()
        return self._host.passed

    async def remember(self, boot: str) -> None:
        self._process.enter()
        self._host.passed = boot


class SimHeld:
    """Twin of libs.virt.held.LibvirtHeld, over the same host's hypervisor."""

    def __init__(self, machines: Machines, process: Process, hypervisor: SimHypervisor, host: str) -> None:
        self._machines, self._process, self._hypervisor = machines, process, hypervisor
        self._host = machines.hosts[host]

    async def held(self) -> list[HeldVm]:
        """From the host's disk: no call to libvirt."""
        self._process.enter()
        known = self._host.domains
        return [
            HeldVm(
                uuid=uuid,
                name=known[uuid].spec.name,
                link=known[uuid].spec.name * autostart,
                resumed=not autostart,
            )
            for uuid, autostart in sorted(self._host.held.items())
        ]

    async def start(self, vm: HeldVm) -> None:
        def start(host: SimHost) -> str:
            domain = host.domains[vm.uuid]
            if domain.state.active:
                return ""
            if self._machines.image_locks and self._machines.running(vm.uuid):
                return 'Failed to get "write" lock'
            self._machines.begin(host, domain.spec, domain.defined, autostarted=True)
            return ""

        refused = await self._hypervisor.call("start what was held back", start)
        if refused:
            raise StartRefusedError(f"{self._host.name}: {refused}")

    async def give_back(self, vm: HeldVm) -> None:
        def flag(host: SimHost) -> None:
            if vm.uuid in host.held:
                host.domains[vm.uuid].autostart |= host.held.pop(vm.uuid)

        await self._hypervisor.call("autostart", flag)
