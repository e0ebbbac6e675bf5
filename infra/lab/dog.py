"""The watchdog of one host, kept by its power device: it outlives the agent that feeds it, and resets the host where that does
not. Standard library only.

One JSON line a request on `watchdog.sock`: `arm` with `timeout_s` (answered with the time-out that it has), `feed` (not
answered), `disarm`. `arm` and `feed` bear `at`, the sender's CLOCK_BOOTTIME: what waits in a socket of a busy machine feeds
no later than it was meant. As softdog it ends with the host's kernel, that is with its power or its first process.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any


class Dog:
    """`reset` is called from a thread of its own when it was not fed in time."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._changed = threading.Condition()
        self._timeout_s: float | None = None
        self._due = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """It is off: nothing happens any more until it is armed again."""
        with self._changed:
            self._timeout_s = None
            self._changed.notify()

    def answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Carry out one request. Raises KeyError, ValueError or TypeError for what is none."""
        what = request["do"]
        if what == "disarm":
            self.stop()
            return {"ok": True}
        if what not in ("arm", "feed"):
            raise ValueError(f"unknown request {what!r}")
        sent = min(float(request["at"]), _now())
        with self._changed:
            if what == "arm":
                self._timeout_s = float(request["timeout_s"])
            if self._timeout_s is not None:
                self._due = (
                    max(self._due, sent + self._timeout_s) if what == "feed" else sent + self._timeout_s
                )
            self._changed.notify()
            return {"ok": True, "timeout_s": self._timeout_s} if what == "arm" else None

    def _watch(self) -> None:
        while True:
            with self._changed:
                wait_s = None if self._timeout_s is None else self._due - _now()
                if wait_s is None or wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                self._timeout_s = None
            self._reset()

    def converse(self, connection: socket.socket) -> None:
        """Answer all requests of one connection."""
        with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                answer: dict[str, Any] | None
                try:
                    answer = self.answer(json.loads(line))
                except (KeyError, ValueError, TypeError) as error:
                    answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
                if answer is not None:
                    connection.sendall(json.dumps(answer).encode() + b"\n")

    def serve(self, listener: socket.socket) -> None:
        """For ever."""
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self.converse, args=(connection,), daemon=True).start()


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
