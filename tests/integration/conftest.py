"""A real nats-server for each test that asks for one, and connections that are closed afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from libs.core.clock import SystemClock
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.schema import ensure
from libs.jetstream.server import EmbeddedServer

OpenBus = Callable[[str], Awaitable[NatsBus]]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """Running, with JetStream; stopped afterwards in whatever state the test left it."""
    one = EmbeddedServer(tmp_path / "nats")
    await one.start()
    yield one
    if one.process is not None and one.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.process.pid, signal.SIGCONT)
    await one.stop()


@pytest.fixture
async def open_as(server: EmbeddedServer) -> AsyncIterator[OpenBus]:
    """A bus of pool `p` as some service, with the pool's streams there."""
    opened: list[NatsBus] = []

    async def closed() -> None:
        return None

    async def connect(service: str) -> NatsBus:
        bus = await open_bus([server.url], "p", service, SystemClock(), service, closed=closed)
        await ensure(bus.client.jetstream(timeout=5), "p")
        opened.append(bus)
        return bus

    yield connect
    for bus in opened:
        await bus.client.close()
