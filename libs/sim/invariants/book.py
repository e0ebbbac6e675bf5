"""What facts and stored rows have said so far in one world, shared by all checks."""

from __future__ import annotations

from collections.abc import Callable

from libs.events.failovers import PlannedStart
from libs.events.hosts import HostFailed, HostFenced
from libs.model import Incarnation, Inventory, RunLease
from libs.scenario.outcome import Violation
from libs.sim.world import World


class Book:
    """Each entry is written by the one check whose subject it is; `broken` reports a violation."""

    def __init__(self, world: World, violated: Callable[[Violation], None]) -> None:
        self._world, self._violated = world, violated
        self.zero = 0.0
        """The moment at which the pool was ready: times are told since then."""
        self.failed: dict[Incarnation, HostFailed] = {}
        self.failed_at: dict[str, float] = {}
        self.fenced: dict[Incarnation, HostFenced] = {}
        self.settled: set[str] = set()
        """Incidents that are fenced or stood down."""
        self.undecided: set[Incarnation] = set()
        """Boots of which it was told that nobody can decide about them."""
        self.lied: set[Incarnation] = set()
        """Proofs that nobody could have doubted: a device lied about a host that was cut off on every channel.
        What runs on these runs twice, and no protocol without another level of fencing can help it."""
        self.heard_again: set[Incarnation] = set()
        """Fenced incarnations that were told to speak all the same."""
        self.stop_failed: set[tuple[Incarnation, str]] = set()
        """Boots and VMs of which it was told that a stop failed."""
        self.preempted: set[tuple[Incarnation, str, int]] = set()
        """Runs of VMs that are stopped to make room."""
        self.drained: dict[str, float] = {}
        """Hosts that are drained by placement's own stored word, and since when."""
        self.storm = False
        self.leases: dict[str, list[tuple[float, RunLease]]] = {}
        self.released: set[tuple[str, int]] = set()
        """VM and token of leases that were taken from a holder that lived and did not run the VM any more."""
        self.obeyed: set[tuple[Incarnation, str]] = set()
        """Isolated boots, and the VMs that they were told to stop and have stopped."""
        self.orders: dict[str, PlannedStart] = {}
        self.ended: set[str] = set()
        """Keys of starts whose outcome was told."""
        self.given_up: set[str] = set()
        self.seen: set[tuple[Incarnation, str]] = set()
        """Boots and VMs that they were heard to run."""
        self.unseen: set[tuple[Incarnation, str]] = set()
        """Boots that let a VM go by a migration of which it was told that nobody shows where it runs."""
        self.failures: dict[str, int] = {}
        """How often a VM was told to have failed on a host that lives."""
        self.shown: dict[Incarnation, Inventory] = {}
        self.answered: set[tuple[str, Incarnation, int]] = set()
        """Runs of VMs whose guest agent was told to have answered."""
        self.completed: set[str] = set()
        """Incidents of which nothing waits any more."""

    def broken(self, rule: str, detail: str) -> None:
        at_s = round(self._world.loop.time() - self.zero, 3)
        self._violated(Violation(rule=rule, at_s=at_s, detail=detail))

    def name(self, vm: str) -> str:
        return self._world.machines.specs[vm].name
