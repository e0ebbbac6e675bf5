"""What runs where: rules 1 and 5, capacity, and what was shut down on purpose."""

from __future__ import annotations

from libs.model import LeaseState, Protection
from libs.sim.hosts import Domain, SimHost, Spell
from libs.sim.invariants.arrivals import Arrivals
from libs.sim.invariants.book import Book
from libs.sim.invariants.boots import leased_elsewhere
from libs.sim.truth import Truth
from libs.sim.world import World

LEASE_OLD_S = 3.0
MOMENT_S = 0.1
"""A person's `virsh destroy` in the very moment of ours, or while we evict: nobody can tell the one from the other."""


class Running:
    """Looks at every process of a VM that begins, and at every start call."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._truth, self._book = world, truth, book
        self._arrivals = Arrivals(world, truth)
        world.machines.on_change.append(self._changed)
        world.virt.on_start.append(self._start)
        world.on_announce.append(self._announced)

    def _ungated(self, spell: Spell) -> bool:
        """It started by itself at boot, and the boot gate has not been passed yet: rule 5 deals with it."""
        return spell.autostarted and self._world.machines.hosts[spell.at.host].announced != spell.at.boot

    def _changed(self, host: SimHost, domain: Domain, began: bool) -> None:
        if not began:
            return
        vm = domain.spec.uuid
        self._begun_at_boot(host, domain)
        now = [spell for spell in self._world.machines.spells[vm] if spell.ended is None]
        # what a person starts beside another copy nobody can keep from running; strays.py sees that it ends
        ours = [spell for spell in now if not self._ungated(spell) and not spell.by_hand]
        twice = [spell for spell in ours if spell.at not in self._book.lied]
        if len(twice) > 1:
            where = ", ".join(f"{spell.at} (token {spell.token})" for spell in twice)
            self._book.broken("1", f"VM {domain.spec.name} runs twice: {where}")
        usable = host.memory_mib - host.memory_reserved_mib
        by_person = now[-1].by_hand or domain.migrated
        if now[-1].autostarted or by_person:
            return
        counted = [one for one in host.active() if not self._arrivals.unforeseen(host, one, domain.spec.uuid)]
        used = sum(one.spec.memory_mib for one in counted)
        if used > usable:
            said = f"{host.name}: {used} MiB of {usable} MiB in use with {domain.spec.name}"
            self._book.broken("capacity", said)

    def _begun_at_boot(self, host: SimHost, domain: Domain) -> None:
        """Where a gate stands before libvirt, nothing begins by itself whose lease is elsewhere, not for a moment; but for
        what nobody protects, where the store did not answer."""
        vm = domain.spec.uuid
        known = self._book.leases.get(vm)
        if (
            not self._world.machines.spells[vm][-1].autostarted
            or host.agentless
            or not host.gate
            or not known
        ):
            return
        lease = known[-1][1]
        waits = domain.spec.policy.protection is not Protection.NONE or not host.unasked
        if waits and leased_elsewhere(host, domain, lease):
            self._book.broken(
                "5", f"{host.at} starts {domain.spec.name} by itself, whose lease {lease.holder} has"
            )

    def _start(self, host: SimHost, vm: str, token: int) -> None:
        """A start call reached a host: the lease is ours, and the former holder is proven harmless."""
        history = [lease for _, lease in self._book.leases.get(vm, [])]
        name = self._book.name(vm)
        if not history or history[-1].token < token:
            said = f"VM {name} is started on {host.name} with token {token}, which no lease has"
            self._book.broken("1", said)
            return
        lease = history[-1]
        if lease.token > token:
            said = f"VM {name} is started on {host.name} with token {token}, lease has {lease.token}"
            self._book.broken("1", said)
        elif lease.holder != host.at:
            self._book.broken("1", f"VM {name} is started on {host.at}, its lease names {lease.holder}")
        elif lease.state is LeaseState.STOPPED:
            self._book.broken("on_purpose", f"VM {name} was stopped on purpose and is started on {host.name}")
        former = next((one for one in reversed(history) if one.token < token), None)
        proven = former is None or former.holder in self._book.fenced or (vm, token) in self._book.released
        proven = proven or (former is not None and (former.holder, vm) in self._book.obeyed)
        if former is not None and former.holder != host.at and not proven:
            there = self._world.machines.present(former.holder)
            active = there is not None and vm in {domain.spec.uuid for domain in there.active()}
            if active or (there is None and former.state is not LeaseState.FAILED):
                said = f"{former.holder} is neither fenced nor says that it is stopped"
                self._book.broken("1", f"VM {name} is started on {host.at}; {said}")
        self._stopped_on_purpose(host, vm, name)

    def _stopped_on_purpose(self, host: SimHost, vm: str, name: str) -> None:
        down = self._world.stopped_on_purpose.get(vm)
        if down is None or not down.seen:
            return
        history = self._book.leases.get(vm, [])
        stood = [lease for at, lease in history if at <= down.at][-1:]
        then = [*stood, *(lease for at, lease in history if down.at < at <= down.at + MOMENT_S)]
        if down.destroyed and any(lease.state is LeaseState.EVICTING for lease in then):
            return
        # its own host lives and has said so all the time: nobody can have missed why it stopped
        since = self._truth.well_since.get(down.host)
        if since is not None and since < down.at:
            said = f"VM {name} was shut down on purpose and is started on {host.name}"
            self._book.broken("on_purpose", said)

    def _announced(self, host: SimHost) -> None:
        """The first heartbeat of a boot: its gate is passed."""
        now = self._world.loop.time()
        for domain in host.active():
            vm, name = domain.spec.uuid, domain.spec.name
            if vm in host.stop_failed:
                continue  # the VM is condemned, not its host: rule 11
            others = (other for other in self._world.machines.running(vm) if other is not host)
            elsewhere = [other.name for other in others if other.at not in self._book.lied]
            if elsewhere:
                said = f"{host.at} is announced while its VM {name} runs on {elsewhere[0]}, too"
                self._book.broken("5", said)
            if domain.migrated and not elsewhere:
                continue  # a person brought it here from a living host in this very boot: its lease is to follow
            known = self._book.leases.get(vm, [])
            if host.agentless and known and known[-1][1].holder.host == host.name:
                continue  # whether that was another boot is not known: what runs here runs nowhere else
            if known and leased_elsewhere(host, domain, known[-1][1]) and now - known[-1][0] > LEASE_OLD_S:
                holder = known[-1][1].holder
                self._book.broken("5", f"{host.at} is announced with VM {name}, whose lease {holder} has")
