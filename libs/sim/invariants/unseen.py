"""VMs that people migrated to where nobody could see them run: what is told of them is true, and nothing more is owed."""

from __future__ import annotations

from libs.events.signals import InventorySeen, Signal
from libs.events.vms import VmUnseen
from libs.model import Incarnation, LeaseState, StopReason, VmState
from libs.sim.broker import Stored
from libs.sim.bus import SimBus
from libs.sim.invariants.book import Book
from libs.sim.truth import Truth
from libs.sim.world import World

HEARD_S = 20.0
"""What a host that is well has run for so long, everybody has been told; also who was paused meanwhile."""


class Unseen:
    """Looks at what hosts tell that they run, and at what is told of VMs that none shows."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._truth, self._book = world, truth, book
        world.broker.on_send.append(self._sent)
        world.broker.on_fact.append(self._fact)

    def _sent(self, client: SimBus, signal: Signal) -> None:
        if isinstance(signal, InventorySeen) and client.connected and client.reaches_server:
            at = signal.inventory.at
            self._book.seen |= {(at, report.uuid) for report in signal.inventory.vms if report.state.active}

    def _fact(self, stored: Stored) -> None:
        fact = stored.fact
        if not isinstance(fact, VmUnseen):
            return
        self._book.unseen.add((fact.at, fact.vm))
        now, truth = self._world.loop.time(), self._truth
        for host in self._world.machines.running(fact.vm):
            began = max(one.began for one in self._world.machines.spells[fact.vm] if one.at == host.at)
            well_s = min(now - began, truth.well_for(host.name), now - truth.rough_at)
            if well_s > HEARD_S:
                self._book.broken("10", f"VM {fact.name} is told to be unseen, and {host.name} runs it")


def unknowable(world: World, book: Book, vm: str) -> bool:
    """A living host let it go by a migration, the boot that took it in ended before it could tell anybody that it ran
    there, and that is told: it may be anywhere, and is for a person to start."""
    known, spells = book.leases.get(vm), world.machines.spells.get(vm)
    if not known or not spells:
        return False
    holder = known[-1][1].holder
    if known[-1][1].state is LeaseState.MIGRATED_OUT:
        return (holder, vm) in book.unseen
    there = world.machines.present(holder)
    domain = None if there is None else there.domains.get(vm)
    if domain is None or domain.state is not VmState.STOPPED or domain.stop_reason is not StopReason.MIGRATED:
        return False
    last: Incarnation = spells[-1].at
    return last != holder and (last, vm) not in book.seen and (holder, vm) in book.unseen
