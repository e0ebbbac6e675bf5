"""Fence devices that work, refuse, hang, lie, or are dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from libs.model import PowerState
from libs.sim.loop import Process, SimLoop
from libs.sim.machines import Machines

CALL_S = (0.05, 0.4)
HOWS = ("dead", "hang", "refuse", "lie", "no_effect", "shared_power")


class Outlet:
    """The device itself, shared by all who command it. `how` is what is wrong with it, "" for nothing."""

    def __init__(
        self,
        loop: SimLoop,
        machines: Machines,
        host: str,
        level: int,
        timeout_s: float,
        method: str = "power",
    ) -> None:
        self.loop, self.machines, self.host, self.method = loop, machines, host, method
        self.level, self.timeout_s = level, timeout_s
        self.how = ""
        self.read_off: list[tuple[float, str]] = []
        """When it read off, truly or not, and to which process."""
        self.on_lie: list[Callable[[str, str], None]] = []
        """It read off and the host had power: host and reader."""
        self.on_off: list[Callable[[str], None]] = []

    @property
    def dead(self) -> bool:
        gone = self.how == "shared_power" and not self.machines.hosts[self.host].power
        return gone or self.how == "dead"

    def read(self, reader: str) -> PowerState:
        state = PowerState.ON if self.machines.hosts[self.host].power else PowerState.OFF
        if self.how == "lie":
            if state is PowerState.ON:
                for told in self.on_lie:
                    told(self.host, reader)
            state = PowerState.OFF
        if state is PowerState.OFF:
            self.read_off.append((self.loop.time(), reader))
        return state

    def off(self) -> None:
        for told in self.on_off:
            told(self.host)
        self.machines.power_off(self.machines.hosts[self.host])


class SimDevice:
    """One process's way to one outlet: what an agent behind libs/power/agents.py would be."""

    def __init__(self, outlet: Outlet, process: Process, chance: Random) -> None:
        self._outlet, self._process, self._chance = outlet, process, chance
        self.name = f"sim-{outlet.host}-{outlet.level}"
        self.level, self.timeout_s = outlet.level, outlet.timeout_s

    async def _wait(self, timeout_s: float) -> str:
        """What stands in the way of a call, after its time; "" for nothing."""
        self._process.enter()
        if self._outlet.how == "hang" or self._outlet.dead:
            await asyncio.sleep(timeout_s)
            self._process.enter()
            return "no answer by its deadline"
        await self._outlet.loop.nap(min(timeout_s, self._chance.uniform(*CALL_S)))
        self._process.enter()
        return ""

    async def status(self, timeout_s: float) -> tuple[PowerState, str]:
        wrong = await self._wait(timeout_s)
        if wrong:
            return PowerState.UNKNOWN, f"{self.name}: status: {wrong}"
        state = self._outlet.read(self._process.name)
        return state, f"{self.name} reads {state.value}"

    async def off(self) -> tuple[bool, str]:
        wrong = await self._wait(self.timeout_s)
        if wrong:
            return False, f"{self.name}: off: {wrong}"
        if self._outlet.how == "refuse":
            return False, f"{self.name}: off: exit 1: refused"
        if self._outlet.how not in ("lie", "no_effect"):
            self._outlet.off()
        return True, f"{self.name}: off: exit 0"
