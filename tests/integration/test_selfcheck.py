"""What is listened to on a real server, and lost behind our back, is noticed and mended: a consumer, its inbox, a subscription."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from libs.core.ports import Delivery
from libs.events.hosts import HostSuspected
from libs.events.signals import Signal
from libs.jetstream import consumption, listening, puller
from libs.jetstream.bus import NatsBus
from libs.jetstream.schema import Names
from libs.model import Incarnation
from tests.integration.conftest import OpenBus
from tests.unit.made import beat
from tests.waiting import eventually

NAMES = Names("p")
AT = Incarnation(host="h1", boot="boot0001")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at often."""
    monkeypatch.setattr(consumption, "CHECK_S", 0.3)
    monkeypatch.setattr(listening, "CHECK_S", 0.2)
    monkeypatch.setattr(listening, "QUIET_S", 1.0)
    monkeypatch.setattr(puller, "DEAF_S", 1.5)


def fact(number: int) -> HostSuspected:
    return HostSuspected(at=AT, number=number, silent_s=1.5)


class Consumer:
    """Consumes and acknowledges, and counts what was mended."""

    def __init__(self, bus: NatsBus) -> None:
        self.bus, self.heard, self.mended, self._acks = bus, list[int](), 0, set[asyncio.Future[None]]()
        bus.on_mended = self._mend

    def _mend(self) -> None:
        self.mended += 1

    async def start(self) -> Any:
        return await self.bus.consume("fencer", ("host.suspected",), self._on)

    def _on(self, delivery: Delivery) -> None:
        assert isinstance(delivery.fact, HostSuspected)
        self.heard.append(delivery.fact.number)
        ack = asyncio.ensure_future(delivery.ack())
        self._acks.add(ack)
        ack.add_done_callback(self._acks.discard)

    async def until(self, *numbers: int) -> None:
        async def there() -> bool:
            return set(numbers) <= set(self.heard)

        await eventually(there, f"{numbers} of {self.heard}", within_s=20.0)

    async def acknowledged(self, last: int) -> None:
        js = self.bus.client.jetstream(timeout=5)

        async def known() -> bool:
            info = await js.consumer_info(NAMES.events, "fencer")
            return info.ack_floor is not None and info.ack_floor.stream_seq >= last

        await eventually(known, "all is acknowledged", within_s=10.0)


async def forget_at_server(bus: NatsBus, sid: int) -> None:
    """The server forgets a subscription, and nobody tells its client."""
    await bus.client._send_command(f"UNSUB {sid}\r\n".encode())
    await bus.client.flush(timeout=5)


async def test_a_consumer_that_was_deleted_is_made_again_and_what_was_acknowledged_does_not_come_twice(
    open_as: OpenBus,
) -> None:
    consumer, other = Consumer(await open_as("fencer")), await open_as("other")
    kept = await consumer.start()
    for number in (1, 2, 3):
        await other.publish(fact(number))
    await consumer.until(1, 2, 3)
    await consumer.acknowledged(3)

    async def seen() -> bool:
        return bool(kept._floor == 3)

    await eventually(seen, "the self-check has seen it", within_s=10.0)
    await other.client.jetstream().delete_consumer(NAMES.events, "fencer")
    await other.publish(fact(4))
    await consumer.until(4)
    assert consumer.heard == [1, 2, 3, 4]
    assert consumer.mended >= 1
    await kept.stop()
    # the next life of the service goes on with the consumer that was made anew
    later = Consumer(consumer.bus)
    again = await later.start()
    await other.publish(fact(5))
    await later.until(5)
    assert 3 not in later.heard
    await again.stop()


async def test_a_consumer_that_was_made_to_hear_less_is_set_right(open_as: OpenBus) -> None:
    consumer, other = Consumer(await open_as("fencer")), await open_as("other")
    kept = await consumer.start()
    js = other.client.jetstream()
    config = (await js.consumer_info(NAMES.events, "fencer")).config
    config.filter_subjects = [f"{NAMES.prefix}.event.host.failed.*"]
    await js.add_consumer(NAMES.events, config)
    await other.publish(fact(1))
    await consumer.until(1)
    assert consumer.mended >= 1
    await kept.stop()


async def test_a_pull_whose_inbox_the_server_has_forgotten_is_begun_anew(open_as: OpenBus) -> None:
    consumer, other = Consumer(await open_as("fencer")), await open_as("other")
    kept = await consumer.start()
    await other.publish(fact(1))
    await consumer.until(1)
    await forget_at_server(consumer.bus, kept._puller._subscription._id)
    await other.publish(fact(2))
    await consumer.until(2)
    assert consumer.mended >= 1
    await kept.stop()


async def heard_again(listener: NatsBus, sender: NatsBus, heard: list[Signal]) -> None:
    before = len(heard)

    async def said() -> bool:
        await sender.send("heartbeat.h1", beat("h1"))
        return len(heard) > before

    await eventually(said, "heartbeats are heard again", within_s=15.0, every_s=0.1)


async def test_a_subscription_whose_task_died_is_made_anew(open_as: OpenBus) -> None:
    listener, sender, heard = await open_as("detector"), await open_as("other"), list[Signal]()
    mended: list[int] = []
    listener.on_mended = lambda: mended.append(1)
    kept: Any = await listener.listen(["heartbeat.*"], heard.append)
    await heard_again(listener, sender, heard)
    kept._topics[0].subscription._wait_for_msgs_task.cancel()
    await heard_again(listener, sender, heard)
    assert mended
    await kept.stop()


async def test_a_subscription_that_the_server_has_forgotten_is_made_anew(open_as: OpenBus) -> None:
    listener, sender, heard = await open_as("detector"), await open_as("other"), list[Signal]()
    kept: Any = await listener.listen(["heartbeat.*", "goodbye.*"], heard.append)
    await heard_again(listener, sender, heard)
    await forget_at_server(listener, kept._topics[0].subscription._id)
    await heard_again(listener, sender, heard)
    await kept.stop()
    before = len(heard)
    await sender.send("heartbeat.h1", beat("h1"))
    await sender.client.flush()
    await listener.client.flush()
    assert len(heard) == before, "and who has stopped hears nothing"
