"""Hosts on standby: none is switched on whose end is open, and none off on which something runs."""

from __future__ import annotations

from libs.sim.invariants.book import Book
from libs.sim.world import World

MOMENT_S = 8.0
"""What was begun there later than so long before may have been begun after the last look."""


class StandbyHosts:
    """Looks at every command of a fence device to a host of the pool that may be on standby."""

    def __init__(self, world: World, book: Book) -> None:
        self._world, self._book = world, book
        for host in world.members:
            for outlet in world.outlets[host.name] if host.standby else ():
                outlet.on_on.append(self._on)
                outlet.on_off.append(self._off)

    def _on(self, name: str) -> None:
        """Whoever is powered on by a device must be over for good, or there already."""
        host = self._world.machines.hosts[name]
        if host.power:
            return
        failed = self._book.failed.get(host.at)
        if failed is not None and failed.incident not in self._book.settled:
            self._book.broken("standby", f"{host.at} is switched on, and {failed.incident} is open")

    def _off(self, name: str) -> None:
        host, now = self._world.machines.hosts[name], self._world.loop.time()
        if not host.power or host.at not in self._world.operator.leaving or host.at in self._book.failed:
            return
        runs = [one.spec.name for one in host.active() if now - one.since > MOMENT_S]
        if runs:
            said = f"{host.at} is switched off to go back to standby, and runs {', '.join(sorted(runs))}"
            self._book.broken("standby", said)
