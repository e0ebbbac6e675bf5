"""Rekindle itself, put over a lab: pool file, agents on the hosts, `rekindle up` beside them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infra.lab import procs
from infra.lab.bus import BusCluster
from infra.lab.lab import FENCE_AGENT, Lab
from infra.systemd import arrivals
from infra.systemd.dropin import hook
from libs.config.settings import Settings, load_settings
from libs.scenario.pool import ScenarioHost, ScenarioVm
from libs.virt.definition import POLICY_NS

STOP_S = 20.0
SAID_S = 45.0
"""A person's command may wait for 20 s until its word is stored, and then for 10 s until it is taken up, before it says what is wrong."""
POOL = "lab"
PRELOAD = "infra.lab.preloaded"


def policy_metadata(vm: ScenarioVm) -> str:
    """The policy as it stands inside a domain's <metadata>."""
    return f'<rekindle:policy xmlns:rekindle="{POLICY_NS}" {_policy_attributes(vm)}/>'


def policy_element(vm: ScenarioVm) -> str:
    """The policy as `virsh metadata --set` takes it: libvirt puts it into its namespace."""
    return f"<policy {_policy_attributes(vm)}/>"


def _policy_attributes(vm: ScenarioVm) -> str:
    return " ".join(f'{key}="{value}"' for key, value in vm.policy.model_dump(mode="json").items())


def outlets_of(host: ScenarioHost) -> tuple[tuple[str, int], ...]:
    """The power devices of a host that have a name, with their levels."""
    return tuple((one.name, one.level) for one in host.fencing if one.method == "power" and one.name)


@dataclass
class Plane:
    """The management plane of one lab, and the agents on its hosts."""

    lab: Lab
    hosts: tuple[ScenarioHost, ...]
    overlay: dict[str, Any] = field(default_factory=dict)
    agents: bool = True
    bus_nodes: int = 1
    """1: the server that `rekindle up` embeds; 3: servers of the lab's own, see bus.py."""
    _up: subprocess.Popen[bytes] | None = None
    _said: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.lab.root / "pool.yaml"

    @functools.cached_property
    def bus(self) -> BusCluster:
        """The servers of the lab's own, where it has them."""
        return BusCluster(self.lab.root, self.lab.bus_address, POOL)

    @property
    def data(self) -> Path:
        return self.lab.root / "data"

    def settings(self) -> Settings:
        return load_settings(self.config)

    def write(self) -> None:
        """Write the pool file and say to each host which agent it runs."""
        pool: dict[str, Any] = {
            "pool": POOL,
            "data_dir": str(self.data),
            "bus": {"listen": self.lab.bus_address} if self.bus_nodes == 1 else self.bus.settings,
            "hosts": [self._entry(host) for host in self.hosts],
            "datastores": self._datastores(),
            "placement": {"failures_to_tolerate": 0},  # as in the simulator: a scenario may ask for it
            **self.overlay,
        }
        self.config.write_text(yaml.safe_dump(pool, sort_keys=False))
        for host in self.hosts:
            if self.agents and host.agent:
                gate = self._command("gate", host.name) if host.gate else None
                self.lab.set_agent(host.name, self._agent(host.name), preload=PRELOAD, gate=gate)
                self._write_hook(host.name)

    def _write_hook(self, host: str) -> None:
        """As infra/systemd/install.sh does. A libvirtd that runs already looks for hooks no more."""
        text = hook(self.settings(), host, Path(arrivals.__file__), Path(sys.executable))
        path = self.lab.host(host).arrivals_hook
        if text and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)

    def _datastores(self) -> list[dict[str, Any]]:
        """Those that the lab was asked for; else the directory that all its hosts share."""
        stores = [
            {
                "name": one.name,
                "path": str(self.lab.store_path(one.name)),
                "hosts": one.hosts and list(one.hosts),
            }
            for one in self.lab.spec.datastores
        ]
        return stores or [{"name": "shared", "path": str(self.lab.shared)}]

    def _entry(self, host: ScenarioHost) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "name": host.name,
            "uri": self.lab.line_uri(host.name),
            "agent": self.agents and host.agent,
            "standby": host.standby,
            "local_uri": self.lab.uri(host.name),
            "boot_id_path": str(self.lab.host(host.name).boot_id),
            "qemu_conf": str(self.lab.host(host.name).etc / "qemu.conf"),
            "autostart": str(self.lab.host(host.name).autostart),
            "resume_list": str(self.lab.host(host.name).lib / "libvirt-guests"),
            **self._asking(host.name),
            "memory_mib": host.memory_mib,
            "memory_reserved_mib": host.memory_reserved_mib,
            "cpus": host.cpus,
            "labels": host.labels,
            "probe": self.lab.probe_address(host.name),
            "migrate_uri": f"tcp://{self.lab.probe_address(host.name).rpartition(':')[0]}",
            "migrate_unsafe": True,  # all hosts share this machine's directories, which no libvirtd can know
        }
        entry["fencing"] = [
            {
                "agent": str(FENCE_AGENT),
                "name": fencing.name,
                "level": fencing.level,
                "options": {"socket": str(self._socket(host.name, fencing.name))},
            }
            for fencing in host.fencing
            if fencing.method == "power"
        ]
        if host.watchdog is not None and self.agents:
            device = self.lab.host(host.name).watchdog_socket
            entry["watchdog"] = {"device": str(device), **host.watchdog}
        return entry

    def _asking(self, host: str) -> dict[str, Any]:
        paths = self.lab.host(host)
        if not self.lab.spec.privileged:
            return {"arrivals": None}
        return {"arrivals": str(paths.arrivals_socket), "arrivals_hook": str(paths.arrivals_hook)}

    def _socket(self, host: str, outlet: str | None) -> Path:
        return self.lab.power_socket(host) if outlet is None else self.lab.host(host).outlet_socket(outlet)

    def _agent(self, host: str) -> list[str]:
        return self._command("service heartbeat", host)

    def _command(self, words: str, host: str) -> list[str]:
        command = [sys.executable, "-m", "services.cli", *words.split()]
        return [*command, "--config", str(self.config), "--host", host]

    def start(self) -> None:
        """Start the bus, where it is the lab's own, and `rekindle up`; its services write logs below the lab's root."""
        if self.bus_nodes > 1:
            self.bus.start()
        command = [sys.executable, "-m", "services.cli", "up", "--config", str(self.config)]
        log = (self.lab.root / "up.log").open("ab")
        with log:
            self._up = subprocess.Popen(
                [*command, "--log-dir", str(self.lab.root / "logs")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "REKINDLE_LAB": str(self.lab.root), "LIBVIRT_AUTOSTART": "0"},
            )

        (self.lab.root / "up.pid").write_text(str(self._up.pid))

    def stop_left_over(self) -> None:
        """Stop a plane that another process started. `Lab.down` ends whatever it leaves: all carries the
        lab's mark in its environment."""
        path = self.lab.root / "up.pid"
        if path.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGINT)
            path.unlink()

    def start_agents(self) -> None:
        """Start the agent on every host that is on."""
        for host in self.hosts:
            if self.agents and host.agent and self.lab.power_state(host.name) == "on":
                self.lab.start_agent(host.name)

    def refused(self) -> list[str]:
        """What the embedded server refused its users, line by line: a right that a service lacks. Nothing where the lab has
        servers of its own."""
        log = self.data / "nats" / "nats.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return [line for line in lines if "Violation" in line]

    def alive(self) -> bool:
        """True while `rekindle up` runs."""
        return self._up is not None and self._up.poll() is None

    def tail(self) -> str:
        """The end of what `rekindle up` wrote, for a message."""
        path = self.lab.root / "up.log"
        return path.read_text()[-800:] if path.exists() else ""

    def service_pid(self, service: str) -> int:
        """The process of one service. Raises FileNotFoundError where it does not run."""
        return int((self.data / "run" / f"{service}.pid").read_text())

    def kill_service(self, service: str) -> None:
        """SIGKILL one service; its supervisor starts it again."""
        os.kill(self.service_pid(service), signal.SIGKILL)

    def say(self, *words: str) -> bool:
        """An operator's command, as a person would type it. False when the answer is no."""
        command = [sys.executable, "-m", "services.cli", *words, "--config", str(self.config)]
        with (self.lab.root / "operator.log").open("ab") as log:
            return (
                subprocess.run(command, stdout=log, stderr=log, check=False, timeout=SAID_S).returncode == 0
            )

    def say_meanwhile(self, *words: str) -> None:
        """A command that takes long: the play goes on. Ended with the plane at the latest."""
        command = [sys.executable, "-m", "services.cli", *words, "--config", str(self.config)]
        with (self.lab.root / "operator.log").open("ab") as log:
            # with the lab's mark: what is left of it in the end is swept with the lab
            env = {**os.environ, "REKINDLE_LAB": str(self.lab.root)}
            self._said.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
            )

    def release_storm(self) -> bool:
        """`rekindle storm release`, by a person who reads how many hosts are silent and says so. False: no."""
        command = [sys.executable, "-m", "services.cli", "status", "--json", "--config", str(self.config)]
        found = subprocess.run(command, capture_output=True, check=False, timeout=STOP_S, text=True)
        storm = json.loads(found.stdout or "{}").get("storm") or {}
        return self.say("storm", "release", "--yes-i-checked", str(len(storm.get("suspects", ()))))

    def add_host(self, host: ScenarioHost) -> None:
        """A person adds a host to the pool file, switches it on and starts the plane anew."""
        self.hosts = (*self.hosts, host)
        self.write()
        self.lab.power_on(host.name)
        self.stop()
        self.start()

    def pause_service(self, service: str) -> None:
        """SIGSTOP one service: it stands still, and nobody starts another."""
        os.kill(self.service_pid(service), signal.SIGSTOP)

    def resume_service(self, service: str) -> None:
        """Let a service that was paused go on."""
        os.kill(self.service_pid(service), signal.SIGCONT)

    def kill_bus(self) -> None:
        """SIGKILL the embedded NATS server; its supervisor starts it again."""
        up = int((self.lab.root / "up.pid").read_text())
        for child in procs.descendants(up):
            if Path((procs.cmdline(child.pid) or [""])[0]).name == "nats-server":
                procs.kill(child)

    def stop(self) -> int | None:
        """Ctrl-C for the plane. Returns its exit status, None where it did not run."""
        for command in self._said:
            command.kill()
            command.wait()
        self._said.clear()
        if self._up is None:
            return None
        if self._up.poll() is None:
            self._up.send_signal(signal.SIGINT)
        try:
            return self._up.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._up.kill()
            return self._up.wait()
