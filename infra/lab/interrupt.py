"""Ctrl-C and SIGTERM for work that has to clean up: the first one ends it, further ones do not disturb its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
CANCEL_AGAIN_S = 0.3


async def interruptible(work: Coroutine[Any, Any, T], cleans_up: Callable[[], bool]) -> T:
    """Cancel the work on the first Ctrl-C or SIGTERM; further ones do not disturb its cleaning up. Whatever it awaits
    may swallow a cancellation that comes in the moment of its end (asyncio.wait_for before Python 3.12 does): it is
    cancelled again until `cleans_up` says that it has begun to end. Raises KeyboardInterrupt where it was ended."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    asked: list[int] = []

    def stop() -> None:
        if not asked:
            asked.append(1)
            cancel()

    def cancel() -> None:
        if not task.done() and not cleans_up():
            task.cancel()
            loop.call_later(CANCEL_AGAIN_S, cancel)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
