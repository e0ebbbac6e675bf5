"""Deliveries over a day of virtual time: the production courier and hands over the simulated bus, with endpoints that are
down, slow, full or gone; and couriers that are killed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
import structlog

from libs.config.webhooks import Webhook
from libs.core.shell import Shell
from libs.core.wiring import Wiring
from libs.events.facts import KINDS
from libs.events.hosts import HostSuspected
from libs.sim.archive import SimArchive
from libs.sim.broker import Broker
from libs.sim.bus import SimBus, SimStore
from libs.sim.loop import Process, SimClock, SimLoop
from libs.sim.network import Network
from libs.sim.run import drain
from services.alerting import letters, posting
from services.alerting.courier import Courier
from services.alerting.posting import Answer, Target
from services.alerting.schedule import DAY_S, Verdict
from tests.unit.made import boot

WELL = Answer(Verdict.DELIVERED, "HTTP 200")
HOUR_S = 3600.0


@dataclass
class World:
    """Endpoints by name: what each does with a try, given the time since the beginning; and what each has taken."""

    loop: SimLoop
    behave: dict[str, Callable[[float], Awaitable[Answer]]]
    got: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    lives: int = 0

    def __post_init__(self) -> None:
        self.broker = Broker(self.loop, Network(Random(1), Random(2)), Random(3), nodes=3)
        self.clock = SimClock(self.loop)
        self.bus = self.connection("detector")

    def connection(self, name: str) -> SimBus:
        return SimBus(self.broker, Process(self.loop, name, f"machine-of-{name}"), name)

    async def post(self, target: Target, event: str, body: str) -> Answer:
        name = target.webhook.name
        self.tries[name] = self.tries.get(name, 0) + 1
        answer = await self.behave[name](self.loop.now)
        if answer.verdict is Verdict.DELIVERED:
            self.got.setdefault(name, []).append((self.loop.now, event))
        return answer

    def courier(self) -> asyncio.Task[None]:
        """A new life of it, to be cancelled as by kill -9."""
        self.lives += 1
        bus = self.connection(f"alerting-{self.lives}")
        webhooks = tuple(Webhook.model_validate({"name": n, "url": f"https://{n}/"}) for n in self.behave)
        targets = {one.name: Target(one, (), None) for one in webhooks}  # type: ignore[arg-type]  # no TLS here
        hands = posting.Hands(SimArchive(bus), self, self.clock, targets)
        wiring = Wiring(
            service="webhooks",
            bus=bus,
            clock=self.clock,
            store=SimStore(bus, "state"),
            kinds=tuple(KINDS),
            perform=hands.perform,
            requests=letters.REQUESTS,
        )
        return asyncio.ensure_future(Shell(Courier(webhooks), wiring).run())

    async def told(self, *numbers: int) -> list[str]:
        facts = [HostSuspected(at=boot("h1"), number=number, silent_s=1.5) for number in numbers]
        for fact in facts:
            await self.bus.publish(fact)
        return [fact.key for fact in facts]

    def ids(self, name: str) -> list[str]:
        """Suspicions that an endpoint has taken, repeats dropped as a receiver drops them."""
        ours = [event for _, event in self.got.get(name, []) if event.startswith("host.suspected")]
        return list(dict.fromkeys(ours))


def play(
    behave: dict[str, Callable[[float], Awaitable[Answer]]], body: Callable[[World], Awaitable[None]]
) -> None:
    loop, before = SimLoop(), structlog.get_config()
    world = World(loop, behave)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        loop.run_until_complete(_awaited(body(world)))
    finally:
        drain(loop)
        structlog.configure(**before)


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def well(now: float) -> Answer:
    await asyncio.sleep(0.02)
    return WELL


async def slow(now: float) -> Answer:
    await asyncio.sleep(4.0)
    return WELL


async def dead(now: float) -> Answer:
    return Answer(Verdict.FAILED, "ConnectionRefusedError")


async def hanging(now: float) -> Answer:
    await asyncio.sleep(5.0)
    return Answer(Verdict.FAILED, "no answer in 5 s")


async def down_for_an_hour(now: float) -> Answer:
    return WELL if now > HOUR_S else Answer(Verdict.FAILED, "HTTP 500")


async def gone(now: float) -> Answer:
    return Answer(Verdict.GONE, "HTTP 410")


def full_then_well() -> Callable[[float], Awaitable[Answer]]:
    asked: list[float] = []

    async def answer(now: float) -> Answer:
        asked.append(now)
        if len(asked) == 1:
            return Answer(Verdict.FAILED, "HTTP 429", 300.0)
        assert now - asked[0] >= 300.0, "it came before the time that it was asked to wait"
        return WELL

    return answer


def test_nothing_is_lost_and_nobody_is_held_up_whatever_the_others_do() -> None:
    ends: dict[str, Any] = {
        "dead": dead,
        "hanging": hanging,
        "hour": down_for_an_hour,
        "gone": gone,
        "full": full_then_well(),
        "slow": slow,
        "well": well,
    }

    async def body(world: World) -> None:
        world.courier()
        await asyncio.sleep(1.0)
        wanted = await world.told(*range(100))
        began = world.loop.now
        await asyncio.sleep(5.0)
        assert world.ids("well") == wanted
        assert world.got["well"][-1][0] - began < 5.0
        await asyncio.sleep(450.0)
        assert world.ids("slow") == wanted
        assert world.ids("full") == wanted
        assert world.ids("hour") == []
        await asyncio.sleep(1.5 * HOUR_S)
        assert world.ids("hour") == wanted, "in order, all of them"
        assert world.tries["gone"] == 1
        assert world.tries["dead"] < 40

    play(ends, body)


def test_a_killed_courier_loses_nothing_also_while_the_stream_has_no_leader() -> None:
    async def body(world: World) -> None:
        running, chance, wanted = world.courier(), Random(7), []
        await asyncio.sleep(1.0)
        for number in range(300):
            wanted += await world.told(number)
            if chance.random() < 0.1:
                running.cancel()
                await asyncio.sleep(chance.uniform(0, 0.5))
                running = world.courier()
            if chance.random() < 0.02:
                world.broker.lose_leader()
            await asyncio.sleep(chance.uniform(0, 0.05))
        await asyncio.sleep(60.0)
        assert world.ids("well") == wanted, "in order"
        await asyncio.sleep(2000.0)
        assert world.ids("slow") == wanted
        assert world.lives > 10

    play({"well": well, "slow": slow, "dead": dead}, body)


def test_a_thousand_events_to_twenty_endpoints_of_which_three_are_dead() -> None:
    ends: dict[str, Any] = {f"e{number}": well for number in range(17)}

    async def body(world: World) -> None:
        world.courier()
        await asyncio.sleep(1.0)
        wanted = await world.told(*range(1000))
        began = world.loop.now
        while any(len(world.ids(f"e{number}")) < 1000 for number in range(17)):
            await asyncio.sleep(1.0)
            assert world.loop.now - began < 30.0
        assert all(world.ids(f"e{number}") == wanted for number in range(17))

    play({**ends, "dead1": dead, "dead2": hanging, "dead3": gone}, body)


@pytest.mark.fast
def test_after_a_day_it_is_a_dead_letter_and_what_follows_is_tried() -> None:
    async def body(world: World) -> None:
        world.courier()
        await asyncio.sleep(1.0)
        await world.told(1)
        await asyncio.sleep(DAY_S + HOUR_S)
        told = [one.fact.kind for one in world.broker.facts]
        assert told == ["host.suspected", "webhook.failing", "webhook.dead_lettered"]
        dead_letters = [row.key for row in world.broker.scan("state", "webhooks.dead.")]
        assert dead_letters == ["webhooks.dead.dead.000000000001"]
        assert len(world.got["well"]) == 3, "the others hear of it"

    play({"dead": dead, "well": well}, body)
