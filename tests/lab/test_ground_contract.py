"""Real libvirt, QEMU and fence agents keep the promises that the simulator's twins keep (tests/contract/ground.py)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from infra.lab.lab import Lab, LabHost, LabVm
from infra.lab.plane import Plane
from libs.config.settings import Settings
from libs.core.clock import SystemClock
from libs.events.signals import Heartbeat
from libs.jetstream.bus import open_bus
from libs.jetstream.server import EmbeddedServer
from libs.model import Incarnation, VmPolicy
from libs.power.devices import FenceDevices, agent_devices
from libs.scenario.pool import ScenarioHost
from libs.virt.definition import OVERHEAD_MIB
from libs.virt.host import LibvirtHost
from libs.virt.hosts import LibvirtHosts
from tests.contract.ground import GUEST_PROMISES, GUESTS, MEMORY_MIB, PROMISES, VCPUS, VMS
from tests.lab.roots import Roots

pytestmark = [pytest.mark.lab, pytest.mark.long]
HOSTS = ("h1", "h2")


class RealGround:
    """A lab without agents and services; the test beats for its hosts."""

    def __init__(self, lab: Lab, settings: Settings, hypervisors: LibvirtHosts) -> None:
        self.lab, self.hypervisors = lab, hypervisors
        self.places = {store.name: store.path for store in settings.datastores}
        hosts = [
            host.model_copy(
                update={"fencing": tuple(one.model_copy(update={"timeout_s": 2.0}) for one in host.fencing)}
            )
            for host in settings.hosts
        ]
        self.power = FenceDevices(agent_devices(hosts), settings.fencing)

    def at(self, host: str) -> Incarnation:
        return Incarnation(host=host, boot=self.lab.boot_id(host))

    def local(self, host: str) -> LibvirtHost:
        clock = SystemClock().monotonic
        conf = self.lab.host(host).etc / "qemu.conf"
        return LibvirtHost(host, self.lab.uri(host), VmPolicy(), clock, places=self.places, qemu_conf=conf)

    def uuid(self, vm: str) -> str:
        return self.lab.vm_uuid(vm)

    async def do(self, step: str, vm: str) -> None:
        named = {"guest_silent": self.lab.hang_guest_agent, "guest_panic": self.lab.panic_guest}
        await asyncio.to_thread(named.get(step) or getattr(self.lab, step), vm)

    async def refuse_start(self, vm: str, host: str) -> None:
        self.lab.fail_start(vm, host, 1)

    async def switch(self, host: str, on: bool) -> None:
        await asyncio.to_thread(self.lab.power_on if on else self.lab.power_off, host)

    async def break_device(self, host: str, how: str) -> None:
        await asyncio.to_thread(self.lab.fault, host, how)

    async def hang_libvirt(self, host: str, on: bool) -> None:
        await asyncio.to_thread(lambda: self.lab.crash_host(host, "hang") if on else self.lab.thaw_host(host))

    async def boots(self, vm: str) -> int:
        """Its console is written by whoever runs it; a guest needs its seconds."""
        seen, quiet = self.lab.guest_up_count(vm), 0
        while quiet < 100:
            await asyncio.sleep(0.1)
            now = self.lab.guest_up_count(vm)
            seen, quiet = now, 0 if now != seen else quiet + 1
        return seen

    async def beat(self, bus_url: str) -> None:
        """For hosts that are on: which boot they are in."""
        bus = await open_bus([bus_url], "lab", "heartbeat", SystemClock(), "beats", closed=_closed)
        try:
            while True:
                for host in HOSTS:
                    if self.lab.power_state(host) == "on":
                        at = self.at(host)
                        await bus.send(f"heartbeat.{host}", Heartbeat(at=at, agent="test", seq=1))
                await asyncio.sleep(0.1)
        finally:
            await bus.client.close()


async def _closed() -> None:
    return None


@contextlib.asynccontextmanager
async def ground(root: Path, guests: Sequence[LabVm]) -> AsyncIterator[RealGround]:
    claims = [LabHost(name, 4096, 4) for name in HOSTS]
    lab = await asyncio.to_thread(
        lambda: Lab.create(claims, root, kvm=None, hooks=True, lock_manager="lockd")
    )
    server = EmbeddedServer(root / "nats")
    try:
        await asyncio.to_thread(lab.up)
        await server.start()
        members = tuple(
            ScenarioHost.model_validate({"name": name, "fencing": [{"method": "power"}]}) for name in HOSTS
        )
        plane = Plane(lab, members, agents=False)
        plane.write()
        settings, clock = plane.settings(), SystemClock()
        bus = await open_bus([server.url], "lab", "executor", clock, "test", closed=_closed)
        hypervisors = LibvirtHosts(settings.hosts, VmPolicy(), bus, clock)
        await hypervisors.listen()
        made = RealGround(lab, settings, hypervisors)
        beating = asyncio.create_task(made.beat(server.url))
        for guest in guests:
            await asyncio.to_thread(lab.define_vm, guest, "h1")
        for guest in guests:
            await asyncio.to_thread(lab.wait_guest_up, guest.name, timeout_s=90.0)
        try:
            yield made
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating
            await bus.client.close()
    finally:
        await server.stop()
        await asyncio.to_thread(lab.down)


async def test_real_hosts_keep_their_promises(roots: Roots) -> None:
    guests = [LabVm(vm, MEMORY_MIB - OVERHEAD_MIB, VCPUS, bare=True) for vm in VMS]
    async with ground(roots.new(), guests) as made:
        for promise in PROMISES:
            await promise(made)


async def test_real_guests_keep_their_promises(roots: Roots) -> None:
    guests = [LabVm(vm, guest_agent=True, on_crash="preserve") for vm in GUESTS]
    async with ground(roots.new(), guests) as made:
        for promise in GUEST_PROMISES:
            await promise(made)
