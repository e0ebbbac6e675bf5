"""Whether another host has what a VM needs, need by need: yes, no, or not known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from libs.config.entries import Datastore
from libs.config.settings import Settings
from libs.doctor.seen import Domain, HostSeen, Seen
from libs.planning.snapshot import PoolPolicy
from libs.wants import Disk, Kind

NETWORKED = frozenset(
    {"netfs", "iscsi", "iscsi-direct", "rbd", "gluster", "sheepdog", "vstorage", "mpath", "scsi"}
)
"""Kinds of storage pools whose source, where it is the same, is the same storage."""
NAMED_ALIKE = frozenset({"mpath", "scsi"})
"""Of these not even the same source is the same storage: a host's own adapters have names, too."""


class Has(StrEnum):
    """One host's answer to one need."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    has: Has
    why: str = ""


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a VM needs. `lacking` and `unproven` are the codes where no other host has it, or none shows it;
    `on` asks one host."""

    what: str
    lacking: str
    unproven: str
    on: Callable[[HostSeen], Verdict]


YES = Verdict(Has.YES)
Matrix = list[tuple[Need, dict[str, Verdict]]]


class Pool:
    """What is asked of hosts on behalf of VMs of others. `policy` is what placement goes by."""

    def __init__(self, settings: Settings, seen: Seen, policy: PoolPolicy | None = None) -> None:
        self.settings, self.seen, self.policy = settings, seen, policy or PoolPolicy()
        self._stores = [store for store in settings.datastores if not store.block]
        self._sizes = {host.name: self._size(host) for host in seen.hosts}
        self._matrices: dict[tuple[str, str], Matrix] = {}

    def closed(self, host: HostSeen) -> bool:
        """True where nothing can be started on a host now, as far as is known."""
        known = self.seen.bus.hosts.get(host.name)
        return bool(host.error) or (known is not None and bool(known.closed))

    def others(self, home: HostSeen) -> list[HostSeen]:
        """Where a VM of `home` could be started now."""
        return [host for host in self.seen.hosts if host.name != home.name and not self.closed(host)]

    def matrix(self, vm: Domain, home: HostSeen) -> Matrix:
        """Each need of a VM with the verdict of each host that it could go to. Asked once: findings about the VM and
        about the pool both read it."""
        key = (home.name, vm.uuid)
        if key not in self._matrices:
            others = self.others(home)
            self._matrices[key] = [
                (need, {host.name: need.on(host) for host in others}) for need in self.needs(vm, home)
            ]
        return self._matrices[key]

    def lacks(self, vm: Domain, home: HostSeen) -> dict[str, list[str]]:
        """By host that it could go to, what it needs and is surely not there; empty where it may be started."""
        found: dict[str, list[str]] = {host.name: [] for host in self.others(home)}
        for need, verdicts in self.matrix(vm, home):
            for name, verdict in verdicts.items():
                if verdict.has is Has.NO:
                    found[name].append(f"{need.what}: {verdict.why}")
        return found

    def needs(self, vm: Domain, home: HostSeen) -> Iterator[Need]:
        """Everything that its next host must have, in the order in which it is told."""
        for disk in vm.wants.disks:
            yield Need(str(disk), "disk-local", "disk-unproven", self._disk(disk, home, written=True))
        for disk in vm.wants.media:
            yield Need(str(disk), "iso-local", "iso-unproven", self._disk(disk, home, written=False))
        for what, path in vm.wants.files:
            disk = Disk(Kind.PATH, path)
            on = self._disk(disk, home, written=False)
            yield Need(f"{what} {path}", "host-file-local", "host-file-unproven", on)
        if vm.wants.firmware:
            firmware = f"firmware {vm.wants.firmware}"
            yield Need(firmware, "host-file-local", "host-file-unproven", self._firmware(vm, home))
        for network in sorted(set(vm.wants.networks)):
            said = f"network {network}"
            yield Need(said, "network-missing", "network-unproven", _named("networks", network))
        for link in sorted(set(vm.wants.links)):
            yield Need(
                f"bridge or device {link}", "network-missing", "network-unproven", _named("links", link)
            )
        for secret in vm.wants.secrets:
            yield Need(f"secret {secret}", "secret-missing", "secret-unproven", _named("secrets", secret))
        yield Need(str(vm.wants.machine), "machine-missing", "machine-unproven", _machine(vm))
        if vm.wants.cpu:
            yield Need("its CPU definition", "cpu-missing", "cpu-unproven", _cpu(vm))
        yield Need(f"the name {vm.name}", "name-taken", "", _name(vm))
        yield Need(f"{vm.memory_mib} MiB and {vm.vcpus} vCPUs", "fits-nowhere", "", self._room(vm))

    def shared(self, path: str, home: HostSeen, other: HostSeen) -> Verdict:
        """Whether another host has the very file at `path` of `home`."""
        return self._disk(Disk(Kind.PATH, path), home, written=True)(other)

    # -- storage

    def _disk(self, disk: Disk, home: HostSeen, *, written: bool) -> Callable[[HostSeen], Verdict]:
        def on(other: HostSeen) -> Verdict:
            if disk.kind is Kind.VOLUME:
                return self._volume(disk, home, other, written=written)
            return self._path(disk, home, other, written=written)

        return on

    def _path(self, disk: Disk, home: HostSeen, other: HostSeen, *, written: bool) -> Verdict:
        store = self._store(disk.place)
        if store is not None:
            theirs = store.hosts is None or other.name in store.hosts
            return YES if theirs else Verdict(Has.NO, f"it does not have datastore {store.name}")
        if _same_pool(disk.place, home, other):
            return YES
        found = other.answers.files.get(disk.place)
        if found and not written:
            return YES  # what is only read need not be the same file: one of that path starts it
        if found is False:
            return Verdict(Has.NO, "its storage pool there does not list it")
        if found:
            return Verdict(Has.UNKNOWN, "a file of that path is there, which may be another")
        if written and self._stores and disk.kind is Kind.PATH:
            return Verdict(Has.NO, "it lies on no datastore of the pool file")
        return Verdict(Has.UNKNOWN, "neither the pool file nor a storage pool tells of it")

    def _store(self, path: str) -> Datastore | None:
        """The innermost datastore that a path lies in."""
        lies = PurePosixPath(path)
        holding = [store for store in self._stores if lies.is_relative_to(store.path)]
        return max(holding, key=lambda store: len(store.path.parts), default=None)

    def _volume(self, disk: Disk, home: HostSeen, other: HostSeen, *, written: bool) -> Verdict:
        mine = next((pool for pool in home.pools or () if pool.name == disk.pool), None)
        if other.pools is None or mine is None:
            return Verdict(Has.UNKNOWN, f"storage pool {disk.pool} could not be compared")
        theirs = next((pool for pool in other.pools if pool.name == disk.pool), None)
        if theirs is None:
            return Verdict(Has.NO, f"it has no active storage pool {disk.pool}")
        if mine.kind in NETWORKED - NAMED_ALIKE:
            same = (mine.kind, mine.source) == (theirs.kind, theirs.source)
            return YES if same else Verdict(Has.NO, f"its storage pool {disk.pool} is of another source")
        if not mine.target:
            return Verdict(Has.UNKNOWN, f"storage pool {disk.pool} ({mine.kind}) does not tell")
        if mine.target != theirs.target:
            return Verdict(Has.NO, f"its storage pool {disk.pool} is at {theirs.target or 'another place'}")
        return self._path(Disk(Kind.PATH, f"{mine.target}/{disk.place}"), home, other, written=written)

    def _firmware(self, vm: Domain, home: HostSeen) -> Callable[[HostSeen], Verdict]:
        def on(other: HostSeen) -> Verdict:
            answer = other.answers.machines.get(vm.wants.machine)
            if answer is not None and answer.firmware and vm.wants.firmware in answer.firmware:
                return YES
            return self._path(Disk(Kind.PATH, vm.wants.firmware), home, other, written=False)

        return on

    # -- room

    def _room(self, vm: Domain) -> Callable[[HostSeen], Verdict]:
        def on(other: HostSeen) -> Verdict:
            memory, vcpus = self._sizes[other.name]
            if vm.memory_mib <= memory and vm.vcpus <= vcpus:
                return YES
            return Verdict(Has.NO, f"it has {memory:.0f} MiB and {vcpus:.0f} vCPUs to give")

        return on

    def memory_mib(self, host: HostSeen) -> float:
        """What a host can give to VMs, as placement counts it."""
        return self._sizes[host.name][0]

    def _size(self, host: HostSeen) -> tuple[float, float]:
        entry = self.settings.host(host.name)
        memory = (entry.memory_mib or host.memory_mib) - entry.memory_reserved_mib
        return memory * self.policy.memory_overcommit, (entry.cpus or host.cpus) * self.policy.cpu_overcommit


def _same_pool(path: str, home: HostSeen, other: HostSeen) -> bool:
    """Both reach it through a storage pool of one source over a network, at one place."""
    mine = {
        (pool.kind, pool.source, pool.target)
        for pool in home.pools or ()
        if pool.kind in NETWORKED - NAMED_ALIKE and pool.target and pool.source
        if PurePosixPath(path).is_relative_to(pool.target)
    }
    return any((pool.kind, pool.source, pool.target) in mine for pool in other.pools or ())


def _named(where: str, name: str) -> Callable[[HostSeen], Verdict]:
    def on(other: HostSeen) -> Verdict:
        names: frozenset[str] | None = getattr(other, where)
        if names is None:
            return Verdict(Has.UNKNOWN, f"its {where} could not be read")
        up = "" if where == "secrets" else " that is up"
        return YES if name in names else Verdict(Has.NO, f"it has no such {where.removesuffix('s')}{up}")

    return on


def _machine(vm: Domain) -> Callable[[HostSeen], Verdict]:
    def on(other: HostSeen) -> Verdict:
        answer = other.answers.machines.get(vm.wants.machine)
        if answer is None or answer.can is None:
            return Verdict(Has.UNKNOWN, "" if answer is None else answer.said)
        return YES if answer.can else Verdict(Has.NO, answer.said)

    return on


def _cpu(vm: Domain) -> Callable[[HostSeen], Verdict]:
    def on(other: HostSeen) -> Verdict:
        can, said = other.answers.cpus.get((vm.wants.machine, vm.wants.cpu), (None, ""))
        if can is None:
            return Verdict(Has.UNKNOWN, said)
        return YES if can else Verdict(Has.NO, said or "its processor cannot give it")

    return on


def _name(vm: Domain) -> Callable[[HostSeen], Verdict]:
    def on(other: HostSeen) -> Verdict:
        taken = any(one.name == vm.name and one.uuid != vm.uuid for one in other.domains)
        return Verdict(Has.NO, "it has another VM of this name") if taken else YES

    return on
