"""S01 and S03 on a real server: told again and again, by several, in the midst of being dealt with, all is done once."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from libs.core.ports import Hypervisor, UnavailableError
from libs.events.facts import AnyFact
from libs.events.hosts import HostFailed, HostJoined
from libs.events.signals import Heartbeat
from libs.events.words import HostConfirmedFailed
from libs.jetstream import consumption as jetstream_bus
from libs.jetstream.bus import NatsBus
from libs.jetstream.reader import events
from libs.model import Answer, Incarnation, PowerState, VmDefinition
from libs.power.devices import FenceDevices
from services.executor import wiring as executor
from services.fencer import wiring as fencer
from services.placement import wiring as placement
from tests.integration.conftest import OpenBus
from tests.integration.services import NAMES, SETTINGS, Agent, Ports, lease_of, running
from tests.unit.made import boot, vm
from tests.unit.test_executor import Host
from tests.waiting import eventually

H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")
FIFTY = 50


class Slow(Host):
    """A start takes its time there."""

    async def start(self, definition: VmDefinition, token: int) -> None:
        await super().start(definition, token)
        await asyncio.sleep(1.5)


class Hosts:
    """h1 is dead; the others answer."""

    def __init__(self) -> None:
        self.hosts = {at: Slow(at) for at in (H2, H3)}

    async def at(self, incarnation: Incarnation, timeout_s: float) -> Hypervisor:
        if incarnation not in self.hosts:
            raise UnavailableError("it is dead")
        return self.hosts[incarnation]

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        return Answer.SILENT, "it is dead"

    def starts(self) -> Counter[str]:
        return Counter(vm for host in self.hosts.values() for vm in host.starts)


class Outlet:
    """Switches off when it is told to, which takes its time, and counts how often."""

    name, level, timeout_s = "outlet", 1, 4.0

    def __init__(self) -> None:
        self.offs = 0

    async def status(self, timeout_s: float) -> tuple[PowerState, str]:
        await asyncio.sleep(0.2)
        return (PowerState.OFF, "off") if self.offs else (PowerState.ON, "on")

    async def off(self) -> tuple[bool, str]:
        self.offs += 1
        await asyncio.sleep(0.5)
        return True, "switched off"

    async def on(self) -> tuple[bool, str]:
        raise AssertionError("nobody switches a failed host on")


class Pool:
    """A fencer, a placement and an executor over real NATS; two agents that live; who tells, and who looks on."""

    def __init__(self, buses: dict[str, NatsBus]) -> None:
        self.buses, self.hosts, self.outlet = buses, Hosts(), Outlet()
        power = FenceDevices({"h1": [self.outlet]}, SETTINGS.fencing)
        ports = {name: Ports(buses[name], name) for name in ("fencer", "placement", "executor")}
        self.works = [
            fencer.shell(ports["fencer"], power, self.hosts).run(),
            placement.shell(ports["placement"]).run(),
            executor.shell(ports["executor"], self.hosts).run(),
        ]
        self.ports = list(ports.values())
        self.agents = [
            Agent(buses["h1"], H1, (vm("a"), vm("b"))),
            *(Agent(buses[at.host], at) for at in (H2, H3)),
        ]

    async def beats(self) -> None:
        """Of the two that live, and that they have joined."""
        while True:
            for at in (H2, H3):
                await self.buses[at.host].send(f"heartbeat.{at.host}", Heartbeat(at=at, agent="life", seq=1))
            await asyncio.sleep(0.3)

    async def told(self, kind: str) -> list[AnyFact]:
        found = events(self.buses["onlooker"], NAMES, follow=False, after=0)
        return [one.envelope.data async for one in found if one.envelope.data.kind == kind]


NAMED = ("fencer", "placement", "executor", "h1", "h2", "h3", "onlooker", "d1", "d2", "d3", "operator")


@pytest.fixture
async def pool(open_as: OpenBus) -> Pool:
    made = Pool({name: await open_as(name) for name in NAMED})
    for name in ("a", "b"):
        copy = VmDefinition(uuid=name, name=name.upper(), xml="<x/>", sha256="0")
        await made.ports[0].store("definitions").put(name, copy.model_dump_json().encode(), None)
    return made


async def failed_once(pool: Pool, *, meanwhile: Callable[[], Any]) -> None:
    """h1 runs two VMs and falls silent; three detectors and an operator say so at once."""
    works = pool.works + [one for ports in pool.ports for one in ports.works]
    tasks = [asyncio.create_task(agent.run()) for agent in pool.agents]
    async with running(*works, pool.beats()):
        try:
            for at in (H1, H2, H3):
                await pool.buses["d1"].publish(HostJoined(at=at, epoch=0, rule="heard"))
            for name in ("a", "b"):
                held = functools.partial(lease_of, pool.buses["onlooker"], name)
                await eventually(held, "it has its lease", within_s=20)
            pool.agents[0].silent = True
            fact = HostFailed(at=H1, incident="h1-h1boot1-1", epoch=1, vms=(vm("a"), vm("b")), rule="silence")
            word = HostConfirmedFailed(at=H1, incident=fact.incident, epoch=1, by="op", said_at="")
            tells = [pool.buses[name].publish(fact) for name in ("d1", "d2", "d3") for _ in range(FIFTY)]
            await asyncio.gather(*tells, pool.buses["operator"].publish(word))
            await meanwhile()

            async def done() -> bool:
                # a plan of the first moment may find no host that it knows already: then both wait for one
                return len(await pool.told("vm.restarted")) >= 2 and bool(
                    await pool.told("failover.completed")
                )

            await eventually(done, "all is recovered", within_s=40, every_s=0.2)
        finally:
            for task in tasks:
                task.cancel()
    assert pool.outlet.offs <= 1
    assert pool.hosts.starts() == {"a": 1, "b": 1}
    assert len(await pool.told("host.failed")) == 1
    assert len(await pool.told("host.fenced")) == 1
    assert len(await pool.told("vm.restarted")) == 2


async def test_s01_a_failure_told_by_three_and_an_operator_at_once_is_recovered_once(pool: Pool) -> None:
    async def nothing() -> None:
        return

    await failed_once(pool, meanwhile=nothing)


async def test_s03_what_is_delivered_again_while_it_is_being_dealt_with_is_dealt_with_once(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time to acknowledge is a third of what a fence or a start takes, and no acknowledgement comes through."""
    monkeypatch.setattr(jetstream_bus, "ACK_WAIT_S", 0.3)
    deliveries: Counter[str] = Counter()
    deliver = NatsBus._deliver

    def deaf(self: NatsBus, message: Any, heard: Any) -> None:
        def counted(delivery: Any) -> None:
            deliveries[delivery.fact.kind] += 1

            async def lost() -> None:
                raise UnavailableError("it does not come through")

            heard(type(delivery)(delivery.fact, lost, delivery.nak))

        deliver(self, message, counted)

    monkeypatch.setattr(NatsBus, "_deliver", deaf)

    async def again() -> None:
        often = ("host.failed", "host.fenced", "failover.planned")
        await eventually(lambda: all(deliveries[kind] >= 6 for kind in often), "it comes again", within_s=30)

    await failed_once(pool, meanwhile=again)
