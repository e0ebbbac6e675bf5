"""What befalls the management plane while hosts fail: a part of it is killed, stands still, or is cut off, for some seconds.

One at a time: two NATS servers of three away at once are no quorum, and nothing would be decided by anybody, as is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from dataclasses import dataclass
from random import Random

from infra.lab.bus import NODES
from infra.lab.lab import LabError
from infra.lab.planenodes import NodesPlane
from services.cli.supervisor import SERVICES

SERVICE, LEADER = "services", "stream leader"
KINDS = {
    "kill_service": SERVICE,
    "pause_service": SERVICE,
    "kill_bus": LEADER,
    "kill_stream_leader": LEADER,
    "pause_bus": LEADER,
    "cut_bus": LEADER,
    "kill_node": LEADER,
    "pause_node": LEADER,
    "cut_node": LEADER,
    "restart_node": LEADER,
}
"""By fault the bar that a failover beside it is held to: all but those on services alone may take a stream's leader away."""
COMES_BACK = frozenset(("pause_bus", "cut_bus", "pause_node", "cut_node"))
"""Faults after which a server is there again with a newer term than its peers': Raft as NATS has it asks nobody before it
campaigns, so from 4 s on each of them costs a second election, 4 to 9 s from then, of all that it does not lead."""
WEIGHTS = (6, 4, 1, 2, 1, 1, 1, 1, 1, 2)
AWAY_S = (1.0, 6.0)
PAUSE_S = (1.0, 4.0)
RECOVERED_S = 40.0
"""For all streams to have a leader again, and all servers to be there."""


@dataclass(slots=True)
class Fault:
    """One fault. Times in seconds of `time.monotonic`; `until` is when the plane was whole again, 0 while it is not."""

    kind: str
    node: int
    service: str
    began: float
    until: float = 0.0

    @property
    def bar(self) -> str:
        return KINDS[self.kind]

    def during(self, begin: float, end: float) -> bool:
        """It was there at some moment between the two."""
        return self.began < end and (not self.until or self.until > begin)


class Faults:
    """Breaks the plane every few seconds until it is cancelled, and mends it each time."""

    def __init__(self, plane: NodesPlane, chance: Random) -> None:
        self._plane, self._chance = plane, chance
        self.done: list[Fault] = []

    async def run(self) -> None:
        """For ever; cancelled, it mends what it has broken."""
        while True:
            await asyncio.sleep(self._chance.uniform(*PAUSE_S))
            kind = self._chance.choices(list(KINDS), WEIGHTS)[0]
            node, service = self._chance.randrange(NODES), self._chance.choice(SERVICES)
            if kind == "kill_stream_leader":
                node = await self._leading(node)
            fault = Fault(kind, node, service, time.monotonic())
            self.done.append(fault)
            try:
                await asyncio.to_thread(self._break, fault)
                await asyncio.sleep(self._chance.uniform(*AWAY_S))
            finally:
                await asyncio.shield(asyncio.to_thread(self._mend, fault))
            if fault.bar == LEADER:
                await self._whole()
            fault.until = time.monotonic()

    async def _leading(self, otherwise: int) -> int:
        bus = self._plane.bus
        with contextlib.suppress(LabError, TimeoutError):
            leader = (await bus.leaders()).get(bus.streams[0])
            return next((node for node in range(NODES) if bus.name(node) == leader), otherwise)
        return otherwise

    async def _whole(self) -> None:
        """Wait until every stream has a leader: only then may another server go."""
        bus, until = self._plane.bus, time.monotonic() + RECOVERED_S
        while time.monotonic() < until:
            with contextlib.suppress(LabError, TimeoutError):
                if len(await bus.leaders()) == len(bus.streams):
                    return
            await asyncio.sleep(0.3)

    def _break(self, fault: Fault) -> None:
        plane, bus, node = self._plane, self._plane.bus, fault.node
        match fault.kind:
            case "kill_service":
                plane.signal_replica(node, fault.service, signal.SIGKILL)
            case "pause_service":
                plane.signal_replica(node, fault.service, signal.SIGSTOP)
            case "kill_bus" | "kill_stream_leader":
                bus.kill_node(node)
            case "pause_bus":
                bus.signal_node(node, signal.SIGSTOP)
            case "cut_bus":
                bus.cut(node, routes_only=True)
            case "kill_node":
                plane.kill_up(node)
                bus.kill_node(node)
            case "restart_node":  # as an upgrade does it
                plane.end_up(node)
                bus.end_node(node)
            case "pause_node":
                plane.signal_up(node, signal.SIGSTOP)
                bus.signal_node(node, signal.SIGSTOP)
            case "cut_node":
                bus.cut(node, routes_only=False)

    def _mend(self, fault: Fault) -> None:
        plane, bus, node = self._plane, self._plane.bus, fault.node
        match fault.kind:
            case "pause_service":
                plane.signal_replica(node, fault.service, signal.SIGCONT)
            case "kill_bus" | "kill_stream_leader":
                bus.start_node(node)
            case "pause_bus":
                bus.signal_node(node, signal.SIGCONT)
            case "cut_bus" | "cut_node":
                bus.mend()
            case "kill_node" | "restart_node":
                bus.start_node(node)
                plane.start_up(node)
            case "pause_node":
                bus.signal_node(node, signal.SIGCONT)
                plane.signal_up(node, signal.SIGCONT)
