"""First process of a host: starts libvirtd and the agent, reaps orphans. When it is killed the host is gone.

powerd has it begin with a socket, on which it sends one JSON request a line (mount, boot, start_agent, kill_agent) and
gets one JSON answer a line.
"""

import contextlib
import functools
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.lab import line, namespaces, procs, stores
from infra.lab.midwife import close_all_but, leave
from infra.lab.needs import lock_daemon, program
from infra.lab.spec import BRIDGE, CABLE, LabNetwork, LabSpec, load

AGENT_AGAIN_S = 0.5
_AGENT_ENDS_S = 5.0
_LOCKD_S = 10.0
_GATE_S = 25.0
"""More than it takes to give up; less than powerd waits for a host to start."""
FORKED_AGENT = "lab-agent"
"""How `ps -o comm` shows an agent that is a fork: its arguments are those of the power device."""


@dataclass(slots=True)
class Forked:
    """A child that is a fork of us; as much of Popen as is used here."""

    pid: int
    returncode: int | None = None


class Init:
    """The host's processes and what powerd may ask about them."""

    def __init__(self, spec: LabSpec, host_name: str) -> None:
        self.spec = spec
        self.host = spec.host(host_name)
        self.children: dict[str, subprocess.Popen[bytes] | Forked] = {}
        self.agent_due: float | None = None
        """When an agent that ended by itself is started again, as a service manager would."""

    def _spawn(self, role: str, argv: list[str], env: dict[str, str], log: Path) -> None:
        with open(log, "ab") as output:
            self.children[role] = subprocess.Popen(
                argv,
                env={**os.environ, **env},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _fork(self, role: str, argv: list[str], env: dict[str, str], log: Path) -> None:
        """As _spawn, for `python -m MODULE …` whose imports are made already."""
        pid = os.fork()
        if pid == 0:
            leave(lambda: _become(argv[2:], {**os.environ, **env}, log))
        self.children[role] = Forked(pid)

    def boot(self) -> None:
        """Bring the host's network up and start libvirtd."""
        if self.spec.network is not None:
            self._raise_network(self.spec.network)
            line.start(self.spec, self.host)
        self._pass_gate()
        env = self.host.lock_env(self.spec.lock_manager)
        if self.spec.lock_manager:
            self._start_locks(env)
        argv = [program("libvirtd"), "--config", str(self.host.etc / "libvirtd.conf")]
        argv += ["--pid-file", str(self.host.run / "libvirtd.pid")]
        self._spawn("libvirtd", argv, env, self.host.libvirtd_log)

    def _raise_network(self, network: LabNetwork) -> None:
        own, device = network.addresses[self.host.host], self.spec.device(self.host.host)
        batch = f"link set lo up\naddr add {own}/{network.prefix} dev {device}\nlink set {CABLE} up\n"
        if device == BRIDGE:
            made = f"link add {BRIDGE} address {network.mac(own)} type bridge\nlink set {CABLE} master {BRIDGE}\n"
            batch = f"{made}{batch}link set {BRIDGE} up\n"
        # As one batch: each further process would cost a power-on some milliseconds.
        subprocess.run([program("ip"), "-batch", "-"], input=batch.encode(), check=True)

    def _pass_gate(self) -> None:
        """What rekindle-gate.service does on a real host, where there is anything to hold back: it costs a second of CPU.
        As there, libvirtd starts whatever becomes of it."""
        if not self.host.autostart.is_dir() or not any(self.host.autostart.iterdir()):
            return
        try:
            config = json.loads(self.host.agent_config.read_text())
        except FileNotFoundError:
            return
        if not config.get("gate"):
            return
        with open(self.host.agent_log, "ab") as output, contextlib.suppress(subprocess.TimeoutExpired):
            env = {**os.environ, **config["env"]}
            subprocess.run(
                config["gate"],
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
                timeout=_GATE_S,
            )

    def _start_locks(self, env: dict[str, str]) -> None:
        """virtlockd or sanlock, which a libvirtd does not start by itself. Raises TimeoutError."""
        argv = [lock_daemon(self.spec.lock_manager)]
        if self.spec.lock_manager == "sanlock":
            # without watchdog, real-time priority and locked memory; a name of its own, by which it takes its number back
            argv += ["daemon", "-D", "-w", "0", "-h", "0", "-l", "0", "-e", self.host.host]
            log, socket_of_it = self.host.dir / "log" / "sanlock.log", self.host.sanlock_run / "sanlock.sock"
            self.host.sanlock_run.mkdir()
        else:
            argv += ["--config", str(self.host.etc / "virtlockd.conf")]
            argv += ["--pid-file", str(self.host.run / "virtlockd.pid")]
            log, socket_of_it = self.host.libvirtd_log, self.host.lockd_socket
        self._spawn("locks", argv, env, log)
        procs.wait_for(socket_of_it.exists, _LOCKD_S, f"{argv[0]} of {self.host.host}", 0.005)

    def mount(self) -> None:
        """Have the host's datastores."""
        stores.mount(self.spec, self.host.host)

    def start_agent(self, *, with_the_lab: bool = False) -> None:
        """Start the agent, unless it runs. Its argv and env are read anew each time. `with_the_lab`: nobody waits for it
        yet, so it may be a fork where its imports are made; any later one takes as long as a real one."""
        self.agent_due = None
        if "agent" in self.children:
            return
        config = json.loads(self.host.agent_config.read_text())
        own = {
            "REKINDLE_HOST": self.host.host,
            "REKINDLE_LIBVIRT_URI": self.host.uri,
            "REKINDLE_BOOT_ID_FILE": str(self.host.boot_id),
        }
        begin = self._fork if with_the_lab and config["preload"] in sys.modules else self._spawn
        begin("agent", config["argv"], {**own, **config["env"]}, self.host.agent_log)

    def kill_agent(self) -> None:
        """Kill the agent's process group at once and wait until all of it is gone; it stays so. Raises TimeoutError
        when it hangs in the kernel, as what waits for a datastore that stalls may."""
        agent = self.children.get("agent")
        self.agent_due = None
        if agent is None:
            return
        os.killpg(agent.pid, signal.SIGKILL)

        def gone() -> bool:
            # who outlives the agent for a moment is ours from then on, until it is collected
            with contextlib.suppress(ChildProcessError):
                while True:
                    pid, status = os.waitpid(-agent.pid, os.WNOHANG)
                    if pid == 0:
                        return False
                    self._ended(pid, status)
            return True

        procs.wait_for(gone, _AGENT_ENDS_S, "end of the agent", 0.002)
        self.agent_due = None

    def reap(self) -> None:
        """Collect every child that has ended, our own and adopted ones."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended(pid, status)

    def _ended(self, pid: int, status: int) -> None:
        for role, child in list(self.children.items()):
            if child.pid == pid:
                child.returncode = os.waitstatus_to_exitcode(status)
                del self.children[role]
                if role == "agent":
                    self.agent_due = time.monotonic() + AGENT_AGAIN_S

    def wait_s(self) -> float | None:
        """For how long nothing is to be done of itself; None: for ever."""
        return None if self.agent_due is None else max(0.0, self.agent_due - time.monotonic())

    def keep(self) -> None:
        """Start what is due."""
        if self.agent_due is not None and time.monotonic() >= self.agent_due:
            self.start_agent()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request. What went wrong is told in the answer: the host lives on."""
        actions: dict[str, Callable[[], None]] = {
            "mount": self.mount,
            "boot": self.boot,
            "start_agent": self.start_agent,
            "start_agent_with_the_lab": functools.partial(self.start_agent, with_the_lab=True),
            "kill_agent": self.kill_agent,
        }
        try:
            actions[request["do"]]()
        except (OSError, KeyError, ValueError, subprocess.CalledProcessError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}
        return {"ok": True, "children": {role: child.pid for role, child in self.children.items()}}


def _serve(init: Init, channel: socket.socket) -> None:
    """Answer powerd and reap until killed. If powerd dies the host lives on, as a real one would."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    buffered = b""
    sources: list[Any] = [wake_read, channel]
    while True:
        ready, _, _ = select.select(sources, [], [], init.wait_s())
        init.keep()
        if wake_read in ready:
            os.read(wake_read, 4096)
            init.reap()
        if channel in ready:
            data = channel.recv(65536)
            if not data:
                sources.remove(channel)
                continue
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                channel.sendall(json.dumps(init.answer(json.loads(line))).encode() + b"\n")


def _become(words: list[str], env: dict[str, str], log: Path) -> None:
    """This child is the agent from now on: `MODULE …` as `python -m` would run it."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    namespaces.name_process(FORKED_AGENT)
    with open(os.devnull, "rb") as nothing, open(log, "ab") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    close_all_but()
    os.chdir("/")
    os.environ.clear()
    os.environ.update(env)
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def begin(arguments: list[str], descriptor: int) -> None:
    """Enter the host's namespaces, fork its first process, tell powerd its pid, and leave it alone."""
    root, host_name = arguments
    channel = socket.socket(fileno=descriptor)
    spec = load(Path(root))
    if spec.privileged:
        namespaces.unshare(namespaces.namespaces_of(spec))
    child = os.fork()
    if child:
        channel.sendall(json.dumps({"ok": True, "init_pid": child}).encode() + b"\n")
        return
    os.setsid()
    if spec.privileged:
        namespaces.furnish(spec, host_name)
    else:
        namespaces.become_subreaper()
    _serve(Init(spec, host_name), channel)
