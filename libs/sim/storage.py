"""The datastore that all hosts share, as each host reaches it: it may stall on one and be well on another."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from libs.core.ports import UnavailableError
from libs.promises import SlotBeat, SlotOrder
from libs.sim.loop import Process, SimLoop
from libs.storage.slots import THREADS

T = TypeVar("T")
SHARED = "shared"
"""The datastore of a pool of which nothing is said."""


@dataclass(slots=True)
class Stall:
    """From when to when the datastore answered nothing on one host."""

    host: str
    began: float
    ended: float | None = None
    killable: bool = False
    """What hangs in it can be killed, as on NFS; else it dies when the datastore is back (D state)."""


class Datastore:
    """What needs it on a host where it stalls hangs there until it is back, and is neither lost nor failed."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.beats: dict[str, SlotBeat] = {}
        """The hosts' slots, and what was ordered to each."""
        self.orders: dict[str, SlotOrder] = {}
        self.stalls: list[Stall] = []
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    def stalled(self, host: str) -> bool:
        return any(one.host == host and one.ended is None for one in self.stalls)

    def stall(self, host: str, *, killable: bool = False) -> None:
        if not self.stalled(host):
            self.stalls.append(Stall(host, self._loop.time(), killable=killable))

    def holds(self, host: str) -> bool:
        """What hangs there now cannot even be killed."""
        return any(one.host == host and one.ended is None and not one.killable for one in self.stalls)

    def stalls_of(self, host: str) -> list[Stall]:
        return [one for one in self.stalls if one.host == host]

    def longest_s(self, host: str, since: float) -> float:
        """The longest time since then for which it stalled on this host without a break."""
        now = self._loop.time()
        ends = [(one.began, now if one.ended is None else one.ended) for one in self.stalls_of(host)]
        return max((ended - max(began, since) for began, ended in ends), default=0.0)

    def restore(self, host: str) -> None:
        """All that hung on this host goes on, in the order in which it began to hang."""
        for one in self.stalls:
            if one.host == host and one.ended is None:
                one.ended = self._loop.time()
        for work in self._waiting.pop(host, []):
            work()

    def when_back(self, host: str, work: Callable[[], None]) -> None:
        """Now where it is well on this host, else as soon as it is back."""
        if self.stalled(host):
            self._waiting.setdefault(host, []).append(work)
        else:
            work()

    def stalled_s(self, host: str, began: float, ended: float) -> float:
        """For how much of this time a guest on this host could neither read nor write."""
        now = self._loop.time()
        return sum(
            max(0.0, min(ended, now if one.ended is None else one.ended) - max(began, one.began))
            for one in self.stalls
            if one.host == host
        )


class SimSlots:
    """Slots of one datastore, for one process: on the host on which it runs."""

    def __init__(
        self,
        datastore: Datastore,
        name: str,
        process: Process,
        loop: SimLoop,
        timeout_s: float,
        members: Collection[str] | None = None,
    ) -> None:
        """`members`: the hosts that have a slot there; None for all."""
        self._datastore, self._name, self._process, self._loop = datastore, name, process, loop
        self._timeout_s, self._members = timeout_s, members
        self._hung = 0
        self._queue: list[Callable[[], None]] = []

    async def _call(self, host: str, work: Callable[[], T]) -> T:
        """What a datastore that stalls is asked for hangs, a few calls at a time, and is done as soon as it is back,
        however long ago whoever asked gave up; what still waits for its turn then is never done."""
        self._process.enter()
        if self._members is not None and host not in self._members:
            raise UnavailableError(f"{self._name}: {host} has no slot there")
        done: asyncio.Future[T] = self._loop.create_future()

        def perform() -> None:
            if self._process.alive:
                result = work()
                if not done.done():
                    done.set_result(result)

        if not self._datastore.stalled(self._process.node):
            perform()
        elif self._hung < THREADS:
            self._hang(perform)
        else:
            self._queue.append(lambda: None if done.done() else perform())
        if not done.done():
            try:
                async with asyncio.timeout(self._timeout_s):
                    await done
            except TimeoutError:
                self._process.enter()
                raise UnavailableError(f"{self._name}: no answer in {self._timeout_s} s") from None
        self._process.enter()
        return done.result()

    def _hang(self, perform: Callable[[], None]) -> None:
        self._hung += 1
        self._datastore.when_back(self._process.node, functools.partial(self._back, perform))

    def _back(self, perform: Callable[[], None]) -> None:
        self._hung -= 1
        perform()
        queue, self._queue = self._queue, []
        for waiting in queue:
            waiting()

    async def beat(self, beat: SlotBeat) -> SlotOrder | None:
        """See ports.Slots."""

        def work() -> SlotOrder | None:
            self._datastore.beats[beat.host] = beat
            return self._datastore.orders.get(beat.host)

        return await self._call(beat.host, work)

    async def read(self, host: str) -> SlotBeat | None:
        return await self._call(host, lambda: self._datastore.beats.get(host))

    async def order(self, host: str, order: SlotOrder) -> None:
        def work() -> None:
            self._datastore.orders[host] = order

        await self._call(host, work)
