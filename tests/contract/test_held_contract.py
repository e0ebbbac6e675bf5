"""What the agent's port to what was held back at boot promises: over libvirt (its test driver) and files, and simulated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Protocol

import pytest

from libs.core.clock import SystemClock
from libs.model import HeldVm, VmPolicy, VmState
from libs.sim.bootgate import SimHeld
from libs.sim.hosts import Domain, SimHost, VmSpec
from libs.sim.loop import Process, SimLoop
from libs.sim.machines import Machines
from libs.sim.network import Network
from libs.sim.virt import SimHypervisor, Virt
from libs.virt.autostart import Autostart
from libs.virt.held import LibvirtHeld
from libs.virt.host import LibvirtHost
from services.heartbeat.heldback import HeldBack
from tests.integration.test_libvirt import NODE, A, B, domain

LINKED, RESUMED = HeldVm(uuid=A, name="a", link="a"), HeldVm(uuid=B, name="b", resumed=True)


class Ground(Protocol):
    """A host whose two VMs, a and b, do not run; both are held back, a with a link of autostart."""

    @property
    def port(self) -> HeldBack: ...

    async def state(self, uuid: str) -> VmState | None: ...

    async def starts_by_itself(self, uuid: str) -> bool: ...


class Real:
    def __init__(self, root: Path) -> None:
        (root / "node.xml").write_text(NODE.format(domains=domain("a", A) + domain("b", B)))
        self._host = LibvirtHost("h1", f"test://{root}/node.xml", VmPolicy(), SystemClock().monotonic)
        (root / "autostart").mkdir()
        files = Autostart(root / "autostart", root / "libvirt-guests", root / "held" / "h1")
        for vm in (LINKED, RESUMED):
            files.hold(vm)
        self.port = LibvirtHeld(self._host, files)

    async def begin(self) -> None:
        for uuid in (A, B):
            await self._host.destroy(uuid)

    async def state(self, uuid: str) -> VmState | None:
        report = await self._host.report(uuid)
        return None if report is None else report.state

    async def starts_by_itself(self, uuid: str) -> bool:
        return bool(await self._host.call("flag", lambda to: to.lookupByUUIDString(uuid).autostart()))


class Simulated:
    def __init__(self, loop: SimLoop) -> None:
        machines = Machines(loop, Random(1))
        self._host = machines.hosts["h1"] = SimHost("h1", 4096, 0, 4, held={A: True, B: False})
        for vm in (LINKED, RESUMED):
            spec = machines.specs[vm.uuid] = VmSpec(vm.uuid, vm.name, 256, 2, VmPolicy())
            self._host.domains[vm.uuid] = Domain(spec)
        process = Process(loop, "agent", "h1")
        virt = Virt(loop, Network(Random(1), Random(2)), machines, Random(3))
        self._hypervisor = SimHypervisor(virt, process, self._host.at)
        self.port = SimHeld(machines, process, self._hypervisor, "h1")

    async def state(self, uuid: str) -> VmState | None:
        report = await self._hypervisor.report(uuid)
        return None if report is None else report.state

    async def starts_by_itself(self, uuid: str) -> bool:
        return self._host.domains[uuid].autostart


Body = Callable[[Ground], Awaitable[None]]


@pytest.fixture(params=["sim", "real"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Body], None]:
    async def really(body: Body) -> None:
        ground = Real(tmp_path)
        await ground.begin()
        await body(ground)

    async def awaited(work: Awaitable[None]) -> None:
        await work

    def run(body: Body) -> None:
        if request.param == "real":
            asyncio.run(really(body))
            return
        loop = SimLoop()
        loop.run_until_complete(awaited(body(Simulated(loop))))
        loop.close()

    return run


def test_what_is_held_is_told_as_it_was(play: Callable[[Body], None]) -> None:
    async def body(ground: Ground) -> None:
        assert await ground.port.held() == [LINKED, RESUMED]
        assert not await ground.starts_by_itself(A)

    play(body)


def test_what_is_given_back_has_its_flag_again_and_is_held_no_more(play: Callable[[Body], None]) -> None:
    async def body(ground: Ground) -> None:
        for vm in (LINKED, RESUMED):
            await ground.port.give_back(vm)
            await ground.port.give_back(vm)
        assert await ground.port.held() == []
        assert await ground.starts_by_itself(A)
        assert not await ground.starts_by_itself(B)
        assert await ground.state(A) is VmState.STOPPED, "to give it back starts nothing"

    play(body)


def test_a_start_is_one_start(play: Callable[[Body], None]) -> None:
    async def body(ground: Ground) -> None:
        for _ in range(2):
            await ground.port.start(RESUMED)
        assert await ground.state(B) is VmState.RUNNING
        assert [vm.name for vm in await ground.port.held()] == ["a", "b"]

    play(body)
