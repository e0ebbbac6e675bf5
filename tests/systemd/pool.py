"""A pool of two such hosts, and its management plane beside them: `rekindle up` on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.compose.engine import copy_of_the_repository
from tests.systemd.machine import TRUSTED, Machine, until

COMMAND = str(Path(sys.executable).parent / "rekindle")
SHARED, SOURCE = "/srv/shared", "/root/rekindle"
"""On a host: the storage that all hosts share, and the copy of the repository from which it is installed."""
LINE = "[Socket]\nListenStream={shared}/{name}.sock\n"
HOST = """\
  - name: {name}
    uri: "qemu+unix:///system?socket={shared}/{name}.sock"
    peer_uri: "qemu+unix:///system?socket=/srv/shared/{name}.sock"
    agent: true
    boot_id_path: /etc/boot_id
    memory_mib: 2048
    cpus: 4
    migrate_uri: tcp://127.0.0.1
    migrate_unsafe: true
"""
DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <metadata><p:policy xmlns:p="urn:rekindle:policy:1" protection="{protection}"/></metadata>
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><memballoon model='none'/></devices>
</domain>
"""
"""Without a disk or an operating system: what matters is that QEMU runs it."""
INSTALL_S = 400.0


def uuid_of(name: str) -> str:
    return f"11111111-1111-4111-8111-{name.encode().hex():0>12}"


@dataclass(slots=True)
class Pool:
    place: Path
    names: tuple[str, ...] = ("k1", "k2")
    datastores: str = "  - {name: shared, path: /srv/shared}\n"
    more: dict[str, str] = field(default_factory=dict)
    """Lines of a host's entry that it has besides."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.place / "source/pool.yaml"

    @property
    def shared(self) -> Path:
        return self.place / "shared"

    def lay_out(self) -> None:
        """What the hosts are given: the repository, in it the pool file, and a directory that they share."""
        self.shared.mkdir(parents=True)
        self.shared.chmod(0o755)
        copy_of_the_repository(self.place / "source")
        self.write()

    def write(self) -> None:
        hosts = "".join(
            HOST.format(name=name, shared=self.shared) + self.more.get(name, "") for name in self.names
        )
        placement = "placement: {failures_to_tolerate: 0}\n"
        self.config.write_text(f"pool: rack-a\ndatastores:\n{self.datastores}{placement}hosts:\n{hosts}")

    def machine(self, name: str, base: Path) -> Machine:
        """A host whose libvirt the plane reaches by a socket on what they share, and nobody else from outside."""
        host = Machine(name, base, self.place / name, {self.shared: SHARED, self.place / "source": SOURCE})
        host.put("/etc/systemd/system/libvirtd.socket.d/shared.conf", LINE.format(shared=SHARED, name=name))
        return host

    def start(self) -> None:
        """`rekindle up`, until it answers; and for each host what its agent needs of the bus."""
        words = ["setpriv", "--pdeathsig", "TERM", COMMAND, "up", "-c", str(self.config)]
        with (self.place / "up.log").open("wb") as log:
            self.process = subprocess.Popen(words, env=self._environment, stdout=log, stderr=log)
        until(lambda: self._command("hosts").returncode == 0, 60, "the plane answers")
        for name in self.names:
            self.do("bus", "hand-out", name, "--to", str(self.place / f"source/for-{name}"))

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def log(self) -> str:
        return (self.place / "up.log").read_text()[-3000:]

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "REKINDLE_DATA_DIR": str(self.place / "data")}

    def _command(self, *words: str) -> subprocess.CompletedProcess[str]:
        # the first words are the command, and options of ours come after them
        return subprocess.run(
            [COMMAND, *words, "-c", str(self.config)],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def do(self, *words: str) -> str:
        done = self._command(*words)
        assert done.returncode == 0, f"rekindle {' '.join(words)}: {done.stderr}\n{self.log()}"
        return done.stdout

    def host(self, name: str) -> dict[str, Any]:
        rows = json.loads(self.do("hosts", "--json"))["hosts"]
        return dict(next(row for row in rows if row["host"] == name))

    def vm(self, name: str) -> dict[str, Any]:
        """What is known of a VM; {} where nobody knows it."""
        rows = json.loads(self.do("vms", "--json"))["vms"]
        return dict(next((row for row in rows if row["vm"] == name), {}))

    def facts(self, after: int = 0) -> list[dict[str, Any]]:
        lines = self.do("events", "--json", "--after", str(after)).splitlines()
        return [json.loads(line) for line in lines]

    def last(self) -> int:
        """The number of the latest fact."""
        return max((fact["sequence"] for fact in self.facts()), default=0)


def install(host: Machine, *words: str) -> str:
    """As docs/DEPLOYING.md says; what both streams said."""
    trusted = "export PIP_CERT=/usr/local/share/ca.pem; " if TRUSTED.exists() else ""
    command = " ".join(("infra/systemd/install.sh", *words))
    return host.sh(f"cd {SOURCE}; {trusted}{command} 2>&1", timeout=INSTALL_S)


def define(
    host: Machine, name: str, *, protection: str = "restart", autostart: bool = False, start: bool = True
) -> None:
    """A VM that is there from now on."""
    text = DOMAIN.format(name=name, uuid=uuid_of(name), protection=protection)
    host.do("virsh", "define", "/dev/stdin", text=text)
    if autostart:
        host.do("virsh", "autostart", name)
    if start:
        host.do("virsh", "start", name)


def running(host: Machine) -> set[str]:
    """By libvirt's own word."""
    return set(host.do("virsh", "list", "--name").split())


def began(host: Machine, name: str) -> int:
    """How often QEMU was started for a VM on this host, by libvirt's log, which a boot does not empty."""
    log = host.place / f"upper/var/log/libvirt/qemu/{name}.log"
    return log.read_text().count(": starting up libvirt version") if log.exists() else 0


def thrown_away(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
