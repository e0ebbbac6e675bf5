"""What a loop waits at: rung by whoever has news."""

from __future__ import annotations

import asyncio


class Bell:
    """Waited at by one task. A ring that nobody waited for is kept: the next wait is over at once.

    An asyncio.Event under asyncio.timeout would do; but there every deadline is a task that is cancelled and an
    error that unwinds it, and deadlines are most of what a shell wakes for."""

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[bool] | None = None

    def ring(self) -> None:
        if self._waiter is None or self._waiter.done():
            self._rung = True
        else:
            self._waiter.set_result(True)

    async def wait(self, timeout_s: float | None) -> bool:
        """True where it rang; False where the time was over first."""
        if self._rung:
            self._rung = False
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        timer = None if timeout_s is None else loop.call_later(timeout_s, _over, waiter)
        try:
            return await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


def _over(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
