"""What a container runs that is a host of the demo: libvirtd, the agent, and at the very first start its VMs.

`python -m infra.docker.demo.host NAME VM…`, below Docker's own init, which waits for orphans. When the container is
killed the kernel ends everything in it: a power cut.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from infra.lab import bareguest
from infra.lab.guest import Guest
from infra.lab.vm import LabVm, VmGround, domain_xml

SHARED = Path("/srv/shared")
BOOT_ID = Path("/run/rekindle/boot_id")
AGAIN_S = 0.5
LIBVIRT_S, CALL_S = 60.0, 20.0
LOOK_S = 0.2
DISK_BYTES = 1 << 20
NAMESPACE = uuid.UUID("5c0f3a56-4f1c-4f6e-9b3e-7b8d2f0f6a01")
ETC = Path("/etc/libvirt")

LIBVIRTD = """\
host_uuid = "{host_uuid}"
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
auth_unix_rw = "none"
max_clients = 200
max_workers = 20
log_outputs = "3:stderr"
"""
"""Whoever is on the demo's network may command it, as the hosts and the services must. Never do that elsewhere."""

QEMU = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
"""No process of a guest may outlive the container, and a container has no control groups of its own to give away."""


def furnish(name: str) -> None:
    """Write libvirt's files and the name of this boot, and clear away what the one before left behind."""
    ETC.mkdir(parents=True, exist_ok=True)
    (ETC / "libvirtd.conf").write_text(LIBVIRTD.format(host_uuid=uuid.uuid5(NAMESPACE, name)))
    (ETC / "qemu.conf").write_text(QEMU)
    for left in (*Path("/run").glob("libvirtd.pid"), *Path("/run/libvirt").rglob("*")):
        if not left.is_dir():
            left.unlink(missing_ok=True)  # a real machine's /run is empty after a power cut
    BOOT_ID.parent.mkdir(parents=True, exist_ok=True)
    BOOT_ID.write_text(f"{uuid.uuid4()}\n")


def virsh(*words: str, said: str | None = None) -> bool:
    """One command. False where it fails; its reason goes to the container's log."""
    command = ["virsh", "--connect", "qemu:///system", "--quiet", *words]
    quiet = subprocess.DEVNULL
    try:
        return (
            subprocess.run(
                command, input=said, text=True, stdout=quiet, check=False, timeout=CALL_S
            ).returncode
            == 0
        )
    except subprocess.TimeoutExpired:
        return False


def make_vms(names: list[str]) -> None:
    """Once in the life of the pool: afterwards Rekindle says where they run."""
    for folder in (SHARED / "made", SHARED / "console"):
        folder.mkdir(exist_ok=True)
    kernel = SHARED / "guest"
    if not kernel.exists():
        fresh = SHARED / f"guest.{names[0]}"
        fresh.write_bytes(bareguest.kernel())
        fresh.replace(kernel)
    ground = VmGround(Guest(kernel, None), "/usr/bin/qemu-system-x86_64", "qemu", "none")
    for name in names:
        made = SHARED / "made" / name
        if made.exists():
            continue
        disk = SHARED / f"{name}.raw"
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        console = SHARED / "console" / f"{name}.log"
        # its image lock is on: containers share a kernel, so it holds between hosts here
        xml = domain_xml(LabVm(name, bare=True), ground, disk, console, shareable=False)
        if virsh("define", "/dev/stdin", said=xml):
            made.touch()  # before it is started: cut off in between, nobody starts it here a second time
            virsh("start", name)


@dataclass(slots=True)
class Machine:
    """The processes of this host: each that ends is started again, as by its service manager."""

    name: str
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def commands(self) -> dict[str, list[str]]:
        return {
            "libvirtd": ["libvirtd", "--listen"],
            "agent": ["rekindle", "service", "heartbeat", "--host", self.name],
        }

    def keep(self, role: str) -> None:
        """Start what does not run."""
        process = self.running.get(role)
        if process is None or process.poll() is not None:
            self.running[role] = subprocess.Popen(self.commands()[role], start_new_session=True)

    def stop(self) -> None:
        """As a shutdown in order: the agent says goodbye. What is left ends with us."""
        agent = self.running.get("agent")
        if agent is not None and agent.poll() is None:
            agent.send_signal(signal.SIGTERM)
            agent.wait(4)


def main(name: str, vms: list[str]) -> None:
    furnish(name)
    machine = Machine(name)
    machine.keep("libvirtd")
    until = time.monotonic() + LIBVIRT_S
    while not virsh("version"):
        if time.monotonic() > until:
            sys.exit(f"{name}: libvirtd does not answer after {LIBVIRT_S:g} s")
        time.sleep(LOOK_S)
    make_vms(vms)

    def stopped(*_: object) -> None:
        machine.stop()
        sys.exit(0)

    signal.signal(signal.SIGTERM, stopped)
    while True:
        for role in machine.commands():
            machine.keep(role)
        time.sleep(AGAIN_S)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
