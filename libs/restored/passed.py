"""Which boot of a host has passed its gate, in a small file of the host itself: the plane's data may be put back to an older day."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

log = structlog.get_logger()


class PassedFile:
    """See services.heartbeat.heldback.Passed."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def boot(self) -> str:
        return await asyncio.to_thread(self._read)

    async def remember(self, boot: str) -> None:
        await asyncio.to_thread(self._write, boot)

    def _read(self) -> str:
        try:
            return self._file.read_text().strip()
        except (OSError, ValueError):  # a torn or missing file is no memory
            return ""

    def _write(self, boot: str) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._file.with_suffix(".new")
            fresh.write_text(boot + "\n")
            fresh.replace(self._file)
        except OSError as error:
            log.warning(
                "that the gate was passed is kept by the store alone",
                file=str(self._file),
                reason=error.strerror,
            )
