"""A task that swallows a cancellation is told again."""

from __future__ import annotations

import asyncio

import pytest

from libs.core.cancelling import ended

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("deaf", [0, 1, 2])
async def test_it_is_cancelled_until_it_has_ended(deaf: int) -> None:
    swallowed = 0

    async def work() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if swallowed == deaf:
                    raise
                swallowed += 1

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await ended(task)
    assert task.cancelled()
    assert swallowed == deaf


async def test_one_that_fails_as_it_is_told_has_ended_too() -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise RuntimeError("while it cleaned up")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await ended(task)
    assert isinstance(task.exception(), RuntimeError)
