"""The workflow that brings hosts: the simulator's twin of infra/lab/workflow.py. It hears the facts themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from libs.events.scaleout import ScaleOutRequested
from libs.scenario.workflow import Workflow
from libs.sim.broker import Stored

if TYPE_CHECKING:
    from libs.sim.world import World


class SimWorkflow:
    """One for the pool. A request that comes again is the same request."""

    def __init__(self, world: World, workflow: Workflow) -> None:
        self._world, self._workflow = world, workflow
        self._done: set[str] = set()
        world.broker.on_fact.append(self._heard)

    def _heard(self, stored: Stored) -> None:
        fact = stored.fact
        if not isinstance(fact, ScaleOutRequested) or fact.request in self._done:
            return
        self._done.add(fact.request)
        machines = self._world.machines
        host = machines.hosts[self._workflow.brings]
        self._world.loop.world_later(self._workflow.after_s, machines.power_on, host)
