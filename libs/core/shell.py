"""The one loop that runs every decider: hear, step, write down what is owed, perform, acknowledge.

The order is the contract. A step's records and debts are in the store before any effect begins; a fact is
acknowledged after that, and after the facts that it caused are published. After a crash the debts are
performed again, each under its key. Long acts run side by side and never hold up the loop; their outcome
comes back as an input. Timers fire only when the inbox is drained, so that what was heard counts first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from libs.core.bell import Bell
from libs.core.decider import (
    Act,
    BusChanged,
    Decider,
    Effect,
    Expired,
    Input,
    Note,
    Outcome,
    Paused,
    Publish,
    Request,
    Send,
    Step,
    TableRead,
)
from libs.core.ledger import DeposedError, Ledger
from libs.core.ports import Delivery, Subscription, UnavailableError
from libs.core.wiring import Wiring
from libs.events.base import Fact
from libs.events.signals import Canary, Heartbeat, InventorySeen, Signal

S = TypeVar("S")

PULSE_S = 0.1
PAUSE_NOTICED_S = 0.6
RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class _Item:
    event: Input
    at: float
    delivery: Delivery | None = None
    settles: tuple[str, str] | None = None
    """Record and key of the owed act whose outcome this is."""


class Shell(Generic[S]):
    """Runs one decider. `run` returns only by cancellation or by a programmer's error."""

    def __init__(self, decider: Decider[S], wiring: Wiring) -> None:
        self._decider, self._w = decider, wiring
        self._log = structlog.get_logger().bind(service=wiring.service)
        self._inbox: deque[_Item] = deque()
        self._parked: list[_Item] = []  # outcomes that came while our validity had run out
        self._bell = Bell()
        self._state = decider.initial(wiring.clock.monotonic())
        self._ledger = (
            Ledger(wiring.service, wiring.store, decider.record_type, wiring.requests, wiring.marks)
            if wiring.store
            else None
        )
        self._token: int | None = None
        self._late_for: float | None = None
        self._consumption: Subscription | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._chains: dict[str, asyncio.Task[None]] = {}
        self._settled: list[tuple[str, str]] = []
        self._slots = asyncio.Semaphore(wiring.parallel_acts)
        self._crash: asyncio.Future[None] | None = None
        self._pulsing: asyncio.TimerHandle | None = None

    @property
    def state(self) -> S:
        """What the decider holds at this moment; for those who look on."""
        return self._state

    # -- what comes in

    def hear(
        self,
        event: Input,
        delivery: Delivery | None = None,
        settles: tuple[str, str] | None = None,
        *,
        first: bool = False,
    ) -> None:
        item = _Item(event, self._w.clock.monotonic(), delivery, settles)
        if first:
            self._inbox.appendleft(item)
        else:
            self._inbox.append(item)
        self._bell.ring()

    def _signal(self, signal: Signal) -> None:
        if self._w.overhears is not None:
            self._w.overhears(signal)
        self.hear(signal)

    def _pulse(self, before: float) -> None:
        """Notice our own standing still: a pulse that comes late says for how long nobody here listened."""
        now = self._w.clock.monotonic()
        if now - before - PULSE_S > PAUSE_NOTICED_S:
            self.hear(Paused(now - before - PULSE_S), first=True)
        self._beat_on(now)

    def _beat_on(self, now: float) -> None:
        self._pulsing = asyncio.get_running_loop().call_later(PULSE_S, self._pulse, now)

    # -- the loop

    async def run(self) -> None:
        """Hear, step, owe, perform, acknowledge; for ever."""
        self._crash = asyncio.get_running_loop().create_future()
        forget = self._w.bus.on_change(lambda connected: self.hear(BusChanged(connected)))
        if self._w.lease is not None:
            self._w.lease.on_change(self._bell.ring)
        listening = await self._w.bus.listen(self._w.signals, self._signal) if self._w.signals else None
        if self._w.notices_pauses:
            self._beat_on(self._w.clock.monotonic())
        side = [
            self._spawn(f"table {table.name}", table.read_on(self.hear, self._log))
            for table in self._w.tables
        ]
        try:
            while True:
                if self._crash.done():
                    self._crash.result()
                token = self._rightful()
                if token is not None and (token != self._token or self._parked):
                    await self._take_up(token)
                item = self._inbox.popleft() if self._inbox else await self._next()
                if item is not None:
                    await self._take(item)
        finally:
            forget()
            if self._pulsing is not None:
                self._pulsing.cancel()
            for task in [*side, *self._tasks.values()]:
                task.cancel()
            if listening is not None:
                await listening.stop()

    def _rightful(self) -> int | None:
        """The token under which we may lead now."""
        lease = self._w.lease
        return 1 if lease is None else (lease.token if lease.held() else None)

    async def _take_up(self, token: int) -> None:
        """Take up leadership under a new token: read the records, resume, perform what is still owed. Under the
        same, take up what came while its validity had run out."""
        if token == self._token:
            self._inbox.extend(self._parked)
            self._parked.clear()
            return
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._chains.clear()
        self._settled.clear()
        self._parked.clear()
        now = self._w.clock.monotonic()
        if self._ledger is not None:
            try:
                await self._ledger.load()
            except UnavailableError as error:
                self._log.warning("records unreadable, trying again", reason=str(error))
                await asyncio.sleep(RETRY_S)
                return
            now = self._w.clock.monotonic()
            step = self._decider.resume(self._state, self._ledger.records, now)
        else:
            step = Step(self._state)
        self._token = token
        self._log.info("leading", token=token, owed=len(self._ledger.owed()) if self._ledger else 0)
        owed = self._ledger.owed() if self._ledger is not None else []
        self._perform_all(owed)
        await self._commit(step)
        if self._w.kinds and self._consumption is None:
            self._consumption = await self._w.bus.consume(
                self._w.service, self._w.kinds, lambda delivery: self.hear(delivery.fact, delivery)
            )

    def _leading(self) -> bool:
        return self._token is not None and self._token == self._rightful()

    async def _next(self) -> _Item | None:
        """Wait for an input; None where the deadline came, or where leadership or a crash must be looked at."""
        if self._settled and self._ledger is not None and self._leading():
            done, self._settled = self._settled, []
            await self._persist(lambda ledger: ledger.settle(done))
            return None
        token = self._rightful()
        if token is not None and token != self._token:
            return None  # leadership could not be taken up: once more, since no bell rings for that
        wake_at = None if token is None else self._decider.wake_at(self._state)
        wait_s = None if wake_at is None else max(0.0, wake_at - self._w.clock.monotonic())
        if not await self._bell.wait(wait_s) and wake_at is not None:
            # after standing still all timers are due at once: let the pulse say so before a deadline is judged
            await asyncio.sleep(0)
            if not self._inbox:
                late_s = self._w.clock.monotonic() - wake_at
                if self._w.notices_pauses and late_s > PAUSE_NOTICED_S and self._late_for != wake_at:
                    # after a pause this timer may fire before the pulse's: what it would judge by is void
                    self._late_for = wake_at
                    self.hear(Paused(late_s), first=True)
                else:
                    await self._wake(wake_at)
        return None

    async def _wake(self, wake_at: float) -> None:
        now = max(wake_at, self._w.clock.monotonic())  # a timer may fire a hair early
        await self._commit(self._decider.step(self._state, None, now))
        again = self._decider.wake_at(self._state)
        assert again is None or again > now, f"{self._w.service}: wake_at {again} is not ahead of {now}"

    async def _take(self, item: _Item) -> None:
        if not self._leading():
            if item.delivery is not None:
                await self._give_back(item.delivery)
            elif isinstance(item.event, Outcome):
                self._parked.append(item)
            else:
                # a follower only watches: what it would do about it is the leader's to do. Where that is to be
                # us again, under the same token, it must be made up for: so leadership is taken up anew
                self._token = None
                self._state = self._decider.step(self._state, item.event, item.at).state
            return
        if not isinstance(item.event, (Heartbeat, InventorySeen, Canary, TableRead)):
            self._log.debug("heard", what=_name(item.event))
        step = self._decider.step(self._state, item.event, item.at)
        publishing = await self._commit(step, item.settles)
        if item.delivery is None:
            return
        if publishing is None:
            await self._give_back(item.delivery)  # the step is void: whoever leads now has yet to hear it
        else:
            self._spawn("ack", self._acknowledge(item.delivery, publishing))

    async def _give_back(self, delivery: Delivery) -> None:
        try:
            await delivery.nak(1.0)
        except UnavailableError:
            return  # it comes again by itself when its time to acknowledge is over

    # -- what goes out

    async def _commit(
        self, step: Step[S], settles: tuple[str, str] | None = None
    ) -> list[asyncio.Task[None]] | None:
        """Write the step down, then begin its effects. Returns the publications that it began; None where the
        step is void, since another leads now."""
        self._state = step.state
        owed = [e for e in step.effects if not isinstance(e, Send | Note) and e.record is not None]
        if self._ledger is not None:
            records = self._decider.records(step.state)
            if owed or settles or records is not self._ledger.records:
                written = await self._persist(lambda ledger: ledger.commit(records, owed, settles))
                if not written:
                    return None
        return self._perform_all(step.effects)

    async def _persist(self, write: Callable[[Ledger], Awaitable[None]]) -> bool:
        """Write until it is known to be written. False where another leads now: the step is void."""
        assert self._ledger is not None
        while True:
            try:
                if self._leading():
                    await write(self._ledger)
                    return True
                if self._w.lease is not None and self._w.lease.token != self._token:
                    self._step_down("leadership was lost while writing")
                    return False
                await asyncio.sleep(RETRY_S)  # our validity ran out; it may come back under the same token
            except UnavailableError as error:
                self._log.warning("store does not answer, trying again", reason=str(error))
                await asyncio.sleep(RETRY_S)
            except DeposedError as error:
                self._step_down(str(error))
                return False

    def _step_down(self, reason: str) -> None:
        self._log.warning("stepping down", reason=reason)
        self._token = None

    def _perform_all(self, effects: Sequence[Effect]) -> list[asyncio.Task[None]]:
        publishing: list[asyncio.Task[None]] = []
        for effect in effects:
            if isinstance(effect, Send):
                self._spawn("send", self._w.bus.send(effect.topic, effect.signal))
            elif isinstance(effect, Note):
                self._log.warning(effect.text)
            elif effect.key not in self._tasks:
                if isinstance(effect, Publish):
                    # facts of one record leave in the order in which they were decided
                    before = self._chains.get(effect.record)
                    task = self._spawn(effect.key, self._publish(effect, before), keep=True)
                    self._chains[effect.record] = task
                    publishing.append(task)
                else:
                    self._spawn(effect.key, self._act(effect), keep=True)
        return publishing

    async def _publish(self, effect: Publish, before: asyncio.Task[None] | None) -> None:
        if before is not None and not before.done():
            await asyncio.wait([before])
        while True:
            try:
                await self._w.bus.publish(effect.fact)
                break
            except UnavailableError as error:
                self._log.warning("fact not stored yet", key=effect.key, reason=str(error))
        self._log.info("fact", key=effect.key, **_gist(effect.fact))
        if self._chains.get(effect.record) is asyncio.current_task():
            del self._chains[effect.record]
        self._done(effect.record, effect.key)

    async def _act(self, effect: Act) -> None:
        assert self._w.perform is not None, f"{self._w.service} has no hands"
        request: Request = effect.request
        async with self._slots:
            await self._until_leading()
            # what is not owed is routine: questions, readings
            tell = self._log.debug if effect.record is None else self._log.info
            tell("act", key=effect.key, kind=request.kind)
            try:
                async with asyncio.timeout(request.deadline_s):
                    outcome = await self._w.perform(request)
            except TimeoutError:
                outcome = Expired(
                    key=effect.key, request=request.kind, reason=f"no end in {request.deadline_s} s"
                )
            except UnavailableError as error:
                outcome = Expired(key=effect.key, request=request.kind, reason=str(error))
        # first forget that it runs: the decider's answer may be the same act once more
        self._tasks.pop(effect.key, None)
        tell("outcome", key=effect.key, what=_name(outcome), reason=getattr(outcome, "reason", ""))
        self.hear(outcome, settles=None if effect.record is None else (effect.record, effect.key))

    async def _until_leading(self) -> None:
        """Right before a side effect. Under another token this task is cancelled and the debt taken over."""
        while not self._leading():  # noqa: ASYNC110  validity runs out by time, which sets no event
            await asyncio.sleep(RETRY_S)

    def _done(self, record: str, key: str) -> None:
        self._tasks.pop(key, None)
        self._settled.append((record, key))
        self._bell.ring()

    async def _acknowledge(self, delivery: Delivery, publishing: Sequence[asyncio.Task[None]]) -> None:
        if publishing:
            await asyncio.wait(publishing)
        try:
            await delivery.ack()
        except UnavailableError as error:
            self._log.info("not acknowledged, it will come again", reason=str(error))

    def _spawn(self, name: str, work: Awaitable[None], *, keep: bool = False) -> asyncio.Task[None]:
        """A task whose unforeseen error is the service's crash: it is restarted, not carried on."""
        task = asyncio.ensure_future(work)
        if keep:
            self._tasks[name] = task
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._crash is not None and not self._crash.done():
            self._crash.set_exception(error)
            self._bell.ring()


def _name(event: Input) -> str:
    return event.kind if isinstance(event, Fact) else type(event).__name__


def _gist(fact: Fact) -> dict[str, Any]:
    """What a log line says of a fact: everything small in it."""
    body = fact.model_dump(mode="json", exclude={"kind", "vms", "report"}, exclude_defaults=True)
    return {"what": fact.kind, **body}
