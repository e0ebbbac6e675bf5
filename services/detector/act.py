"""The detector's hands: ask one channel, once."""

from __future__ import annotations

from dataclasses import dataclass

from libs.core.ports import Bus, Hypervisors, Power, UnavailableError
from libs.events.signals import Question, Reply
from services.detector.asks import Answered, AskLibvirt, AskPeer, AskPower
from services.detector.evidence import LIBVIRT, PEER, POWER


@dataclass(frozen=True, slots=True)
class Hands:
    power: Power
    hypervisors: Hypervisors
    bus: Bus
    timeout_s: float

    async def perform(self, request: AskPower | AskLibvirt | AskPeer) -> Answered:
        """An answer that does not come is `unknown`: it is no vote and no evidence."""
        base = {"key": request.key, "host": request.host, "number": request.number}
        match request:
            case AskPower():
                power, detail = await self.power.status(request.host, 3 * self.timeout_s)
                return Answered.model_validate({**base, "channel": POWER, "power": power, "detail": detail})
            case AskLibvirt():
                answer, detail = await self.hypervisors.probe(request.host, self.timeout_s)
                channel = LIBVIRT
            case AskPeer():
                return await self._ask(request, base)
        return Answered.model_validate({**base, "channel": channel, "answer": answer, "detail": detail})

    async def _ask(self, request: AskPeer, base: dict[str, object]) -> Answered:
        base = {**base, "channel": PEER + request.peer}
        try:
            reply = await self.bus.ask(f"ask.{request.peer}", Question(about=request.host), self.timeout_s)
        except UnavailableError as error:
            return Answered.model_validate({**base, "detail": str(error)})
        if not isinstance(reply, Reply) or reply.about != request.host or reply.peer.host != request.peer:
            return Answered.model_validate({**base, "detail": "an answer to another question"})
        told = {"answer": reply.answer, "detail": reply.detail, "slots": reply.slots}
        return Answered.model_validate({**base, **told})
