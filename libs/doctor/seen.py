"""What was seen of a pool. None stands for "could not be told" throughout, never for "there is none"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.model import DiskLocks, PowerState, VmPolicy, VmReport, VmState
from libs.wants import Machine, Wants


@dataclass(frozen=True, slots=True)
class Cpu:
    """A host's processor, as libvirt names it in the host's capabilities."""

    arch: str
    vendor: str
    model: str
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StoragePool:
    """An active storage pool. `source` is where it comes from, the same text for the same source."""

    name: str
    kind: str
    target: str
    source: str


@dataclass(frozen=True, slots=True)
class Domain:
    """One VM on one host. `moving`: it is on its way from or to another host, so two may show it."""

    uuid: str
    name: str
    state: VmState
    memory_mib: int
    vcpus: int
    wants: Wants
    policy: VmPolicy = field(default_factory=VmPolicy)
    bad_policy: str = ""
    persistent: bool = True
    autostart: bool = False
    managed_save: bool = False
    moving: bool = False


@dataclass(frozen=True, slots=True)
class MachineAnswer:
    """Whether a host can run a kind of machine, and the firmware images that it offers for it."""

    can: bool | None
    said: str = ""
    firmware: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What a host was asked on behalf of VMs of others. What is not in it was not asked: unknown."""

    files: Mapping[str, bool | None] = field(default_factory=dict)
    machines: Mapping[Machine, MachineAnswer] = field(default_factory=dict)
    cpus: Mapping[tuple[Machine, str], tuple[bool | None, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HostSeen:
    """One host. `error`: why its libvirt did not answer; then nothing else is known of it. Versions are libvirt's
    numbers (9000000 is 9.0.0). `secrets` are named by UUID and by usage, both. `unasked`: (question, why it was not answered)."""

    name: str
    error: str = ""
    uuid: str | None = None
    kind: str = ""
    libvirt: int | None = None
    hypervisor: int | None = None
    memory_mib: int = 0
    cpus: int = 0
    cpu: Cpu | None = None
    networks: frozenset[str] | None = None
    links: frozenset[str] | None = None
    secrets: frozenset[str] | None = None
    pools: tuple[StoragePool, ...] | None = None
    domains: tuple[Domain, ...] = ()
    answers: Answers = field(default_factory=Answers)
    unasked: tuple[tuple[str, str], ...] = ()
    locks: DiskLocks | None = None
    """By its qemu.conf, where that lies on this machine."""


@dataclass(frozen=True, slots=True)
class Device:
    """One fence device of a host, read once."""

    agent: str
    level: int
    state: PowerState
    said: str = ""


@dataclass(frozen=True, slots=True)
class Fencing:
    """`bad`: why a device cannot be asked as the pool file has it; then none was."""

    devices: tuple[Device, ...] = ()
    bad: str = ""


@dataclass(frozen=True, slots=True)
class ClockSeen:
    """How far a host's wall clock is ahead of this machine's, in seconds; it may be wrong by `within_s` either way."""

    ahead_s: float
    within_s: float

    @classmethod
    def read(cls, sent_s: float, told_s: float, heard_s: float) -> ClockSeen:
        """From an answer: it was told at some moment between the question and its arrival, by this machine's clock."""
        return cls(told_s - (sent_s + heard_s) / 2, abs(heard_s - sent_s) / 2)


@dataclass(frozen=True, slots=True)
class HostOnBus:
    """What the plane holds of a host. `closed`: why it takes no new VMs, "" where it does; `vms` is its last word, and so
    are `locks`; its agent was asked for its clock just now. `watchdog_s`: the
    time-out that its present boot promises, None where it promises none. `asks`: by its agent, whether its libvirt has the
    hook by which it asks before it takes a VM in; None where that is not known."""

    state: str
    closed: str = ""
    vms: tuple[VmReport, ...] = ()
    locks: DiskLocks | None = None
    clock: ClockSeen | None = None
    watchdog_s: float | None = None
    asks: bool | None = None


@dataclass(frozen=True, slots=True)
class Bus:
    """`error`: why it was not reached. `definitions`: the keys of all copies."""

    error: str = ""
    hosts: Mapping[str, HostOnBus] = field(default_factory=dict)
    definitions: frozenset[str] = frozenset()
    vacant: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """One server of the bus by its own greeting. `beyond`: it is reached by other machines."""

    address: str
    beyond: bool
    asks_for_tls: bool
    offers_tls: bool


@dataclass(frozen=True, slots=True)
class CertificateSeen:
    """One certificate. `said`: the day on which it ends; where `days_left` is None, why it could not be read."""

    what: str
    days_left: float | None
    said: str


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was seen, hosts in the order of the pool file. `servers`: those of the bus that answered."""

    hosts: tuple[HostSeen, ...]
    fencing: Mapping[str, Fencing]
    bus: Bus = field(default_factory=Bus)
    servers: tuple[ServerSeen, ...] = ()
    certificates: tuple[CertificateSeen, ...] = ()

    def host(self, name: str) -> HostSeen:
        """Raises KeyError."""
        return {host.name: host for host in self.hosts}[name]

    def locks(self, host: HostSeen) -> DiskLocks | None:
        """What guards the disks there, read here or told by its agent."""
        known = self.bus.hosts.get(host.name)
        return host.locks or (known.locks if known is not None else None)

    def clock(self, host: HostSeen) -> ClockSeen | None:
        known = self.bus.hosts.get(host.name)
        return known.clock if known is not None else None
