"""The fencer's hands: fence through the devices, and believe the proof only if the host stays silent."""

from __future__ import annotations

from dataclasses import dataclass

from libs.core.ports import Bus, FenceError, Power
from libs.events.signals import Heartbeat, Signal
from services.fencer.decide import Fence, Fenced


@dataclass(frozen=True, slots=True)
class Hands:
    power: Power
    bus: Bus

    async def perform(self, request: Fence) -> Fenced:
        """Fence; a heartbeat of the same incarnation after the proof began voids the proof."""
        heard: list[Heartbeat] = []

        def on(signal: Signal) -> None:
            if isinstance(signal, Heartbeat) and signal.at == request.at:
                heard.append(signal)

        listening = await self.bus.listen([f"heartbeat.{request.at.host}"], on)
        try:
            proof = await self.power.fence(request.at, heard.clear)
        except FenceError as error:
            return Fenced(key=request.key, incident=request.incident, missing=error.missing)
        finally:
            await listening.stop()
        if heard:
            missing = (f"{request.at} sent heartbeat {heard[-1].seq} after its power read off",)
            return Fenced(key=request.key, incident=request.incident, missing=missing)
        return Fenced(key=request.key, incident=request.incident, proof=proof)
