"""Guests that fail while their QEMU lives: who may be held to have failed, who may be stopped for it, what is owed."""

from __future__ import annotations

from collections.abc import Iterator

from libs.crashes import grey
from libs.events.failovers import FailoverPlanned, PlannedStart
from libs.events.guests import VmEvictFailed, VmUnhealthy
from libs.events.signals import InventorySeen, Signal
from libs.events.vms import VmFailed, VmPreemptFailed
from libs.model import (
    Failure,
    GuestFailure,
    Health,
    Incarnation,
    Inventory,
    LeaseState,
    Protection,
    RunLease,
    VmState,
)
from libs.sim.broker import Stored
from libs.sim.bus import SimBus
from libs.sim.hosts import Domain, Os, SimHost
from libs.sim.invariants.book import Book
from libs.sim.loop import Process
from libs.sim.truth import Truth
from libs.sim.world import World

GREY_S = 1.0
"""For so long a stored inventory shows a grey host before it must be known."""


class Guests:
    """Looks at every failure that is told, and at every stored inventory."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._book = world, book
        self._grey_since: dict[Incarnation, float] = {}
        """Boots whose stored inventory shows them grey, and since when."""
        world.broker.on_fact.append(self._fact)
        world.broker.on_row.append(self._row)
        world.broker.on_send.append(self._sent)

    def _fact(self, stored: Stored) -> None:
        fact = stored.fact
        if isinstance(fact, VmEvictFailed):
            self._book.stop_failed.add((fact.at, fact.vm))
        if isinstance(fact, VmPreemptFailed):
            host = self._world.machines.hosts[fact.at.host]
            if host.at == fact.at and fact.vm in host.stop_failed:  # told as well: why it was not stopped
                self._book.stop_failed.add((fact.at, fact.vm))
        if isinstance(fact, FailoverPlanned):
            self._planned(fact)
        if not isinstance(fact, VmFailed | VmUnhealthy):
            return
        if isinstance(fact, VmFailed):
            self._book.failures[fact.vm] = self._book.failures.get(fact.vm, 0) + 1
        if fact.why is Failure.CRASHED:
            return
        name = self._book.name(fact.vm)
        if fact.why is Failure.SILENT and not self._world.machines.specs[fact.vm].agent:
            self._book.broken("guest", f"VM {name} is held silent on {fact.at.host} and has no guest agent")
        elif (fact.vm, fact.at, fact.run) not in self._world.machines.ills:
            self._book.broken(
                "guest", f"VM {name} is held to be {fact.why.value} on {fact.at.host}; it is well"
            )

    def _planned(self, fact: FailoverPlanned) -> None:
        """None of the guests of a grey host is restarted in place. One that has ended there since is none of them any
        more: it is down, and comes back where it was as any that crashes."""
        now = self._world.loop.time()
        for start in fact.starts:
            since = self._grey_since.get(start.origin)
            if start.to != start.origin or since is None or now - since <= GREY_S:
                continue
            if start.evict and self._goes_on(start):
                said = f"VM {start.name} is restarted in place on {start.origin}, where all guests fail"
                self._book.broken("guest", said)

    def _goes_on(self, start: PlannedStart) -> bool:
        """The run that is to be stopped has not ended by itself."""
        host = self._world.machines.present(start.origin)
        domain = host.domains.get(start.vm) if host is not None else None
        return domain is not None and domain.state.active and domain.run == start.run

    def _sent(self, client: SimBus, signal: Signal) -> None:
        """What is heard may be written later: while the bus has no leader, say. What does not get to the bus is heard
        by nobody."""
        heard = client.connected and client.reaches_server
        if heard and isinstance(signal, InventorySeen) and not self._grey(signal.inventory):
            self._grey_since.pop(signal.inventory.at, None)

    def _grey(self, inventory: Inventory) -> bool:
        return bool(grey(inventory, self._world.settings.guests.grey_min))

    def _row(self, bucket: str, key: str, value: bytes | None, process: Process | None) -> None:
        if bucket != "inventory" or value is None:
            return
        inventory = Inventory.model_validate_json(value)
        self._book.shown[inventory.at] = inventory
        if self._grey(inventory):
            self._grey_since.setdefault(inventory.at, self._world.loop.time())
        else:
            self._grey_since.pop(inventory.at, None)
        for report in inventory.vms:
            if report.health is Health.OK:
                self._book.answered.add((report.uuid, inventory.at, report.run))


def may_be_stopped(host: SimHost, domain: Domain, lease: RunLease) -> bool:
    """It is evicted: its lease says so of this very run."""
    return lease.state is LeaseState.EVICTING and lease.holder == host.at and lease.run == domain.run


def untreated(world: World, book: Book, room: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Guests that fail where it can be known, and that were neither restarted nor given up. `room`: hosts that have
    room for a VM."""
    for host in world.machines.hosts.values():
        speaks = host.os is Os.UP and host.announced == host.at.boot and host.agent
        if not speaks or host.at in book.fenced:
            continue
        for domain in host.active():
            vm = domain.spec.uuid
            if not domain.health.bad or not _treatable(world, book, host.at, domain):
                continue
            if host.stop_fails.get(vm, 0) > 0 or _held_as_grey(world, book, host.at, vm):
                continue
            in_place = (
                book.failures.get(vm, 0) <= world.settings.restart.crash_budget
                and host.name not in world.operator.drained
            )
            if in_place or [name for name in room[vm] if name != host.name]:
                yield "guest", f"VM {domain.spec.name} is {domain.health.value} on {host.name} and left so"


def _treatable(world: World, book: Book, at: Incarnation, domain: Domain) -> bool:
    spec, vm = domain.spec, domain.spec.uuid
    wanted = spec.policy.protection is Protection.RESTART and vm not in world.stopped_on_purpose
    left = spec.policy.on_guest_failure is GuestFailure.ALERT or vm in book.given_up
    # one that never answered in this run is never judged, nor one that a person paused
    asked = spec.agent and domain.state is VmState.RUNNING and (vm, at, domain.run) in book.answered
    known = domain.health is not Health.SILENT or asked
    return wanted and not left and known


def _held_as_grey(world: World, book: Book, at: Incarnation, vm: str) -> bool:
    shown = book.shown.get(at)
    failing = grey(shown, world.settings.guests.grey_min) if shown is not None else ()
    return world.settings.guests.grey == "alert" and vm in {one.uuid for one in failing}
