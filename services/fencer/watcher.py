"""The fencer's hands for hosts with a watchdog: read what they promised, ask their peers, claim a promise."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from libs.core.decider import Outcome
from libs.core.ports import Bus, ConflictError, Row, Store, UnavailableError
from libs.events.signals import Question, Reply
from libs.promises import Promise
from services.fencer.watches import AskUnseen, Claimed, ClaimPromise, PromiseSeen, ReadPromise, Unseen


@dataclass(frozen=True, slots=True)
class Watcher:
    bus: Bus
    promises: Store

    async def perform(self, request: ReadPromise | AskUnseen | ClaimPromise) -> Outcome:
        """Raises UnavailableError where the bus, or the peer, did not answer."""
        match request:
            case ReadPromise(host=host, incident=incident):
                row = await self.promises.get(host)
                if row is None:
                    return PromiseSeen(key=request.key, incident=incident)
                return PromiseSeen(
                    key=request.key, incident=incident, promise=_read(row), revision=row.revision
                )
            case AskUnseen():
                return await self._ask(request)
            case ClaimPromise():
                return Claimed(key=request.key, incident=request.incident, ours=await self._claim(request))

    async def _ask(self, request: AskUnseen) -> Unseen:
        question = Question(about=request.host, slots_only=request.quick)
        reply = await self.bus.ask(f"ask.{request.peer}", question, request.within_s)
        if not isinstance(reply, Reply) or reply.about != request.host or reply.peer.host != request.peer:
            raise UnavailableError(f"{request.peer}: an answer to another question")
        return Unseen(
            key=request.key,
            incident=request.incident,
            peer=request.peer,
            asked_at=request.asked_at,
            quick=request.quick,
            answer=reply.answer,
            unheard_s=reply.unheard_s,
            slots=reply.slots,
        )

    async def _claim(self, request: ClaimPromise) -> bool:
        """Whether the promise bears our incident, and is otherwise as it was read."""
        host = request.promise.at.host
        claimed = request.promise.model_copy(update={"presumed": request.incident})
        try:
            await self.promises.put(host, claimed.model_dump_json().encode(), request.revision)
        except ConflictError:
            row = await self.promises.get(host)
            return row is not None and _read(row) == claimed  # ours, whose answer was lost
        return True


def _read(row: Row) -> Promise:
    """Raises UnavailableError: what cannot be read is no promise, nor the absence of one."""
    try:
        found = Promise.model_validate_json(row.value)
    except ValidationError as error:
        raise UnavailableError(f"the promise of {row.key} cannot be read: {str(error)[:200]}") from error
    if found.at.host != row.key:
        raise UnavailableError(f"the promise of {row.key} is one of {found.at.host}")
    return found
