"""What an agent remembers of the mark: in memory, and in a small file that outlives its host's reboots."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from libs.core.ports import Bus, Subscription
from libs.events.signals import MarkAsked, MarkTold, Signal
from libs.model import Mark

KEPT_EVERY = 12
"""Marks between two writings of the file: a minute."""
log = structlog.get_logger()


@dataclass(slots=True)
class MarkMemory:
    """The highest mark that was heard on this host. `renewed` is called when the plane has recovered from an old copy
    of its data: what the agent had stored there is to be stored once more."""

    bus: Bus
    renewed: Callable[[], None]
    file: Path | None = None
    mark: Mark = field(default_factory=Mark)
    led: bool = False
    """The plane has told a mark since the bus was last connected: it leads, so the store there is the latest."""
    keeps: list[Callable[[Mark], None]] = field(default_factory=list)
    """Beside the file: told of what it would hold."""
    _kept: Mark = field(default_factory=Mark)
    _forget: Callable[[], object] = lambda: None
    _listening: Subscription | None = None
    _telling: set[asyncio.Future[None]] = field(default_factory=set)

    async def listen(self) -> None:
        """Read the file, and hear and answer from now on."""
        if self.file is not None:
            with contextlib.suppress(OSError, ValueError):  # a torn or missing file is no memory
                self.mark = self._kept = Mark.model_validate_json(self.file.read_bytes())
        self._forget = self.bus.on_change(self._connected)
        self._listening = await self.bus.listen(("mark", "mark_asked"), self._heard)
        await self.tell()

    async def stop(self) -> None:
        """Neither hear nor say any more."""
        self._forget()
        if self._listening is not None:
            await self._listening.stop()

    async def tell(self) -> None:
        """To whoever leads: what lies in the store must not be behind this."""
        await self.bus.send("mark_told", MarkTold(mark=self.mark))

    def _tell(self) -> None:
        task = asyncio.ensure_future(self.tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def _connected(self, connected: bool) -> None:
        self.led = False
        if connected:
            self._tell()

    def _heard(self, signal: Signal) -> None:
        if isinstance(signal, MarkAsked):
            self._tell()
        if not isinstance(signal, MarkTold):
            return
        self.led = not signal.mark.behind(self.mark)
        if not self.mark.behind(signal.mark):
            return
        before, self.mark = self.mark, signal.mark
        if before.number and signal.mark.generation > before.generation:
            self.renewed()
        far = signal.mark.number - self._kept.number >= KEPT_EVERY
        if far or signal.mark.generation > self._kept.generation:
            self._keep()

    def _keep(self) -> None:
        for keep in self.keeps:
            keep(self.mark)
        if self.file is None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.file.with_suffix(".new")
            fresh.write_text(self.mark.model_dump_json())
            fresh.replace(self.file)
        except OSError as error:
            log.warning("the mark is kept in memory only", file=str(self.file), reason=error.strerror)
        self._kept = self.mark  # also where it failed: once a minute is enough to say so
