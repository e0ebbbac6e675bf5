"""The fence devices of the pool: levels in order, a proof only from off read twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from libs.config.entries import HostEntry
from libs.config.settings import FencingSettings
from libs.config.yamlfile import BadInputError
from libs.core.ports import FenceError
from libs.model import FenceProof, Incarnation, PowerState, ProofMethod
from libs.power.agents import AgentDevice


class Device(Protocol):
    """One fence device of one host: an agent, or its simulated twin. Never raises for the world's faults."""

    @property
    def name(self) -> str: ...

    @property
    def level(self) -> int: ...

    @property
    def timeout_s(self) -> float: ...

    async def status(self, timeout_s: float) -> tuple[PowerState, str]:
        """One reading, with a detail. What is not clearly on or off is unknown."""

    async def off(self) -> tuple[bool, str]:
        """Command off. True: the device reports success, which alone proves nothing."""


def agent_devices(
    hosts: Iterable[HostEntry], settings: FencingSettings | None = None
) -> dict[str, list[AgentDevice]]:
    """The fence agents of each host. Raises BadInputError at once for a device that cannot work."""
    devices: dict[str, list[AgentDevice]] = {}
    slots = asyncio.Semaphore((settings or FencingSettings()).parallel_max)
    for host in hosts:
        try:
            devices[host.name] = [AgentDevice(device, slots) for device in host.fencing]
        except BadInputError as error:
            raise BadInputError(f"hosts.{host.name}.fencing: {error}") from error
    return devices


class FenceDevices:
    """Power over the fence devices of each host."""

    def __init__(self, devices: Mapping[str, Sequence[Device]], settings: FencingSettings) -> None:
        self._settings = settings
        self._devices = devices

    def deadline_s(self, host: str) -> float:
        """The longest that one attempt over all levels may take: status, off, and two readings of each."""
        devices = self._devices.get(host, [])
        return 1.0 + sum(4 * d.timeout_s + self._settings.status_spacing_s for d in devices)

    async def status(self, host: str, timeout_s: float) -> tuple[PowerState, str]:
        """What the host's power is. Off only when all devices of one level read off; on wins over off
        from another level, since two power supplies may be split over levels by mistake."""
        devices = self._devices.get(host, [])
        if not devices:
            return PowerState.UNKNOWN, "no fence device is configured"
        readings = await asyncio.gather(*(device.status(timeout_s) for device in devices))
        details = "; ".join(detail for _, detail in readings)
        by_level: dict[int, list[PowerState]] = {}
        for device, (state, _) in zip(devices, readings, strict=True):
            by_level.setdefault(device.level, []).append(state)
        if any(state is PowerState.ON for state, _ in readings):
            return PowerState.ON, details
        if any(all(s is PowerState.OFF for s in states) for states in by_level.values()):
            return PowerState.OFF, details
        return PowerState.UNKNOWN, details

    async def fence(self, incarnation: Incarnation, off_seen: Callable[[], None]) -> FenceProof:
        """Level after level until one gives a proof. See ports.Power.fence."""
        devices = self._devices.get(incarnation.host, [])
        if not devices:
            raise FenceError([f"{incarnation.host} has no fence device"])
        missing: list[str] = []
        for level in sorted({device.level for device in devices}):
            members = [device for device in devices if device.level == level]
            wrong = await self._level(members, off_seen)
            if not wrong:
                names = ", ".join(device.name for device in members)
                detail = f"level {level} ({names}) read off twice, {self._settings.status_spacing_s} s apart"
                return FenceProof(of=incarnation, method=ProofMethod.POWER_OFF, detail=detail)
            missing += [f"level {level}: {reason}" for reason in wrong]
        raise FenceError(missing)

    async def _level(self, devices: Sequence[Device], off_seen: Callable[[], None]) -> list[str]:
        """Switch off what is not off already, then read all twice. Returns what stood in the way."""
        said: list[str] = []
        found = await asyncio.gather(*(device.status(device.timeout_s) for device in devices))
        on = [d for d, (state, _) in zip(devices, found, strict=True) if state is not PowerState.OFF]
        if on:
            for ok, detail in await asyncio.gather(*(device.off() for device in on)):
                if not ok:
                    said.append(detail)
            # an off that "failed" may have found the host off already: only the readings count
            found = await asyncio.gather(*(device.status(device.timeout_s) for device in devices))
        off_seen()
        for reading in (0, 1):
            if reading:
                await asyncio.sleep(self._settings.status_spacing_s)
                found = await asyncio.gather(*(device.status(device.timeout_s) for device in devices))
            wrong = [detail for state, detail in found if state is not PowerState.OFF]
            if wrong:
                return said + wrong
        return []
