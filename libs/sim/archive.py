"""The simulated stream, read from any place in it."""

from __future__ import annotations

from libs.core.ports import Kept
from libs.events.envelope import wrap
from libs.sim.bus import CALL_S, SimBus
from libs.sim.loop import wall_at


class SimArchive:
    """Archive over the simulated broker, through one process's connection."""

    def __init__(self, bus: SimBus, pool: str = "sim") -> None:
        self._bus, self._pool = bus, pool

    async def last(self) -> int:
        """See ports.Archive."""
        facts = self._bus.broker.facts
        return await self._bus.broker.call(self._bus, "last", lambda: len(facts), CALL_S)

    async def after(self, sequence: int, most: int) -> list[Kept]:
        """See ports.Archive."""
        broker = self._bus.broker
        found = await broker.call(
            self._bus, f"after {sequence}", lambda: broker.facts[sequence : sequence + most], CALL_S
        )
        return [
            Kept(one.sequence, wrap(one.fact, pool=self._pool, service=one.service, wall=wall_at(one.at)))
            for one in found
        ]
