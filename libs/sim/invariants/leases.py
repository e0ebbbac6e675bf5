"""Run leases as they are written: rules 1, 3 and 8."""

from __future__ import annotations

from libs.model import LeaseState, RunLease
from libs.sim.invariants.book import Book
from libs.sim.loop import Process
from libs.sim.truth import Truth
from libs.sim.world import World


class Leases:
    """Looks at every row of the leases' bucket."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._book = world, book
        world.broker.on_row.append(self._row)

    def _row(self, bucket: str, key: str, value: bytes | None, process: Process | None) -> None:
        if bucket != "leases":
            return
        if value is None:
            self._book.broken("1", f"the run lease of VM {self._book.name(key)} was deleted")
            return
        lease = RunLease.model_validate_json(value)
        known = self._book.leases.setdefault(key, [])
        if known:
            self._follows(known[-1][1], lease)
        known.append((self._world.loop.time(), lease))
        self._true(lease)

    def _follows(self, before: RunLease, lease: RunLease) -> None:
        there = self._world.machines.present(before.holder)
        if there is not None and lease.vm not in {domain.spec.uuid for domain in there.active()}:
            self._book.released.add((lease.vm, lease.token))
        if lease.token < before.token or (lease.holder != before.holder and lease.token == before.token):
            was, now = f"token {before.token} of {before.holder}", f"token {lease.token} of {lease.holder}"
            self._book.broken("1", f"lease of VM {lease.name}: {was} became {now}")

    def _true(self, lease: RunLease) -> None:
        """Of a host that is there it must not be said that it does not run what it runs."""
        there = self._world.machines.present(lease.holder)
        domain = there.domains.get(lease.vm) if there is not None else None
        if lease.state in (LeaseState.FAILED, LeaseState.STOPPED) and domain and domain.state.active:
            said = f"lease of VM {lease.name} says {lease.state.value}, it runs on {lease.holder}"
            self._book.broken("3", said)
