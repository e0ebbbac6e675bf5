"""The keeper of alerts over the simulated bus, killed again and again while the stream's leader is lost: what stands at
the end is true, and people heard the last word of each."""

from __future__ import annotations

import asyncio
import json
import logging
from random import Random
from typing import Any

import pytest
import structlog

from libs.config.alerts import Alerts
from libs.core.decider import Outcome
from libs.core.shell import Shell
from libs.core.wiring import Wiring
from libs.events.facts import KINDS
from libs.events.hosts import HostFenced, HostFenceFailed
from libs.sim.archive import SimArchive
from libs.sim.broker import Broker
from libs.sim.bus import SimBus, SimStore
from libs.sim.loop import Process, SimClock, SimLoop
from libs.sim.network import Network
from libs.sim.run import drain
from services.alerting import notices, posting
from services.alerting.notices import Alert, Mirror, Notice, Said, Tell
from services.alerting.standing import MARKS, Standing
from tests.unit.made import boot, proof

pytestmark = pytest.mark.fast
SETTINGS = Alerts.model_validate(
    {"channels": [{"name": "chat", "url": {"env": "X"}}], "digest_s": 5.0, "repeat_s": 1e6}
)


class World:
    def __init__(self, loop: SimLoop, chance: Random) -> None:
        self.loop, self.chance = loop, chance
        self.broker = Broker(loop, Network(Random(1), Random(2)), Random(3), nodes=3)
        self.bus = self.connection("fencer")
        self.heard: dict[str, Notice] = {}
        self.messages = self.lives = 0

    def connection(self, name: str) -> SimBus:
        return SimBus(self.broker, Process(self.loop, name, f"machine-of-{name}"), name)

    async def say(self, request: Tell) -> Outcome:
        """A channel that fails every third time, after it has taken the message or before."""
        ok = self.chance.random() > 0.3
        if ok or self.chance.random() < 0.5:
            self.messages += 1
            self.heard |= {one.key: one for one in request.notices}
        return Said(key=request.key, record=request.record, ok=ok)

    def keeper(self) -> asyncio.Task[None]:
        self.lives += 1
        bus = self.connection(f"alerting-{self.lives}")
        clock = SimClock(self.loop)
        reading = posting.Hands(SimArchive(bus), None, clock, {})  # type: ignore[arg-type]  # it only reads

        async def perform(request: Any) -> Outcome:
            assert not isinstance(request, Mirror)
            return await (self.say(request) if isinstance(request, Tell) else reading.perform(request))

        wiring = Wiring(
            service="alerts",
            bus=bus,
            clock=clock,
            store=SimStore(bus, "state"),
            kinds=tuple(KINDS),
            perform=perform,
            requests=notices.REQUESTS,
            marks=MARKS,
        )
        return asyncio.ensure_future(Shell(Standing(SETTINGS), wiring).run())

    def standing(self) -> set[str]:
        documents = [json.loads(row.value) for row in self.broker.scan("state", "alerts.alert.")]
        alerts = [Alert.model_validate(one["record"]) for one in documents if one["record"] is not None]
        return {one.key for one in alerts if not one.over}


@pytest.mark.parametrize("seed", range(5))
def test_a_keeper_that_is_killed_keeps_its_word(seed: int) -> None:
    loop, chance, before = SimLoop(), Random(seed), structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    world = World(loop, chance)

    async def play() -> None:
        keeper = world.keeper()
        await asyncio.sleep(2.0)
        truth: dict[str, bool] = {}
        for step in range(120):
            host = f"h{chance.randrange(8)}"
            at, incident = boot(host), f"{host}-{step}"
            if truth.get(host):
                await world.bus.publish(HostFenced(at=at, incident=incident, epoch=step, proof=proof(at)))
            else:
                await world.bus.publish(
                    HostFenceFailed(at=at, incident=incident, attempt=1, missing=("no answer",))
                )
            truth[host] = not truth.get(host)
            if chance.random() < 0.15:
                keeper.cancel()
                keeper = world.keeper()
            if chance.random() < 0.05:
                world.broker.lose_leader()
            await asyncio.sleep(chance.uniform(0, 2.0))
        await asyncio.sleep(120.0)
        assert world.standing() == {f"host-unfenced/{host}" for host, fires in truth.items() if fires}
        for host, fires in truth.items():
            assert world.heard[f"host-unfenced/{host}"].state == ("firing" if fires else "resolved"), host
        assert world.lives > 5

    try:
        loop.run_until_complete(play())
    finally:
        drain(loop)
        structlog.configure(**before)
