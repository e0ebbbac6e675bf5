"""The hosts' own watchdogs, and what hosts say to each other directly. A watchdog resets its host as softdog does: one whose
kernel stopped or that has no power is not reset, one whose processes hang is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from libs.core.ports import WatchdogError
from libs.model import Incarnation
from libs.promises import Promise, Remembered
from libs.sim.hosts import Os, SimHost
from libs.sim.loop import Process, SimClock, SimLoop
from libs.sim.machines import Machines


@dataclass(slots=True)
class HostWatchdog:
    """The device in one host. `rate`: its oscillator's against true time; `coarse_s`: it takes multiples of that only."""

    loop: SimLoop
    machines: Machines
    host: str
    rate: float = 1.0
    coarse_s: float = 0.0
    broken: bool = False
    """It cannot be armed; where it runs it goes on."""
    timeout_s: float | None = None
    due: float = 0.0
    on_fire: list[Callable[[SimHost], None]] = field(default_factory=list)
    """Told of a host that is about to be reset."""
    _waiting: bool = False

    def arm(self, timeout_s: float) -> float:
        if self.broken:
            raise WatchdogError(f"no watchdog works on {self.host}")
        steps = math.ceil(timeout_s / self.coarse_s) if self.coarse_s else 1
        self.timeout_s = steps * (self.coarse_s or timeout_s)
        self.feed()
        return self.timeout_s

    def feed(self) -> None:
        if self.timeout_s is None:
            raise WatchdogError(f"the watchdog of {self.host} is not armed")
        self.due = self.loop.now + self.timeout_s / self.rate
        if not self._waiting:
            self._wait()

    def stop(self) -> None:
        self.timeout_s = None

    def _wait(self) -> None:
        self._waiting = True
        self.loop.world_later(self.due - self.loop.now, self._over)

    def _over(self) -> None:
        self._waiting = False
        if self.timeout_s is None:
            return
        if self.loop.now < self.due - 1e-9:
            self._wait()
            return
        self.timeout_s = None
        host = self.machines.hosts[self.host]
        for told in self.on_fire:
            told(host)
        self.machines.reboot(host)


class Watchdogs:
    """Those of all hosts that have one."""

    def __init__(self, loop: SimLoop, machines: Machines) -> None:
        self._loop, self._machines = loop, machines
        self.of: dict[str, HostWatchdog] = {}
        machines.on_os.append(self._os_changed)

    def put_into(self, host: str, rate: float, coarse_s: float) -> HostWatchdog:
        made = self.of[host] = HostWatchdog(self._loop, self._machines, host, rate, coarse_s)
        return made

    def _os_changed(self, host: SimHost) -> None:
        """What has no power, no kernel, or boots anew has no watchdog that runs."""
        if host.name in self.of and host.os not in (Os.UP, Os.HUNG):
            self.of[host.name].stop()


class SimWatchdog:
    """See ports.Watchdog: one process's hold on its host's device."""

    def __init__(self, device: HostWatchdog, process: Process) -> None:
        self._device, self._process = device, process

    async def arm(self, timeout_s: float) -> float:
        self._process.enter()
        return self._device.arm(timeout_s)

    def feed(self) -> None:
        self._process.enter(routine=True)
        self._device.feed()

    async def disarm(self) -> None:
        self._process.enter()
        self._device.stop()


class SimPromises:
    """See ports.PromiseMemory: one process's way to its host's disk."""

    def __init__(self, host: SimHost, process: Process) -> None:
        self._host, self._process = host, process

    def recall(self, at: Incarnation) -> tuple[Promise, ...]:
        found = self._host.promised
        return found.perhaps if found is not None and found.at == at else ()

    async def remember(self, at: Incarnation, perhaps: tuple[Promise, ...]) -> None:
        self._process.enter()
        self._host.promised = Remembered(at=at, perhaps=perhaps)


class SimGreetings:
    """See ports.Greetings: what one agent was told directly, in this life."""

    def __init__(self, clock: SimClock) -> None:
        self._clock, self._since = clock, clock.monotonic()
        self._noted: dict[str, float] = {}

    def note(self, host: str) -> None:
        self._noted[host] = self._clock.monotonic()

    def unheard_s(self, host: str) -> float | None:
        return self._clock.monotonic() - self._noted.get(host, self._since)
