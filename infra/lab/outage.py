"""The whole management plane is killed at once, is away for some minutes, and a host dies meanwhile: no other VM is touched,
and once the plane is back its view is right soon and that host's VMs run elsewhere.

Three management nodes, as in planechaos.py. What happened to VMs is told by the hosts' own lists and the observer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import libvirt

from infra.lab.bus import NODES
from infra.lab.lab import LabError
from infra.lab.planechaos import scenario
from infra.lab.planenodes import NodesPlane
from infra.lab.run import LabRun
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.readmodel import Reader, reader

RIGHT_S, RECOVERED_S, READ_S = 30.0, 180.0, 20.0
"""The bar for the view to be right; for the VMs of the host that died, which waits for the quiet time after a start."""
LOOK_S = 0.2


@dataclass(slots=True)
class Result:
    """`rekindle.outage.v1`. Times in seconds since the plane was started again."""

    minutes: float
    away_s: float = 0.0
    right_s: float = 0.0
    """Until every host that lives was healthy, each VM on one under its lease, each role held, and the dead host not
    healthy."""
    recovered_s: float = 0.0
    """Until the VMs of the host that died ran elsewhere, each on one host."""
    quiet_s: float = 0.0
    """Of that, nobody is suspected for so long: `detection.quiet_after_start_s`."""
    double_running_s: float = 0.0
    found: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.found

    def document(self) -> dict[str, Any]:
        return {"schema": "rekindle.outage.v1", "passed": self.passed, **asdict(self)}


@dataclass(slots=True)
class Outage:
    """One run. `say` is told how far it is."""

    root: Path
    minutes: float
    quiet_s: float = 60.0
    keep: bool = False
    say: Callable[[str], None] = lambda _: None
    run: LabRun = field(init=False)

    def __post_init__(self) -> None:
        pool = scenario(6)
        quiet = {**pool.settings, "detection": {"quiet_after_start_s": self.quiet_s}}
        pool = pool.model_copy(update={"settings": quiet})
        self.run = LabRun(
            pool, self.root, say=self.say, keep=self.keep, bus_nodes=NODES, bare=True, plane_type=NodesPlane
        )

    async def play(self) -> Result:
        """Raises RunFailedError, LabError or TimeoutError where the lab itself fails."""
        result = Result(self.minutes, quiet_s=self.quiet_s)
        async with self.run.standing():
            dies = self.run.lab.hosts[0]
            lost = tuple(vm.name for vm in self.run.scenario.vms if vm.host == dies)
            began, since = time.monotonic(), datetime.now(UTC)
            self.say(f"killing the whole management plane for {self.minutes:g} min")
            await asyncio.to_thread(self._kill)
            await asyncio.sleep(30 * self.minutes)
            self.say(f"cutting the power of {dies}")
            await asyncio.to_thread(self.run.lab.power_off, dies)
            await asyncio.sleep(max(0.0, 60 * self.minutes - (time.monotonic() - began)))
            result.found += await asyncio.to_thread(self._touched, dies, since)
            result.away_s = round(time.monotonic() - began, 1)
            await self._back(result, dies, lost)
            result.found += await asyncio.to_thread(self._touched, dies, since)
            summary = await asyncio.to_thread(self.run.lab.stop_observer)
            result.double_running_s = summary.double_s
            if summary.sightings:
                result.found.append(f"observer: VMs ran twice, for {summary.double_s:g} s")
        return result

    def _kill(self) -> None:
        plane = self.run.plane
        assert isinstance(plane, NodesPlane)
        for node in range(NODES):
            plane.kill_up(node)
            plane.bus.kill_node(node)

    def _touched(self, dies: str, since: datetime) -> list[str]:
        """What the observer saw begin or end on other hosts, but for the VMs of the one that dies."""
        mine = {vm.name for vm in self.run.scenario.vms if vm.host == dies}
        return [
            f"VM {one.name} {'began' if one.active else 'ended'} on {one.host}"
            for one in self.run.lab.observations().vms
            if one.at >= since and one.name not in mine
        ]

    async def _back(self, result: Result, dies: str, lost: tuple[str, ...]) -> None:
        self.say("starting the plane again")
        began = time.monotonic()
        await asyncio.to_thread(self.run.plane.start)
        lacking = "the bus does not answer"
        while not (result.right_s and result.recovered_s):
            now_s = time.monotonic() - began
            if not result.right_s:
                lacking = await self._lacking(dies, lost)
                if not lacking:
                    result.right_s = round(time.monotonic() - began, 1)
                    self.say(f"the view is right after {result.right_s:g} s")
            if not result.recovered_s and await self._recovered(dies, lost):
                result.recovered_s = round(time.monotonic() - began, 1)
                self.say(f"the VMs of {dies} run elsewhere after {result.recovered_s:g} s")
            if now_s > RECOVERED_S:
                result.found.append(
                    f"not as it should be after {now_s:.0f} s: {lacking or 'VMs are missing'}"
                )
                return
            await asyncio.sleep(LOOK_S)
        if result.right_s > RIGHT_S:
            result.found.append(f"its view was right after {result.right_s:g} s, more than {RIGHT_S:g} s")

    async def _lacking(self, dies: str, lost: tuple[str, ...]) -> str:
        try:
            async with asyncio.timeout(READ_S), reader(self.run.plane.settings()) as look:
                return await self._missing(look, dies, lost)
        except (UnavailableError, BadInputError, TimeoutError) as error:
            return f"the bus does not answer: {error}"

    async def _missing(self, look: Reader, dies: str, lost: tuple[str, ...]) -> str:
        states = {row["host"]: row["state"] for row in await look.hosts()}
        wrong = [host for host, state in states.items() if (state == "healthy") == (host == dies)]
        if wrong:
            return f"{', '.join(f'{host} is {states[host]}' for host in wrong)}"
        running = {row["vm"] for row in await look.vms() if row["state"] == "running"}
        down = sorted({vm.name for vm in self.run.scenario.vms} - running - set(lost))
        roles = {"detector", "fencer", "placement", "executor", "alerting"} - set(await look.leaders())
        return ", ".join([*down, *sorted(roles)])

    async def _recovered(self, dies: str, lost: tuple[str, ...]) -> bool:
        with contextlib.suppress(LabError, OSError, libvirt.libvirtError):
            placed = await asyncio.to_thread(self.run.lab.placement)
            return all(len(placed.get(vm, [])) == 1 and placed[vm] != [dies] for vm in lost)
        return False
