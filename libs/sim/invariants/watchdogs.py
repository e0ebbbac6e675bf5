"""Watchdogs: rule 4, from both sides. Nobody who lives is presumed fenced; nobody is reset for the plane's sake alone."""

from __future__ import annotations

from libs.events.hosts import HostFenced
from libs.events.signals import Heartbeat, Signal
from libs.model import Incarnation, ProofMethod
from libs.sim.broker import Stored
from libs.sim.bus import SimBus
from libs.sim.hosts import Os, SimHost
from libs.sim.invariants.book import Book
from libs.sim.truth import Truth
from libs.sim.world import World

MOMENT_S = 2.0
"""For vouchers to come round again after what was in their way, and for an agent that has just been started."""


class SelfFencing:
    """Looks at every proof by a promise, and at every watchdog that goes off."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._truth, self._book = world, truth, book
        self._advertised: dict[Incarnation, float] = {}
        """The longest time-out that a boot has ever named in a heartbeat."""
        world.broker.on_fact.append(self._fact)
        if world.watchdogs.of:
            world.broker.on_send.append(self._sent)
        for device in world.watchdogs.of.values():
            device.on_fire.append(self._goes_off)

    def _sent(self, client: SimBus, signal: Signal) -> None:
        if isinstance(signal, Heartbeat) and signal.watchdog_s is not None:
            known = self._advertised.get(signal.at, 0.0)
            self._advertised[signal.at] = max(known, signal.watchdog_s)

    def _fact(self, stored: Stored) -> None:
        fact = stored.fact
        if not isinstance(fact, HostFenced) or fact.proof.method is not ProofMethod.WATCHDOG:
            return
        host = self._world.machines.hosts[fact.at.host]
        if host.at == fact.at and host.power and host.os in (Os.UP, Os.HUNG):
            running = ", ".join(domain.spec.name for domain in host.active()) or "nothing"
            self._book.broken(
                "4", f"{fact.at} is presumed fenced by its watchdog and lives; it runs {running}"
            )
        if fact.at not in self._advertised:
            self._book.broken("4", f"{fact.at} is presumed fenced and has never advertised a watchdog")

    def _goes_off(self, host: SimHost) -> None:
        """Its network was sound all the while, whatever the bus and the plane did: a slot that works or its peers must
        have kept it alive."""
        if host.os is not Os.UP or self._truth.sound_for(host.name) <= MOMENT_S:
            return
        if self._slot_works(host):
            self._book.broken("4", f"{host.at} is reset by its watchdog; a slot of it takes writes")
        elif self._seen(host):
            self._book.broken("4", f"{host.at} is reset by its watchdog; a majority of its peers sees it")

    def _slot_works(self, host: SimHost) -> bool:
        now, machines = self._world.loop.time(), self._world.machines
        return any(
            machines.has(host.name, name) and not store.stalled_s(host.name, now - MOMENT_S, now)
            for name, store in machines.datastores.items()
        )

    def _seen(self, host: SimHost) -> bool:
        # who is watched from elsewhere has no agent that could say whom it sees
        others = [
            name for name, one in self._world.machines.hosts.items() if one is not host and not one.agentless
        ]
        sound = [name for name in others if self._truth.sound_for(name) > MOMENT_S]
        return len(sound) > len(others) // 2
