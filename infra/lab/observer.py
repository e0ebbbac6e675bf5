"""An independent witness: who runs where, seen from outside, and for how long anything ran twice.

Shares no code with the services. `python -m infra.lab.observer --root LAB --out FILE --host h1=URI …` writes JSON
lines of changes until SIGTERM, then a summary; SIGUSR1 writes a summary of the time so far. The domain lists of all
hosts are the evidence; the QEMU processes are the cross-check, and stand in for a host that does not answer.

A live migration has two QEMUs of one VM, of which one at a time runs: a domain that is paused by a migration is not on
its host, and the process that takes one in counts once it is the only one. One that both lists show running is on both.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import libvirt

from infra.lab import procs
from infra.lab.guest import AGENT_LINE, AGENT_SUFFIX
from infra.lab.sightings import Ledger, Rate
from infra.lab.watching import LATE_S, Answer, Consoles, ProcessScan, Qemu, Sampler

_PERIOD_S = 0.05


class Observer:
    """Takes answers and looks one after the other in one thread, and writes what changed."""

    def __init__(self, hosts: dict[str, str], root: Path, consoles: Path, out: TextIO) -> None:
        self.root, self.out = root, out
        self.answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self.samplers = [Sampler(host, uri, _PERIOD_S, self.answers) for host, uri in hosts.items()]
        self.scan, self.consoles = ProcessScan(root), Consoles(consoles)
        self.agents = Consoles(consoles, AGENT_LINE, AGENT_SUFFIX)
        self.listed, self.processes = Ledger(), Ledger()
        self.rates = {host: Rate() for host in hosts}
        self.scan_rate = Rate()
        self.heard: dict[str, float] = {}
        self.active: dict[str, dict[str, str]] = {host: {} for host in hosts}
        self.ended: dict[str, set[str]] = {}
        """VMs whose process ended while their host's libvirt did not answer, and which it lists still."""
        self.begun: dict[str, set[str]] = {}
        """VMs whose process was there while their host's libvirt did not answer, and which it has not listed since."""
        self.runs: dict[str, dict[str, int]] = {host: {} for host in hosts}
        """The run of each VM that a host listed last."""
        self.passing: dict[str, frozenset[str]] = {}
        """VMs that a host's last list kept paused for a migration: their process runs elsewhere by now, or will."""
        self.names: dict[str, str] = {}
        self.qemus: list[Qemu] = []
        self.arriving: set[int] = set()
        """Processes that take in a migration, and have not been the only ones of their VM yet."""
        self.arrived: set[int] = set()
        self.started = time.monotonic()
        self.stopping = False
        self.summary_wanted = False

    def write(self, kind: str, mono: float, **fields: Any) -> None:
        """One line. The wall time is that of `mono`, whenever the line is written."""
        at = datetime.now(UTC) - timedelta(seconds=time.monotonic() - mono)
        line = {"kind": kind, "at": at.isoformat(timespec="microseconds"), "mono": round(mono, 6), **fields}
        self.out.write(json.dumps(line) + "\n")
        self.out.flush()

    def _set_active(self, host: str, names: dict[str, str], mono: float, source: str) -> None:
        """What counts for this host from now on; differences are written."""
        before = self.active.setdefault(host, {})
        if source == "processes":
            self.ended.setdefault(host, set()).update(before.keys() - names.keys())
            self.begun[host] = set(names)
        if before == names:
            return
        for vm in before.keys() | names.keys():
            if (vm in before) != (vm in names):
                name = names.get(vm) or before[vm]
                self.names[vm] = name
                self.write("vm", mono, vm=vm, name=name, host=host, active=vm in names, source=source)
        self.active[host] = names

    def take(self, answer: Answer) -> None:
        """A host answered, or could not."""
        if answer.domains is None:
            if self._lost(answer.host, answer.mono):
                # Its processes have to speak for it now, not at the next turn.
                self.look()
            return
        if answer.host not in self.heard:
            self.write("host", answer.mono, host=answer.host, reachable=True)
        self.heard[answer.host], self.passing[answer.host] = answer.mono, answer.passing
        self.rates[answer.host].hit(answer.mono)
        domains = self._on(answer)
        self.listed.see(answer.host, domains, answer.mono, answer.asked or answer.mono)
        self._restarted(answer)
        self._set_active(answer.host, self._believed(answer.host, domains), answer.mono, "domains")

    def _on(self, answer: Answer) -> dict[str, str]:
        """What a list says to be on its host: without what a migration keeps paused, and without what begins and either
        has no process yet, or one that waits for a migration."""
        mine = [qemu for qemu in self.qemus if qemu.host == answer.host]
        begun = {qemu.uuid for qemu in mine if qemu.pid not in self.arriving}
        absent = answer.passing | (answer.starting - begun)
        return {vm: name for vm, name in (answer.domains or {}).items() if vm not in absent}

    def _restarted(self, answer: Answer) -> None:
        """A VM that ended and began between two lists of one host is on both: its run tells."""
        before = self.runs.setdefault(answer.host, {})
        for vm, run in answer.runs.items():
            if before.get(vm, run) != run and vm in self.active.get(answer.host, {}):
                ended = {v: name for v, name in self.active[answer.host].items() if v != vm}
                self._set_active(answer.host, ended, answer.mono, "domains")
        self.runs[answer.host] = dict(answer.runs)

    def _believed(self, host: str, domains: dict[str, str]) -> dict[str, str]:
        """Without those whose process was seen to end while this list was not to be had, and with those whose process
        lives: a list that comes late, or of a libvirt that answers again, is a moment older than that, and tells of no
        start and of no end. What ran twice is counted by the list as it is."""
        alive = {qemu.uuid for qemu in self.qemus if qemu.host == host and qemu.pid not in self.arriving}
        self.ended.setdefault(host, set()).intersection_update(domains.keys() - alive)
        begun = self.begun[host] = (self.begun.get(host, set()) & alive) - domains.keys()
        listed = {vm: name for vm, name in domains.items() if vm not in self.ended[host]}
        return {**{vm: self.names.get(vm, vm) for vm in begun}, **listed}

    def _lost(self, host: str, mono: float) -> bool:
        """No answer is no evidence: its list is unknown, its processes are not. False when that was known."""
        if self.heard.pop(host, None) is None:
            return False
        self.rates[host].interrupt()
        self.listed.lose(host)
        self.runs.pop(host, None)  # what begins meanwhile is seen by its process
        self.write("host", mono, host=host, reachable=False)
        return True

    def look(self) -> None:
        """Look at processes and consoles, and let processes speak for the hosts that do not answer."""
        now = time.monotonic()
        self.qemus = self.scan.look(now)
        self.scan_rate.hit(now)
        known = Counter(qemu.uuid for qemu in self.qemus)
        fresh = {qemu.pid for qemu in self.qemus if qemu.incoming} - self.arrived
        self.arriving = {qemu.pid for qemu in self.qemus if qemu.pid in fresh and known[qemu.uuid] > 1}
        self.arrived = {qemu.pid for qemu in self.qemus if qemu.pid in self.arrived | fresh} - self.arriving
        places = {*self.active, *(qemu.host for qemu in self.qemus)}
        for host in places:
            here = {
                qemu.uuid: qemu.name
                for qemu in self.qemus
                if qemu.host == host and qemu.pid not in self.arriving
            }
            self.names.update(here)
            self.processes.see(host, here, now)
            if host in self.heard and now - self.heard[host] > LATE_S:
                self._lost(host, now)
            if host not in self.heard:
                # one that a list had there runs there, though the QEMU that it came from has not ended yet
                stays = {
                    one.uuid: one.name
                    for one in self.qemus
                    if one.host == host and one.uuid in self.active.get(host, {})
                }
                # and one that it kept paused has left, though its QEMU has not ended yet
                gone = {vm for vm in self.passing.get(host, ()) if known[vm] > 1}
                spoken = {vm: name for vm, name in {**stays, **here}.items() if vm not in gone}
                self._set_active(host, spoken, now, "processes")
        for name, count in self.consoles.look():
            self.write("guest_up", now, name=name, count=count)
        for name, count in self.agents.look():
            self.write("agent_begins", now, name=name, count=count)

    def summary(self, final: bool) -> None:
        """Per VM the seconds in which it was on two hosts at once, by both ways of looking."""
        listed, processes = self.listed.doubled(), self.processes.doubled()
        vms: dict[str, dict[str, Any]] = {}
        for vm in sorted(listed.keys() | processes.keys()):
            vms[vm] = {
                "name": self.names.get(vm, "?"),
                "domains_s": round(listed.get(vm, 0.0), 3),
                "processes_s": round(processes.get(vm, 0.0), 3),
                "sightings": self.listed.sightings.get(vm, 0) + self.processes.sightings.get(vm, 0),
            }
        now = time.monotonic()
        worst = [max(each["domains_s"], each["processes_s"]) for each in vms.values()]
        self.write(
            "summary",
            now,
            final=final,
            elapsed_s=round(now - self.started, 3),
            cpu_s=round(time.process_time(), 3),
            double_s=round(sum(worst), 3),
            sightings=sum(each["sightings"] for each in vms.values()),
            vms=vms,
            hosts={host: rate.report() for host, rate in self.rates.items()},
            processes=self.scan_rate.report(),
        )

    def _signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGUSR1:
            self.summary_wanted = True
        else:
            self.stopping = True
        self.answers.put(None)

    def run(self) -> None:
        """Observe until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._signal)
        for sampler in self.samplers:
            sampler.start()
        due = time.monotonic()
        while not self.stopping:
            left = due - time.monotonic()
            if left <= 0:
                self.look()
                due = max(due + _PERIOD_S, time.monotonic())
                continue
            try:
                answer = self.answers.get(timeout=left)
            except queue.Empty:
                continue
            if answer is not None:
                self.take(answer)
            if self.summary_wanted:
                self.summary_wanted = False
                self.summary(final=False)
        self.look()
        self.summary(final=True)


def _before_others() -> None:
    """As root: an instrument that waits for a processor sees nothing. As a process and as a session (see burners.py)."""
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("-10")


def main() -> None:
    """Parse arguments and observe; with --pid-file in the background."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the lab's directory")
    parser.add_argument("--out", type=Path, required=True, help="file for the JSON lines")
    parser.add_argument("--host", action="append", default=[], metavar="NAME=URI")
    parser.add_argument("--console", type=Path, help="directory of the console logs (default: ROOT/console)")
    parser.add_argument("--pid-file", type=Path, help="go to the background and leave the pid here")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="errors, when in the background")
    arguments = parser.parse_args()
    hosts = dict(each.split("=", 1) for each in arguments.host)
    # A session URI would otherwise start a libvirtd of its own when the host is off.
    os.environ["LIBVIRT_AUTOSTART"] = "0"
    libvirt.registerErrorHandler(lambda *_: None, None)
    if arguments.pid_file is not None:
        procs.go_background(arguments.log, arguments.pid_file)
        _before_others()
    with open(arguments.out, "a") as out:
        Observer(hosts, arguments.root, arguments.console or arguments.root / "console", out).run()
    sys.stdout.flush()
    # The samplers may hang in a host that hangs: do not wait for them.
    os._exit(0)


if __name__ == "__main__":
    main()
