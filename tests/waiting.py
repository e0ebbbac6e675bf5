"""Waiting for a condition with a deadline: no test sleeps for luck."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any


async def eventually(
    condition: Callable[[], Any], what: str, *, within_s: float = 5.0, every_s: float = 0.01
) -> Any:
    """What `condition` brings once it is true. Fails the test naming `what` where it never is."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if loop.time() > until:
            raise AssertionError(f"not within {within_s} s: {what} (found {value!r})")
        await asyncio.sleep(every_s)
