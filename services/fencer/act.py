"""The fencer's hands: fence through the devices, and believe the proof only if the host stays silent; order an
isolated host through its storage slots. Who can tell of a device that lies: witness.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from libs.core.decider import Outcome
from libs.core.ports import Bus, Clock, FenceError, Hypervisors, Power, UnavailableError
from libs.events.signals import Question, Reply
from libs.model import Answer, Incarnation
from services.fencer.isolation import ORDER_S
from services.fencer.paths import Paths
from services.fencer.reserve import Dismiss, LayDown, LookIdle, Rouse
from services.fencer.reservehands import ReserveHands
from services.fencer.state import Asked, Fence, Fenced, Ordered, OrderStop, ProvedLevels, ProveLevels
from services.fencer.watcher import Watcher
from services.fencer.watches import AskUnseen, ClaimPromise, ReadPromise
from services.fencer.witness import Look, Watch

SLACK_S = 0.6
"""For a question and its answer to cross the bus, beside the looks that it asks for."""
LOOK_S = 0.4
PEERS_ASKED, ANSWERS_WANTED = 4, 2


@dataclass(frozen=True, slots=True)
class Hands:
    power: Power
    bus: Bus
    hypervisors: Hypervisors
    clock: Clock
    witness_s: float
    """How long the host's libvirt has to answer once its power reads off: no longer than the readings take."""
    peers: Sequence[str]
    """Hosts whose agents can be asked."""
    ask_timeout_s: float
    """For each look that a peer makes: one at slots, and one before it where an order is to be written."""
    slot_spacing_s: float | None
    """How far apart two readings of a slot show whether its host writes; None where there are no slots."""
    watcher: Watcher | None = None
    """Of hosts with a watchdog, where there are any."""
    paths: Paths | None = None
    reserve: ReserveHands | None = None
    """Of hosts on standby, where there are any."""

    async def perform(self, request: Asked) -> Outcome:
        match request:
            case OrderStop():
                return await self._order(request)
            case Fence():
                return await self._fence(request)
            case ReadPromise() | AskUnseen() | ClaimPromise():
                assert self.watcher is not None
                return await self.watcher.perform(request)
            case ProveLevels():
                return await self._test(request)
            case Rouse() | LookIdle() | LayDown() | Dismiss():
                assert self.reserve is not None
                return await self.reserve.perform(request)
            case _:
                assert self.paths is not None, "nobody drills without the ways to the devices"
                return await self.paths.perform(request)

    async def _fence(self, request: Fence) -> Fenced:
        """Fence; a heartbeat of the same incarnation after a level first read off voids that level's proof, and so
        does an answer of the host's libvirt to a question that was asked since, and a write to one of its slots."""
        watch = self._watch(request.at)
        listening = await self.bus.listen([f"heartbeat.{request.at.host}"], watch.hear)
        try:
            proof = await self.power.fence(request.at, watch.opened)
            said = await watch.said()
        except FenceError as error:
            return Fenced(key=request.key, incident=request.incident, missing=error.missing)
        finally:
            watch.close()
            await listening.stop()
        if said:
            return Fenced(key=request.key, incident=request.incident, missing=tuple(said))
        return Fenced(key=request.key, incident=request.incident, proof=proof)

    def _watch(self, at: Incarnation) -> Watch:
        looks: list[Look] = [lambda: self._libvirt(at.host)]
        spacing_s = self.slot_spacing_s
        if spacing_s is not None:
            looks.append(lambda: self._slots_move(at, spacing_s))
        return Watch(at, looks)

    async def _test(self, request: ProveLevels) -> ProvedLevels:
        """Each level must prove as it would have to in earnest: silence of the host included."""
        assert self.paths is not None
        host, watch = request.at.host, self._watch(request.at)
        listening = await self.bus.listen([f"heartbeat.{host}"], watch.hear)
        try:
            levels = await self.paths.devices.test(host, watch.opened)
        finally:
            watch.close()
            await listening.stop()
        return ProvedLevels(key=request.key, host=host, levels=tuple(levels))

    async def _libvirt(self, host: str) -> str:
        answer, said = await self.hypervisors.probe(host, self.witness_s)
        return f"{host}: {said} after its power read off" if answer is Answer.UP else ""

    async def _slots_move(self, at: Incarnation, spacing_s: float) -> str:
        """Why this boot must be held to write; "" where its slots stand still, or nobody could read them."""
        before = await self._slots(at)
        if not before:
            return ""
        await asyncio.sleep(spacing_s)
        after = await self._slots(at)
        moved = [name for name, seq in after.items() if seq > before.get(name, seq)]
        return (
            f"{at} wrote to its slot on {', '.join(sorted(moved))} after its power read off" if moved else ""
        )

    async def _slots(self, at: Incarnation) -> dict[str, int]:
        """By datastore the latest write of this boot, by the first peers that answer."""
        found: dict[str, int] = {}
        for reply in await self._ask(at.host, Question(about=at.host, slots_only=True)):
            for seen in reply.slots:
                if seen.beat is not None and seen.beat.boot == at.boot:
                    found[seen.datastore] = max(seen.beat.seq, found.get(seen.datastore, 0))
        return found

    async def _ask(self, host: str, question: Question, turn: int = 0) -> list[Reply]:
        """Ask a few peers side by side, those after the host in the list and others by turns; who does not answer
        has said nothing. The first answers are enough."""
        others = [peer for peer in self.peers if peer != host]
        first = self.peers.index(host) if host in self.peers else 0
        few = [others[(first + turn + i) % len(others)] for i in range(min(PEERS_ASKED, len(others)))]
        looks = 1 if question.order is None else 2
        within_s = looks * self.ask_timeout_s + SLACK_S
        asking = [asyncio.ensure_future(self.bus.ask(f"ask.{peer}", question, within_s)) for peer in few]
        replies: list[Reply] = []
        try:
            for answer in asyncio.as_completed(asking):
                try:
                    reply = await answer
                except UnavailableError:
                    continue
                if isinstance(reply, Reply) and reply.about == host:
                    replies.append(reply)
                if len(replies) >= ANSWERS_WANTED:
                    break
        finally:
            for task in asking:
                task.cancel()
        return replies

    async def _order(self, request: OrderStop) -> Ordered:
        """Have it written wherever a peer reaches a datastore, and look until the host says that it has obeyed."""
        host, order = request.at.host, request.order
        until = self.clock.monotonic() + ORDER_S
        written: set[str] = set()
        question, turn = Question(about=host, order=order, slots_only=True), 0
        while self.clock.monotonic() < until:
            # written again and again: a slot on a datastore that comes back has not had it
            for reply in await self._ask(host, question, turn):
                written |= set(reply.ordered)
                for seen in reply.slots:
                    beat = seen.beat
                    if beat is None or beat.boot != request.at.boot or beat.obeyed < order.number:
                        continue
                    if set(order.vms) <= set(beat.stopped):
                        return Ordered(key=request.key, incident=request.incident, stopped=True)
            turn += 1
            await asyncio.sleep(LOOK_S)
        where = ", ".join(sorted(written)) or "no datastore that a peer reaches"
        missing = f"{host} did not say in its slot that it stopped {len(order.vms)} VMs (ordered on {where})"
        return Ordered(
            key=request.key,
            incident=request.incident,
            stopped=False,
            written=bool(written) or request.again,
            missing=(missing,),
        )
