"""A management plane of three nodes over a lab: on each a NATS server and `rekindle up` with every service, so that there
are three replicas of each. A node, or a part of it, can be killed, stood still, or cut off from the others.

The nodes share this machine's network. Each reaches the two others, and the agents reach each, through relays.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infra.lab import procs
from infra.lab.bus import NODES, BusCluster
from infra.lab.plane import POOL, STOP_S, Plane
from infra.lab.relays import Relay, RelayThread
from libs.jetstream.server import free_port

AGENTS = -1
NOBODY = "127.0.0.1:1"
"""What a node says of where its peers reach it: on no other way than those that it was given."""
ROUTES, ROUTE, ADDRESS = (
    re.compile(one)
    for one in (r"routes: \[ .*? \]", r'"nats://127\.0\.0\.1:(\d+)"', r"(nats://[^,]*@)([^:,]+):(\d+)")
)


class NodesBus(BusCluster):
    """Three servers that reach each other through relays."""

    relays: dict[tuple[int, int], list[Relay]]
    """By who reaches whom; AGENTS for all agents."""
    _thread: RelayThread

    def _write(self) -> None:
        super()._write()
        texts = [(self.folder / f"{self.name(node)}.conf").read_text() for node in range(NODES)]
        routes = [int(port) for port in ROUTE.findall(texts[0])]
        pairs = [(a, b) for a in range(NODES) for b in range(NODES) if a != b]
        peers = {pair: Relay(free_port(), routes[pair[1]]) for pair in pairs}
        servers = ADDRESS.findall(self.url_file.read_text())
        clients = {
            (a, b): Relay(free_port(self.listen), int(servers[b][2]), self.listen, servers[b][1])
            for a in (AGENTS, *range(NODES))
            for b in range(NODES)
            if a != b
        }
        for node, text in enumerate(texts):
            ways = ", ".join(f'"nats://127.0.0.1:{way.port}"' for (a, _), way in peers.items() if a == node)
            config = ROUTES.sub(f'routes: [ {ways} ], advertise: "{NOBODY}"', text)
            self._secret(self.folder / f"{self.name(node)}.conf", config)
        for file in (self.url_file, self.system_url_file):
            urls = ADDRESS.findall(file.read_text())
            for viewer in (AGENTS, *range(NODES)):
                seen = [
                    f"{user}{self.listen}:{clients[viewer, node].port if viewer != node else port}"
                    for node, (user, _, port) in enumerate(urls)
                ]
                self._secret(self._of(file, viewer), ",".join(seen))
        self.relays = {pair: [clients[pair]] for pair in clients}
        for pair, relay in peers.items():
            self.relays[pair].append(relay)
        self._thread = RelayThread()
        self._thread.start([relay for some in self.relays.values() for relay in some])

    @staticmethod
    def _of(file: Path, viewer: int) -> Path:
        return file.with_name(f"{file.name}.{'agents' if viewer == AGENTS else viewer}")

    def settings_of(self, viewer: int) -> dict[str, Any]:
        """The section `bus` of who sees the servers from there."""
        return {
            "url_file": str(self._of(self.url_file, viewer)),
            "system_url_file": str(self._of(self.system_url_file, viewer)),
            "replicas": NODES,
        }

    def _between(self, node: int, *, routes_only: bool) -> Iterable[Relay]:
        for pair, relays in self.relays.items():
            if node in pair:
                yield from relays[1:] if routes_only else relays

    def cut(self, node: int, *, routes_only: bool) -> None:
        """Cut a server off from its peers, with those clients that it has; or the whole node from all others."""
        self._thread.cut(self._between(node, routes_only=routes_only))

    def mend(self) -> None:
        """All ways are there again."""
        self._thread.mend([relay for some in self.relays.values() for relay in some])

    def end_node(self, node: int) -> None:
        """SIGTERM, and wait for its end. Raises TimeoutError."""
        process = self._process(node)
        if process is not None:
            procs.send(process, signal.SIGTERM)
            procs.wait_for(lambda: not procs.alive(process), STOP_S, f"end of {self.name(node)}")

    def stop(self) -> None:
        for node in range(NODES):
            self.signal_node(node, signal.SIGCONT)
        super().stop()
        if hasattr(self, "_thread"):
            self._thread.stop()


@dataclass
class NodesPlane(Plane):
    """Three management nodes of one lab, and the agents on its hosts."""

    _ups: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @functools.cached_property
    def bus(self) -> NodesBus:
        """The servers, one a node."""
        return NodesBus(self.lab.root, self.lab.bus_address, POOL)

    def data_of(self, node: int) -> Path:
        return self.lab.root / f"node{node}"

    def config_of(self, node: int) -> Path:
        return self.lab.root / f"node{node}.yaml"

    def write(self) -> None:
        super().write()
        pool = yaml.safe_load(self.config.read_text())
        for node in (AGENTS, *range(NODES)):
            data = self.data if node == AGENTS else self.data_of(node)
            config = self.config if node == AGENTS else self.config_of(node)
            text = {**pool, "data_dir": str(data), "bus": self.bus.settings_of(node)}
            config.write_text(yaml.safe_dump(text, sort_keys=False))

    def start(self) -> None:
        """Start all nodes; their services write logs below the lab's root."""
        self.bus.start()
        for node in range(NODES):
            self.start_up(node)

    def start_up(self, node: int) -> None:
        """`rekindle up` on a node where it does not run."""
        if node in self._ups and self._ups[node].poll() is None:
            return
        command = [sys.executable, "-m", "services.cli", "up", "--config", str(self.config_of(node))]
        with (self.lab.root / "up.log").open("ab") as log:
            self._ups[node] = subprocess.Popen(
                [*command, "--log-dir", str(self.lab.root / f"logs{node}")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "REKINDLE_LAB": str(self.lab.root), "LIBVIRT_AUTOSTART": "0"},
            )

    def alive(self) -> bool:
        return any(up.poll() is None for up in self._ups.values())

    def pid_of(self, node: int, service: str) -> int | None:
        """Of one replica; None where it does not run at this moment."""
        try:
            pid = int((self.data_of(node) / "run" / f"{service}.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if procs.find(pid) is not None else None

    def signal_replica(self, node: int, service: str, number: signal.Signals) -> bool:
        """False where it does not run at this moment."""
        pid = self.pid_of(node, service)
        proc = None if pid is None else procs.find(pid)
        return proc is not None and procs.send(proc, number)

    def _all_of(self, node: int) -> list[procs.Proc]:
        up = procs.find(self._ups[node].pid)
        return [] if up is None else [up, *procs.descendants(up.pid)]

    def kill_up(self, node: int) -> None:
        """SIGKILL `rekindle up` on a node and all of its services, as one."""
        family = self._all_of(node)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for proc in family:
                procs.send(proc, number)
        self._ups[node].wait(10)

    def end_up(self, node: int) -> None:
        """Ctrl-C for `rekindle up` on a node, and wait for its end."""
        self._ups[node].send_signal(signal.SIGINT)
        self._ups[node].wait(STOP_S)

    def signal_up(self, node: int, number: signal.Signals) -> None:
        """To `rekindle up` on a node and all of its services."""
        for proc in self._all_of(node):
            procs.send(proc, number)

    def stop(self) -> int | None:
        for command in self._said:
            command.kill()
            command.wait()
        self._said.clear()
        for node in self._ups:
            self.signal_up(node, signal.SIGCONT)
            if self._ups[node].poll() is None:
                self._ups[node].send_signal(signal.SIGINT)
        for up in self._ups.values():
            try:
                up.wait(STOP_S)
            except subprocess.TimeoutExpired:
                up.kill()
                up.wait()
        return 0 if self._ups else None
