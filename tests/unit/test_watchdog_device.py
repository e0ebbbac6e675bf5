"""How the kernel's watchdog is spoken to, and which one is refused since others could not count on it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from libs.core.ports import WatchdogError
from libs.watchdogs import (
    GETSUPPORT,
    GETTIMEOUT,
    INFO,
    KEEPALIVE,
    MAGIC_CLOSE,
    NUMBER,
    SETTIMEOUT,
    KernelWatchdog,
    SocketWatchdog,
    watchdog_at,
)

pytestmark = pytest.mark.fast


class Driver:
    """A kernel's driver, as far as ioctl shows it. `least_s`: it rounds up to that; `fixed`: it cannot be told."""

    def __init__(self, *, magic: bool = True, least_s: int = 1, fixed: int = 0) -> None:
        self.magic, self.least_s, self.fixed = magic, least_s, fixed
        self.timeout_s = fixed or 60
        self.fed = 0
        self.gone = False

    def ioctl(self, file: int, request: int, argument: bytearray) -> int:
        os.fstat(file)  # of a file that is open
        if self.gone:
            raise OSError(19, "No such device")
        if request == GETSUPPORT:
            argument[:] = INFO.pack(MAGIC_CLOSE if self.magic else 0, 0, b"softdog")
        elif request == SETTIMEOUT:
            if self.fixed:
                raise OSError(95, "Operation not supported")
            (asked,) = NUMBER.unpack(argument)
            self.timeout_s = max(asked, self.least_s)
        elif request == GETTIMEOUT:
            argument[:] = NUMBER.pack(self.timeout_s)
        elif request == KEEPALIVE:
            self.fed += 1
        return 0


def device(tmp_path: Path, driver: Driver, *, nowayout: str | None = None) -> tuple[KernelWatchdog, Path]:
    """A file stands for the device; what /sys says of it."""
    path, sys = tmp_path / "watchdog", tmp_path / "sys"
    path.touch()
    entry = sys / "dev/char/0:0"
    entry.mkdir(parents=True)
    if nowayout is not None:
        (entry / "nowayout").write_text(nowayout + "\n")
    return KernelWatchdog(path, sys, driver.ioctl), path


async def test_what_it_really_has_is_told_and_not_what_was_asked_for(tmp_path: Path) -> None:
    dog, _ = device(tmp_path, Driver(least_s=30))
    assert await dog.arm(10) == 30.0


async def test_one_that_takes_no_time_out_tells_its_own(tmp_path: Path) -> None:
    dog, _ = device(tmp_path, Driver(fixed=16))
    assert await dog.arm(10) == 16.0


async def test_one_that_stops_when_its_user_dies_is_refused(tmp_path: Path) -> None:
    dog, _ = device(tmp_path, Driver(magic=False), nowayout="0")
    with pytest.raises(WatchdogError, match="stops when its user dies"):
        await dog.arm(10)
    with pytest.raises(WatchdogError):
        dog.feed()


async def test_nowayout_makes_up_for_the_missing_magic_close_and_cannot_be_stopped(tmp_path: Path) -> None:
    dog, path = device(tmp_path, Driver(magic=False), nowayout="1")
    assert await dog.arm(10) == 10.0
    with pytest.raises(WatchdogError, match="nowayout"):
        await dog.disarm()
    assert path.read_bytes() == b"", "the magic letter would not help, and closing it even less"


async def test_a_clean_stop_says_the_magic_letter_and_the_death_of_its_user_does_not(tmp_path: Path) -> None:
    driver = Driver()
    dog, path = device(tmp_path, driver)
    await dog.arm(10)
    dog.feed()
    assert (driver.fed, path.read_bytes()) == (1, b"")
    await dog.disarm()
    assert path.read_bytes() == b"V"
    with pytest.raises(WatchdogError):
        dog.feed()


async def test_what_the_kernel_refuses_is_told_with_the_device(tmp_path: Path) -> None:
    with pytest.raises(WatchdogError, match="nowhere: No such file"):
        await KernelWatchdog(tmp_path / "nowhere").arm(10)
    driver = Driver()
    dog, _ = device(tmp_path, driver)
    await dog.arm(10)
    driver.gone = True
    with pytest.raises(WatchdogError, match="No such device"):
        dog.feed()


def test_a_socket_is_a_simulated_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "dog.sock"))
        assert isinstance(watchdog_at(tmp_path / "dog.sock"), SocketWatchdog)
    assert isinstance(watchdog_at(tmp_path / "nowhere"), KernelWatchdog)
