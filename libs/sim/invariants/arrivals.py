"""What people brought to a host by hand, and whether a start of ours could have reckoned with it: capacity."""

from __future__ import annotations

import json

from libs.events.failovers import FailoverPlanned
from libs.events.signals import InventorySeen, Signal
from libs.model import Incarnation
from libs.sim.broker import Stored
from libs.sim.bus import SimBus
from libs.sim.hosts import Domain, SimHost
from libs.sim.loop import Process
from libs.sim.truth import Truth
from libs.sim.world import World

HEARD_S = 0.5
"""What a host has told for so long, with nothing that loses or delays messages since, is known to whoever plans."""


class Arrivals:
    """Looks at what hosts tell of VMs that people migrated or started there, and at the plans."""

    def __init__(self, world: World, truth: Truth) -> None:
        self._world, self._truth = world, truth
        self._told: dict[tuple[Incarnation, str, int], float] = {}
        """Since when a run is shown by its host, with nothing in the way."""
        self._decided: dict[tuple[str, int], float] = {}
        """When a revision of an incident was first to be written: what it plans was decided then."""
        self._planned: dict[str, tuple[float, bool]] = {}
        """By VM when its latest start was decided, and whether it is one in place."""
        world.broker.on_send.append(self._sent)
        world.broker.on_put.append(self._put)
        world.broker.on_fact.append(self._fact)

    def _sent(self, client: SimBus, signal: Signal) -> None:
        if not isinstance(signal, InventorySeen) or not client.connected or not client.reaches_server:
            return
        now = self._world.loop.time()
        for report in signal.inventory.vms:
            key = (signal.inventory.at, report.uuid, report.run)
            if report.state.active and self._told.get(key, -1.0) <= self._truth.rough_at:
                self._told[key] = now

    def _put(self, bucket: str, key: str, value: bytes | None, process: Process) -> None:
        if bucket == "state" and key.startswith("placement.incident.") and value is not None:
            record = json.loads(value)["record"]
            if record is None:
                return
            incident = record["incident"]
            self._decided.setdefault((incident["id"], incident["revision"]), self._world.loop.time())

    def _fact(self, stored: Stored) -> None:
        if isinstance(stored.fact, FailoverPlanned):
            fact = stored.fact
            at = self._decided.get((fact.incident, fact.revision), stored.at)
            for start in fact.starts:
                self._planned[start.vm] = (at, start.to == start.origin)

    def unforeseen(self, host: SimHost, domain: Domain, started: str) -> bool:
        """True of a VM that a person brought to this host while the start of another was planned there, or before its
        host could tell of it. A VM that is restarted where it was takes the room that it had: its lease keeps that,
        whatever people put beside it."""
        spells = self._world.machines.spells[domain.spec.uuid]
        by_hand = any(one.by_hand and one.at == host.at and one.ended is None for one in spells)
        if not (domain.migrated or by_hand) or started == domain.spec.uuid:
            return False
        planned_at, in_place = self._planned.get(started, (0.0, False))
        if in_place:
            return True
        told_at = self._told.get((host.at, domain.spec.uuid, domain.run))
        return told_at is None or told_at <= self._truth.rough_at or told_at + HEARD_S > planned_at
