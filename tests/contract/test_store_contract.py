"""What every Store promises."""

from __future__ import annotations

import asyncio

import pytest

from libs.core.ports import ConflictError, Store
from tests.contract.conftest import Bench, Play


def test_a_row_is_read_back_with_the_revision_of_its_writing(play: Play) -> None:
    async def body(bench: Bench) -> None:
        store = bench.store(await bench.bus("executor"), "leases")
        assert await store.get("a") is None
        revision = await store.put("a", b"1", 0)
        row = await store.get("a")
        assert row is not None
        assert (row.key, row.value, row.revision) == ("a", b"1", revision)

    play(body)


def test_revisions_of_a_bucket_only_grow(play: Play) -> None:
    async def body(bench: Bench) -> None:
        store = bench.store(await bench.bus("executor"), "leases")
        revisions = [await store.put("a", b"1", None), await store.put("b", b"1", None)]
        revisions.append(await store.put("a", b"2", revisions[0]))
        assert revisions == sorted(set(revisions))

    play(body)


def test_compare_and_set_has_one_winner(play: Play) -> None:
    async def body(bench: Bench) -> None:
        one = bench.store(await bench.bus("executor"), "leases")
        other = bench.store(await bench.bus("executor"), "leases")
        revision = await one.put("a", b"0", 0)
        results = await asyncio.gather(
            one.put("a", b"1", revision), other.put("a", b"2", revision), return_exceptions=True
        )
        won = [result for result in results if isinstance(result, int)]
        assert len(won) == 1
        row = await one.get("a")
        assert row is not None
        assert row.revision == won[0]
        assert row.value == (b"1" if results[0] == won[0] else b"2")

    play(body)


@pytest.mark.parametrize("expected", [0, 999])
def test_a_write_over_a_wrong_revision_is_a_conflict(play: Play, expected: int) -> None:
    async def body(bench: Bench) -> None:
        store = bench.store(await bench.bus("executor"), "leases")
        await store.put("a", b"1", None)
        with pytest.raises(ConflictError):
            await store.put("a", b"2", expected)
        with pytest.raises(ConflictError):
            await store.delete("a", 999)
        row = await store.get("a")
        assert row is not None
        assert row.value == b"1"

    play(body)


def test_a_deleted_row_is_absent_and_can_be_made_anew(play: Play) -> None:
    async def body(bench: Bench) -> None:
        store = bench.store(await bench.bus("executor"), "leases")
        revision = await store.put("a", b"1", 0)
        await store.delete("a", revision)
        assert await store.get("a") is None
        assert await store.scan("") == []
        with pytest.raises(ConflictError):
            await store.put("a", b"2", revision)  # the revision before the deletion is over
        assert await store.put("a", b"2", 0) > revision

    play(body)


def test_a_scan_has_all_rows_below_a_prefix_in_order_of_key(play: Play) -> None:
    async def body(bench: Bench) -> None:
        store: Store = bench.store(await bench.bus("executor"), "state")
        for key in ("b.2", "a.1", "b.1", "c"):
            await store.put(key, key.encode(), None)
        await store.put("b.1", b"new", None)
        assert [(row.key, row.value) for row in await store.scan("b.")] == [("b.1", b"new"), ("b.2", b"b.2")]
        assert [row.key for row in await store.scan("")] == ["a.1", "b.1", "b.2", "c"]
        assert await store.scan("nothing.") == []

    play(body)


def test_buckets_share_nothing(play: Play) -> None:
    async def body(bench: Bench) -> None:
        bus = await bench.bus("executor")
        await bench.store(bus, "leases").put("a", b"1", 0)
        assert await bench.store(bus, "inventory").get("a") is None

    play(body)


def test_a_row_with_a_time_to_live_is_gone_after_it_and_one_that_was_written_anew_is_not(play: Play) -> None:
    """No bucket of a pool has such rows: what a server's clock ends, it ends for a holder that lives, too. A lease is
    timed by whoever watches it."""

    async def body(bench: Bench) -> None:
        store = await bench.expiring(await bench.bus("executor"))
        await store.put("kept", b"1", 0, ttl_s=1)
        await store.put("kept", b"2", None)
        await store.put("renewed", b"1", 0, ttl_s=1)
        revision = await store.put("renewed", b"2", None, ttl_s=60)
        first = await store.put("gone", b"1", 0, ttl_s=1)
        assert await store.get("gone") is not None
        async with asyncio.timeout(10.0):
            while await store.get("gone") is not None:
                await asyncio.sleep(0.1)
        kept, renewed = await store.get("kept"), await store.get("renewed")
        assert kept is not None
        assert renewed is not None
        assert (kept.value, renewed.value, renewed.revision) == (b"2", b"2", revision)
        with pytest.raises(ConflictError):
            await store.put("gone", b"2", first)  # its revision is over, too
        assert await store.put("gone", b"2", 0) > first

    play(body)
