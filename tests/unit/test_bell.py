"""The bell that a shell waits at, and the copy that a decider's every step makes."""

from __future__ import annotations

import asyncio
from dataclasses import FrozenInstanceError, dataclass

import pytest

from libs.core.bell import Bell
from libs.core.evolve import replace

pytestmark = pytest.mark.fast


async def test_a_ring_wakes_whoever_waits_before_the_time_is_over() -> None:
    bell = Bell()
    asyncio.get_running_loop().call_later(0.01, bell.ring)
    assert await bell.wait(5.0)


async def test_time_wakes_where_no_bell_rings() -> None:
    assert not await Bell().wait(0.01)


async def test_a_ring_that_nobody_waited_for_is_kept_once() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    assert await bell.wait(None)
    assert not await bell.wait(0.01)


async def test_a_ring_after_the_time_was_over_is_kept_for_the_next_wait() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(0.0))
    asyncio.get_running_loop().call_later(0.0, lambda: None)
    while not waiting.done():
        await asyncio.sleep(0)
    bell.ring()
    assert not waiting.result()
    assert await bell.wait(None)


async def test_whoever_is_cancelled_at_it_leaves_it_as_it_was() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(5.0))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    bell.ring()
    assert await bell.wait(None)


@dataclass(frozen=True, slots=True)
class Some:
    one: int
    other: str = ""


def test_a_copy_has_what_was_changed_and_what_was_not() -> None:
    was = Some(1, "a")
    made = replace(was, one=2)
    assert (made, was) == (Some(2, "a"), Some(1, "a"))
    assert hash(made) == hash(Some(2, "a"))


def test_a_copy_is_frozen_too() -> None:
    with pytest.raises(FrozenInstanceError):
        replace(Some(1), one=2).one = 3  # type: ignore[misc]


def test_what_is_no_field_cannot_be_replaced() -> None:
    with pytest.raises(TypeError, match="no field two"):
        replace(Some(1), two=2)  # type: ignore[call-arg]
