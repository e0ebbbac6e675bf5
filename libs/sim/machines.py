"""The simulated hosts: power, boots, QEMU processes. This is the truth that the invariants are held against."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random

from libs.model import Health, Incarnation, StopReason, VmPolicy, VmState
from libs.sim.loop import SimLoop
from libs.sim.storage import SHARED, Datastore

GUEST_BOOT_S = 2.0
BOOT_S = (3.0, 9.0)


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
    up: bool = False
    """Its guest has booted, and opened its agent's channel if it has one."""
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
    guest_up: float | None = None


@dataclass(slots=True)
class SimHost:
    """One physical machine."""

    name: str
    memory_mib: int
    memory_reserved_mib: int
    cpus: int
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
    agent: bool = True
    """Its agent is to run."""
    announced: str = ""
    """The boot that its agent spoke for first, and whose gate is thus passed."""

    @property
    def at(self) -> Incarnation:
        """Its number and its host are in the first eight characters: incidents are named by these."""
        return _incarnation(self.name, self.boots)

    def active(self) -> list[Domain]:
        return [domain for domain in self.domains.values() if domain.state.active]


@functools.lru_cache(maxsize=1024)  # asked for at every look at the host
def _incarnation(host: str, boots: int) -> Incarnation:
    of = hashlib.sha256(host.encode()).hexdigest()[:6]
    return Incarnation(host=host, boot=f"{boots:02d}{of}-{host}")


class Machines:
    """All hosts and what runs on them. Every change of a QEMU process happens in `_begin` and `_end`."""

    def __init__(self, loop: SimLoop, chance: Random) -> None:
        self._loop, self._chance = loop, chance
        self.datastores = {SHARED: Datastore(loop)}
        self.slotted: dict[str, tuple[str, ...] | None] = {}
        """The datastores that the pool file names: their hosts, None for all."""
        self._elsewhere = Datastore(loop)
        self.hosts: dict[str, SimHost] = {}
        self.specs: dict[str, VmSpec] = {}
        """Each VM by the definition of its latest run."""
        self.policy_at: dict[str, float] = {}
        """When a person last changed a VM's policy."""
        self.ills: set[tuple[str, Incarnation, int]] = set()
        """Runs of VMs whose guest has failed."""
        self.spells: dict[str, list[Spell]] = {}
        self.on_change: list[Callable[[SimHost, Domain, bool], None]] = []
        """A QEMU process began (True) or ended."""
        self.on_os: list[Callable[[SimHost], None]] = []
        """A host came up or went down: agents live and die with it."""
        self.on_stir: list[Callable[[SimHost], None]] = []

    def running(self, vm: str) -> list[SimHost]:
        """Where a process of the VM exists at this moment: the truth."""
        return [
            host
            for host in self.hosts.values()
            if (domain := host.domains.get(vm)) is not None and domain.state.active
        ]

    def store_of(self, vm: str) -> Datastore:
        """On which the VM's disk lies."""
        return self.datastores.get(self.specs[vm].datastore, self._elsewhere)

    def datastores_of(self, host: str, spec: VmSpec) -> tuple[str, ...]:
        """Of those that this host has by the pool file the ones on which the VM's disk lies."""
        return (spec.datastore,) if self.has(host, spec.datastore) else ()

    def has(self, host: str, datastore: str) -> bool:
        """By the pool file."""
        hosts = self.slotted.get(datastore)
        return datastore in self.slotted and (hosts is None or host in hosts)

    def present(self, at: Incarnation) -> SimHost | None:
        """The host, if this very boot of it is going on."""
        host = self.hosts.get(at.host)
        return host if host is not None and host.power and host.at == at and host.os is not Os.DOWN else None

    # -- QEMU processes

    def define(self, host: SimHost, spec: VmSpec, token: int) -> Domain:
        """As virDomainDefineXML: what runs goes on as it is."""
        domain = host.domains.setdefault(spec.uuid, Domain(spec))
        domain.defined = token
        return domain

    def begin(self, host: SimHost, spec: VmSpec, token: int, *, autostarted: bool = False) -> None:
        """A QEMU process begins."""
        domain = host.domains.setdefault(spec.uuid, Domain(spec))
        domain.spec = spec
        host.saved.discard(spec.uuid)
        host.runs += 1
        domain.state, domain.stop_reason = VmState.RUNNING, StopReason.NONE
        domain.run, domain.token, domain.since = host.runs, token, self._loop.time()
        domain.health, domain.up, domain.destroyed = Health.OK, False, False
        spell = Spell(spec.uuid, host.at, token, self._loop.time(), autostarted=autostarted)
        self.spells.setdefault(spec.uuid, []).append(spell)
        self._loop.world_later(GUEST_BOOT_S, self._guest_up, spell)
        for told in self.on_change:
            told(host, domain, True)
        self._stir(host)

    def _guest_up(self, spell: Spell) -> None:
        datastore = self.store_of(spell.vm)
        if datastore.stalled(spell.at.host):
            datastore.when_back(spell.at.host, lambda: self._guest_up(spell))
        elif spell.ended is None:
            spell.guest_up = self._loop.time()
            host = self.hosts[spell.at.host]
            domain = host.domains[spell.vm]
            domain.up = True
            if domain.spec.agent:
                self._stir(host)

    def set_policy(self, host: SimHost, uuid: str, policy: VmPolicy) -> None:
        """As `virsh metadata --live --config` on this host; without effect where its libvirt does not answer."""
        domain = host.domains.get(uuid)
        if domain is None or host.os is not Os.UP or host.libvirt_hangs:
            return
        domain.spec = self.specs[uuid] = replace(domain.spec, policy=policy)
        self.policy_at[uuid] = self._loop.time()
        self._stir(host)

    def end(self, host: SimHost, uuid: str, reason: StopReason, *, destroyed: bool = False) -> None:
        """The QEMU process ends. No error where none runs."""
        domain = host.domains.get(uuid)
        if domain is None or not domain.state.active:
            return
        domain.state, domain.stop_reason, domain.destroyed = VmState.STOPPED, reason, destroyed
        domain.health, domain.up = Health.OK, False
        domain.since = self._loop.time()
        host.stop_failed.discard(uuid)
        for spell in self.spells.get(uuid, []):
            if spell.at == host.at and spell.ended is None:
                spell.ended = self._loop.time()
        for told in self.on_change:
            told(host, domain, False)
        self._stir(host)

    def save(self, host: SimHost, uuid: str) -> None:
        """As `virsh managedsave`: its process ends, and the memory stays on the host."""
        self.end(host, uuid, StopReason.SAVED)
        host.saved.add(uuid)

    def pause_guest(self, host: SimHost, uuid: str) -> None:
        """The guest stands still; its process stays, and counts."""
        domain = host.domains[uuid]
        if domain.state is VmState.RUNNING:
            domain.state = VmState.PAUSED
            self._stir(host)

    def fail_guest(self, host: SimHost, uuid: str, health: Health) -> None:
        """The guest fails and its process stays: it hangs, or panics under on_crash=preserve, or is paused by QEMU
        over a disk that failed."""
        domain = host.domains[uuid]
        if domain.state is not VmState.RUNNING:
            return
        domain.health = health
        self.ills.add((uuid, host.at, domain.run))
        if health is not Health.SILENT:
            domain.state = VmState.PAUSED
            self._stir(host)

    def _stir(self, host: SimHost) -> None:
        for told in self.on_stir:
            told(host)

    # -- power and boots

    def power_off(self, host: SimHost) -> None:
        """All at once."""
        if not host.power:
            return
        host.power = False
        self._down(host, Os.DOWN)

    def power_on(self, host: SimHost) -> None:
        if host.power:
            return
        host.power = True
        self._boot(host)

    def reboot(self, host: SimHost, *, fast: bool = False) -> None:
        """Without a clean shutdown, as by a watchdog or a panic with reboot."""
        if not host.power:
            return
        self._down(host, Os.DOWN)
        self._boot(host, fast=fast)

    def crash(self, host: SimHost) -> None:
        """The kernel stops; the power stays on."""
        if host.os in (Os.UP, Os.BOOTING, Os.HUNG) and host.power:
            self._down(host, Os.CRASHED)

    def hang(self, host: SimHost) -> None:
        """No process answers, the kernel does, QEMU goes on."""
        if host.os is Os.UP:
            host.os = Os.HUNG
            for told in self.on_os:
                told(host)

    def _down(self, host: SimHost, os: Os) -> None:
        for uuid in list(host.domains):
            self.end(host, uuid, StopReason.UNKNOWN)
        host.os = os
        host.libvirt_hangs = False
        for told in self.on_os:
            told(host)

    def _boot(self, host: SimHost, *, fast: bool = False) -> None:
        host.os = Os.BOOTING
        host.boots += 1
        wait_s = 1.5 if fast else self._chance.uniform(*BOOT_S)
        self._loop.world_later(wait_s, self._booted, host, host.boots)

    def _booted(self, host: SimHost, boot: int) -> None:
        if not host.power or host.os is not Os.BOOTING or host.boots != boot:
            return
        host.os, host.booted_at = Os.UP, self._loop.time()
        for domain in host.domains.values():
            # nobody can say why it does not run; libvirt's ids begin anew with each boot
            domain.stop_reason, domain.run = StopReason.UNKNOWN, 0
        host.runs = 0
        for domain in list(host.domains.values()):
            # an image lock keeps out what starts by itself while another runs; nothing else here relies on it.
            # Where the datastore stalls, its process is there all the same, as libvirt shows it, and hangs
            resumed = domain.spec.uuid in host.saved  # as libvirt-guests does
            if (domain.autostart or resumed) and not self.running(domain.spec.uuid):
                self.begin(host, domain.spec, domain.defined, autostarted=True)
        for told in self.on_os:
            told(host)
