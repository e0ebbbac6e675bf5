"""What was seen of a pool. None stands for "could not be told" throughout, never for "there is none"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.doctor.wants import Machine, Wants
from libs.model import PowerState, VmPolicy, VmReport, VmState


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
class HostOnBus:
    """What the plane holds of a host. `closed`: why it takes no new VMs, "" where it does; `vms` is its last word."""

    state: str
    closed: str = ""
    vms: tuple[VmReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Bus:
    """`error`: why it was not reached. `definitions`: the UUIDs of which a copy is there."""

    error: str = ""
    hosts: Mapping[str, HostOnBus] = field(default_factory=dict)
    definitions: frozenset[str] = frozenset()
    vacant: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was seen, hosts in the order of the pool file."""

    hosts: tuple[HostSeen, ...]
    fencing: Mapping[str, Fencing]
    bus: Bus = field(default_factory=Bus)

    def host(self, name: str) -> HostSeen:
        """Raises KeyError."""
        return {host.name: host for host in self.hosts}[name]
