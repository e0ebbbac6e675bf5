"""All simulated hosts: power, boots, QEMU processes. This is the truth that the invariants are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from libs.model import DiskLocks, Health, Incarnation, StopReason, VmPolicy, VmState
from libs.sim.definitions import definition, lacking
from libs.sim.hosts import Domain, Os, SimHost, Spell, VmSpec
from libs.sim.loop import SimLoop
from libs.sim.storage import SHARED, Datastore

GUEST_BOOT_S = 2.0
BOOT_S = (3.0, 9.0)
GATE_LOOK_S = 0.5


class Machines:
    """All hosts and what runs on them. Every change of a QEMU process happens in `_begin` and `_end`."""

    image_locks = True
    """What a host starts by itself is kept out while the VM runs elsewhere."""

    def __init__(self, loop: SimLoop, chance: Random) -> None:
        self._loop, self._chance = loop, chance
        self.datastores = {SHARED: Datastore(loop)}
        self.slotted: dict[str, tuple[str, ...] | None] = {}
        """The datastores that the pool file names: their hosts, None for all."""
        self._elsewhere = Datastore(loop)
        self.hosts: dict[str, SimHost] = {}
        self.lock_manager = ""
        """What each host's libvirt has to guard the disks, as qemu.conf says it."""
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
        self.gate: Callable[[SimHost], bool] = lambda host: True
        """Whether a host's libvirt may begin: what may not run there is held back by then."""
        self.on_fired: list[Callable[[SimHost, str, int], None]] = []
        """A guest's watchdog fired: host, VM, run."""

    def running(self, vm: str) -> list[SimHost]:
        """Where a process of the VM exists at this moment: the truth."""
        return [
            host
            for host in self.hosts.values()
            if (domain := host.domains.get(vm)) is not None and domain.state.active
        ]

    def locked_out(self, host: SimHost, vm: str) -> bool:
        """The lock of its disks is held on another host: a lock manager would refuse its start here."""
        return bool(self.lock_manager) and any(other is not host for other in self.running(vm))

    @property
    def disk_locks(self) -> DiskLocks:
        """What each host's configuration says."""
        return DiskLocks(manager=self.lock_manager, automatic=bool(self.lock_manager))

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
        return (
            host if host is not None and host.power and host.is_boot(at) and host.os is not Os.DOWN else None
        )

    def rename(self, host: SimHost, ending: str) -> str:
        """What runs on this boot runs on under its new name."""
        open_ = [spell for spells in self.spells.values() for spell in spells if spell.ended is None]
        mine = [spell for spell in open_ if host.is_boot(spell.at)]
        name = host.rename(ending)
        for spell in mine:
            spell.at = host.at
        return name

    # -- QEMU processes

    def define(self, host: SimHost, spec: VmSpec, token: int) -> Domain:
        """As virDomainDefineXML: what runs goes on as it is."""
        domain = host.domains.setdefault(spec.uuid, Domain(spec))
        domain.defined = token
        return domain

    def begin(
        self,
        host: SimHost,
        spec: VmSpec,
        token: int,
        *,
        autostarted: bool = False,
        by_hand: bool = False,
        migrated: bool = False,
    ) -> None:
        """A QEMU process begins, or what came by a migration goes on here."""
        domain = host.domains.setdefault(spec.uuid, Domain(spec))
        domain.spec = spec
        host.saved.discard(spec.uuid)
        host.runs += 1
        domain.state, domain.stop_reason = VmState.RUNNING, StopReason.NONE
        domain.run, domain.token, domain.since = host.runs, token, self._loop.time()
        domain.health, domain.up, domain.destroyed = Health.OK, False, False
        domain.migrated = migrated
        spell = Spell(spec.uuid, host.at, token, self._loop.time(), autostarted=autostarted, by_hand=by_hand)
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
            domain.up, domain.up_at = True, self._loop.time()
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

    def start_by_hand(self, uuid: str, where: str | None) -> None:
        """As `virsh start` by a person who has looked: nothing where it runs, or where libvirt does not answer, or lacks what
        it needs. Where no host is named, on the one that had it last."""
        known = [host for host in self.hosts.values() if uuid in host.domains]
        last = max(known, key=lambda host: host.domains[uuid].since)
        host = self.hosts[where] if where is not None else last
        refused = bool(lacking(host, definition(self.specs[uuid])))
        if host.os is Os.UP and not host.libvirt_hangs and not refused and not self.running(uuid):
            self.begin(host, self.specs[uuid], host.domains[uuid].defined if host in known else 0)

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
            if host.is_boot(spell.at) and spell.ended is None:
                spell.ended = self._loop.time()
        for told in self.on_change:
            told(host, domain, False)
        self._stir(host)

    def migrate(self, source: SimHost, target: SimHost, uuid: str, seconds: float) -> bool:
        """As `virsh migrate --live --persistent`: for so long the target's copy is there and paused, then the source's
        run is over and that one goes on. It fails where either does not last so long. False where it is refused."""
        there = target.domains.get(uuid)
        if source is target or target.os is not Os.UP or (there is not None and there.state.active):
            return False
        if lacking(target, definition(source.domains[uuid].spec)):
            return False
        from_, arriving = (
            source.domains[uuid],
            target.domains.setdefault(uuid, Domain(source.domains[uuid].spec)),
        )
        target.runs += 1
        arriving.spec, arriving.state, arriving.run = from_.spec, VmState.PAUSED, target.runs
        arriving.token, arriving.defined = from_.token, from_.defined
        arriving.migrated, arriving.stop_reason = True, StopReason.NONE
        self._stir(target)
        whole = (source.at, from_.run, target.at, arriving.run)
        self._loop.world_later(seconds, self._migrated, source, target, uuid, whole)
        return True

    def _migrated(
        self, source: SimHost, target: SimHost, uuid: str, whole: tuple[Incarnation, int, Incarnation, int]
    ) -> None:
        from_, arriving = source.domains[uuid], target.domains[uuid]
        arrives = arriving.state is VmState.PAUSED and (target.at, arriving.run) == whole[2:]
        if not arrives:
            return
        if (source.at, from_.run) != whole[:2] or from_.state is not VmState.RUNNING:
            self.end(target, uuid, StopReason.UNKNOWN)
            return
        by_hand = any(
            one.by_hand for one in self.spells[uuid] if source.is_boot(one.at) and one.ended is None
        )
        self.end(source, uuid, StopReason.MIGRATED)
        # what a person began beside another copy is that person's doing wherever it goes on
        self.begin(target, from_.spec, from_.token, migrated=True, by_hand=by_hand)
        arriving.run, target.runs = whole[3], target.runs - 1
        self.spells[uuid][-1].guest_up, arriving.up = self._loop.time(), True
        arriving.up_at = from_.up_at

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
        over a disk that failed, or hangs and its watchdog, whose action is none, tells."""
        domain = host.domains[uuid]
        if domain.state is not VmState.RUNNING:
            return
        domain.health = health
        self.ills.add((uuid, host.at, domain.run))
        if health is Health.WATCHDOG:
            for fired in self.on_fired:
                fired(host, uuid, domain.run)
        elif health is not Health.SILENT:
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
        host.names = ()
        wait_s = 1.5 if fast else self._chance.uniform(*BOOT_S)
        self._loop.world_later(wait_s, self._booted, host, host.boots)

    def _booted(self, host: SimHost, boot: int) -> None:
        if not host.power or host.os is not Os.BOOTING or host.boots != boot:
            return
        if not self.gate(host):
            self._loop.world_later(GATE_LOOK_S, self._booted, host, boot)
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
            locked = self.image_locks and bool(self.running(domain.spec.uuid))
            if (domain.autostart or resumed) and not locked:
                self.begin(host, domain.spec, domain.defined, autostarted=True)
        for told in self.on_os:
            told(host)
