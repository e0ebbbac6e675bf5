"""The simulator's hosts, libvirt and fence devices keep the promises that the real ones keep
(tests/lab/test_ground_contract.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import pytest

from libs.model import Incarnation, Offers
from libs.power.devices import FenceDevices
from libs.scenario.model import Scenario
from libs.sim.loop import Process, SimLoop
from libs.sim.power import SimDevice
from libs.sim.steps import Stage
from libs.sim.virt import SimHypervisor, SimHypervisors
from libs.sim.world import World, vm_uuid
from services.cli.simplane import PLANE
from tests.contract.ground import GUEST_PROMISES, GUESTS, MEMORY_MIB, PROMISES, VCPUS, VMS, Ground


def scenario(vms: tuple[str, ...], *, agent: bool = False) -> Scenario:
    size = {"memory_mib": MEMORY_MIB, "vcpus": VCPUS, "agent": agent}
    return Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "ground",
            "lock_manager": "lockd",
            "hosts": [
                {"name": name, "fencing": [{"method": "power", "timeout_s": 2}]} for name in ("h1", "h2")
            ],
            "vms": [{"name": vm, "host": "h1", **size} for vm in vms],
        }
    )


class SimGround:
    """Machines without any service on them."""

    def __init__(self, loop: SimLoop, played: Scenario) -> None:
        self.scenario, self.world = played, World(played, 1, PLANE, loop)
        self.loop, self.stage = loop, Stage(self.world)
        process = Process(loop, "test", "m0")
        self.hypervisors = SimHypervisors(self.world.virt, process)
        devices = {
            host: [SimDevice(outlet, process, Random(1)) for outlet in outlets]
            for host, outlets in self.world.outlets.items()
        }
        self.power = FenceDevices(devices, self.world.settings.fencing)
        machines = self.world.machines
        for host in machines.hosts.values():
            host.offers = Offers(
                networks=("eth0",), devices={}, cpu_models=("Haswell",), arch="x86_64", cpu="A"
            )
        for vm in played.vms:
            machines.begin(machines.hosts["h1"], machines.specs[vm_uuid(vm.name)], 0)

    def at(self, host: str) -> Incarnation:
        return self.world.machines.hosts[host].at

    def local(self, host: str) -> SimHypervisor:
        process = Process(self.loop, "agent", host)
        return SimHypervisor(self.world.virt, process, self.at(host))

    def uuid(self, vm: str) -> str:
        return vm_uuid(vm)

    async def _do(self, **step: object) -> None:
        body = {**self.scenario.model_dump(mode="json", by_alias=True), "steps": [{"at_s": 0, **step}]}
        for one in Scenario.model_validate(body).steps:
            getattr(self.stage, one.do)(one)

    async def do(self, step: str, vm: str) -> None:
        await self._do(do=step, vm=vm)

    async def refuse_start(self, vm: str, host: str) -> None:
        await self._do(do="fail_start", vm=vm, host=host, count=1)

    async def switch(self, host: str, on: bool) -> None:
        await self._do(do="power_on" if on else "power_off", host=host)
        await asyncio.sleep(20.0)

    async def break_device(self, host: str, how: str) -> None:
        if how == "none":
            await self._do(do="mend_fencing", host=host)
        else:
            await self._do(do="break_fencing", host=host, how=how)

    async def hang_libvirt(self, host: str, on: bool) -> None:
        if on:
            await self._do(do="delay", how="libvirt", host=host, percent=0)
        else:
            await self._do(do="heal")

    async def boots(self, vm: str) -> int:
        await asyncio.sleep(10.0)
        return sum(1 for spell in self.world.machines.spells[vm_uuid(vm)] if spell.guest_up is not None)


def kept(promises: Sequence[Callable[[Ground], Awaitable[None]]], played: Scenario) -> None:
    async def keep(ground: SimGround) -> None:
        for promise in promises:
            await promise(ground)

    loop = SimLoop()
    try:
        loop.run_until_complete(keep(SimGround(loop, played)))
    finally:
        loop.close()


@pytest.mark.fast
def test_simulated_hosts_keep_their_promises() -> None:
    kept(PROMISES, scenario(VMS))


@pytest.mark.fast
def test_simulated_guests_keep_their_promises() -> None:
    kept(GUEST_PROMISES, scenario(GUESTS, agent=True))
