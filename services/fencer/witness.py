"""Signs of life of a host after its power first read off: each of them voids the proof.

A device that lies says off whatever is, and one that is early says off before it is. Three witnesses can tell: the
host's heartbeat, its libvirt, and its slots on shared datastores, which its peers read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from libs.events.signals import Heartbeat, Signal
from libs.model import Incarnation

Look = Callable[[], Awaitable[str]]
"""One question to the world: why the host must be held to live; "" where nothing says so."""


class Watch:
    """The signs of life of one incarnation while it is being fenced. Each level that reads off opens a watch of its
    own: what came before its first reading of off says nothing against it, whatever another level has read."""

    def __init__(self, at: Incarnation, looks: list[Look]) -> None:
        self._at, self._looks = at, looks
        self._beats = 0
        self._open: list[Opened] = []

    def hear(self, signal: Signal) -> None:
        """A signal from the host's heartbeat topic."""
        if isinstance(signal, Heartbeat) and signal.at == self._at:
            self._beats += 1

    def opened(self) -> Opened:
        """A level's devices read off for the first time."""
        one = Opened(self, self._beats, [asyncio.ensure_future(look()) for look in self._looks])
        self._open.append(one)
        return one

    async def said(self) -> list[str]:
        """All signs of life after a reading for which nobody has asked yet, and heartbeats that came since a level that
        had been answered that there are none: until the other levels are ended seconds may pass."""
        unasked = [one for one in self._open if not one.closed]
        late = [said for one in self._open if one.silent for said in self.beats_since(one.beats)]
        return late[:1] + [said for one in unasked for said in await one.said()]

    def close(self) -> None:
        """End every look."""
        for one in self._open:
            one.close()

    def beats_since(self, before: int) -> list[str]:
        return [f"{self._at} sent heartbeats after its power read off"] if self._beats > before else []


class Opened:
    """What one level wants to know. A libs.core.ports.Witness."""

    def __init__(self, watch: Watch, beats: int, asked: list[asyncio.Task[str]]) -> None:
        self._watch, self.beats, self._asked = watch, beats, asked
        self.closed = self.silent = False

    async def said(self) -> list[str]:
        answers = await asyncio.gather(*self._asked)
        found = [*self._watch.beats_since(self.beats), *(one for one in answers if one)]
        self.silent = not found
        return found

    def close(self) -> None:
        self.closed = True
        for task in self._asked:
            task.cancel()
