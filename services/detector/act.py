"""The detector's hands: ask one channel, once."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from libs.core.decider import Outcome
from libs.core.ports import (
    Bus,
    ConflictError,
    Hypervisors,
    Power,
    Row,
    Store,
    UnavailableError,
    WatchedHypervisors,
)
from libs.events.signals import Question, Reply
from libs.model import Inventory
from services.detector.asks import (
    Answered,
    Ask,
    AskLibvirt,
    AskPeer,
    AskPower,
    Looked,
    LookOverLibvirt,
    Stored,
    StoreLook,
)
from services.detector.evidence import LIBVIRT, PEER, POWER

BOOT_S = 2.0


@dataclass(frozen=True, slots=True)
class Hands:
    power: Power
    hypervisors: Hypervisors
    watched: WatchedHypervisors
    """Other connections, that were open while the hosts' agents spoke: a question that is not answered in time
    gives its connection up, and with it the proof to which boot it leads."""
    bus: Bus
    inventory: Store
    timeout_s: float

    async def perform(self, request: Ask) -> Outcome:
        """Raises UnavailableError where a look brought nothing."""
        match request:
            case LookOverLibvirt(at=at, known_s=known_s):
                reports = await (await self.watched.still(at, known_s, BOOT_S)).reports()
                seen = {"at": at, "agent": request.agent, "rev": request.rev, "reports": tuple(reports)}
                return Looked.model_validate({"key": request.key, **seen})
            case StoreLook(inventory=inventory):
                await self._store(inventory)
                return Stored(key=request.key)
            case _:
                return await self._answer(request)

    async def _store(self, inventory: Inventory) -> None:
        """By compare-and-set: the agent, back by now, says a thing once and must not be overwritten."""
        row = await self.inventory.get(inventory.at.host)
        known = None if row is None else _inventory(row)
        if row is not None and (known is None or inventory.outdated(known)):
            return
        if known is not None and known.at == inventory.at and inventory.offers is None:
            inventory = inventory.model_copy(update={"offers": known.offers})  # told nowhere else
        payload = inventory.model_dump_json().encode()
        try:
            await self.inventory.put(inventory.at.host, payload, 0 if row is None else row.revision)
        except ConflictError:
            return

    async def _answer(self, request: AskPower | AskLibvirt | AskPeer) -> Answered:
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


def _inventory(row: Row) -> Inventory | None:
    """None where another version wrote it: whoever it is knows more than we."""
    try:
        return Inventory.model_validate_json(row.value)
    except ValidationError:
        return None
