"""Facts over a real server: delivered until acknowledged, stored once, set aside where unreadable."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from nats.js.api import StreamConfig

from libs.core.ports import Delivery
from libs.jetstream import consumption as consumption_module
from libs.jetstream.reader import events
from libs.jetstream.schema import Names, WrongStreamError, ensure
from libs.jetstream.server import EmbeddedServer
from tests.integration.conftest import OpenBus
from tests.unit.made import boot, failed, fenced, vm
from tests.waiting import eventually

NAMES = Names("p")


async def stored(bus: Any) -> list[str]:
    return [one.envelope.id async for one in events(bus, NAMES)]


async def test_a_fact_is_delivered_again_until_it_is_acknowledged(
    open_as: OpenBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumption_module, "ACK_WAIT_S", 1.0)
    bus = await open_as("fencer")
    heard: list[Delivery] = []
    consumption = await bus.consume("fencer", ["host.failed"], heard.append)
    await bus.publish(failed(boot("h1"), vm("a")))
    await bus.publish(fenced(boot("h1")))  # not asked for
    await eventually(lambda: len(heard) == 2, "delivered, and once more")
    assert [one.fact for one in heard] == [failed(boot("h1"), vm("a"))] * 2
    await heard[-1].nak(0.1)
    await eventually(lambda: len(heard) == 3, "asked for again")
    await heard[-1].ack()
    await consumption.stop()
    # whoever comes next under this name hears nothing of it
    again: list[Delivery] = []
    await bus.consume("fencer", ["host.failed"], again.append)
    await bus.publish(failed(boot("h2")))
    await eventually(lambda: again, "the next is heard")
    assert [one.fact.about for one in again] == ["h2"]


async def test_what_one_process_left_unacknowledged_goes_to_the_next(
    open_as: OpenBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumption_module, "ACK_WAIT_S", 1.0)
    one, other = await open_as("a"), await open_as("b")
    first: list[Delivery] = []
    second: list[Delivery] = []
    consumption = await one.consume("fencer", ["host.failed"], first.append)
    for number in range(40):
        await one.publish(failed(boot(f"h{number}")))
    await eventually(lambda: len(first) == 40, "all delivered, more than one batch")
    await consumption.stop()
    await other.consume("fencer", ["host.failed"], second.append)
    await eventually(lambda: len({d.fact.about for d in second}) == 40, "all of them again")


async def test_an_unreadable_message_is_set_aside_and_told_once(
    open_as: OpenBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumption_module, "ACK_WAIT_S", 1.0)
    bus = await open_as("fencer")
    js = bus.client.jetstream()
    await js.publish("rekindle.p.event.host.failed.h1", b'{"from": "the future"}')
    heard: list[Delivery] = []
    await bus.consume("fencer", ["host.failed"], heard.append)
    await bus.consume("placement", ["host.failed"], heard.append)
    told: list[Delivery] = []
    await bus.consume("alerting", ["message.unreadable"], told.append)
    await eventually(lambda: told, "it is told")
    for one in told:
        await one.ack()

    async def at_rest() -> bool:
        infos = [await js.consumer_info(NAMES.events, name) for name in ("fencer", "placement")]
        return all(info.num_ack_pending == 0 and info.num_pending == 0 for info in infos)

    await eventually(at_rest, "neither is asked to read it again")
    await bus.publish(failed(boot("h2")))
    await eventually(lambda: len(heard) >= 2, "what follows is heard")
    assert {one.fact.about for one in heard} == {"h2"}
    ids = await stored(bus)
    assert [one for one in ids if one.startswith("message.unreadable")] == ["message.unreadable/1"]


async def test_a_fact_told_twice_is_stored_once(open_as: OpenBus) -> None:
    one, other = await open_as("a"), await open_as("b")
    for bus in (one, other, one):
        await bus.publish(failed(boot("h1")))
    assert await stored(one) == ["host.failed/h1-1"]


async def test_a_publication_survives_the_server_being_killed_with_one_stored_copy(
    server: EmbeddedServer, open_as: OpenBus
) -> None:
    bus = await open_as("detector")
    told = 0
    kills = 0

    async def tell() -> None:
        nonlocal told
        for number in range(60):
            await bus.publish(failed(boot(f"h{number}")))
            told = number + 1

    async def disturb() -> None:
        nonlocal kills
        for at in (5, 25):
            while told < at:
                await asyncio.sleep(0.005)
            assert server.process is not None
            server.process.kill()
            await server.process.wait()
            kills += 1
            await server.start()

    async with asyncio.timeout(40):
        await asyncio.gather(tell(), disturb())
    assert kills == 2
    assert sorted(await stored(bus)) == sorted(f"host.failed/h{number}-1" for number in range(60))


async def test_a_consumer_goes_on_after_the_server_was_killed(
    server: EmbeddedServer, open_as: OpenBus
) -> None:
    bus = await open_as("fencer")
    heard: list[Delivery] = []
    await bus.consume("fencer", ["host.failed"], heard.append)
    assert server.process is not None
    server.process.kill()
    await server.process.wait()
    await server.start()
    await bus.publish(failed(boot("h1")))
    await eventually(lambda: heard, "delivered after the restart", within_s=8.0)
    await heard[0].ack()


async def test_an_onlooker_hears_on_after_the_server_was_killed(
    server: EmbeddedServer, open_as: OpenBus
) -> None:
    """Its consumer is in the server's memory only: a follower once stayed deaf for ever, and was told nothing."""
    bus = await open_as("cli")
    heard: list[str] = []

    async def follow() -> None:
        async for one in events(bus, NAMES, follow=True):
            heard.append(one.envelope.data.about)

    following = asyncio.create_task(follow())
    await bus.publish(failed(boot("h1")))
    await eventually(lambda: heard, "what is told before")
    assert server.process is not None
    server.process.kill()
    await server.process.wait()
    await server.start()
    await bus.publish(failed(boot("h2")))
    await eventually(lambda: len(heard) >= 2, "what is told after the restart", within_s=15.0)
    assert heard == ["h1", "h2"], "once each"
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("KV_rekindle_p_leases", {"max_age": 60.0, "duplicate_window": 60.0}, "max_age"),
        ("KV_rekindle_p_leases", {"allow_direct": True}, "allow_direct"),
        ("KV_rekindle_p_state", {"storage": "memory"}, "storage"),
        ("KV_rekindle_p_state", {"max_msgs_per_subject": 5}, "max_msgs_per_subject"),
        ("KV_rekindle_p_state", {"deny_delete": False}, "deny_delete"),
        ("KV_rekindle_p_state", {"discard": "old"}, "discard"),
        ("KV_rekindle_p_leases", {"max_bytes": 1 << 20}, "max_bytes"),
        ("rekindle_p_events", {"subjects": ["rekindle.p.event.host.>"]}, "subjects"),
        ("rekindle_p_events", {"duplicate_window": 120.0}, "duplicate_window"),
        ("rekindle_p_events", {"max_msgs": 1000}, "max_msgs"),
        ("rekindle_p_events", {"max_msgs_per_subject": 1}, "max_msgs_per_subject"),
    ],
)
async def test_a_bucket_that_is_another_than_ours_is_named_and_not_used(
    server: EmbeddedServer, open_as: OpenBus, name: str, change: dict[str, Any], field: str
) -> None:
    bus = await open_as("a")
    js = bus.client.jetstream()
    found = (await js.stream_info(name)).config
    await js.delete_stream(name)
    body: dict[str, Any] = {
        "subjects": found.subjects,
        "max_msgs_per_subject": found.max_msgs_per_subject,
        "max_age": found.max_age,
        "allow_direct": found.allow_direct,
        "duplicate_window": found.duplicate_window,
        "discard": found.discard,
        "deny_delete": found.deny_delete,
        **change,
    }
    await js.add_stream(StreamConfig(name=name, **body))
    with pytest.raises(WrongStreamError, match=f"{name}: {field} is .*wanted"):
        await ensure(js, "p")


async def test_what_is_there_and_right_is_kept(open_as: OpenBus) -> None:
    bus = await open_as("a")
    await bus.publish(failed(boot("h1")))
    for _ in range(3):
        await ensure(bus.client.jetstream(), "p")
    assert await stored(bus) == ["host.failed/h1-1"]


async def test_questions_are_answered_side_by_side_and_silence_is_said(open_as: OpenBus) -> None:
    from libs.core.ports import UnavailableError
    from libs.events.signals import Question, Reply, Signal
    from libs.model import Answer

    one, other = await open_as("a"), await open_as("b")

    async def answer(question: Signal) -> Signal:
        assert isinstance(question, Question)
        await asyncio.sleep(0.5 if question.about == "slow" else 0)
        return Reply(about=question.about, peer=boot("h2"), answer=Answer.UP)

    await other.answer("ask.h2", answer)
    slow = asyncio.create_task(one.ask("ask.h2", Question(about="slow"), 3.0))
    quick = await one.ask("ask.h2", Question(about="quick"), 0.4)
    assert isinstance(quick, Reply)
    assert quick.about == "quick"
    assert not slow.done()
    await slow
    with pytest.raises(UnavailableError):
        await one.ask("ask.h3", Question(about="x"), 0.3)
    with contextlib.suppress(UnavailableError):
        await one.ask("ask.h2", Question(about="slow"), 0.1)
