"""A VM that runs twice, whoever brought it about, runs once again soon; and the copy that is left is its lease's: rule 1."""

from __future__ import annotations

from libs.model import LeaseState
from libs.sim.invariants.book import Book
from libs.sim.truth import Truth
from libs.sim.world import World

LOOK_S = 0.5
TWICE_S = 14.0
"""Two inventories, two looks, a stop; in a world in which nothing stands in the way of any of them."""


class Strays:
    """Looks at all that runs, twice a second."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._truth, self._book = world, truth, book
        self._since: dict[str, float] = {}
        self._clear_since = world.loop.time()
        self._look()

    def _look(self) -> None:
        world, now = self._world, self._world.loop.time()
        if not self._clear():
            self._clear_since = now
        doubled = set(doubles(world, self._truth, self._book))
        self._since = {vm: self._since.get(vm, now) for vm in doubled}
        for vm, since in self._since.items():
            if now - max(since, self._clear_since) > TWICE_S:
                where = ", ".join(host.name for host in world.machines.running(vm))
                said = f"VM {self._book.name(vm)} has run on {where} for {TWICE_S:.0f} s, and nobody ends it"
                self._book.broken("1", said)
        world.loop.world_later(LOOK_S, self._look)

    def _clear(self) -> bool:
        """Nothing keeps the executor or libvirt from what is asked of them."""
        world, trouble = self._world, self._world.virt.trouble
        slots = [slot for slot in world.slots.values() if slot.name == "executor"]
        works = any(slot.process is not None and not slot.process.stopped for slot in slots)
        paused = any(slot.process is not None and slot.process.stopped for slot in slots)
        shares = (trouble.lost_answer, trouble.lost_reading, trouble.garbage, trouble.slow_start)
        return works and not paused and not any(shares) and world.loop.time() - self._truth.rough_at > 0.5


def doubles(world: World, truth: Truth, book: Book) -> list[str]:
    """VMs that run twice, where nothing keeps anybody from knowing it."""
    return [vm for vm in world.machines.specs if _doubled(world, truth, book, vm)]


def _doubled(world: World, truth: Truth, book: Book, vm: str) -> bool:
    """It runs on its holder and on one other host, both of which are well."""
    machines = world.machines
    where, known = machines.running(vm), book.leases.get(vm, [])
    if len(where) < 2 or not known or known[-1][1].state is not LeaseState.RUNNING:
        return False
    runs = all(host.domains[vm].state.value == "running" for host in where)
    well = all(truth.well_for(host.name) > 0 for host in where)
    held = known[-1][1].holder in {host.at for host in where}
    stops = not any(vm in host.stop_failed or host.stop_fails.get(vm) for host in where)
    return runs and well and held and stops and not any(machines.store_of(vm).stalled(h.name) for h in where)
