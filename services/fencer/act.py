"""The fencer's hands: fence through the devices, and believe the proof only if the host stays silent.

A device that lies says off whatever is. Two witnesses can tell: the host's heartbeat, and its libvirt.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from libs.core.ports import Bus, FenceError, Hypervisors, Power
from libs.events.signals import Heartbeat, Signal
from libs.model import Answer
from services.fencer.decide import Fence, Fenced


@dataclass(frozen=True, slots=True)
class Hands:
    power: Power
    bus: Bus
    hypervisors: Hypervisors
    witness_s: float
    """How long the host's libvirt has to answer once its power reads off: no longer than the readings take."""

    async def perform(self, request: Fence) -> Fenced:
        """Fence; a heartbeat of the same incarnation after the proof began voids the proof, and so does an
        answer of the host's libvirt to a question that was asked since."""
        heard: list[Heartbeat] = []
        asked: list[asyncio.Task[tuple[Answer, str]]] = []

        def off_seen() -> None:
            heard.clear()
            while asked:
                asked.pop().cancel()
            asked.append(asyncio.ensure_future(self.hypervisors.probe(request.at.host, self.witness_s)))

        def on(signal: Signal) -> None:
            if isinstance(signal, Heartbeat) and signal.at == request.at:
                heard.append(signal)

        listening = await self.bus.listen([f"heartbeat.{request.at.host}"], on)
        try:
            proof = await self.power.fence(request.at, off_seen)
            answer, said = await asked[0] if asked else (Answer.UNKNOWN, "")
        except FenceError as error:
            return Fenced(key=request.key, incident=request.incident, missing=error.missing)
        finally:
            for task in asked:
                task.cancel()
            await listening.stop()
        if heard:
            missing: tuple[str, ...] = (f"{request.at} sent heartbeats after its power read off",)
        elif answer is Answer.UP:
            missing = (f"{request.at.host}: {said} after its power read off",)
        else:
            return Fenced(key=request.key, incident=request.incident, proof=proof)
        return Fenced(key=request.key, incident=request.incident, missing=missing)
