"""Fence levels in their order, side by side where one takes long: the first proof wins, the others are cancelled.

A level is the devices that must all read off. What each of its devices said last is kept while it is tried, so that
what is missing can be told at any moment, and not only once everything has run into its deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from libs.events.hosts import LevelTested
from libs.model import PowerState

WITNESS_S = 5.0
"""For signs of life to be looked for once a level's devices read off: two looks at storage slots, and the bus."""


class Device(Protocol):
    """One fence device of one host: an agent, or its simulated twin. Never raises for the world's faults."""

    @property
    def name(self) -> str: ...

    @property
    def level(self) -> int: ...

    @property
    def timeout_s(self) -> float: ...

    async def status(self, timeout_s: float) -> tuple[PowerState, str]:
        """One reading, with a detail. What is not clearly on or off is unknown."""

    async def off(self) -> tuple[bool, str]:
        """Command off. True: the device reports success, which alone proves nothing."""

    async def on(self) -> tuple[bool, str]:
        """Command on. True: the device reports success."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of one host."""

    number: int
    devices: tuple[Device, ...]
    deadline_s: float
    next_after_s: float | None
    """Then the next level begins beside it; None: only when it has failed."""


@dataclass(slots=True)
class Noted:
    """A device whose calls are noted. The same as the device for who calls it."""

    device: Device
    last: str = ""
    told_off: bool = False
    doing: str = ""
    since: float = 0.0
    asked_at: float | None = None
    """First."""

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def level(self) -> int:
        return self.device.level

    @property
    def timeout_s(self) -> float:
        return self.device.timeout_s

    async def status(self, timeout_s: float) -> tuple[PowerState, str]:
        state, detail = await self._call("status", self.device.status(timeout_s))
        self.last = detail
        return state, detail

    async def off(self) -> tuple[bool, str]:
        self.told_off = True
        done, detail = await self._call("off", self.device.off())
        self.last = detail
        return done, detail

    async def on(self) -> tuple[bool, str]:
        done, detail = await self._call("on", self.device.on())
        self.last = detail
        return done, detail

    async def _call(self, what: str, call: Coroutine[Any, Any, tuple[Any, str]]) -> tuple[Any, str]:
        self.doing, self.since = what, _now()
        self.asked_at = self.since if self.asked_at is None else self.asked_at
        result = await call
        self.doing = ""
        return result

    def so_far(self) -> str:
        """What it said last, or for how long it has not answered."""
        if self.doing:
            return f"{self.name}: {self.doing}: no answer for {_now() - self.since:.0f} s"
        return self.last or f"{self.name}: not asked yet"


@dataclass(slots=True)
class Trial:
    """One level while it is tried, and what stood in its way."""

    level: Level
    devices: list[Noted]
    begun_at: float | None = None
    missing: tuple[str, ...] | None = None
    """None until it has failed."""

    def next_at(self) -> float | None:
        """When the next level begins beside it: its time counts from the first question to a device of this one."""
        after_s = self.level.next_after_s
        asked = min((one.asked_at for one in self.devices if one.asked_at is not None), default=self.begun_at)
        return None if after_s is None or asked is None else asked + after_s

    async def tested(self, attempt: Try) -> LevelTested:
        """Try this level alone, and tell all of it."""
        began = _now()
        wrong = await _within(self, attempt)
        return LevelTested(
            level=self.level.number,
            devices=tuple(device.name for device in self.devices),
            proven=not wrong,
            found_off=not wrong and not any(device.told_off for device in self.devices),
            took_s=round(_now() - began, 3),
            said=tuple(device.last for device in self.devices),
            missing=tuple(wrong),
        )

    def so_far(self) -> list[str]:
        """What is missing at this moment, device by device."""
        if self.missing is not None:
            said = list(self.missing)
        elif self.begun_at is None:
            said = [f"{device.name}: not asked yet, the level before it is tried" for device in self.devices]
        else:
            said = [device.so_far() for device in self.devices]
        return [f"level {self.level.number}: {one}" for one in said]


Try = Callable[[Sequence[Device]], Awaitable[list[str]]]
"""Tries the devices of one level, and returns what stood in the way: nothing is a proof."""


@dataclass(slots=True)
class Race:
    """One attempt over all levels of one host."""

    trials: list[Trial]
    _running: dict[asyncio.Task[list[str]], Trial] = field(default_factory=dict)

    @classmethod
    def over(cls, levels: Sequence[Level]) -> Race:
        return cls([Trial(level, [Noted(device) for device in level.devices]) for level in levels])

    def missing(self) -> tuple[str, ...]:
        """What stands in the way of a proof at this moment, level by level."""
        return tuple(reason for trial in self.trials for reason in trial.so_far())

    async def run(self, attempt: Try) -> Level | None:
        """The level that gave a proof; None where none did. Whatever else still runs is ended before it returns,
        its agents killed."""
        waiting = list(self.trials)
        latest: Trial | None = None
        try:
            while self._running or waiting:
                next_at = _now() if latest is None else latest.next_at()
                if waiting and (not self._running or (next_at is not None and next_at <= _now())):
                    trial = latest = waiting.pop(0)
                    trial.begun_at = _now()
                    self._running[asyncio.ensure_future(_within(trial, attempt))] = trial
                    continue
                within_s = None if next_at is None or not waiting else next_at - _now()
                won = await self._ended(within_s)
                if won is not None:
                    return won
            return None
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _ended(self, within_s: float | None) -> Level | None:
        """Wait for the end of a level, for so long; the proven one, if it was one."""
        done, _ = await asyncio.wait(self._running, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        won: list[Trial] = []
        for task in done:
            trial = self._running.pop(task)
            wrong = task.result()
            if wrong:
                trial.missing = tuple(wrong)
            else:
                won.append(trial)
        return min((trial.level for trial in won), key=lambda level: level.number, default=None)


async def _within(trial: Trial, attempt: Try) -> list[str]:
    """A level that hangs has failed at its deadline, and says where."""
    deadline_s = trial.level.deadline_s
    try:
        async with asyncio.timeout(deadline_s):
            return await attempt(trial.devices)
    except TimeoutError:
        late = f"no proof within the level's deadline of {deadline_s:g} s"
        return [*(device.so_far() for device in trial.devices), late]


def _now() -> float:
    return asyncio.get_running_loop().time()
