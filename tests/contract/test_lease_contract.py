"""What the leadership lease promises, over the real store and clock and over their twins."""

from __future__ import annotations

import asyncio
from typing import Any

from libs.core.ports import ConflictError, Row
from libs.jetstream.lease import JetStreamLease
from tests.contract.conftest import Bench, Play

TERM_S = 1.0


async def lease(bench: Bench, role: str = "detector") -> JetStreamLease:
    store = bench.store(await bench.bus(role), "leaders")
    return JetStreamLease(store, role, bench.clock, term_s=TERM_S)


def test_one_holds_it_and_the_other_does_not(play: Play) -> None:
    async def body(bench: Bench) -> None:
        one, other = await lease(bench), await lease(bench)
        await one.look()
        await other.look()
        assert one.held()
        assert not other.held()
        assert one.token is not None
        assert other.token is None

    play(body)


def test_a_renewal_keeps_the_token(play: Play) -> None:
    async def body(bench: Bench) -> None:
        one = await lease(bench)
        await one.look()
        token = one.token
        for _ in range(4):
            await asyncio.sleep(TERM_S / 3)
            await one.look()
        assert one.held()
        assert one.token == token

    play(body)


def test_a_holder_that_does_not_renew_loses_it_before_another_takes_it(play: Play) -> None:
    async def body(bench: Bench) -> None:
        one, other = await lease(bench), await lease(bench)
        await one.look()
        token = one.token
        began = bench.clock.monotonic()
        while not other.held():
            await asyncio.sleep(0.05)
            await other.look()
            assert not (one.held() and other.held())
        assert bench.clock.monotonic() - began >= TERM_S * 0.9
        assert token is not None
        assert other.token is not None
        assert other.token > token
        await one.look()
        assert one.token is None

    play(body)


def test_whoever_waits_is_told_when_it_is_gained_lost_and_ours_again(play: Play) -> None:
    async def body(bench: Bench) -> None:
        one = await lease(bench)
        told: list[int | None] = []
        one.on_change(lambda: told.append(one.token if one.held() else None))
        await one.look()
        await one.look()
        assert told == [one.token], "a renewal in time is no news"
        await asyncio.sleep(TERM_S)
        assert not one.held()
        await one.look()
        assert told == [one.token, one.token], "it had run out, under the same token"
        await one.resign()
        assert told[-1] is None
        assert len(told) == 3

    play(body)


def test_what_is_given_up_is_free_at_once_and_its_token_is_not_used_again(play: Play) -> None:
    async def body(bench: Bench) -> None:
        one, other = await lease(bench), await lease(bench)
        await one.look()
        token = one.token
        await one.resign()
        await other.look()
        assert not one.held()
        assert other.held()
        assert token is not None
        assert other.token is not None
        assert other.token > token

    play(body)


def test_of_many_that_claim_at_once_one_wins(play: Play) -> None:
    async def body(bench: Bench) -> None:
        claims = [await lease(bench) for _ in range(4)]
        results = await asyncio.gather(*(claim.look() for claim in claims), return_exceptions=True)
        assert sum(claim.held() for claim in claims) <= 1
        assert all(result is None or isinstance(result, Exception) for result in results)
        for claim in claims:
            try:
                await claim.look()
            except ConflictError:
                continue
        assert sum(claim.held() for claim in claims) == 1

    play(body)


def test_roles_share_nothing(play: Play) -> None:
    async def body(bench: Bench) -> None:
        one, other = await lease(bench, "detector"), await lease(bench, "fencer")
        await one.look()
        await other.look()
        assert one.held()
        assert other.held()

    play(body)


def test_a_follower_asks_little_and_takes_over_as_soon_as_the_term_is_over(play: Play) -> None:
    async def body(bench: Bench) -> None:
        store = bench.store(await bench.bus("detector"), "leaders")
        asked: list[float] = []

        class Counted:
            """The store, with a note of every question."""

            async def get(self, key: str) -> Row | None:
                asked.append(bench.clock.monotonic())
                return await store.get(key)

            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

        counted: Any = Counted()
        one = JetStreamLease(store, "detector", bench.clock, term_s=TERM_S + 1.0)
        other = JetStreamLease(counted, "detector", bench.clock, term_s=TERM_S + 1.0)
        leads = asyncio.ensure_future(one.run())
        while not one.held():
            await asyncio.sleep(0.05)
        follows = asyncio.ensure_future(other.run())
        await asyncio.sleep(5.0)
        assert not other.held()
        assert len(asked) <= 10, "twice a second at most, where it was four times"
        leads.cancel()
        ended = bench.clock.monotonic()
        while not other.held():
            await asyncio.sleep(0.02)
            assert bench.clock.monotonic() - ended < TERM_S + 1.0 + 1.0
        follows.cancel()

    play(body)
