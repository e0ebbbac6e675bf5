"""An independent witness: who runs where, seen from outside, and for how long anything ran twice.

Shares no code with the services. `python -m infra.lab.observer --root LAB --out FILE --host h1=URI …` writes JSON
lines of changes until SIGTERM, then a summary; SIGUSR1 writes a summary of the time so far. The domain lists of all
hosts are the evidence; the QEMU processes are the cross-check, and stand in for a host that does not answer.
"""

import argparse
import json
import os
import queue
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import libvirt

from infra.lab import procs
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
        self.listed, self.processes = Ledger(), Ledger()
        self.rates = {host: Rate() for host in hosts}
        self.scan_rate = Rate()
        self.heard: dict[str, float] = {}
        self.active: dict[str, dict[str, str]] = {host: {} for host in hosts}
        self.ended: dict[str, set[str]] = {}
        """VMs whose process ended while their host's libvirt did not answer, and which it lists still."""
        self.begun: dict[str, set[str]] = {}
        """VMs whose process was there while their host's libvirt did not answer, and which it has not listed since."""
        self.names: dict[str, str] = {}
        self.qemus: list[Qemu] = []
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
        self.heard[answer.host] = answer.mono
        self.rates[answer.host].hit(answer.mono)
        self.listed.see(answer.host, answer.domains, answer.mono)
        self._set_active(answer.host, self._believed(answer.host, answer.domains), answer.mono, "domains")

    def _believed(self, host: str, domains: dict[str, str]) -> dict[str, str]:
        """Without those whose process was seen to end while this list was not to be had, and with those whose process
        lives: a list that comes late, or of a libvirt that answers again, is a moment older than that, and tells of no
        start and of no end. What ran twice is counted by the list as it is."""
        alive = {qemu.uuid for qemu in self.qemus if qemu.host == host}
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
        self.write("host", mono, host=host, reachable=False)
        return True

    def look(self) -> None:
        """Look at processes and consoles, and let processes speak for the hosts that do not answer."""
        now = time.monotonic()
        self.qemus = self.scan.look(now)
        self.scan_rate.hit(now)
        places = {*self.active, *(qemu.host for qemu in self.qemus)}
        for host in places:
            here = {qemu.uuid: qemu.name for qemu in self.qemus if qemu.host == host}
            self.names.update(here)
            self.processes.see(host, here, now)
            if host in self.heard and now - self.heard[host] > LATE_S:
                self._lost(host, now)
            if host not in self.heard:
                self._set_active(host, here, now, "processes")
        for name, count in self.consoles.look():
            self.write("guest_up", now, name=name, count=count)

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
    with open(arguments.out, "a") as out:
        Observer(hosts, arguments.root, arguments.console or arguments.root / "console", out).run()
    sys.stdout.flush()
    # The samplers may hang in a host that hangs: do not wait for them.
    os._exit(0)


if __name__ == "__main__":
    main()
