"""What a host remembers of its promise on its own disk: one small file. See ports.PromiseMemory.

An agent that dies leaves its watchdog armed. The next one must know what was promised before it may feed it, and the
bucket that says so may be out of reach then. The file is of one boot; what a reboot loses of it nobody misses, so it is
not synced.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import ValidationError

from libs.core.ports import UnavailableError
from libs.model import Incarnation
from libs.promises import Promise, Remembered

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PromiseFile:
    """In this file."""

    file: Path

    def recall(self, at: Incarnation) -> tuple[Promise, ...]:
        try:
            found = Remembered.model_validate_json(self.file.read_bytes())
        except (OSError, ValidationError):
            return ()  # a torn or missing file is no memory: the bucket is asked
        return found.perhaps if found.at == at else ()

    async def remember(self, at: Incarnation, perhaps: tuple[Promise, ...]) -> None:
        await asyncio.to_thread(self._write, Remembered(at=at, perhaps=perhaps))

    def _write(self, remembered: Remembered) -> None:
        fresh = self.file.with_suffix(".new")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(remembered.model_dump_json())
            fresh.replace(self.file)
        except OSError as error:
            log.warning("the promise is in the bucket only", file=str(self.file), reason=error.strerror)
            self._forget()

    def _forget(self) -> None:
        """What cannot be replaced must not stay: it would be taken for what stands."""
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:
            if self.file.exists():
                raise UnavailableError(f"{self.file} holds an older promise: {error.strerror}") from error
