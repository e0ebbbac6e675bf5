"""What a service does while it waits for its bus: it ends with the waiting, and an error in it is the process's."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from libs import service
from libs.config.settings import Settings
from libs.jetstream.bus import NatsBus
from libs.jetstream.connection import BusRefusedError

pytestmark = pytest.mark.fast
BUS = cast(NatsBus, object())
SETTINGS = cast(Settings, object())


async def _comes(there: asyncio.Event) -> NatsBus:
    await there.wait()
    return BUS


async def test_it_ends_before_the_bus_is_used() -> None:
    there, log = asyncio.Event(), list[str]()

    async def meanwhile(settings: Settings) -> None:
        log.append("begins")
        try:
            await asyncio.Event().wait()
        finally:
            log.append("ends")

    waiting = asyncio.create_task(service._awaited(_comes(there), meanwhile, SETTINGS))
    await asyncio.sleep(0.01)
    assert log == ["begins"]
    there.set()
    assert await waiting is BUS
    assert log == ["begins", "ends"]


async def test_where_there_is_nothing_to_do_the_bus_is_waited_for_all_the_same() -> None:
    there = asyncio.Event()

    async def meanwhile(settings: Settings) -> None:
        return

    waiting = asyncio.create_task(service._awaited(_comes(there), meanwhile, SETTINGS))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    there.set()
    assert await waiting is BUS


async def test_an_error_in_it_is_told_while_there_is_no_bus() -> None:
    """Else a host would wait for its watchdog, with an agent that looks alive."""

    async def meanwhile(settings: Settings) -> None:
        raise OSError("no such address")

    with pytest.raises(OSError, match="no such address"):
        await asyncio.wait_for(service._awaited(_comes(asyncio.Event()), meanwhile, SETTINGS), 1.0)


async def test_a_bus_that_refuses_us_is_told_as_it_is() -> None:
    async def refused() -> Any:
        raise BusRefusedError("no rights")

    ended = []

    async def meanwhile(settings: Settings) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(BusRefusedError):
        await service._awaited(refused(), meanwhile, SETTINGS)
    assert ended
