"""What the fencer does with fence devices beside fencing: reads them for the drill, and tells how far an attempt is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime

from libs.core.decider import Outcome
from libs.core.ports import Bus, Clock, FencePaths, Reading
from libs.events.signals import Heartbeat, Signal
from libs.events.words import HostFenceTestOrdered
from libs.model import PowerState
from libs.poolview import PoolView
from services.fencer.state import (
    Explain,
    Explained,
    Looked,
    LookFirst,
    PathReading,
    PathsRead,
    ReadPaths,
    SwitchedOn,
    SwitchOn,
)

HEARD_S = 2.5
"""A host whose device reads off is listened to for so long: two heartbeats of the slowest profile."""
LATE_S = 300.0
"""An order to test that was given so long ago is about a host that may have changed."""
WELL = ("healthy", "agent_down")


@dataclass(frozen=True, slots=True)
class Paths:
    devices: FencePaths
    bus: Bus
    clock: Clock
    view: PoolView

    async def perform(self, request: ReadPaths | Explain | LookFirst | SwitchOn) -> Outcome:
        match request:
            case Explain():
                missing = self.devices.missing(request.host)
                return Explained(key=request.key, incident=request.incident, missing=missing)
            case LookFirst():
                refused = await self._refusal(request.order)
                return Looked(key=request.key, host=request.order.host, refused=refused)
            case SwitchOn():
                done, detail = await self.devices.switch_on(request.host)
                return SwitchedOn(key=request.key, host=request.host, done=done, detail=detail)
            case ReadPaths():
                return await self._read(request)

    async def _refusal(self, order: HostFenceTestOrdered) -> str:
        """Why this host may not be switched off for a test; "" where it may. Looked at here once more, as an order may
        come late. Raises UnavailableError."""
        age_s = (self.clock.wall() - datetime.fromisoformat(order.said_at)).total_seconds()
        if not -LATE_S < age_s < LATE_S:
            return f"the order is {age_s:.0f} s old"
        row = next((row for row in await self.view.hosts() if row["host"] == order.host), None)
        if row is None or row["incarnation"] != order.at.boot:
            return f"{order.host} is in another boot by now"
        if not row["maintenance"]:
            return f"{order.host} is not in maintenance"
        if row["state"] not in WELL:
            return f"{order.host} is held to be {row['state']}"
        running = await self.view.running(order.at)
        if running and not order.forced:
            return f"VMs run on {order.host}: {', '.join(sorted(running))}"
        return ""

    async def _read(self, request: ReadPaths) -> PathsRead:
        """A device that reads off while its host is heard is another host's, or lies: of the two ways in which a path
        can be broken the dangerous one, as it would pass for a proof."""
        found = await self.devices.read(request.host)
        off = any(one.state is PowerState.OFF for one in found)
        heard = off and await self._heard(request.host)
        return PathsRead(
            key=request.key,
            host=request.host,
            at=self.clock.wall().isoformat(timespec="seconds"),
            readings=tuple(_reading(one, heard=heard) for one in found),
        )

    async def _heard(self, host: str) -> bool:
        spoke = asyncio.Event()

        def hear(signal: Signal) -> None:
            if isinstance(signal, Heartbeat):
                spoke.set()

        listening = await self.bus.listen([f"heartbeat.{host}"], hear)
        try:
            async with asyncio.timeout(HEARD_S):
                await spoke.wait()
        except TimeoutError:
            return False
        finally:
            await listening.stop()
        return True


def _reading(one: Reading, *, heard: bool) -> PathReading:
    lies = heard and one.state is PowerState.OFF
    detail = (
        f"{one.detail} while its host sends heartbeats: it is not this host's, or lies"
        if lies
        else one.detail
    )
    works = one.state is not PowerState.UNKNOWN and not lies
    return PathReading(name=one.name, level=one.level, works=works, detail=detail)
