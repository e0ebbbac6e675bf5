"""Hosts that a real systemd boots: a Debian made by debootstrap, run by systemd-nspawn with systemd as its first process.

What differs from a host of iron: the kernel and its clock are this machine's, so is the network (no address or packet filter of it
is touched: nspawn takes that right away), there is no KVM (QEMU's TCG is used), and neither AppArmor nor SELinux. /sys may be
written, as udevd wants it; what its boot would do to the machine there (`udevadm trigger` of all devices, sysctl) is left out.
nspawn gives each boot an id of its own in /proc, which a unit with ProtectProc= does not see: /etc/boot_id stands for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

DATA = Path(os.environ.get("REKINDLE_SYSTEMD_DATA", "/var/tmp/rekindle-systemd"))
LACKING = ("debootstrap", "systemd-nspawn", "nsenter", "unshare", "setpriv", "losetup")
SUITE = "bookworm"
HOST_PACKAGES = "libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu qemu-system-x86 polkitd"
"""What makes the machine a host of VMs; that of the agent is for its installer to bring."""
RECIPE = f"""\
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q --no-install-recommends systemd systemd-sysv dbus udev procps iproute2 {HOST_PACKAGES}
rm -f /etc/machine-id /var/lib/dbus/machine-id
ln -s /dev/null /etc/systemd/system/systemd-sysctl.service
ln -s /dev/null /etc/systemd/system/systemd-udev-trigger.service
"""
TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOT_S, OFF_S = 60.0, 60.0


def reasons_against() -> str:
    """Why no such host can be booted here; "" where nothing is known against it."""
    if os.getuid() != 0:
        return "systemd-nspawn and debootstrap need root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [name for name in LACKING if shutil.which(name, path=path) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "the kernel has no overlayfs"
    return ""


def run(*words: str, timeout: float = 300, text: str | None = None) -> str:
    """Standard output of a command. Raises AssertionError with what it said where it fails."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, (
        f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


def until(condition: Callable[[], object], timeout_s: float, what: str) -> float:
    """Seconds until it holds. Fails naming what does not."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, f"{what}: not after {timeout_s:g} s"
        time.sleep(0.2)
    return time.monotonic() - began


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Two runs beside each other make what is kept one after the other."""
    DATA.mkdir(parents=True, exist_ok=True)
    with (DATA / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def bare(recipe: str = RECIPE, *, of: Path | None = None) -> Path:
    """A root directory made by a shell script in a bare Debian, or in another root directory, and kept."""
    name = hashlib.sha256(f"{SUITE}{of and of.name}{recipe}".encode()).hexdigest()[:12]
    root, unfinished = DATA / f"root-{name}", DATA / f"root-{name}.new"
    with alone():
        if root.exists():
            return root
        shutil.rmtree(unfinished, ignore_errors=True)
        if of is None:
            words = ("debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, str(unfinished))
            run(*words, timeout=900)
        else:
            run("cp", "-a", str(of), str(unfinished))
        # installed, but nothing of it is started in the machine itself
        policy = unfinished / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        shutil.copy("/etc/resolv.conf", unfinished / "etc/resolv.conf")
        if TRUSTED.exists():
            shutil.copy(TRUSTED, unfinished / "usr/local/share/ca.pem")
        run("chroot", str(unfinished), "env", f"PATH={PATH}", "sh", "-c", recipe, timeout=900)
        policy.unlink()
        shutil.rmtree(unfinished / "var/cache/apt/archives", ignore_errors=True)
        (unfinished / "var/cache/apt/archives/partial").mkdir(parents=True)
        unfinished.rename(root)
    return root


@dataclass(slots=True)
class Machine:
    """One host. What it writes is in a directory of its own over a root directory that many share."""

    name: str
    base: Path
    place: Path
    binds: dict[Path, str] = field(default_factory=dict)
    """Directories of this machine that it has, too: where."""
    process: subprocess.Popen[bytes] | None = None

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of it, while it is off."""
        file = self.place / "upper" / path.lstrip("/")
        for folder in reversed(file.parents):
            if not folder.exists():
                folder.mkdir()
                folder.chmod(0o755)
        file.write_text(text)
        file.chmod(mode)

    def boot(self) -> float:
        """Seconds until systemd says that all is up, whether or not something failed."""
        began = time.monotonic()
        self.begin()
        until(self.up, BOOT_S, f"{self.name} is booted")
        return time.monotonic() - began

    def begin(self) -> None:
        """Its power is switched on."""
        assert self.process is None, f"{self.name} is on"
        for name in ("upper", "work", "root"):
            (self.place / name).mkdir(parents=True, exist_ok=True)
            (self.place / name).chmod(0o755)
        if not (self.place / "upper/etc/machine-id").exists():
            self.put("/etc/machine-id", uuid.uuid4().hex + "\n")
        self.put("/etc/hostname", self.name + "\n")
        self.put("/etc/hosts", f"127.0.0.1 localhost {self.name}\n")
        self.put("/etc/boot_id", f"{uuid.uuid4()}\n")
        layers = f"lowerdir={self.base},upperdir={self.place}/upper,workdir={self.place}/work"
        mounted = f'mount -t overlay overlay -o "{layers}" "{self.place}/root" && exec "$@"'
        command = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--resolv-conf=replace-host"]
        if not Path("/run/systemd/system").exists():
            command.append("--keep-unit")  # nobody here could make it a scope
        command += ["--directory", str(self.place / "root"), "--machine", self.name]
        command += [f"--bind={source}:{there}" for source, there in self.binds.items()]
        # in a namespace of its mounts, which end with it; killed, we leave no host behind
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "sh",
            "-c",
            mounted,
            "sh",
            *command,
        ]
        how = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"}
        with (self.place / "console").open("ab") as console:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "PATH": PATH, **how},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    @property
    def first(self) -> int | None:
        """Its first process, as this machine numbers it; None while there is none."""
        if self.process is None:
            return None
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    def up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} does not boot: {self.console()}"
        if self.first is None:
            return False
        said = self.ask("systemctl", "is-system-running").stdout.strip()
        return said in ("running", "degraded")

    def console(self) -> str:
        return (self.place / "console").read_text(errors="replace")[-2000:]

    def ask(
        self, *words: str, timeout: float = 60, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command there, as root, whatever comes of it."""
        first = self.first
        assert first is not None, f"{self.name} is off"
        enter = ["nsenter", "-t", str(first), "-m", "-u", "-i", "-p", "-C", "-r", "-w"]
        clean = ["env", "-i", f"PATH={PATH}", "HOME=/root", "LC_ALL=C.UTF-8"]
        return subprocess.run(
            [*enter, *clean, *words], input=text, capture_output=True, text=True, check=False, timeout=timeout
        )

    def do(self, *words: str, timeout: float = 60, text: str | None = None) -> str:
        """What a command there prints. Fails with what it said."""
        done = self.ask(*words, timeout=timeout, text=text)
        assert done.returncode == 0, (
            f"{self.name}: {' '.join(words)}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout

    def sh(self, script: str, timeout: float = 60) -> str:
        return self.do("sh", "-euc", script, timeout=timeout)

    def shown(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, as its systemd has them."""
        lines = self.do("systemctl", "show", unit, *(f"--property={one}" for one in properties)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, *units: str) -> str:
        """Of this boot."""
        return self.do("journalctl", "-b", "-o", "cat", "--no-pager", *(f"--unit={one}" for one in units))

    def cut(self) -> None:
        """Its power is cut: all its processes end at once."""
        if self.process is None:
            return
        if self.process.poll() is None and self.first is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.first, 9)  # the kernel ends a PID namespace with its first process
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def switch_off(self) -> None:
        """As a person does: `systemctl poweroff`."""
        assert self.process is not None
        self.do("systemctl", "--no-block", "poweroff")
        self.process.wait(OFF_S)
        self.process = None
