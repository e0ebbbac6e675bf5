"""Blocking calls in daemon threads, a few for each host, so that a host that hangs hurts no other.

concurrent.futures joins its threads at exit; a libvirt call that never returns would keep the process
alive for ever. These threads are daemons: abandoned with the process.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

IDLE_S = 10.0
"""A thread that nobody needed for so long ends: with thousands of hosts, each asked now and then, they would be thousands."""
T = TypeVar("T")
_Job = tuple[Callable[[], Any], "asyncio.Future[Any]", asyncio.AbstractEventLoop] | None


class HostThreads:
    """At most `size` threads, started when first needed, ended when long unneeded."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._started = self._idle = self._queued = 0
        self._lock = threading.Lock()

    async def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """Run it, waiting at most so long. Raises TimeoutError; the thread may then be lost to its call."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._lock:
            self._jobs.put((function, future, loop))
            self._queued += 1
            # an idle thread may have been counted on by a job that it has not taken yet
            if self._queued > self._idle and self._started < self._size:
                self._started += 1
                name = f"{self._name}-{self._started}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
        async with asyncio.timeout(timeout_s):
            return await future

    def retire(self) -> None:
        """End every thread as soon as it is free; one that hangs in its call stays until that returns."""
        with self._lock:
            for _ in range(self._started):
                self._jobs.put(None)

    def hung(self) -> int:
        """Threads that a retired set has not got rid of."""
        with self._lock:
            return self._started

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    self._idle -= 1
                    if self._queued or not self._jobs.empty():
                        continue  # it was counted on in this very moment
                    self._started -= 1
                    return
            with self._lock:
                self._idle -= 1
                if job is None:
                    self._started -= 1
                    return
                self._queued -= 1
            function, future, loop = job
            if future.cancelled():
                continue  # its deadline passed while it waited for a thread: it must not run late
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001  handed to the caller, whatever it is
                _tell(loop, future, error=error)
            else:
                _tell(loop, future, result=result)


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    *,
    result: Any = None,
    error: BaseException | None = None,
) -> None:
    def deliver() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    if not loop.is_closed():
        loop.call_soon_threadsafe(deliver)
