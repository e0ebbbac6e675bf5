"""The fence devices of the pool: levels raced, a proof only from off read twice."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from libs.config.entries import FenceDevice, FenceLevel, HostEntry
from libs.config.settings import FencingSettings, Settings
from libs.config.yamlfile import BadInputError
from libs.core.ports import FenceError, OffSeen, Reading
from libs.events.hosts import LevelTested
from libs.model import FenceProof, Incarnation, PowerState, ProofMethod
from libs.power.agents import AgentDevice, as_text, find_agent
from libs.power.levels import WITNESS_S, Device, Level, Race

CALLS = 4
"""Of a level's device at most, one after the other: status, off, and two readings."""

ON_S, ON_AGAIN_S = 120.0, 2.0


def agent_devices(
    hosts: Iterable[HostEntry], settings: FencingSettings | None = None
) -> dict[str, list[AgentDevice]]:
    """The fence agents of each host. Raises BadInputError at once for a device that cannot work."""
    devices: dict[str, list[AgentDevice]] = {}
    slots = asyncio.Semaphore((settings or FencingSettings()).parallel_max)
    turns: defaultdict[tuple[str, ...], asyncio.Lock] = defaultdict(asyncio.Lock)
    for host in hosts:
        try:
            devices[host.name] = [
                AgentDevice(device, slots, turns[_one_device(host.name, number, device)])
                for number, device in enumerate(host.fencing)
            ]
        except BadInputError as error:
            raise BadInputError(f"hosts.{host.name}.fencing: {error}") from error
        _tell_apart(devices[host.name])
    return devices


def _one_device(host: str, number: int, device: FenceDevice) -> tuple[str, ...]:
    """What is asked one call at a time: a power strip is one device, whichever hosts hang on its outlets. Many take one
    session only."""
    options = {key: as_text(value) for key, value in device.options.items()}
    address = options.get("ip") or options.get("ipaddr")
    return (find_agent(device.agent), address, options.get("ipport", "")) if address else (host, str(number))


def _tell_apart(devices: Sequence[AgentDevice]) -> None:
    """Two outlets of one level behind one agent are two devices: what is missing must name the one that is meant."""
    for level, name in {(device.level, device.name) for device in devices}:
        same = [device for device in devices if (device.level, device.name) == (level, name)]
        for number, device in enumerate(same if len(same) > 1 else (), 1):
            device.name = f"{name}#{number}"


def fence_devices(settings: Settings) -> FenceDevices:
    """All of a pool file. Raises BadInputError at once for a device that cannot work."""
    levels = {host.name: host.levels for host in settings.hosts}
    return FenceDevices(agent_devices(settings.hosts, settings.fencing), settings.fencing, levels)


class FenceDevices:
    """Power over the fence devices of each host. `levels` is what the pool file says of single levels of a host;
    `drilled` are other ways to the same devices, for readings that are no part of a fencing (the simulator tells
    them apart)."""

    def __init__(
        self,
        devices: Mapping[str, Sequence[Device]],
        settings: FencingSettings,
        levels: Mapping[str, Mapping[int, FenceLevel]] | None = None,
        drilled: Mapping[str, Sequence[Device]] | None = None,
    ) -> None:
        self._settings = settings
        self._devices = devices
        self._drilled = devices if drilled is None else drilled
        self._own = levels or {}
        self._races: dict[str, list[Race]] = {}

    def levels(self, host: str) -> list[Level]:
        """The levels of a host in their order, each with its deadline and when the next may begin beside it."""
        devices, own = self._devices.get(host, []), self._own.get(host, {})
        made = []
        for number in sorted({device.level for device in devices}):
            members = tuple(device for device in devices if device.level == number)
            given = own.get(number, FenceLevel())
            calls_s = CALLS * max(device.timeout_s for device in members) + self._settings.status_spacing_s
            deadline_s = given.deadline_s or self._settings.level_deadline_s or calls_s + WITNESS_S
            after_s = given.next_after_s
            if after_s is None:
                after_s = self._settings.next_level_after_s
            made.append(Level(number, members, deadline_s, after_s))
        return made

    def deadline_s(self, host: str) -> float:
        """The longest that one attempt over all levels may take."""
        return 1.0 + sum(level.deadline_s for level in self.levels(host))

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

    async def read(self, host: str) -> list[Reading]:
        """One reading of every device of a host, by the way that is taken for drills. Changes nothing."""
        devices = self._drilled.get(host, [])
        found = await asyncio.gather(*(device.status(device.timeout_s) for device in devices))
        return [
            Reading(device.name, device.level, state, detail)
            for device, (state, detail) in zip(devices, found, strict=True)
        ]

    def read_deadline_s(self, host: str) -> float:
        """The longest that `read` may take."""
        return 3.0 + max((device.timeout_s for device in self._devices.get(host, [])), default=0.0)

    def missing(self, host: str) -> tuple[str, ...]:
        """What stands in the way of a proof at this moment, level by level and device by device; nothing where no
        attempt is under way."""
        return tuple(reason for race in self._races.get(host, ()) for reason in race.missing())

    async def fence(self, incarnation: Incarnation, off_seen: OffSeen) -> FenceProof:
        """All levels, in their order and side by side, until one gives a proof. See ports.Power.fence."""
        host = incarnation.host
        race = Race.over(self.levels(host))
        if not race.trials:
            raise FenceError([f"{host} has no fence device"])
        self._races.setdefault(host, []).append(race)
        try:
            won = await race.run(lambda devices: self._level(devices, off_seen))
        finally:
            self._races[host].remove(race)
        if won is None:
            raise FenceError(race.missing())
        names = ", ".join(device.name for device in won.devices)
        detail = f"level {won.number} ({names}) read off twice, {self._settings.status_spacing_s} s apart"
        return FenceProof(of=incarnation, method=ProofMethod.POWER_OFF, detail=detail)

    async def test(self, host: str, off_seen: OffSeen) -> list[LevelTested]:
        """See ports.FencePaths.test."""
        race = Race.over(self.levels(host))
        return [await trial.tested(lambda devices: self._level(devices, off_seen)) for trial in race.trials]

    def test_deadline_s(self, host: str) -> float:
        """The longest that `test` may take."""
        return self.deadline_s(host)

    def on_deadline_s(self, host: str) -> float:
        """The longest that `switch_on` may take."""
        longest_s = max((device.timeout_s for device in self._devices.get(host, [])), default=0.0)
        return ON_S + 3 * longest_s + 5.0

    async def switch_on(self, host: str) -> tuple[bool, str]:
        """See ports.FencePaths.switch_on. A BMC that has lost its power for a moment answers only after a minute."""
        waiting = sorted(self._devices.get(host, []), key=lambda device: -device.level)
        until = asyncio.get_running_loop().time() + ON_S
        while True:
            said = []
            for device in list(waiting):
                done, detail = await device.on()
                if done:
                    waiting.remove(device)
                else:
                    said.append(detail)
            if not waiting or asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(ON_AGAIN_S)
        state, detail = await self.status(host, max((d.timeout_s for d in self._devices[host]), default=1.0))
        if state is PowerState.ON and not waiting:
            return True, ""
        return state is PowerState.ON, "; ".join(said or [detail])

    async def _level(self, devices: Sequence[Device], off_seen: OffSeen) -> list[str]:
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
        witness = off_seen()
        try:
            for reading in (0, 1):
                if reading:
                    await asyncio.sleep(self._settings.status_spacing_s)
                    found = await asyncio.gather(*(device.status(device.timeout_s) for device in devices))
                wrong = [detail for state, detail in found if state is not PowerState.OFF]
                if wrong:
                    return said + wrong
            return list(await witness.said()) if witness is not None else []
        finally:
            if witness is not None:
                witness.close()
