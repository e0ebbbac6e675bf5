"""What the services of a lab told, all of it."""

from __future__ import annotations

import asyncio
import time

from infra.lab.lab import LabError
from libs.config.settings import Settings
from libs.core.ports import UnavailableError
from libs.events.envelope import Envelope
from libs.readmodel import reader

AGAIN_S = 0.1


async def all_told(settings: Settings, within_s: float) -> list[Envelope]:
    """All facts of the stream, read from its beginning: who followed them may have missed some. Raises LabError where the
    bus does not answer `within_s` seconds."""
    until = time.monotonic() + within_s
    while True:
        try:
            async with reader(settings) as look:
                return [envelope async for _, envelope in look.events()]
        except UnavailableError as error:
            if time.monotonic() > until:
                raise LabError(f"the facts cannot be read: {error}") from error
            await asyncio.sleep(AGAIN_S)
