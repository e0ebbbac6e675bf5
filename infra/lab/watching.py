"""The observer's eyes: a thread a host on its domain list, and one look at all QEMU processes and consoles."""

import queue
import threading
import time
from dataclasses import dataclass, field
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
    runs: dict[str, int] = field(default_factory=dict)
    """By uuid libvirt's number of the run: another one is another start, however short the pause between."""
    passing: frozenset[str] = frozenset()
    """Of these domains such as are paused since they arrive by a migration, or have just left by one."""
    starting: frozenset[str] = frozenset()
    """And such whose QEMU is not told yet to begin."""
    asked: float = 0.0
    """When the question began: a host reads its domains one after the other, and may wait long for one of them."""


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
                vms = connection.getAllDomainStats(
                    libvirt.VIR_DOMAIN_STATS_STATE, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
                )
                after = time.monotonic()
                late = after - before > LATE_S
                answer = Answer(self.host, after, None) if late else answered(self.host, before, after, vms)
                self.answers.put(answer)
            except libvirt.libvirtError:
                connection = None
                self.answers.put(Answer(self.host, time.monotonic(), None))
            due = max(due + self.period_s, time.monotonic())
            time.sleep(due - time.monotonic() if due > time.monotonic() else 0)


def answered(
    host: str, asked: float, mono: float, vms: list[tuple[libvirt.virDomain, dict[str, int]]]
) -> Answer:
    """What libvirt's statistics of a host's domains say of who runs there."""
    # of those that were active as the question began, one may have ended by the time that it was asked after
    vms = [(vm, stats) for vm, stats in vms if stats.get("state.state") != libvirt.VIR_DOMAIN_SHUTOFF]
    paused: dict[int, set[str]] = {}
    for vm, stats in vms:
        if stats.get("state.state") == libvirt.VIR_DOMAIN_PAUSED:
            paused.setdefault(stats.get("state.reason", 0), set()).add(vm.UUIDString())
    return Answer(
        host,
        mono,
        {vm.UUIDString(): vm.name() for vm, _ in vms},
        {vm.UUIDString(): vm.ID() for vm, _ in vms if vm.ID() > 0},
        frozenset(paused.get(libvirt.VIR_DOMAIN_PAUSED_MIGRATION, ())),
        frozenset(paused.get(libvirt.VIR_DOMAIN_PAUSED_STARTING_UP, ())),
        asked,
    )


@dataclass(frozen=True)
class Qemu:
    """A QEMU process of the lab; `host` is `?` when no host's first process is above it. `incoming`: it was begun to take
    in a migration, and its processors stand still until that is through."""

    pid: int
    uuid: str
    name: str
    host: str
    incoming: bool = False


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
        return Qemu(
            pid,
            vm_uuid,
            name.removeprefix("guest=").split(",")[0],
            self._host_of(pid),
            "-incoming" in arguments,
        )

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
    """Follows the VMs' serial lines and counts the boots that printed a line: that they came up, where none is given."""

    def __init__(self, folder: Path, line: str = UP_LINE, suffix: str = ".log") -> None:
        self.folder, self.line, self.suffix = folder, line.encode(), suffix
        self._read: dict[str, tuple[int, int]] = {}

    def look(self) -> list[tuple[str, int]]:
        """(VM name, its boots so far) for each boot that printed it since the last look."""
        news = []
        for path in self.folder.glob(f"*{self.suffix}"):
            offset, count = self._read.get(path.stem, (0, 0))
            if path.stat().st_size == offset:
                continue
            with open(path, "rb") as file:
                file.seek(offset)
                *lines, _ = file.read().split(b"\n")
            for line in lines:
                offset += len(line) + 1
                if line.strip() == self.line:
                    count += 1
                    news.append((path.stem, count))
            self._read[path.stem] = (offset, count)
        return news
