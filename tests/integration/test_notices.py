"""Hints from outside: the server says whose connection ended, a crash kernel that its host panicked."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from libs import kdump
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.jetstream import notices
from libs.jetstream.connection import connect
from libs.jetstream.server import EmbeddedServer
from tests.waiting import eventually


async def _closed() -> None:
    return None


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_an_agent_whose_connection_ends_is_named_and_nobody_else(server: EmbeddedServer) -> None:
    ended: list[str] = []
    async with running(notices.listen(lambda: [server.system_url], "p", "listener", ended.append)):
        hears = await connect([server.system_url], "probe", closed=_closed, jetstream=False)
        names = (notices.agent_name("p", "h1", 7), notices.agent_name("other", "h2", 8), "executor-9")

        async def noticed() -> bool:
            """Until the listener listens, connections that end are told to nobody."""
            for name in names:
                client = await connect([server.url], name, closed=_closed)
                client._closed_cb = None
                await client.close()
            return bool(ended)

        await eventually(noticed, "a notice", within_s=15.0)
        await hears.close()
    assert set(ended) == {"h1"}


async def test_who_hears_notices_hears_nothing_of_the_pool(server: EmbeddedServer) -> None:
    pool = await connect([server.url], "pool", closed=_closed)
    system = await connect([server.system_url], "system", closed=_closed, jetstream=False)
    heard: list[bytes] = []

    async def on(message: Any) -> None:
        heard.append(message.data)

    await system.subscribe("rekindle.>", cb=on)
    await system.flush()
    await pool.publish("rekindle.p.heartbeat.h1", b"x")
    await pool.flush()
    await system.flush()
    assert heard == []
    await pool.close()
    await system.close()


async def test_a_crash_kernel_is_heard_by_its_address_and_only_with_its_words() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    panicked: list[str] = []
    address = f"127.0.0.1:{port}"
    async with running(kdump.listen(address, {"127.0.0.1": "h1"}, panicked.append)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sent = 0

            async def heard() -> bool:
                nonlocal sent
                sent += 1
                for other in (b"hello", struct.pack("<II", 0x1B302A41, 1)):
                    sender.sendto(other, ("127.0.0.1", port))
                sender.sendto(struct.pack("<II", 0x1B302A40, 1), ("127.0.0.1", port))
                return bool(panicked)

            await eventually(heard, "the crash kernel's word", within_s=5.0)
            assert len(panicked) <= sent, "what is not its word counted"
        with pytest.raises(BadInputError, match="kdump_listen"):
            await kdump.listen(address, {}, panicked.append)
    assert set(panicked) == {"h1"}


def test_hosts_are_known_by_their_own_address_or_that_of_their_probe() -> None:
    hosts = [
        {"name": "h1", "uri": "qemu:///system", "address": "10.0.0.1", "probe": "10.1.0.1:7946"},
        {"name": "h2", "uri": "qemu:///system", "probe": "10.1.0.2:7946"},
        {"name": "h3", "uri": "qemu:///system"},
    ]
    assert kdump.addresses(Settings.model_validate({"hosts": hosts})) == {"10.0.0.1": "h1", "10.1.0.2": "h2"}
