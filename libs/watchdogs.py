"""Watchdog devices: the kernel's (hardware, or softdog), and simulated ones that another process keeps.

Opening a kernel's watchdog starts it, and each setting of its time-out feeds it. Closing it is what may go wrong: a
driver without "magic close" stops when its last user is gone, so the death of the agent would leave the host unguarded
while others count on its end. Such a device is refused unless it is built or loaded with nowayout, which never stops.
Source: Documentation/watchdog/watchdog-api.rst and drivers/watchdog/watchdog_dev.c of Linux.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from libs.core.ports import Watchdog, WatchdogError

GETSUPPORT = 0x80285700
KEEPALIVE = 0x80045705
SETTIMEOUT = 0xC0045706
GETTIMEOUT = 0x80045707
INFO = struct.Struct("=II32s")
NUMBER = struct.Struct("=i")
MAGIC_CLOSE = 0x0100
LEGACY = (10, 130)
"""Numbers of /dev/watchdog, which stands for the first of all."""
ANSWER_S = 2.0
Ioctl = Callable[[int, int, bytearray], Any]


def watchdog_at(device: Path) -> Watchdog:
    """The watchdog at this path: simulated where it is a socket."""
    try:
        simulated = stat.S_ISSOCK(device.stat().st_mode)
    except OSError:
        simulated = False  # why it is not there is told when it is armed
    return SocketWatchdog(device) if simulated else KernelWatchdog(device)


class KernelWatchdog:
    """See ports.Watchdog. `sys` and `ioctl` are the kernel's, but in tests."""

    def __init__(self, device: Path, sys: Path = Path("/sys"), ioctl: Ioctl = fcntl.ioctl) -> None:
        self._device, self._sys, self._ioctl = device, sys, ioctl
        self._file: int | None = None

    async def arm(self, timeout_s: float) -> float:
        try:
            if self._file is None:
                self._file = os.open(self._device, os.O_WRONLY | os.O_CLOEXEC)
            if not self._outlives_us():
                # closing it stops it, which is what makes it useless
                os.close(self._file)
                self._file = None
                raise WatchdogError(
                    f"{self._device}: it stops when its user dies (no magic close, no nowayout): load its driver with nowayout=1"
                )
            with contextlib.suppress(OSError):  # a driver that cannot be told tells what it has
                self._call(SETTIMEOUT, NUMBER.pack(round(timeout_s)))
            return float(NUMBER.unpack(self._call(GETTIMEOUT, NUMBER.pack(0)))[0])
        except OSError as error:
            raise WatchdogError(f"{self._device}: {error.strerror or error}") from error

    def feed(self) -> None:
        try:
            self._call(KEEPALIVE, NUMBER.pack(0))
        except OSError as error:
            raise WatchdogError(f"{self._device}: {error.strerror or error}") from error

    async def disarm(self) -> None:
        if self._file is None:
            return
        if self._nowayout():
            raise WatchdogError(f"{self._device}: it is loaded with nowayout and cannot be stopped")
        try:
            os.write(self._file, b"V")
            os.close(self._file)
        except OSError as error:
            raise WatchdogError(f"{self._device}: {error.strerror or error}") from error
        self._file = None

    def _call(self, request: int, argument: bytes) -> bytes:
        """Raises OSError, also where it is not open."""
        buffer = bytearray(argument)
        self._ioctl(-1 if self._file is None else self._file, request, buffer)
        return bytes(buffer)

    def _outlives_us(self) -> bool:
        options = INFO.unpack(self._call(GETSUPPORT, bytes(INFO.size)))[0]
        return bool(options & MAGIC_CLOSE) or self._nowayout()

    def _nowayout(self) -> bool:
        """True where the kernel says so; what it does not say is no."""
        try:
            number = os.fstat(self._file).st_rdev if self._file is not None else 0
            numbers = os.major(number), os.minor(number)
            entry = (
                self._sys / "class/watchdog/watchdog0"
                if numbers == LEGACY
                else self._sys / f"dev/char/{numbers[0]}:{numbers[1]}"
            )
            return (entry / "nowayout").read_text().strip() == "1"
        except OSError:
            return False


class SocketWatchdog:
    """A watchdog that another process keeps, which outlives this one: the lab's. One JSON line there, one back, but for
    feeding, which says when it was sent and waits for nothing. See ports.Watchdog."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._line: socket.socket | None = None

    async def arm(self, timeout_s: float) -> float:
        return float(self._ask({"do": "arm", "timeout_s": timeout_s, "at": _now()})["timeout_s"])

    def feed(self) -> None:
        self._send({"do": "feed", "at": _now()})

    async def disarm(self) -> None:
        self._ask({"do": "disarm"})

    def _send(self, request: dict[str, Any]) -> socket.socket:
        try:
            if self._line is None:
                self._line = socket.socket(socket.AF_UNIX)
                self._line.settimeout(ANSWER_S)
                self._line.connect(str(self._path))
            self._line.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            self._drop()
            raise WatchdogError(f"{self._path}: {error.strerror or error}") from error
        return self._line

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        line = self._send(request)
        try:
            with line.makefile("rb") as lines:
                answer: dict[str, Any] = json.loads(lines.readline() or b"{}")
        except (OSError, ValueError) as error:
            self._drop()
            raise WatchdogError(f"{self._path}: no answer to {request['do']}: {error}") from error
        if not answer.get("ok"):
            raise WatchdogError(f"{self._path}: {answer.get('error', 'closed without an answer')}")
        return answer

    def _drop(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
