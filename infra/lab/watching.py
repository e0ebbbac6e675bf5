"""The observer's eyes: a thread a host on its domain list, and one look at all QEMU processes and consoles."""

import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import libvirt

from infra.lab import procs
from infra.lab.guest import UP_LINE

LATE_S = 0.5
"""An answer that took longer is thrown away: it tells of a moment that nobody knows."""


@dataclass(frozen=True)
class Answer:
    """A host's domain list, or None when it did not give one: uuid to name."""

    host: str
    mono: float
    domains: dict[str, str] | None


class Sampler(threading.Thread):
    """Asks one host for its active domains again and again; reconnects by itself. Hangs alone when its host hangs."""

    def __init__(
        self, host: str, uri: str, period_s: float, answers: "queue.SimpleQueue[Answer | None]"
    ) -> None:
        super().__init__(name=f"sampler-{host}", daemon=True)
        self.host, self.uri, self.period_s, self.answers = host, uri, period_s, answers

    def run(self) -> None:
        connection = None
        due = time.monotonic()
        while True:
            try:
                if connection is None:
                    connection = libvirt.open(self.uri)
                before = time.monotonic()
                vms = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
                after = time.monotonic()
                found = {vm.UUIDString(): vm.name() for vm in vms}
                late = after - before > LATE_S
                self.answers.put(Answer(self.host, after, None if late else found))
            except libvirt.libvirtError:
                connection = None
                self.answers.put(Answer(self.host, time.monotonic(), None))
            due = max(due + self.period_s, time.monotonic())
            time.sleep(due - time.monotonic() if due > time.monotonic() else 0)


@dataclass(frozen=True)
class Qemu:
    """A QEMU process of the lab; `host` is `?` when no host's first process is above it."""

    pid: int
    uuid: str
    name: str
    host: str


class ProcessScan:
    """QEMU processes by uuid from /proc. Reads each process once, and again only while it may still become a QEMU."""

    _SETTLED_S = 2.0

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[int, Qemu] = {}
        self._dull: dict[int, float] = {}

    def look(self, now: float) -> list[Qemu]:
        """All QEMU processes of the lab at this moment; zombies are not among them, but those are that were killed
        and hang in a datastore that stalls: they have no arguments any more, and what they hold open."""
        pids = set(procs.every_pid())
        self._dull = {pid: since for pid, since in self._dull.items() if pid in pids}
        found: dict[int, Qemu] = {}
        for pid in pids:
            since = self._dull.get(pid)
            # A process is forked first and becomes QEMU by exec: a young one is looked at again.
            if since is not None and now - since > self._SETTLED_S:
                continue
            arguments = procs.cmdline(pid)
            if not arguments and pid in self._known and procs.ending(pid):
                found[pid] = self._known[pid]
                continue
            if not procs.is_qemu_of(arguments, self.root) or "-uuid" not in arguments:
                self._dull.setdefault(pid, now)
                continue
            self._dull.pop(pid, None)
            found[pid] = self._known.get(pid) or self._qemu(pid, arguments)
        self._known = found
        return list(found.values())

    def _qemu(self, pid: int, arguments: list[str]) -> Qemu:
        vm_uuid = arguments[arguments.index("-uuid") + 1]
        name = arguments[arguments.index("-name") + 1] if "-name" in arguments else "?"
        return Qemu(pid, vm_uuid, name.removeprefix("guest=").split(",")[0], self._host_of(pid))

    def _host_of(self, pid: int) -> str:
        """The host whose first process is an ancestor."""
        first = {}
        for file in self.root.glob("*/init.pid"):
            proc = procs.read_pid_file(file)
            if proc is not None:
                first[proc.pid] = file.parent.name
        above: int | None = pid
        while above and above not in first:
            above = procs.parent(above)
        return first.get(above, "?") if above else "?"


class Consoles:
    """Follows the VMs' serial consoles and counts the boots that came up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, tuple[int, int]] = {}

    def look(self) -> list[tuple[str, int]]:
        """(VM name, its boots so far) for each boot that came up since the last look."""
        news = []
        for path in self.folder.glob("*.log"):
            offset, count = self._read.get(path.stem, (0, 0))
            if path.stat().st_size == offset:
                continue
            with open(path, "rb") as file:
                file.seek(offset)
                *lines, _ = file.read().split(b"\n")
            for line in lines:
                offset += len(line) + 1
                if line.strip() == UP_LINE.encode():
                    count += 1
                    news.append((path.stem, count))
            self._read[path.stem] = (offset, count)
        return news
