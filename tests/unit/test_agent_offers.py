"""What a host offers is told as definitions are: in the store, when it changes. What is sent again and again stays small."""

from __future__ import annotations

import asyncio

import pytest

from libs.core.ports import UnavailableError
from libs.model import Offers, VmDefinition, VmNeeds
from libs.virt.offers import EVERY_S, OfferBook
from services.heartbeat.orders import AllRead, PutInventory, ReadAll
from tests.simulated import play_simulated
from tests.unit.made import vm
from tests.unit.test_agent import Desk, Libvirt, hands

pytestmark = pytest.mark.fast
LAN, BR0 = Offers(networks=("lan",)), Offers(networks=("br0", "lan"))


class Agent(Desk):
    def offers(self, told: Offers | None) -> list[str]:
        """The next reading, and this in it."""
        while not self.state.reading:
            self.wait()
        return self.hear(AllRead(key="read/0", memory_mib=1000, cpus=4, reports=(), definitions=(), offers=told))  # fmt: skip

    def put(self) -> list[Offers | None]:
        return [one.inventory.offers for one in self.asked if isinstance(one, PutInventory)]


def test_offers_are_stored_when_they_change_and_never_sent() -> None:
    agent = Agent()
    agent.passed()
    for told in (None, LAN, LAN, BR0, BR0, None):
        agent.offers(told)
    assert agent.put() == [None, LAN, BR0, None]
    agent.after(60.0)
    sent = [one.inventory for one in agent.said if one.kind == "inventory"]
    assert len(sent) > 10
    assert {one.offers for one in sent} == {None}
    assert [one.rev for one in sent] == sorted(one.rev for one in sent)


def test_a_reading_brings_what_each_vm_needs_by_its_definition_and_what_the_host_offers() -> None:
    nic = "<interface type='bridge'><source bridge='br0'/></interface>"
    xml = f"<domain type='kvm'><devices>{nic}</devices></domain>"

    class Told(Libvirt):
        async def offers(self) -> Offers | None:
            return BR0

        async def definitions(self) -> list[VmDefinition]:
            return [VmDefinition(uuid="a", name="A", xml=xml, sha256="1")]

    async def read() -> AllRead:
        found = await hands(Told(vm("a"), vm("b")))[0].perform(ReadAll(key="read/0", deadline_s=1.0))
        assert isinstance(found, AllRead)
        return found

    found = asyncio.run(read())
    assert found.offers == BR0
    assert [one.needs for one in found.reports] == [VmNeeds(networks=("br0",)), None]


class Book:
    """What is read of a host, how long that takes, and how often it was."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.told, self.takes_s, self.fails, self.read = LAN, 0.0, False, 0
        self.book = OfferBook(self._read, loop.time)

    async def _read(self) -> Offers:
        self.read += 1
        told, fails = self.told, self.fails
        await asyncio.sleep(self.takes_s)
        if fails:
            raise UnavailableError("no answer")
        return told


def test_a_host_is_asked_now_and_then_and_its_last_word_stands_meanwhile() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        host = Book(loop)
        for _ in range(5):
            assert await host.book.latest() == LAN
        assert host.read == 1
        host.told = BR0
        await asyncio.sleep(EVERY_S)
        assert await host.book.latest() == BR0
        host.fails = True
        await asyncio.sleep(EVERY_S)
        assert await host.book.latest() == BR0, "who does not answer has not said that it has nothing"
        assert host.read == 3

    play_simulated(body)


def test_nobody_waits_long_for_a_host_that_takes_its_time_to_tell() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        host = Book(loop)
        host.takes_s = 10.0
        began = loop.time()
        assert await host.book.latest() is None
        assert loop.time() - began < 1.0
        await asyncio.sleep(10.0)
        assert await host.book.latest() == LAN
        assert host.read == 1, "it was asked once, however often somebody wanted to know"

    play_simulated(body)


def test_a_host_that_can_tell_nothing_is_as_one_that_does_not_say() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        host = Book(loop)
        host.told = Offers()
        assert await host.book.latest() is None

    play_simulated(body)
