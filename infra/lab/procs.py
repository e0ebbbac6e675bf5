"""Processes by /proc: names that cannot be recycled, family trees, and killing exactly what the lab started.

Standard library only. A process is named by pid *and* start time, since a pid alone may belong to another
process a moment later.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from infra.lab.paths import MARKER


@dataclass(frozen=True)
class Proc:
    """One process: `started` is its start time in clock ticks since the machine's boot."""

    pid: int
    started: int


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on, or None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rsplit(")", 1)[1].split()


def find(pid: int) -> Proc | None:
    """The live process with this pid; a zombie is no longer alive."""
    fields = _stat(pid)
    if fields is None or fields[0] in "ZX":
        return None
    return Proc(pid, int(fields[19]))


def alive(proc: Proc) -> bool:
    """Whether this very process (not a later one with its pid) still runs."""
    return find(proc.pid) == proc


def parent(pid: int) -> int | None:
    """Parent's pid, or None when the process is gone."""
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def ending(pid: int) -> bool:
    """Some thread of it is there still, though the first may be a zombie: killed, and not gone."""
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(find(thread) is not None for thread in threads)


def cmdline(pid: int) -> list[str]:
    """Arguments of a process; empty when it is gone, a zombie or a kernel thread."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0")[:-1]]


def name(pid: int) -> str:
    """What the kernel calls it; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def marker(pid: int) -> str | None:
    """The lab that a process belongs to by its environment; None when unmarked, gone or another user's."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    prefix = f"{MARKER}=".encode()
    for part in raw.split(b"\0"):
        if part.startswith(prefix):
            return part[len(prefix) :].decode(errors="replace")
    return None


def every_pid() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """Its children, those included that have ended and were not waited for."""
    return [each for each in every_pid() if parent(each) == pid]


def descendants(pid: int) -> list[Proc]:
    """All live processes below `pid` (itself not included), from one reading of /proc."""
    children: dict[int, list[int]] = {}
    for each in every_pid():
        above = parent(each)
        if above is not None:
            children.setdefault(above, []).append(each)
    found: list[Proc] = []
    queue = list(children.get(pid, []))
    while queue:
        each = queue.pop()
        proc = find(each)
        if proc is not None:
            found.append(proc)
        queue.extend(children.get(each, []))
    return found


def send(proc: Proc, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it is gone (by pidfd, so a recycled pid is never hit)."""
    try:
        fd = os.pidfd_open(proc.pid)
    except ProcessLookupError:
        return False
    try:
        if not alive(proc):
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def standing_still(proc: Proc) -> bool:
    """Whether a SIGSTOP has reached it, or it is gone. One thread takes the signal, on a busy machine some time after it was
    sent, and the others go on until then; from then on none comes back from the kernel."""
    states = []
    for task in Path(f"/proc/{proc.pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            states.append(task.read_text().rsplit(")", 1)[1].split()[0])
    return "T" in states or not alive(proc)


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str, poll_s: float = 0.01) -> None:
    """Wait until `condition()` holds. Raises TimeoutError naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {timeout_s:g} s")
        time.sleep(poll_s)


def kill(proc: Proc, timeout_s: float = 10.0) -> None:
    """SIGKILL a process and wait for its end. Raises TimeoutError when it survives."""
    send(proc, signal.SIGKILL)
    wait_for(lambda: not alive(proc), timeout_s, f"end of process {proc.pid}", 0.002)


def kill_tree(top: Proc, timeout_s: float = 10.0) -> None:
    """Kill a process and all its descendants as one: stop everything first, so that nothing can spawn or react.

    `top` must be a child subreaper, so that an orphan stays in its tree. Raises TimeoutError when one survives.
    """
    stopped: set[Proc] = set()
    while True:
        fresh = [proc for proc in [top, *descendants(top.pid)] if proc not in stopped]
        if not fresh:
            break
        for proc in fresh:
            send(proc, signal.SIGSTOP)
            stopped.add(proc)
    below = [proc for proc in stopped if proc != top]
    for proc in below:
        send(proc, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, below)), timeout_s, f"end of the processes below {top.pid}", 0.002)
    kill(top, timeout_s)


def write_pid_file(path: Path, proc: Proc) -> None:
    """Record a process atomically as `pid starttime`."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{proc.pid} {proc.started}\n")
    temporary.replace(path)


def go_background(log: Path, pid_file: Path) -> None:
    """Leave the caller's session, output to `log`.

    The process that was started ends with status 0 as soon as the pid file is there: who waits for it can stop us.
    """
    ready, done = os.pipe()
    if os.fork():
        os.close(done)
        os._exit(0 if os.read(ready, 1) else 1)
    os.setsid()
    with open(log, "ab") as output, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    me = find(os.getpid())
    if me is not None:
        write_pid_file(pid_file, me)
    os.write(done, b"1")
    os.close(done)
    os.close(ready)


def read_pid_file(path: Path) -> Proc | None:
    """The process of a pid file when that very process still runs, else None."""
    try:
        pid, started = path.read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    proc = Proc(int(pid), int(started))
    return proc if alive(proc) else None


def is_qemu_of(arguments: list[str], root: Path) -> bool:
    """Whether a command line is a QEMU whose files lie in this lab (libvirt clears QEMU's environment)."""
    return bool(arguments) and "qemu" in os.path.basename(arguments[0]) and _mentions(arguments, root)


def _mentions(arguments: list[str], root: Path) -> bool:
    return any(f"{root}/" in argument for argument in arguments[1:])


def of_lab(root: Path) -> list[Proc]:
    """Every live process of the lab at `root`: marked in its environment, or a QEMU on the lab's files."""
    found = []
    for pid in every_pid():
        if marker(pid) == str(root) or is_qemu_of(cmdline(pid), root):
            proc = find(pid)
            if proc is not None:
                found.append(proc)
    return found


def own_family() -> set[int]:
    """This process and its ancestors: a cleanup must not kill who asked for it."""
    pids = set()
    pid: int | None = os.getpid()
    while pid:
        pids.add(pid)
        pid = parent(pid)
    return pids


def sweep(root: Path, spare: Iterable[int] = (), timeout_s: float = 10.0) -> list[int]:
    """Kill every process of the lab that is left, until none is. Returns their pids; TimeoutError if one stays."""
    spared = own_family() | set(spare)
    killed: list[int] = []

    def none_left() -> bool:
        left = [proc for proc in of_lab(root) if proc.pid not in spared]
        for proc in left:
            if send(proc, signal.SIGKILL) and proc.pid not in killed:
                killed.append(proc.pid)
        return not left

    wait_for(none_left, timeout_s, f"end of the processes of {root}")
    return killed
