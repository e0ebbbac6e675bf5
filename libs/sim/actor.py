"""Whom a step of a scenario means in the simulated world."""

from __future__ import annotations

from libs.scenario.model import StepEntry
from libs.sim.hosts import SimHost
from libs.sim.plane import Slot
from libs.sim.power import Outlet
from libs.sim.storage import Datastore
from libs.sim.world import World, vm_uuid


class Actor:
    """Finds the machines, processes and devices of a step. What is done to them is in its subclasses."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._unstored: list[tuple[str, Datastore]] = []
        """Hosts that a partition has cut off from a datastore."""

    def _host(self, step: StepEntry) -> SimHost:
        return self._world.machines.hosts[str(step.host)]

    def _slot(self, step: StepEntry) -> Slot:
        return self._world.slots[f"{step.service}/{step.replica}"]

    def _where(self, step: StepEntry) -> list[SimHost]:
        return self._world.machines.running(vm_uuid(str(step.vm)))

    def _outlets(self, step: StepEntry) -> list[Outlet]:
        """The host's fence devices of the step's method or name, or all where it names none."""
        outlets = self._world.outlets[str(step.host)]
        return [one for one in outlets if step.method in (None, one.method, one.name)]

    def _named(self, step: StepEntry) -> list[str]:
        """The step's host, or all where it names none."""
        return [str(step.host)] if step.host is not None else list(self._world.machines.hosts)
