"""Fence devices that work, refuse, hang, lie, or are dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from libs.model import Incarnation, PowerState
from libs.scenario.pool import ScenarioHost
from libs.sim.loop import Process, SimLoop
from libs.sim.machines import Machines

CALL_S = (0.05, 0.4)
HOWS = ("dead", "hang", "refuse", "lie", "no_effect", "shared_power")


class Outlet:
    """The device itself, shared by all who command it. `how` is what is wrong with it, "" for nothing.

    Alone on its level it switches the host. Several on one level are the feeds of its power supplies: the host goes
    off with the last of them, and each reads what its own feed is."""

    def __init__(
        self,
        loop: SimLoop,
        machines: Machines,
        host: str,
        level: int,
        timeout_s: float,
        method: str = "power",
        name: str = "",
    ) -> None:
        self.loop, self.machines, self.host, self.method = loop, machines, host, method
        self.level, self.timeout_s = level, timeout_s
        self.name = name or f"sim-{host}-{level}"
        self.how = ""
        self.feeds: list[Outlet] = [self]
        """All of its level."""
        self.cut: Incarnation | None = None
        """In which boot of the host its own feed was switched off: whoever powers it on connects all of them."""
        self.read_off: list[tuple[float, str]] = []
        """When it read off, truly or not, and to which process."""
        self.asked_at: dict[str, float] = {}
        """When each reader last called it."""
        self.on_lie: list[Callable[[str, str], None]] = []
        """It read off and the host had power: host and reader."""
        self.on_off: list[Callable[[str], None]] = []
        self.on_on: list[Callable[[str], None]] = []

    @property
    def dead(self) -> bool:
        gone = self.how == "shared_power" and not self.machines.hosts[self.host].power
        return gone or self.how == "dead"

    def read(self, reader: str) -> PowerState:
        powered = self.machines.hosts[self.host].power
        state = PowerState.ON if powered and not self._is_cut() else PowerState.OFF
        if self.how == "lie":
            if powered:
                for told in self.on_lie:
                    told(self.host, reader)
            state = PowerState.OFF
        if state is PowerState.OFF:
            self.read_off.append((self.loop.time(), reader))
        return state

    def off(self) -> None:
        for told in self.on_off:
            told(self.host)
        host = self.machines.hosts[self.host]
        self.cut = host.at
        if all(feed._is_cut() for feed in self.feeds):
            self.machines.power_off(host)

    def on(self) -> None:
        for told in self.on_on:
            told(self.host)
        self.cut = None
        self.machines.power_on(self.machines.hosts[self.host])

    def _is_cut(self) -> bool:
        return self.cut == self.machines.hosts[self.host].at


def outlets_of(loop: SimLoop, machines: Machines, host: ScenarioHost, timeout_s: float) -> list[Outlet]:
    """The fence devices of one host; `timeout_s` where the scenario gives none."""
    made = []
    entries = [entry for entry in host.fencing if entry.method == "power"]
    for index, entry in enumerate(entries):
        same = [n for n, other in enumerate(entries) if (other.level, other.name) == (entry.level, None)]
        name = entry.name or (
            f"sim-{host.name}-{entry.level}" + (f"#{same.index(index) + 1}" if same[1:] else "")
        )
        made.append(
            Outlet(loop, machines, host.name, entry.level, entry.timeout_s or timeout_s, entry.method, name)
        )
    for outlet in made:
        outlet.feeds = [one for one in made if one.level == outlet.level]
    return made


class SimDevice:
    """One process's way to one outlet: what an agent behind libs/power/agents.py would be. `reader` is who reads, by
    default the process: readings for a drill are none of a fencing's."""

    def __init__(self, outlet: Outlet, process: Process, chance: Random, reader: str = "") -> None:
        self._outlet, self._process, self._chance = outlet, process, chance
        self._reader = reader or process.name
        self.name = outlet.name
        self.level, self.timeout_s = outlet.level, outlet.timeout_s

    async def _wait(self, timeout_s: float) -> str:
        """What stands in the way of a call, after its time; "" for nothing."""
        self._process.enter()
        self._outlet.asked_at[self._reader] = self._outlet.loop.time()
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
        state = self._outlet.read(self._reader)
        return state, f"{self.name} reads {state.value}"

    async def off(self) -> tuple[bool, str]:
        return await self._switch("off", self._outlet.off)

    async def on(self) -> tuple[bool, str]:
        return await self._switch("on", self._outlet.on)

    async def _switch(self, what: str, switch: Callable[[], None]) -> tuple[bool, str]:
        wrong = await self._wait(self.timeout_s)
        if wrong:
            return False, f"{self.name}: {what}: {wrong}"
        if self._outlet.how == "refuse":
            return False, f"{self.name}: {what}: exit 1: refused"
        if self._outlet.how not in ("lie", "no_effect"):
            switch()
        return True, f"{self.name}: {what}: exit 0"
