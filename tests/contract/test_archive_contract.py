"""The stream read from any place in it, in both worlds."""

from __future__ import annotations

from libs.core.ports import Archive, Bus
from libs.events.hosts import HostSuspected
from libs.jetstream.archive import JetStreamArchive
from libs.jetstream.bus import NatsBus
from libs.jetstream.schema import Names
from libs.sim.archive import SimArchive
from libs.sim.bus import SimBus
from tests.contract.conftest import POOL, Bench, Play
from tests.unit.made import boot


def archive_of(bus: Bus) -> Archive:
    if isinstance(bus, NatsBus):
        return JetStreamArchive(bus.client, Names(POOL))
    assert isinstance(bus, SimBus)
    return SimArchive(bus, POOL)


def test_facts_are_read_in_order_from_any_place_and_to_the_end(play: Play) -> None:
    async def body(bench: Bench) -> None:
        bus = await bench.bus("a")
        archive = archive_of(bus)
        assert await archive.last() == 0
        assert await archive.after(0, 10) == []
        for number in range(5):
            await bus.publish(HostSuspected(at=boot("h1"), number=number, silent_s=1.5))
        await bus.publish(HostSuspected(at=boot("h1"), number=4, silent_s=1.5))  # told again
        assert await archive.last() == 5
        assert [one.sequence for one in await archive.after(0, 3)] == [1, 2, 3]
        found = await archive.after(3, 10)
        assert [one.sequence for one in found] == [4, 5]
        assert found[0].envelope.id == "host.suspected/h1/h1boot1/3"
        assert (found[0].envelope.type, found[0].envelope.source) == (
            "rekindle.host.suspected.v1",
            f"/rekindle/{POOL}/a",
        )
        assert await archive.after(5, 10) == []

    play(body)
