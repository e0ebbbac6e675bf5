"""The one loop that runs every decider: hear, step, write down what is owed, perform, acknowledge.

The order is the contract. A step's records and debts are in the store before any effect begins; a fact is
acknowledged after that, and after the facts that it caused are published. After a crash the debts are
performed again, each under its key. Long acts run side by side and never hold up the loop; their outcome
comes back as an input. Timers fire only when the inbox is drained, so that what was heard counts first; where more is
heard than can be taken, as of the moment at which a deadline was late by LATE_MOST_S. And what is heard has its turn between
two timers, for as long as the first took: neither can starve the other, nor both of them the connection to the bus.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

import structlog

from libs.core.bell import Bell
from libs.core.consuming import Consuming
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
from libs.core.gist import gist, name
from libs.core.inbox import MANY, Inbox, Item
from libs.core.ledger import DeposedError, Ledger
from libs.core.ports import Delivery, UnavailableError
from libs.core.wiring import Wiring
from libs.events.signals import Canary, Heartbeat, InventorySeen, Signal

S = TypeVar("S")

PULSE_S = 0.1
PAUSE_NOTICED_S = 0.6
RETRY_S = 0.2
PARKED_MOST = 256
VOICES = 64
"""Facts on their way to the bus: of ten thousand at one moment none would be stored in its time."""


class Shell(Generic[S]):
    """Runs one decider. `run` returns only by cancellation or by a programmer's error."""

    def __init__(self, decider: Decider[S], wiring: Wiring) -> None:
        self._decider, self._w = decider, wiring
        self._log = structlog.get_logger().bind(service=wiring.service)
        self._bell = Bell()
        self._inbox = Inbox(wiring.clock, self._bell)
        self._parked: list[Item] = []  # outcomes and facts that came while our validity had run out
        self._state = decider.initial(wiring.clock.monotonic())
        self._ledger = (
            Ledger(wiring.service, wiring.store, decider.record_type, wiring.requests, wiring.marks)
            if wiring.store
            else None
        )
        self._token: int | None = None
        self._generation = 0
        self._late_for: float | None = None
        self._consuming = Consuming(wiring, lambda delivery: self.hear(delivery.fact, delivery))
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._chains: dict[str, asyncio.Task[None]] = {}
        self._settled: list[tuple[str, str]] = []
        self._slots = asyncio.Semaphore(wiring.parallel_acts)
        self._voices = asyncio.Semaphore(VOICES)
        self._crash: asyncio.Future[None] | None = None
        self._pulsing: asyncio.TimerHandle | None = None
        if wiring.meter is not None:
            wiring.meter.gauges(self._gauges)

    @property
    def state(self) -> S:
        """What the decider holds at this moment; for those who look on."""
        return self._state

    def _gauges(self) -> Mapping[tuple[str, ...], float]:
        """A follower's state is no word on the pool."""
        read = self._w.gauges
        return {} if read is None or not self._leading() else read(self._state)

    # -- what comes in

    def hear(
        self,
        event: Input,
        delivery: Delivery | None = None,
        settles: tuple[str, str] | None = None,
        *,
        first: bool = False,
    ) -> None:
        self._inbox.put(Item(event, self._w.clock.monotonic(), delivery, settles), first=first)

    def _signal(self, signal: Signal) -> None:
        """Called by the bus, whose client would log an error of ours and carry on: it is the service's crash, too."""
        try:
            if self._w.overhears is not None:
                self._w.overhears(signal)
            self.hear(signal)
        except Exception as error:
            self._crashed(error)
            raise

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
        if self._w.guard is not None:
            self._w.guard.on_change(self._guarded)
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
                elif self._consuming.in_the_way:
                    self._token = None  # should it be ours again, all is taken up anew, this included
                    self._parked.clear()  # whoever leads is given it
                    await self._consuming.end()
                if not self._inbox.ready:
                    await self._next()
                    continue
                if not await self._take_together():
                    await self._take(self._inbox.take())
                if await self._inbox.breathe():
                    await self._after_breath()
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
        lease, guard = self._w.lease, self._w.guard
        if guard is not None and not guard.ok:
            return None
        return 1 if lease is None else (lease.token if lease.held() else None)

    async def _take_up(self, token: int) -> None:
        """Take up leadership under a new token: read the records, resume, perform what is still owed. Under the
        same, take up what came while its validity had run out."""
        if token == self._token:
            self._inbox.put_back(self._parked)
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
        await self._consuming.begin()

    def _guarded(self) -> None:
        """What we hold is of another generation of the state: it is read anew before anything is done."""
        guard = self._w.guard
        if guard is not None and guard.ok and guard.generation != self._generation:
            self._generation, self._token = guard.generation, None
        self._bell.ring()

    def _leading(self) -> bool:
        return self._token is not None and self._token == self._rightful()

    def _may_be_back(self) -> bool:
        """Validity has run out, as in every election of the bus, and nobody else is known to lead: what is heard then is
        mostly ours a moment later. Bounded, since what is parked comes again and again."""
        lease = self._w.lease
        return (
            lease is not None and lease.token == self._token is not None and len(self._parked) < PARKED_MOST
        )

    async def _next(self) -> None:
        """Wait until there is an input, or leadership or a crash to look at; take up a deadline that comes before."""
        cut = self._inbox.lift()
        if await self._settle():
            return
        token = self._rightful()
        if token is not None and token != self._token:
            return  # leadership could not be taken up: once more, since no bell rings for that
        wake_at = None if token is None else self._decider.wake_at(self._state)
        if wake_at is None:
            await self._bell.wait(0.0 if len(self._inbox) else None)
            return
        due_at = self._inbox.due_at(wake_at)
        if cut is None and await self._news_before(due_at):
            self._inbox.cut_off(due_at)
            return
        late_s = self._w.clock.monotonic() - due_at
        if self._w.notices_pauses and late_s > PAUSE_NOTICED_S and self._late_for != wake_at:
            # after a pause this timer may fire before the pulse's: what it would judge by is void
            self._late_for = wake_at
            self.hear(Paused(late_s), first=True)
        else:
            await self._wake(wake_at, cut)

    async def _settle(self) -> bool:
        """Strike out what was performed. False where there is nothing."""
        if not self._settled or self._ledger is None or not self._leading():
            return False
        done, self._settled = self._settled, []
        await self._persist(lambda ledger: ledger.settle(done))
        return True

    async def _after_breath(self) -> None:
        """In the middle of a long inbox: what else would wait for its end."""
        if len(self._settled) > MANY:
            await self._settle()  # else all of it would be performed again by who leads after a break
        wake_at = self._decider.wake_at(self._state) if self._leading() else None
        if wake_at is not None:
            self._inbox.cut_off(self._inbox.due_at(wake_at))

    async def _news_before(self, due_at: float) -> bool:
        """True where something is to be looked at before this deadline."""
        if await self._bell.wait(max(0.0, due_at - self._w.clock.monotonic())):
            return True
        # after standing still all timers are due at once: let the pulse say so before a deadline is judged
        await asyncio.sleep(0)
        return len(self._inbox) > 0

    async def _wake(self, wake_at: float, cut: float | None) -> None:
        """`cut`: not all that was heard since has been taken, so it is judged as of then."""
        began = self._w.clock.monotonic()
        now = max(wake_at, began if cut is None else cut)  # a timer may fire a hair early
        step = self._step(None, now)
        self._inbox.woken(began)
        await self._commit(step)
        again = self._decider.wake_at(self._state)
        assert again is None or again > now, f"{self._w.service}: wake_at {again} is not ahead of {now}"

    def _step(self, event: Input | None, now: float) -> Step[S]:
        meter = self._w.meter
        if meter is None:
            return self._decider.step(self._state, event, now)
        began = self._w.clock.monotonic()
        step = self._decider.step(self._state, event, now)
        if step.effects:
            meter.stepped(step.effects, self._w.clock.monotonic() - began)
        return step

    async def _take(self, item: Item) -> None:
        if self._w.meter is not None:
            self._w.meter.heard(item.event, item.at)
        if not self._leading():
            if item.delivery is not None and not self._may_be_back():
                await self._consuming.give_back(item.delivery)
            elif item.delivery is not None or isinstance(item.event, Outcome):
                self._parked.append(item)
            else:
                # a follower only watches: what it would do about it is the leader's to do. Where that is to be
                # us again, under the same token, it must be made up for: so leadership is taken up anew
                self._token = None
                self._state = self._decider.step(self._state, item.event, item.at).state
            return
        if not isinstance(item.event, (Heartbeat, InventorySeen, Canary, TableRead)):
            self._log.debug("heard", what=name(item.event))
        step = self._step(item.event, item.at)
        if not step.effects and item.settles is None and item.delivery is None and self._stored(step):
            self._state = step.state  # nearly always
            return
        publishing = await self._commit(step, item.settles)
        if item.delivery is None:
            return
        if publishing is None:
            # the step is void: whoever leads now has yet to hear it
            await self._consuming.give_back(item.delivery)
        else:
            self._spawn("ack", self._acknowledge(item.delivery, publishing))

    async def _take_together(self) -> bool:
        """Take the signals that come first in the inbox, and write what they changed at once. False where there are none."""
        effects, taken = list[Effect](), 0
        for item in self._inbox.together() if self._leading() else ():
            if self._w.meter is not None:
                self._w.meter.heard(item.event, item.at)
            step = self._step(item.event, item.at)
            self._state, taken = step.state, taken + 1
            effects += step.effects
        if taken:
            await self._commit(Step(self._state, tuple(effects)))
        return taken > 0

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
            if owed or settles or not self._stored(step):
                written = await self._persist(lambda ledger: ledger.commit(records, owed, settles))
                if not written:
                    return None
        return self._perform_all(step.effects)

    def _stored(self, step: Step[S]) -> bool:
        """Its records are those that were written last."""
        return self._ledger is None or self._decider.records(step.state) is self._ledger.records

    async def _persist(self, write: Callable[[Ledger], Awaitable[None]]) -> bool:
        """Write until it is known to be written. False where another leads now: the step is void."""
        assert self._ledger is not None
        while True:
            try:
                if self._leading():
                    await write(self._ledger)
                    return True
                lease = self._w.lease
                # without a token all is to be read anew, whoever leads: the state was restored meanwhile
                if self._token is None or (lease is not None and lease.token != self._token):
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
        async with self._voices:
            while True:
                try:
                    await self._w.bus.publish(effect.fact)
                    break
                except UnavailableError as error:
                    self._log.warning("fact not stored yet", key=effect.key, reason=str(error))
        self._log.info("fact", key=effect.key, **gist(effect.fact))
        if self._w.meter is not None:
            self._w.meter.told(effect.fact)
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
            began = self._w.clock.monotonic()
            try:
                async with asyncio.timeout(request.deadline_s):
                    outcome = await self._w.perform(request)
            except TimeoutError:
                outcome = Expired(
                    key=effect.key, request=request.kind, reason=f"no end in {request.deadline_s} s"
                )
            except UnavailableError as error:
                outcome = Expired(key=effect.key, request=request.kind, reason=str(error))
        if self._w.meter is not None:
            self._w.meter.acted(request, outcome, self._w.clock.monotonic() - began)
        # first forget that it runs: the decider's answer may be the same act once more
        self._tasks.pop(effect.key, None)
        tell("outcome", key=effect.key, what=name(outcome), reason=getattr(outcome, "reason", ""))
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
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crashed(error)

    def _crashed(self, error: BaseException) -> None:
        if self._crash is not None and not self._crash.done():
            self._crash.set_exception(error)
            self._bell.ring()
