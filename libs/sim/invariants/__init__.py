"""The rules of DESIGN §4, held against the world's own truth after every change. Not one asks the services.

A subject a module; docs/SIMULATOR.md says which rule is checked where, and which mutation shows that the check
can fail.
"""

from __future__ import annotations

from collections.abc import Callable

from libs.scenario.outcome import Violation
from libs.sim.invariants.assigned import Assigned
from libs.sim.invariants.book import Book
from libs.sim.invariants.guests import Guests
from libs.sim.invariants.leases import Leases
from libs.sim.invariants.liveness import owed, stormy
from libs.sim.invariants.memory import Memory
from libs.sim.invariants.plans import Plans
from libs.sim.invariants.proofs import Proofs
from libs.sim.invariants.quorum import Quorum
from libs.sim.invariants.rooms import Rooms
from libs.sim.invariants.running import Running
from libs.sim.invariants.standby import StandbyHosts
from libs.sim.invariants.stops import Stops
from libs.sim.invariants.stores import Stores
from libs.sim.invariants.strays import Strays
from libs.sim.invariants.unseen import Unseen
from libs.sim.invariants.verdicts import Verdicts
from libs.sim.invariants.waiting import Waiting
from libs.sim.invariants.watchdogs import SelfFencing
from libs.sim.truth import Truth
from libs.sim.world import World

__all__ = ["Invariants"]


class Invariants:
    """All checks over one world; `violated` is called at each violation."""

    def __init__(self, world: World, truth: Truth, violated: Callable[[Violation], None]) -> None:
        self._world, self._truth = world, truth
        self.book = Book(world, violated)
        self._memory = Memory(world, truth, self.book)
        # what one notes another may read in the same moment: the order is that of the chain
        chain = (Quorum, Verdicts, Proofs, SelfFencing, Rooms, Plans, Waiting, Leases, Guests, Running)
        for subject in (*chain, Stops, Stores, Strays, Assigned, Unseen):
            subject(world, truth, self.book)
        StandbyHosts(world, self.book)

    @property
    def settled(self) -> bool:
        """Nothing is open, nor due in a moment."""
        return not owed(self._world, self._truth, self.book, soon=True)

    def owed(self) -> list[tuple[str, str]]:
        """What the world still owes: by rule, with the VM, host or incident."""
        return owed(self._world, self._truth, self.book)

    def end(self) -> None:
        """The world was healed and its time is over: what is still owed is a violation."""
        self._memory.look()
        if self.book.storm and stormy(self._world, self._truth, self.book):
            return  # in a storm that lasts, an operator is waited for (rule 7): nothing more must happen
        for rule, detail in self.owed():
            self.book.broken(rule, f"at the end {detail}")
