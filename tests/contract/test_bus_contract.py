"""What every Bus promises: facts at least once and each key once in the stream, signals now or never."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from libs.core.ports import Delivery, UnavailableError
from libs.events.hosts import HostFailed, HostSuspected
from libs.events.signals import Canary, Heartbeat, Question, Reply, Signal
from libs.jetstream.consumption import ACK_WAIT_S
from libs.jetstream.schema import Names, _wanted
from libs.model import Answer, Incarnation
from libs.sim.broker import DEDUPE_S
from tests.contract.conftest import Bench, Play

AT = Incarnation(host="h1", boot="boot0001")
REDELIVERED_S = 7.0


def suspected(number: int) -> HostSuspected:
    return HostSuspected(at=AT, number=number, silent_s=1.5)


async def until(true: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.02)


def test_a_fact_reaches_a_consumer_that_comes_later(play: Play) -> None:
    async def body(bench: Bench) -> None:
        await (await bench.bus("detector")).publish(suspected(1))
        heard: list[Delivery] = []
        await (await bench.bus("placement")).consume("placement", ["host.suspected"], heard.append)
        await until(lambda: bool(heard))
        assert heard[0].fact == suspected(1)

    play(body)


def test_only_the_kinds_that_were_asked_for_come(play: Play) -> None:
    async def body(bench: Bench) -> None:
        bus, heard = await bench.bus("detector"), list[Delivery]()
        await bus.publish(suspected(1))
        failed = HostFailed(at=AT, incident="h1-boot0001-1", epoch=1)
        await bus.publish(failed)
        await bus.consume("fencer", ["host.failed"], heard.append)
        await until(lambda: bool(heard))
        await asyncio.sleep(0.3)
        assert [one.fact for one in heard] == [failed]

    play(body)


def test_a_key_is_stored_once(play: Play) -> None:
    async def body(bench: Bench) -> None:
        bus, heard = await bench.bus("detector"), list[Delivery]()
        for _ in range(3):
            await bus.publish(suspected(1))
        await (await bench.bus("detector")).publish(suspected(1))
        await bus.publish(suspected(2))
        await bus.consume("placement", ["host.suspected"], heard.append)
        await until(lambda: len(heard) >= 2)
        await asyncio.sleep(0.3)
        assert [one.fact for one in heard] == [suspected(1), suspected(2)]

    play(body)


def test_a_key_is_forgotten_after_its_window(play: Play) -> None:
    """Whoever repeats a fact after that is heard twice: consumers look at the key themselves."""

    async def body(bench: Bench) -> None:
        bus, heard = await bench.bus("detector"), list[Delivery]()
        await bench.shorten_dedupe(1.0)
        await bus.consume("placement", ["host.suspected"], heard.append)
        for _ in range(2):
            await bus.publish(suspected(1))
        await until(lambda: len(heard) >= 1)
        await heard[0].ack()
        await asyncio.sleep(2.5)
        assert len(heard) == 1
        await bus.publish(suspected(1))
        await until(lambda: len(heard) >= 2)
        assert [one.fact for one in heard] == [suspected(1), suspected(1)]

    play(body)


@pytest.mark.fast
def test_the_simulated_server_knows_keys_for_as_long_as_the_pools_stream_does() -> None:
    events = _wanted(Names("p"), 1)[0]
    assert events.duplicate_window == DEDUPE_S


def test_what_is_not_acknowledged_comes_again_and_what_is_does_not(play: Play) -> None:
    async def body(bench: Bench) -> None:
        bus, heard = await bench.bus("detector"), list[Delivery]()
        await bus.publish(suspected(1))
        await bus.publish(suspected(2))
        await bus.consume("placement", ["host.suspected"], heard.append)
        await until(lambda: len(heard) >= 2)
        await heard[0].ack()
        await until(lambda: len(heard) >= 3, REDELIVERED_S)
        assert heard[2].fact == suspected(2)
        await heard[2].ack()
        await asyncio.sleep(REDELIVERED_S)
        assert len(heard) == 3

    play(body)


def test_what_is_given_back_comes_again_after_the_time_that_was_asked_for(play: Play) -> None:
    async def body(bench: Bench) -> None:
        bus, heard = await bench.bus("detector"), list[Delivery]()
        await bus.publish(suspected(1))
        await bus.consume("placement", ["host.suspected"], heard.append)
        await until(lambda: bool(heard))
        await heard[0].nak(0.5)
        given = bench.clock.monotonic()
        await until(lambda: len(heard) >= 2)
        assert 0.4 < bench.clock.monotonic() - given < 4.0
        await heard[1].ack()

    play(body)


def test_a_durable_goes_on_where_it_was_acknowledged(play: Play) -> None:
    async def body(bench: Bench) -> None:
        first, heard = await bench.bus("placement"), list[Delivery]()
        await first.publish(suspected(1))
        pulling = await first.consume("placement", ["host.suspected"], heard.append)
        await until(lambda: bool(heard))
        await heard[0].ack()
        await asyncio.sleep(0.1)
        await pulling.stop()
        await first.publish(suspected(2))
        later: list[Delivery] = []
        await (await bench.bus("placement")).consume("placement", ["host.suspected"], later.append)
        await until(lambda: bool(later))
        assert [one.fact for one in later] == [suspected(2)]

    play(body)


def test_what_a_dead_one_had_in_hand_comes_at_once_to_who_consumes_next(play: Play) -> None:
    async def body(bench: Bench) -> None:
        first, heard = await bench.bus("placement"), list[Delivery]()
        for number in (1, 2, 3):
            await first.publish(suspected(number))
        pulling = await first.consume("placement", ["host.suspected"], heard.append)
        await until(lambda: len(heard) >= 3)
        await heard[0].ack()
        await asyncio.sleep(0.1)
        await pulling.stop()
        given = bench.clock.monotonic()
        later: list[Delivery] = []
        await (await bench.bus("placement")).consume("placement", ["host.suspected"], later.append)
        await until(lambda: len(later) >= 2)
        assert bench.clock.monotonic() - given < ACK_WAIT_S - 0.5
        assert [one.fact for one in later] == [suspected(2), suspected(3)]
        # who was thought dead and is not: its late word counts, whatever the server counts anew
        await heard[1].ack()
        await later[1].ack()
        await asyncio.sleep(REDELIVERED_S)
        assert len(later) == 2

    play(body)


def test_two_durables_hear_the_same(play: Play) -> None:
    async def body(bench: Bench) -> None:
        bus, one, other = await bench.bus("detector"), list[Delivery](), list[Delivery]()
        await bus.consume("placement", ["host.suspected"], one.append)
        await bus.consume("alerting", ["host.suspected"], other.append)
        await bus.publish(suspected(1))
        await until(lambda: bool(one and other))
        assert one[0].fact == other[0].fact == suspected(1)

    play(body)


def test_signals_reach_who_listens_and_nobody_later(play: Play) -> None:
    async def body(bench: Bench) -> None:
        sender, listener = await bench.bus("heartbeat"), await bench.bus("detector")
        # a signal that the witness has heard has passed the bus: who listens from then on is late for it
        witness, witnessed = await bench.bus("placement"), list[Signal]()
        await witness.listen(["heartbeat.*"], witnessed.append)
        heard: list[Signal] = []
        beats = [Heartbeat(at=AT, agent="life", seq=number) for number in range(5)]
        await sender.send("heartbeat.h1", beats[0])
        await until(lambda: witnessed == beats[:1])
        listening = await listener.listen(["heartbeat.*"], heard.append)
        await sender.send("heartbeat.h1", beats[1])
        await sender.send("inventory.h1", beats[3])
        await sender.send("heartbeat.h1", beats[2])
        await until(lambda: beats[2] in heard)
        await listening.stop()
        await sender.send("heartbeat.h1", beats[4])
        await until(lambda: beats[4] in witnessed)
        await asyncio.sleep(0.2)
        assert heard == beats[1:3]

    play(body)


def test_who_sends_what_he_listens_to_hears_himself(play: Play) -> None:
    async def body(bench: Bench) -> None:
        one, other = await bench.bus("detector"), await bench.bus("detector")
        heard, elsewhere = list[Signal](), list[Signal]()
        await one.listen(["heartbeat.*", "canary.one"], heard.append)
        await other.listen(["heartbeat.*", "canary.other"], elsewhere.append)
        sent = [Canary(replica="one", seq=number, sent_at=1.0) for number in range(3)]
        for signal in sent:
            await one.send("canary.one", signal)
        await until(lambda: sent[-1] in heard)
        assert (heard, elsewhere) == (sent, [])

    play(body)


def test_a_question_is_answered_by_whom_it_is_put_to(play: Play) -> None:
    async def body(bench: Bench) -> None:
        peer, asker = await bench.bus("heartbeat"), await bench.bus("detector")

        async def answer(question: Signal) -> Signal:
            assert isinstance(question, Question)
            return Reply(about=question.about, peer=AT, answer=Answer.SILENT)

        answering = await peer.answer("ask.h1", answer)
        await asyncio.sleep(0.1)
        said = await asker.ask("ask.h1", Question(about="h2"), 2.0)
        assert said == Reply(about="h2", peer=AT, answer=Answer.SILENT)
        await answering.stop()
        await asyncio.sleep(0.1)
        with pytest.raises(UnavailableError):
            await asker.ask("ask.h1", Question(about="h2"), 0.5)

    play(body)


def test_a_question_to_one_who_is_silent_ends_with_its_time(play: Play) -> None:
    async def body(bench: Bench) -> None:
        peer, asker = await bench.bus("heartbeat"), await bench.bus("detector")

        async def answer(question: Signal) -> Signal:
            await asyncio.sleep(3.0)
            return question

        await peer.answer("ask.h1", answer)
        await asyncio.sleep(0.1)
        began = bench.clock.monotonic()
        with pytest.raises(UnavailableError):
            await asker.ask("ask.h1", Question(about="h2"), 0.5)
        assert 0.4 < bench.clock.monotonic() - began < 1.5

    play(body)
