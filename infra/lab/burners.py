"""Processes that keep the machine's processors busy, so that all else has to share them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROCESSORS = os.cpu_count() or 1

# It looks whether its parent still lives: however we end, it ends a moment later. A yielding one takes the least share
# there is, as a process and as a session: without the second, where sessions are groups to the scheduler, its nice value
# counts only among its own session's processes.
_BUSY = """
import contextlib, os, sys
parent = os.getppid()
if "yield" in sys.argv:
    os.nice(19)
    with contextlib.suppress(FileNotFoundError):
        open("/proc/self/autogroup", "w").write("19")
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def burning(many: int | None = None, *, yielding: bool = False) -> Iterator[None]:
    """So many busy loops, one a processor where none is said, until the end of the block: at the usual priority, or
    `yielding`, which take what nobody else wants."""
    argv = [sys.executable, "-c", _BUSY, *(["yield"] if yielding else [])]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(many if many is not None else PROCESSORS):
            # of a session of their own: a Ctrl-C is for us, and we end them last
            running.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True))
        yield
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def idle_s() -> float:
    """For how long this machine's processors, added up, have had nothing to do since its boot."""
    return float(Path("/proc/uptime").read_text().split()[1])
