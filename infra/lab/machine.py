"""One host as its power device sees it: power it on, cut its power, and find its processes. Standard library only."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.lab import cuts, libvirtconf, namespaces, network, procs, stores, weather
from infra.lab.midwife import Midwife
from infra.lab.needs import program
from infra.lab.spec import LabError, LabSpec

_START_TIMEOUT_S = 30.0
_GONE_TIMEOUT_S = 10.0


class Machine:
    """The host behind one power device. Methods that change it hold a lock; `power` is read without."""

    def __init__(self, spec: LabSpec, name: str, midwife: Midwife) -> None:
        self.spec = spec
        self._midwife = midwife
        self._booted = False
        self.host = spec.host(name)
        self.power = "off"
        self._lock = threading.RLock()
        self._init: procs.Proc | None = None
        self._channel: socket.socket | None = None
        self._answers = b""
        self.cuts = self._cuts = cuts.NONE
        """What is to be cut off, and what is in the present boot."""
        self.weather = weather.FAIR
        self.stalls = stores.Stalls(spec, name)
        self.on_end: Callable[[], None] = lambda: None
        """Called before the host's processes are ended, all at once."""

    # -- power ------------------------------------------------------------------------------------------------

    def on(self) -> bool:
        """Power on; returns once libvirtd listens and the agent, if one is set, was started.

        False when power was on already. Raises LabError, OSError or TimeoutError, and the host is off again.
        """
        with self._lock:
            if self.power == "on":
                return False
            self.power = "on"
            try:
                self._start()
            except BaseException:
                self.off()
                raise
            return True

    def _start(self) -> None:
        shutil.rmtree(self.host.run, ignore_errors=True)
        libvirtconf.write(self.spec, self.host)
        written = self.host.boot_id.with_suffix(".new")
        written.write_text(f"{uuid.uuid4()}\n")
        written.replace(self.host.boot_id)  # whoever reads it meanwhile finds one boot or the other
        ours, theirs = socket.socketpair()
        ours.settimeout(_START_TIMEOUT_S)
        self._channel, self._answers = ours, b""
        with theirs:
            status = self._midwife.launch([str(self.spec.root), self.host.host], theirs.fileno())
        first = self._answer()
        self._init = procs.find(int(first["init_pid"]))
        if status != 0 or self._init is None:
            raise LabError(f"{self.host.host}: its first process did not start, see {self.host.power_log}")
        procs.write_pid_file(self.host.init_pid, self._init)
        self._plug_network(self._init.pid)
        if self.spec.datastores:
            self._ask("mount")
            self.stalls.hold(self.processes())
        self._ask("boot")
        procs.wait_for(self._libvirtd_listens, _START_TIMEOUT_S, f"libvirtd of {self.host.host}", 0.005)
        if self.host.agent_config.exists():
            self._ask("start_agent" if self._booted else "start_agent_with_the_lab")
        self._booted = True

    def _libvirtd_listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.host.socket))
            except OSError:
                if self._init is None or not procs.alive(self._init):
                    raise LabError(
                        f"{self.host.host} died while starting, see {self.host.power_log}"
                    ) from None
                return False
        return True

    def reboot(self) -> bool:
        """Boot anew without a clean shutdown; the power reads on all the while. False when it is off."""
        with self._lock:
            if self.power == "off":
                return False
            self._kill_all()
            try:
                self._start()
            except BaseException:
                self.off()
                raise
            return True

    def off(self) -> bool:
        """Cut the power: cable first, then every process of the host is killed at once; returns when all are gone.

        False when power was off already. Raises TimeoutError when a process survives; power then still reads on.
        """
        with self._lock:
            if self.power == "off":
                return False
            self._kill_all()
            self.power = "off"
            return True

    def _pull_cable(self) -> None:
        """What has no power sends no FIN and no RST; the kernel would send them for each process that it ends."""
        if self.spec.network is not None:
            network.pull(self.spec.network.port(self.host.host))
            if self._init is not None and procs.alive(self._init):
                namespaces.abandon_connections(self._init.pid)

    def _kill_all(self) -> None:
        self.on_end()
        self._pull_cable()
        if self._init is not None:
            if self.spec.privileged:
                # The first process of a PID namespace takes all others with it, and ends only after they have.
                procs.send(self._init, signal.SIGKILL)
            else:
                procs.kill_tree(self._init, _GONE_TIMEOUT_S)
            init = self._init
            procs.wait_for(lambda: not procs.alive(init), _GONE_TIMEOUT_S, f"end of {self.host.host}", 0.001)
            self._init = None
            self.host.init_pid.unlink(missing_ok=True)
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._reap()
        self._unplug_network()

    def _reap(self) -> None:
        """Collect all that a dead host left to us as the nearest subreaper: only then are its last threads gone."""

        def none_left() -> bool:
            while True:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    return procs.children(os.getpid()) == [self._midwife.pid]

        procs.wait_for(none_left, _GONE_TIMEOUT_S, f"end of the processes of {self.host.host}", 0.001)

    # -- network ----------------------------------------------------------------------------------------------

    def _ip(self, batch: str) -> None:
        argv = [program("ip"), "-batch", "-"]
        done = subprocess.run(argv, input=batch, text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise LabError(f"ip {batch.strip()!r}: {done.stderr.strip()}")

    def _plug_network(self, pid: int) -> None:
        network = self.spec.network
        if network is not None:
            port = network.port(self.host.host)
            mac = network.mac(network.addresses[self.host.host])
            self._ip(
                f"link add {port} type veth peer name eth0 address {mac} netns {pid}\n"
                f"link set {port} master {network.bridge}\nlink set {port} up\n"
            )
            self._cuts = cuts.NONE
            cuts.apply(pid, self.spec.device(self.host.host), cuts.NONE, self.cuts)
            self._cuts = self.cuts
            weather.apply(self.spec, self.host.host, pid, weather.FAIR, self.weather)

    def cut(self, wanted: cuts.Cuts) -> None:
        """From now on, over every boot, the host does not hear or reach these addresses, and all others."""
        with self._lock:
            self.cuts = wanted
            if self._init is not None:
                cuts.apply(self._init.pid, self.spec.device(self.host.host), self._cuts, wanted)
                self._cuts = wanted

    def change_weather(self, wanted: weather.Weather) -> None:
        """From now on, over every boot, the host's link is like this."""
        with self._lock:
            pid = self._init.pid if self._init is not None else None
            weather.apply(self.spec, self.host.host, pid, self.weather, wanted)
            self.weather = wanted

    def _unplug_network(self) -> None:
        """The cable goes with the host's namespace, but lazily: take it away now, or the next start finds it."""
        if self.spec.network is None:
            return
        port = self.spec.network.port(self.host.host)
        if Path(f"/sys/class/net/{port}").exists():
            # It may vanish by itself between the look and the command: only its absence counts.
            subprocess.run([program("ip"), "link", "del", port], capture_output=True, check=False)
            gone = Path(f"/sys/class/net/{port}")
            procs.wait_for(lambda: not gone.exists(), _GONE_TIMEOUT_S, f"end of network port {port}", 0.002)

    # -- what runs on it --------------------------------------------------------------------------------------

    def _answer(self) -> dict[str, Any]:
        """The next answer of the host's first process. Raises LabError when it refuses or is gone."""
        if self._channel is None:
            raise LabError(f"{self.host.host} is off")
        while b"\n" not in self._answers:
            data = self._channel.recv(65536)
            if not data:
                raise LabError(f"{self.host.host}: its first process ended, see {self.host.power_log}")
            self._answers += data
        line, self._answers = self._answers.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise LabError(f"{self.host.host}: {answer['error']}")
        return answer

    def _ask(self, what: str) -> None:
        if self._channel is None:
            raise LabError(f"{self.host.host} is off")
        self._channel.sendall(json.dumps({"do": what}).encode() + b"\n")
        self._answer()

    def start_agent(self) -> None:
        """Start the agent unless it runs. Raises LabError when the host is off or the agent cannot be started."""
        with self._lock:
            self._ask("start_agent")

    def kill_agent(self) -> None:
        """SIGKILL the agent and its process group. Raises LabError when the host is off."""
        with self._lock:
            self._ask("kill_agent")

    def processes(self) -> list[procs.Proc]:
        """All live processes of the host as the machine numbers them."""
        if self._init is None or not procs.alive(self._init):
            return []
        return [self._init, *procs.descendants(self._init.pid)]

    def kill_vm(self, vm_uuid: str) -> int:
        """SIGKILL the QEMU of a VM and wait for its end; returns its pid. Raises LabError when it is not here."""
        for proc in self.processes():
            arguments = procs.cmdline(proc.pid)
            if procs.is_qemu_of(arguments, self.spec.root) and vm_uuid in arguments:
                procs.kill(proc, _GONE_TIMEOUT_S)
                return proc.pid
        raise LabError(f"no QEMU with uuid {vm_uuid} on {self.host.host}")

    def crash(self, how: str) -> None:
        """The host stops working with its power still on: `kill` ends all its processes, `stop` freezes them,
        `hang` freezes all but its guests."""
        with self._lock:
            if self._init is None:
                raise LabError(f"{self.host.host} is off")
            if how == "kill":
                self._kill_all()
            elif how == "stop":
                self._freeze(guests=True)
            elif how == "hang":
                self._freeze(guests=False)
            else:
                raise LabError(f"crash how={how!r}: kill, stop or hang")

    def _freeze(self, *, guests: bool) -> None:
        seen: set[procs.Proc] = set()
        while fresh := set(self.processes()) - seen:
            for proc in fresh:
                if guests or not procs.is_qemu_of(procs.cmdline(proc.pid), self.spec.root):
                    procs.send(proc, signal.SIGSTOP)
            seen |= fresh

    def thaw(self) -> None:
        """Let a host that was frozen by `crash` go on, but not what its datastores' stalls hold."""
        with self._lock:
            processes = self.processes()
            held = self.stalls.stopped(processes)
            for proc in processes:
                if proc not in held:
                    procs.send(proc, signal.SIGCONT)

    def stall(self, datastore: str, stalled: bool) -> None:
        """From now on, over every boot, the host's I/O on a datastore hangs, or no more. Raises LabError."""
        with self._lock:
            self.stalls.change(datastore, stalled, self.processes())
