"""Stop calls: rule 4 (losing the plane touches no VM), 5, and 11 (a stop that fails condemns no host)."""

from __future__ import annotations

from libs.events.hosts import HostFailed, HostIsolated, HostSuspected
from libs.events.vms import VmStopFailed
from libs.model import Incarnation, Isolation
from libs.sim.broker import Stored
from libs.sim.hosts import SimHost
from libs.sim.invariants.book import Book
from libs.sim.invariants.boots import leased_elsewhere
from libs.sim.invariants.guests import may_be_stopped
from libs.sim.invariants.stores import stranded
from libs.sim.truth import Truth
from libs.sim.world import World

WELL_S = 6.0


class Stops:
    """Looks at every stop call that reaches a host, and at what is said of a host on which one failed."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._truth, self._book = world, truth, book
        self._isolated: set[Incarnation] = set()
        world.virt.on_stop.append(self._stop)
        world.broker.on_fact.append(self._fact)

    def _stop(self, host: SimHost, vm: str) -> None:
        known = self._book.leases.get(vm, [])
        domain = host.domains.get(vm)
        if domain is None or not domain.state.active:
            return
        orders = [one.orders.get(host.name) for one in self._world.machines.datastores.values()]
        if any(one is not None and one.boot == host.at.boot and vm in one.vms for one in orders):
            self._ordered(host, vm)
            return
        if known and leased_elsewhere(host, domain, known[-1][1]):
            # its lease is elsewhere: rule 5 wants it stopped, unless a person has just brought it here
            if domain.migrated and len(self._world.machines.running(vm)) == 1:
                said = (
                    f"VM {domain.spec.name} was migrated to {host.at}, runs nowhere else and is stopped there"
                )
                self._book.broken("5", said)
            return
        if known and may_be_stopped(host, domain, known[-1][1]):
            ill = (vm, host.at, domain.run) in self._world.machines.ills
            preempted = (host.at, vm, domain.run) in self._book.preempted
            if not ill and not preempted and not stranded(self._world, host, domain):
                self._book.broken("guest", f"VM {domain.spec.name} is well and is stopped on {host.at}")
            return
        away = self._world.plane_away or self._world.broker.disturbed
        why = "only the bus or the plane is away" if away else "its lease is nowhere else"
        self._book.broken("4" if away else "5", f"VM {domain.spec.name} is stopped on {host.at}; {why}")

    def _ordered(self, host: SimHost, vm: str) -> None:
        """Through its slot: only an isolated host is told so, and only of VMs whose policy says it."""
        spec = self._world.machines.specs[vm]
        if host.at not in self._isolated:
            self._book.broken(
                "4", f"VM {spec.name} is ordered to stop on {host.at}, which nobody held isolated"
            )
        if spec.policy.isolation is not Isolation.SHUTDOWN:
            self._book.broken(
                "4", f"VM {spec.name} is ordered to stop on {host.at}; its policy is to be left alone"
            )

    def _fact(self, stored: Stored) -> None:
        fact = stored.fact
        if isinstance(fact, HostIsolated):
            self._isolated.add(fact.at)
        if isinstance(fact, VmStopFailed):
            self._book.stop_failed.add((fact.at, fact.vm))
        if not isinstance(fact, HostSuspected | HostFailed):
            return
        host = self._world.machines.hosts[fact.at.host]
        if host.at == fact.at and host.stop_failed and self._truth.up_for(host.name) > WELL_S:
            vms = ", ".join(sorted(self._book.name(vm) for vm in host.stop_failed))
            said = f"{fact.kind} of {fact.at} follows from a stop that failed ({vms})"
            self._book.broken("11", said)
