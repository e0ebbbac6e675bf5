"""A pool that is in order, for tests of the doctor: each test breaks one thing of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from libs.config.settings import Settings
from libs.doctor.findings import Diagnosis, diagnose
from libs.doctor.seen import (
    Answers,
    Bus,
    Cpu,
    Device,
    Domain,
    Fencing,
    HostOnBus,
    HostSeen,
    MachineAnswer,
    Seen,
)
from libs.model import PowerState, VmState
from libs.wants import Disk, Kind, Machine, Wants

MACHINE = Machine("/usr/bin/qemu-system-x86_64", "x86_64", "pc-q35-7.2", "kvm")
FENCING: list[dict[str, Any]] = [
    {"agent": "fence_ipmilan", "level": 1, "options": {"ip": "10.0.9.{n}"}},
    {"agent": "fence_apc_snmp", "level": 2, "options": {"ip": "10.0.9.100", "plug": "{n}"}},
]
NFS = {"name": "nfs", "path": "/nfs"}


def settings(**more: Any) -> Settings:
    """Three hosts with agents and two levels of fencing each, and one datastore that all have."""
    hosts = [
        {
            "name": f"h{n}",
            "uri": f"qemu+ssh://h{n}/system",
            "agent": True,
            "fencing": [
                {**one, "options": {k: v.format(n=n) for k, v in one["options"].items()}} for one in FENCING
            ],
        }
        for n in (1, 2, 3)
    ]
    return Settings.model_validate({"pool": "p", "hosts": hosts, "datastores": [NFS], **more})


def wants(**more: Any) -> Wants:
    """A disk on the datastore, a network, and a lease of a lock manager."""
    disks = (Disk(Kind.PATH, "/nfs/a.raw"),)
    return Wants(**{"machine": MACHINE, "disks": disks, "networks": ("lan",), "leased": True, **more})


def domain(name: str = "a", **more: Any) -> Domain:
    values: dict[str, Any] = {
        "uuid": f"uuid-{name}",
        "state": VmState.RUNNING,
        "memory_mib": 1000,
        "vcpus": 2,
    }
    return Domain(**{**values, "name": name, "wants": wants(), **more})


def host(name: str, *domains: Domain, **more: Any) -> HostSeen:
    values: dict[str, Any] = {
        "uuid": f"machine-{name}",
        "kind": "QEMU",
        "libvirt": 9_000_000,
        "hypervisor": 7_002_000,
        "memory_mib": 4000 + 512,
        "cpus": 8,
        "cpu": Cpu("x86_64", "Intel", "Skylake-Server", frozenset({"vmx"})),
        "networks": frozenset({"lan"}),
        "links": frozenset({"lo", "br0"}),
        "secrets": frozenset({"ceph"}),
        "pools": (),
        "answers": Answers(machines={MACHINE: MachineAnswer(True)}),
    }
    return HostSeen(name, domains=domains, **{**values, **more})


def fencing(*states: PowerState) -> Fencing:
    """Level by level what each device reads."""
    agents = ("fence_ipmilan", "fence_apc_snmp")
    return Fencing(tuple(Device(agents[i], i + 1, state, f"said {i}") for i, state in enumerate(states)))


@dataclass(frozen=True)
class Pool:
    """What was seen of it, and its file."""

    settings: Settings
    seen: Seen

    def told(self) -> Diagnosis:
        return diagnose(self.settings, self.seen)

    def codes(self) -> set[str]:
        return {finding.code for finding in self.told().findings}

    def with_file(self, **more: Any) -> Pool:
        return replace(self, settings=settings(**more))

    def with_host(self, name: str, change: Callable[[HostSeen], HostSeen]) -> Pool:
        hosts = tuple(change(one) if one.name == name else one for one in self.seen.hosts)
        return replace(self, seen=replace(self.seen, hosts=hosts))

    def with_hosts(self, change: Callable[[HostSeen], HostSeen], *names: str) -> Pool:
        pool = self
        for name in names or ("h2", "h3"):
            pool = pool.with_host(name, change)
        return pool

    def with_vm(self, **more: Any) -> Pool:
        """VM a on h1, changed."""
        return self.with_host("h1", lambda h1: replace(h1, domains=(replace(h1.domains[0], **more),)))

    def with_wants(self, **more: Any) -> Pool:
        return self.with_vm(wants=wants(**more))

    def with_fencing(self, name: str, read: Fencing) -> Pool:
        return replace(self, seen=replace(self.seen, fencing={**self.seen.fencing, name: read}))

    def with_bus(self, **more: Any) -> Pool:
        return replace(self, seen=replace(self.seen, bus=replace(self.seen.bus, **more)))

    def with_word(self, name: str, word: HostOnBus) -> Pool:
        return self.with_bus(hosts={**self.seen.bus.hosts, name: word})


def healthy() -> Pool:
    """VM a runs on h1; h2 and h3 are empty."""
    names = ("h1", "h2", "h3")
    on = fencing(PowerState.ON, PowerState.ON)
    bus = Bus(hosts={name: HostOnBus("healthy") for name in names}, definitions=frozenset({"uuid-a"}))
    hosts = (host("h1", domain()), host("h2"), host("h3"))
    return Pool(settings(), Seen(hosts, {name: on for name in names}, bus))
