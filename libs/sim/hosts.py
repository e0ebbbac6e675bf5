"""What a simulated host is made of: its boots, what its libvirt knows, the runs of VMs on it."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from enum import StrEnum

from libs.model import Health, Incarnation, Mark, Offers, StopReason, VmPolicy, VmState
from libs.promises import Remembered


class Os(StrEnum):
    """What a host's operating system does."""

    DOWN = "down"
    BOOTING = "booting"
    UP = "up"
    HUNG = "hung"  # its QEMU processes go on writing, its kernel takes connections, no other process answers
    CRASHED = "crashed"  # the kernel stopped: power is on, nothing runs


@dataclass(frozen=True, slots=True)
class VmSpec:
    """One VM of the world."""

    uuid: str
    name: str
    memory_mib: int
    vcpus: int
    policy: VmPolicy
    agent: bool = False
    """Its guest runs an agent that can be asked."""
    datastore: str = ""
    """On which its disk lies; "" for storage that never stalls."""
    devices: str = ""
    """What of its definition names what its host must have: interfaces and passed-through devices, as libvirt's XML."""
    cpu: str = ""
    """And the XML of its CPU."""
    serves_after_s: float = 0.0
    """From when its guest is up until it answers what is probed."""


@dataclass(slots=True)
class Domain:
    """A VM as one host's libvirt knows it."""

    spec: VmSpec
    state: VmState = VmState.STOPPED
    stop_reason: StopReason = StopReason.UNKNOWN
    run: int = 0
    """libvirt's id of the present run."""
    token: int = 0
    """That of the present or last run."""
    defined: int = 0
    """The token in the definition that this libvirt keeps: the next start by anybody else bears it, too."""
    autostart: bool = False
    since: float = 0.0
    destroyed: bool = False
    """It ended by a command of libvirt's."""
    migrated: bool = False
    """Its present run came, or is coming, from another host."""
    up: bool = False
    """Its guest has booted, and opened its agent's channel if it has one."""
    up_at: float = 0.0
    """Since when that guest has been so, on whatever host."""
    busy_until: float = -1000.0
    """Until then its guest answers nobody, and is well."""
    health: Health = Health.OK
    """The truth about its guest in this run; SILENT also of one without an agent, of which nobody can know."""


@dataclass(slots=True)
class Spell:
    """One VM active on one boot of one host, from when to when."""

    vm: str
    at: Incarnation
    token: int
    began: float
    ended: float | None = None
    autostarted: bool = False
    by_hand: bool = False
    """A person started it with virsh, beside whatever ran; or migrated to here what was started so."""
    guest_up: float | None = None


@dataclass(slots=True)
class SimHost:
    """One physical machine."""

    name: str
    memory_mib: int
    memory_reserved_mib: int
    cpus: int
    offers: Offers | None = None
    """What it has for VMs; None: its libvirt does not tell, and refuses no start for it."""
    power: bool = True
    os: Os = Os.UP
    boots: int = 1
    booted_at: float = 0.0
    domains: dict[str, Domain] = field(default_factory=dict)
    runs: int = 0
    libvirt_hangs: bool = False
    """libvirt takes calls and never answers."""
    fails: dict[str, int] = field(default_factory=dict)
    """VMs whose next starts here are refused: how often."""
    stop_fails: dict[str, int] = field(default_factory=dict)
    """VMs whose next stops here fail: how often."""
    stop_failed: set[str] = field(default_factory=set)
    """VMs of which a stop has failed, and whose QEMU is still there."""
    saved: set[str] = field(default_factory=set)
    """VMs whose memory was saved here (managed save), and which the next boot resumes."""
    gate: bool = True
    """Something of ours stands before its libvirt at boot, where it has an agent."""
    held: dict[str, bool] = field(default_factory=dict)
    """VMs that it held back, and whether libvirt is to have its autostart flag again."""
    unasked: bool = False
    """At the present boot the store did not answer it."""
    agent: bool = True
    """Its agent is to run."""
    agentless: bool = False
    """Nothing of ours runs on it: a process of the management machine beats for it, and names its boots."""
    names: tuple[str, ...] = ()
    """What that process has called the present boot, the latest last."""
    renamed: int = 0
    numbers: dict[str, int] = field(default_factory=dict)
    """Which of its boots each name that it ever got was given to."""
    mark: Mark = field(default_factory=Mark)
    """What its disk remembers of the plane's data."""
    promised: Remembered | None = None
    """What its disk remembers of its promise by its watchdog."""
    passed: str = ""
    """And which boot passed the gate of its agent."""
    announced: str = ""
    """The boot that its agent spoke for first, and whose gate is thus passed."""

    @property
    def at(self) -> Incarnation:
        """Its number and its host are in the first eight characters: incidents are named by these."""
        if self.names:
            return Incarnation(host=self.name, boot=self.names[-1])
        return _incarnation(self.name, self.boots)

    def is_boot(self, at: Incarnation) -> bool:
        """By its present name, or by one that it had."""
        true = _incarnation(self.name, self.boots)
        return at in (self.at, true) or (at.host == self.name and at.boot in self.names)

    def rename(self, ending: str) -> str:
        """Another name for the present boot, which no other boot of any host has."""
        self.renamed += 1
        of = hashlib.sha256(f"{self.name}/{self.renamed}".encode()).hexdigest()[:6]
        self.names = (*self.names, f"{self.boots:02d}{of}-{self.name}{ending}")
        self.numbers[self.names[-1]] = self.boots
        return self.names[-1]

    def number_of(self, at: Incarnation) -> int | None:
        """Which of its boots this one is or was, by whatever name; None where it is none of this host's."""
        if at.host != self.name:
            return None
        known = self.numbers.get(at.boot)
        own = (number for number in range(1, self.boots + 1) if _incarnation(self.name, number) == at)
        return next(own, None) if known is None else known

    def active(self) -> list[Domain]:
        return [domain for domain in self.domains.values() if domain.state.active]


@dataclass(frozen=True, slots=True)
class Stop:
    """A VM was shut down on purpose, where and when."""

    host: str
    at: float
    destroyed: bool
    """By virsh destroy: while we evict it, that cannot be told from our own doing."""
    seen: bool
    """It had run for a while: the end of one that has only just begun looks like a start that failed."""


@functools.lru_cache(maxsize=1024)  # asked for at every look at the host
def _incarnation(host: str, boots: int) -> Incarnation:
    of = hashlib.sha256(host.encode()).hexdigest()[:6]
    return Incarnation(host=host, boot=f"{boots:02d}{of}-{host}")
