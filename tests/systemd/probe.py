"""What a process may that systemd starts with all that stands in the agent's unit: run in its place, it tries, and prints what went.

Standard library alone: it is copied to the host.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_USER, NEW_NS = 0x10000000, 0x00020000
NOT_FILES = ("/proc", "/sys")


def went(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except (OSError, ValueError, PermissionError):
        return False
    return True


def called(name: str, *words: Any) -> Callable[[], Any]:
    def attempt() -> None:
        if getattr(LIBC, name)(*words) == -1:
            raise OSError(ctypes.get_errno(), name)

    return attempt


def created(folder: str) -> bool:
    path = Path(folder) / ".probe"

    def attempt() -> None:
        path.touch()
        path.unlink()

    return went(attempt)


def appended(path: Path) -> None:
    path.open("ab").close()


def opened(device: Path) -> None:
    os.close(os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY))


def setuid_file() -> None:
    path = Path("/tmp/.setuid")
    path.touch()
    path.chmod(0o4755)
    if not path.stat().st_mode & stat.S_ISUID:
        raise OSError("taken away")


def walked() -> tuple[list[str], list[str]]:
    """Directories in which a file could be made, and other files that could be opened to write, anywhere."""
    folders, files = [], []
    for folder, below, names in os.walk("/"):
        below[:] = [one for one in below if not f"{folder.rstrip('/')}/{one}".startswith(NOT_FILES)]
        if created(folder):
            folders.append(folder)
        for path in (Path(folder) / name for name in names):
            if not path.is_symlink() and path.is_file() and went(partial(appended, path)):
                files.append(str(path))
    return sorted(folders), sorted(files)


def devices() -> list[str]:
    found = []
    for folder, _, names in os.walk("/dev"):
        for path in (Path(folder) / name for name in names):
            if path.is_symlink() or not (path.is_char_device() or path.is_block_device()):
                continue
            if went(partial(opened, path)):
                found.append(str(path))
    return sorted(found)


def main(secrets: list[str]) -> None:
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line
    )
    folders, files = walked()
    calls = {
        "a user namespace": called("unshare", NEW_USER),
        "a mount": called("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
        "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close(),
        "another address family": lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0).close(),
        "writable code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC).close(),
        "a real-time priority": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        "to be root": lambda: os.setuid(0),
        "a setuid file": setuid_file,
        "another time": lambda: time.clock_settime(
            time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME)
        ),
        "another host name": called("sethostname", b"x", 1),
        "a kernel setting": lambda: Path("/proc/sys/kernel/printk").write_text("4"),
        "a signal to the first process": lambda: os.kill(1, 0),
    }
    told = {
        "status": {
            key: status[key].split()
            for key in ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
        },
        "folders": folders,
        "files": files,
        "devices": devices(),
        "secrets": [path for path in secrets if went(Path(path).read_bytes)],
        "calls": sorted(name for name, attempt in calls.items() if went(attempt)),
        "a network socket": went(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()),
        "processes": sorted(
            {Path(f"/proc/{one}").stat().st_uid for one in os.listdir("/proc") if one.isdigit()}
        ),
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
