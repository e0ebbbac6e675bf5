"""What a heartbeat costs the detector, from the bus to its state, in processor time alone: also on a machine that could not
carry so many agents beside everything else. A real server, the real client, shell and decider in this process; all agents speak over
one connection, as fast as they are heard.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infra.load.run import INVENTORY_EVERY_S, POOL, spent
from infra.load.wire import SimAgent
from libs.config.settings import Detection
from libs.core.clock import SystemClock
from libs.core.shell import Shell
from libs.core.wiring import Wiring
from libs.jetstream.bus import open_bus
from libs.jetstream.schema import Names, ensure
from libs.jetstream.server import EmbeddedServer
from libs.jetstream.store import JetStreamStore
from libs.measures import Measures
from libs.service import collect_rarely
from services.detector.decide import Detector
from services.detector.state import DetectorState

CHUNK = 500
TICKS = 200


@dataclass(slots=True)
class Cost:
    """`rekindle.load_cost.v1`. `us`: microseconds of processor time, the sender's included."""

    agents: int
    beats: int
    heartbeat_us: float = 0.0
    inventory_us: float = 0.0
    """Of one that says what the one before it said, as nearly all do."""
    inventory_new_us: float = 0.0
    tick_us: float = 0.0
    cores: float = 0.0
    """At one heartbeat a second of each, an inventory every five, ten ticks: computed from these."""
    mib_first: float = 0.0
    """Once every host was heard."""
    mib_last: float = 0.0
    growth_mib_per_million: float = 0.0
    """Slope over the second half, for each million of heartbeats."""
    samples: list[tuple[int, float]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        return {"schema": "rekindle.load_cost.v1", **asdict(self)}


class _Follows:
    """It hears as a leader does, and writes nothing: joins are not what is measured."""

    token: int | None = None

    def held(self) -> bool:
        return False

    def unseen_s(self) -> float:
        return 0.0

    def on_change(self, changed: object) -> None:
        return None


@dataclass(slots=True)
class Costing:
    """One measurement below a directory of its own."""

    directory: Path
    agents: int
    beats: int
    """Heartbeats of each agent."""

    async def play(self) -> Cost:
        collect_rarely()  # as the detector's own process
        cost = Cost(self.agents, self.beats)
        server = EmbeddedServer(self.directory / "nats")
        await server.start()

        async def closed() -> None:
            return None

        hosts = [SimAgent(f"h{number}", POOL, 4, server.url) for number in range(self.agents)]
        bus = await open_bus([server.url], POOL, "detector", SystemClock(), "detector", closed=closed)
        await ensure(bus.client.jetstream(timeout=5), POOL)
        measures = Measures(SystemClock())
        # a suspicion is another matter: this machine may not carry the load in time
        patient = Detection(suspect_after_s=3600.0, confirm_witnessed_s=3600.0, confirm_silence_s=3600.0)
        detector = Detector(tuple(one.host for one in hosts), patient)
        wiring = Wiring(
            service="detector",
            bus=bus,
            clock=SystemClock(),
            store=JetStreamStore(bus.client, Names(POOL), "state"),
            lease=_Follows(),
            signals=("heartbeat.*", "inventory.*"),
            meter=measures,
        )
        shell = Shell(detector, wiring)
        running = asyncio.create_task(shell.run())
        sender = SimAgent("sender", POOL, 0, server.url)
        await sender.connect()
        try:
            await self._measure(cost, hosts, sender, measures, shell, running)
        finally:
            running.cancel()
            await bus.client.close()
            sender.close()
            await server.stop()
        return cost

    async def _measure(
        self,
        cost: Cost,
        hosts: list[SimAgent],
        sender: SimAgent,
        measures: Measures,
        shell: Shell[DetectorState],
        running: asyncio.Task[None],
    ) -> None:
        async def say(*, inventory: bool = False) -> None:
            for first in range(0, len(hosts), CHUNK):
                some = hosts[first : first + CHUNK]
                sender.write(b"".join(one.inventory_line if inventory else one.beat_line() for one in some))
                wanted = heard() + len(some)
                while heard() < wanted:
                    if running.done():
                        running.result()
                    await asyncio.sleep(0.001)

        def heard() -> int:
            return measures.count("rekindle_heartbeats_total") + measures.count("rekindle_inventories_total")

        while not heard():  # it may not listen yet
            sender.write(hosts[0].beat_line())
            await asyncio.sleep(0.2)
        await say()
        while len(shell.state.boots) < len(hosts):  # noqa: ASYNC110  all have joined; nothing tells of it
            await asyncio.sleep(0.1)
        await say()
        cost.inventory_new_us = await _took_us(say(inventory=True), len(hosts))
        cost.inventory_us = await _took_us(say(inventory=True), len(hosts))
        cost.mib_first = round(spent_mib(), 1)
        rounds = []
        for number in range(self.beats):
            rounds.append(await _took_us(say(), len(hosts)))
            if number % max(1, self.beats // 100) == 0:
                cost.samples.append(((number + 1) * len(hosts), round(spent_mib(), 2)))
        cost.heartbeat_us = round(statistics.median(rounds), 1)
        cost.mib_last = round(spent_mib(), 1)
        half = cost.samples[len(cost.samples) // 2 :]
        if len(half) > 2:
            slope, _ = statistics.linear_regression([at / 1e6 for at, _ in half], [mib for _, mib in half])
            cost.growth_mib_per_million = round(slope, 2)
        cost.tick_us = _tick_us(shell)
        inventories = cost.inventory_us / INVENTORY_EVERY_S
        cost.cores = round((len(hosts) * (cost.heartbeat_us + inventories) + 10 * cost.tick_us) / 1e6, 3)


def _tick_us(shell: Shell[DetectorState]) -> float:
    """Of the decider alone, over as many ticks as make some seconds: most are spared the walk over all hosts."""
    state, began = shell.state, time.process_time()
    for _ in range(TICKS):
        state = shell._decider.step(state, None, state.tick_at).state
    return round(1e6 * (time.process_time() - began) / TICKS, 1)


async def _took_us(work: Any, times: int) -> float:
    began = time.process_time()
    await work
    return round(1e6 * (time.process_time() - began) / times, 1)


def spent_mib() -> float:
    """Resident memory of this process."""
    return spent(os.getpid()).mib
