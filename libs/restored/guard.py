"""Whether what lies in the store is the latest that this pool has known. Who leads asks before it acts on anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from libs.core.bell import Bell
from libs.core.ports import Bus, Clock, Store, UnavailableError
from libs.events.signals import MarkAsked, MarkTold, Signal
from libs.model import Mark
from libs.restored import mark as marks
from libs.restored.mark import MarkRecord

NOBODY_S = 0.5
"""So long for an agent to answer where the store was written a moment ago."""
STALE_S, CONNECT_S = 30.0, 10.0
"""Where its last mark is older than the first, nobody wrote to it for long: agents that are not connected yet are waited
for so long as the second. By the wall clock; nothing but this wait goes by it."""
AGAIN_S, UNREAD_S, READ_S = 1.0, 0.2, 0.4
"""How long until it is looked again while it is read-only; while it cannot be read, which takes a millisecond where it can."""
READS = 4
"""So many may be on their way at once: what is lost on its way is asked for again soon, and what waits behind ten thousand
heartbeats still counts when it comes."""
log = structlog.get_logger()


class Guard:
    """`ok` is False until it is known that no agent has heard of a later mark than lies in the store, and again after
    every new connection: another server may stand there. Never True while the plane restores its state."""

    def __init__(self, bus: Bus, store: Store, clock: Clock) -> None:
        self._bus, self._store, self._clock = bus, store, clock
        self._ok = False
        self.heard = Mark()
        """The highest mark that any agent told."""
        self.record = MarkRecord()
        """As read last."""
        self.revision = 0
        self._bell, self._answered = Bell(), asyncio.Event()
        self._asking = True
        self._changed: list[Callable[[], None]] = []

    @property
    def ok(self) -> bool:
        """The store may be acted on."""
        return self._ok

    @property
    def generation(self) -> int:
        return self.record.mark.generation

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever `ok` has."""
        self._changed.append(changed)

    def look(self) -> None:
        """Ask and read anew, now."""
        self._bell.ring()

    async def run(self) -> None:
        """For ever."""
        forget = self._bus.on_change(self._connection)
        listening = await self._bus.listen(("mark_told", "mark"), self._heard)
        try:
            while True:
                await self._look()
                # an operator's word, or a server that answers again, rings no bell
                pause_s = None if self.ok else AGAIN_S
                await self._bell.wait(UNREAD_S if self._asking else pause_s)
        finally:
            forget()
            await listening.stop()

    def _connection(self, connected: bool) -> None:
        """Another server may stand there, or other data under the same."""
        if connected:
            self._asking = True
            self._turn(False)
            self._bell.ring()

    def _heard(self, signal: Signal) -> None:
        if not isinstance(signal, MarkTold):
            return
        if self.heard.behind(signal.mark):
            self.heard = signal.mark
        if not signal.mark.behind(self.record.mark):
            self._answered.set()  # who knows less than the store itself does says nothing of it
        if self.ok and self.record.mark.behind(self.heard):
            self._bell.ring()  # mostly since the mark has grown: what lies in the store says

    async def _look(self) -> None:
        try:
            if not self.ok or self._asking:
                await self._ask()
            # read after they were asked: what they had heard by then lies there, if it is the same store. What is heard
            # while it is read may be later than that
            heard = self.heard
            self.record, self.revision = await self._read()
        except UnavailableError as error:
            # the same server that does not answer for a while holds what it held
            log.info("the mark cannot be read", reason=str(error))
            self._asking = True
            return
        self._asking = False
        behind = self.record.mark.behind(heard)
        self._turn(self.record.restoring is None and not behind)

    async def _read(self) -> tuple[MarkRecord, int]:
        """The first of its reads to be answered. Raises UnavailableError."""
        asked = list[asyncio.Task[tuple[MarkRecord, int]]]()
        try:
            while len(asked) < READS:
                asked.append(asyncio.create_task(marks.read(self._store)))
                await asyncio.wait(asked, timeout=READ_S, return_when=asyncio.FIRST_COMPLETED)
                for read in asked:
                    if read.done():
                        return read.result()
            raise UnavailableError(f"no answer in {READS * READ_S:.1f} s")
        finally:
            for read in asked:
                read.add_done_callback(_forget)
                read.cancel()

    async def _ask(self) -> None:
        """Returns when one has answered that knows what lies there, or a later one; or nobody has for long enough."""
        self.record, self.revision = await self._read()
        if not self.revision:
            return  # nothing was ever led by what lies there, and nothing is owed
        self._answered.clear()
        until = self._clock.monotonic() + (CONNECT_S if self._stale(self.record) else NOBODY_S)
        while not self._answered.is_set() and (left_s := until - self._clock.monotonic()) > 0:
            await self._bus.send("mark_asked", MarkAsked())
            try:
                async with asyncio.timeout(min(left_s, AGAIN_S)):
                    await self._answered.wait()
            except TimeoutError:
                continue

    def _stale(self, record: MarkRecord) -> bool:
        if not record.at:
            return False
        return self._clock.wall() - datetime.fromisoformat(record.at) > timedelta(seconds=STALE_S)

    def _turn(self, ok: bool) -> None:
        if ok == self._ok:
            return
        self._ok = ok
        if not ok:
            log.info("read-only until it is known that the stored state is the latest")
        for changed in list(self._changed):
            changed()


def _forget(read: asyncio.Task[tuple[MarkRecord, int]]) -> None:
    """Whatever became of one that nobody waits for any more."""
    if not read.cancelled():
        read.exception()
