"""Ending a task that may not hear it the first time."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_S = 0.1


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel it until it has ended, however it does: nats-py's attempts to connect swallow a cancellation now and then."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=AGAIN_S)
    await asyncio.gather(task, return_exceptions=True)
