"""Where everything of a lab lies: one place that knows file names, for both flavours (root and plain user)."""

import os
from dataclasses import dataclass
from pathlib import Path

MARKER = "REKINDLE_LAB"
"""Environment variable that every process of a lab carries; its value is the lab's root directory."""

MAX_ROOT = 40
"""A unix socket path may have 108 bytes; the longest one (a session QEMU's monitor) needs 65 below the root."""


def default_root() -> Path:
    """The directory of the lab when none is given: short, and one a user."""
    return Path(f"/tmp/rkl-{os.getuid()}")


def default_cache() -> Path:
    """Where guests, probe results and libvirt's capabilities are kept between labs."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "rekindle" / "lab"


@dataclass(frozen=True)
class HostPaths:
    """The files of one host; `privileged` picks the layout of a system or a session libvirtd."""

    root: Path
    host: str
    privileged: bool

    @property
    def dir(self) -> Path:
        return self.root / self.host

    @property
    def etc(self) -> Path:
        """Configuration and persistent domains: survives a power cycle, like a disk."""
        return self.dir / "etc" if self.privileged else self.dir / "c" / "libvirt"

    @property
    def autostart(self) -> Path:
        """libvirt's links to the VMs that it starts at boot."""
        return self.etc / "qemu" / "autostart"

    @property
    def run(self) -> Path:
        """Volatile state: emptied at power on, like /run on a real host."""
        return self.dir / "run" if self.privileged else self.dir / "r" / "libvirt"

    @property
    def lib(self) -> Path:
        return self.dir / "lib" if self.privileged else self.dir / "d" / "libvirt"

    @property
    def cache(self) -> Path:
        return self.dir / "cache" if self.privileged else self.dir / "k" / "libvirt"

    @property
    def capabilities(self) -> Path:
        """libvirt's cache of what QEMU can do; a fresh one costs seconds of probing."""
        return self.cache / "qemu" / "capabilities"

    @property
    def socket(self) -> Path:
        return self.run / "libvirt-sock"

    @property
    def lockd_socket(self) -> Path:
        """Where libvirtd looks for the host's virtlockd."""
        return self.run / "virtlockd-sock"

    @property
    def sanlock_run(self) -> Path:
        """Where the host's sanlock listens, and libvirtd looks for it."""
        return self.run / "sanlock"

    def lock_env(self, manager: str) -> dict[str, str]:
        """What tells libvirtd and a lock manager's daemon of each other. Unprivileged, sanlock does without the limits
        that not every root may raise (CAP_SYS_RESOURCE)."""
        sanlock = {"SANLOCK_RUN_DIR": str(self.sanlock_run), "SANLOCK_PRIVILEGED": "0"}
        return {**self.session_env(), **(sanlock if manager == "sanlock" else {})}

    @property
    def uri(self) -> str:
        kind = "system" if self.privileged else "session"
        return f"qemu+unix:///{kind}?socket={self.socket}"

    @property
    def line(self) -> Path:
        """This host's own ends of the lines to the others."""
        return self.dir / "line"

    @property
    def refused(self) -> Path:
        """A file a VM whose next starts are refused here: how often."""
        return self.dir / "refused"

    @property
    def arrivals_socket(self) -> Path:
        """Where its libvirt asks its agent before it takes a VM in by a migration."""
        return self.dir / "arrivals.sock"

    @property
    def arrivals_hook(self) -> Path:
        """By which it asks; only a system libvirtd's directory of hooks is the host's own."""
        return self.etc / "hooks" / "qemu.d" / "rekindle-arrivals"

    @property
    def power_socket(self) -> Path:
        """The BMC: what a fence agent talks to, and what faults are put on."""
        return self.dir / "power.sock"

    def outlet_socket(self, name: str) -> Path:
        """The same of a power device that has a name."""
        return self.dir / f"power-{name}.sock"

    @property
    def control_socket(self) -> Path:
        """The lab's own way to the power device: always tells and does the truth."""
        return self.dir / "control.sock"

    @property
    def watchdog_socket(self) -> Path:
        """The host's own watchdog, which its power device keeps (see dog.py)."""
        return self.dir / "watchdog.sock"

    @property
    def boot_id(self) -> Path:
        return self.dir / "boot_id"

    @property
    def agent_config(self) -> Path:
        return self.dir / "agent.json"

    @property
    def agent_log(self) -> Path:
        return self.dir / "agent.log"

    @property
    def libvirtd_log(self) -> Path:
        return self.dir / "libvirtd.log"

    @property
    def power_log(self) -> Path:
        return self.dir / "power.log"

    @property
    def power_pid(self) -> Path:
        return self.dir / "power.pid"

    @property
    def init_pid(self) -> Path:
        return self.dir / "init.pid"

    def session_env(self) -> dict[str, str]:
        """The XDG directories that give a plain user's session libvirtd a place of its own."""
        if self.privileged:
            return {}
        names = {"XDG_RUNTIME_DIR": "r", "XDG_CONFIG_HOME": "c", "XDG_CACHE_HOME": "k", "XDG_DATA_HOME": "d"}
        return {name: str(self.dir / short) for name, short in names.items()}


@dataclass(frozen=True)
class LabPaths:
    """The files of the lab as a whole."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "lab.json"

    @property
    def shared(self) -> Path:
        """Storage that all hosts see: the disks of the VMs."""
        return self.root / "shared"

    @property
    def lockspace(self) -> Path:
        """Where the hosts' virtlockd or sanlock hold their locks, a file a disk. On the shared storage, as it must be."""
        return self.shared / ".locks"

    def store(self, name: str) -> Path:
        """Where each host has a datastore; outside the hosts it is empty."""
        return self.root / "store" / name

    def backing(self, name: str) -> Path:
        """What lies in a datastore, for who looks from outside."""
        return self.root / "backing" / name

    @property
    def consoles(self) -> Path:
        return self.root / "console"

    @property
    def line(self) -> Path:
        """Sockets that lead to the hosts' libvirt over the lab's network: each host sees its own there."""
        return self.root / "line"

    @property
    def line_secret(self) -> Path:
        return self.root / "line.secret"

    @property
    def wire_socket(self) -> Path:
        """Who relays the frames of hosts with weather, where the kernel has no netem (see wire.py)."""
        return self.root / "wire.sock"

    @property
    def wire_pid(self) -> Path:
        return self.root / "wire.pid"

    @property
    def wire_log(self) -> Path:
        return self.root / "wire.log"

    @property
    def observations(self) -> Path:
        return self.root / "observations.jsonl"

    @property
    def observer_pid(self) -> Path:
        return self.root / "observer.pid"

    @property
    def observer_log(self) -> Path:
        return self.root / "observer.log"

    @property
    def etc(self) -> Path:
        """What hosts (with namespaces of their own) see in place of files of the same names in the machine's /etc."""
        return self.root / "etc"

    def console(self, vm: str) -> Path:
        return self.consoles / f"{vm}.log"

    def disk(self, vm: str) -> Path:
        return self.shared / f"{vm}.raw"

    def host(self, name: str, privileged: bool) -> HostPaths:
        return HostPaths(self.root, name, privileged)
