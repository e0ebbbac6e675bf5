"""A connection that survives what nats-py's own does not, to a server that keeps its promises."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest

from libs.core.ports import UnavailableError
from libs.events.signals import Heartbeat, Signal
from libs.jetstream.connection import BusRefusedError, SafeClient, connect
from libs.jetstream.server import EmbeddedServer, binary, free_port
from tests.integration.conftest import OpenBus
from tests.unit.made import beat
from tests.waiting import eventually


async def closed() -> None:
    return None


class Changes:
    """What a connection told of itself, and when."""

    def __init__(self) -> None:
        self.told: list[bool] = []

    def __call__(self, connected: bool) -> None:
        self.told.append(connected)


def stop(server: EmbeddedServer) -> None:
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)


def go_on(server: EmbeddedServer) -> None:
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGCONT)


async def hears(client: SafeClient, within_s: float = 5.0) -> None:
    """It still hears what is published, by itself and to itself."""
    heard: list[bytes] = []

    async def on(message: Any) -> None:
        heard.append(message.data)

    subscription = await client.subscribe("hello", cb=on)

    async def said() -> bool:
        with contextlib.suppress(nats.errors.Error):
            await client.publish("hello", b"x")
        return bool(heard)

    await eventually(said, "it hears again", within_s=within_s, every_s=0.05)
    await subscription.unsubscribe()


async def test_a_pong_that_comes_after_its_flush_was_cancelled_leaves_the_connection_hearing(
    server: EmbeddedServer,
) -> None:
    changes = Changes()
    client = await connect([server.url], "one", closed=closed, on_change=changes)
    stop(server)
    # one alone: each ping without its pong brings the connection nearer to being given up
    flush = asyncio.create_task(client.flush(timeout=5))
    await asyncio.sleep(0.05)
    flush.cancel()
    await asyncio.gather(flush, return_exceptions=True)
    go_on(server)
    await hears(client)
    await client.flush(timeout=2)
    assert changes.told == [], "it hears again only because it was given up and connected anew"
    await client.close()


async def test_a_server_that_stands_still_is_noticed_and_survived(server: EmbeddedServer) -> None:
    changes = Changes()
    client = await connect([server.url], "one", closed=closed, on_change=changes)
    stop(server)
    began = time.monotonic()
    await eventually(lambda: changes.told == [False], "the loss is noticed", within_s=4.0)
    assert time.monotonic() - began < 3.0
    with pytest.raises(nats.errors.Error):
        await client.publish("hello", b"stale")  # refused, never kept to be replayed later
    go_on(server)
    await eventually(lambda: changes.told[-1], "it is back", within_s=5.0)
    await hears(client)
    await client.close()


async def test_a_server_that_is_killed_and_started_again_is_found_again(server: EmbeddedServer) -> None:
    changes = Changes()
    client = await connect([server.url], "one", closed=closed, on_change=changes)
    assert server.process is not None
    server.process.kill()
    await server.process.wait()
    await eventually(lambda: changes.told == [False], "the loss is noticed")
    await server.start()
    await eventually(lambda: changes.told == [False, True], "it is back")
    await hears(client)
    await client.close()


async def test_signals_sent_while_the_bus_is_away_are_dropped_not_replayed(
    server: EmbeddedServer, open_as: OpenBus
) -> None:
    one, other = await open_as("a"), await open_as("b")
    heard: list[Signal] = []
    await other.listen(["heartbeat.*"], heard.append)
    changes = Changes()
    forget = one.on_change(changes)
    assert server.process is not None
    server.process.kill()
    await server.process.wait()
    await eventually(lambda: changes.told == [False], "the loss is noticed")
    for seq in range(5):
        await one.send("heartbeat.h1", beat("h1").model_copy(update={"seq": seq}))
    await server.start()
    await eventually(lambda: changes.told == [False, True] and other.connected, "both are back")

    async def again() -> bool:
        await one.send("heartbeat.h1", beat("h1").model_copy(update={"seq": 99}))
        return bool(heard)

    await eventually(again, "what is said now is heard", every_s=0.05)
    assert {signal.seq for signal in heard if isinstance(signal, Heartbeat)} == {99}
    forget()


# -- what a server is told


async def test_a_flush_proves_that_the_server_has_read_what_came_before_it() -> None:
    told: list[bytes] = []
    async with speaking("2.14.0", told) as url:
        client = SafeClient()
        await client.connect(url)
        del told[:]
        await client.subscribe("hello")
        await client.publish("hello", b"")
        await client.flush(timeout=5)
        await client.close()
    assert told[:2] == [b"SUB", b"PUB"]
    assert b"PING" in told


# -- servers that are refused


@contextlib.asynccontextmanager
async def speaking(version: str, told: list[bytes] | None = None) -> AsyncIterator[str]:
    """A server that speaks just enough of the protocol to be connected to. `told`: each line it was sent."""
    info = {
        "server_id": "x", "server_name": "x", "version": version, "proto": 1, "headers": True,
        "max_payload": 1 << 20, "jetstream": True,
    }  # fmt: skip

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"INFO {json.dumps(info)}\r\n".encode())
        while line := await reader.readline():
            if told is not None:
                told.append(line.partition(b" ")[0].strip())
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()
        await writer.wait_closed()
        ended.set()

    ended = asyncio.Event()
    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    yield f"nats://secret@127.0.0.1:{port}"
    listening.close()
    await asyncio.wait_for(ended.wait(), 5.0)
    await listening.wait_closed()


@pytest.mark.parametrize("version", ["2.9.10", "2.13.9", "1.4.0"])
async def test_a_server_that_is_too_old_is_refused_with_both_versions(version: str) -> None:
    async with speaking(version) as url:
        with pytest.raises(BusRefusedError, match=rf"{version} is too old: 2\.14 or newer") as error:
            await connect([url], "one", closed=closed)
    assert "secret" not in str(error.value)


async def test_a_server_that_says_nothing_of_jetstream_is_unavailable_and_not_refused() -> None:
    """Who is refused exits; under load an answer may be late, and an agent that exits for that is lost."""
    async with speaking("2.15.1") as url:
        with pytest.raises(UnavailableError, match="says nothing of JetStream"):
            await connect([url], "one", closed=closed)


async def test_a_server_without_jetstream_is_refused() -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        binary(), "-a", "127.0.0.1", "-p", str(port), stderr=asyncio.subprocess.DEVNULL
    )
    try:

        async def refused() -> str:
            with contextlib.suppress(UnavailableError):
                try:
                    await connect([f"nats://127.0.0.1:{port}"], "one", closed=closed, wait_s=1.0)
                except BusRefusedError as error:
                    return str(error)
            return ""

        assert "offers no JetStream" in await eventually(refused, "refused", within_s=10.0)
    finally:
        process.terminate()
        await process.wait()


async def test_one_of_a_cluster_that_has_no_leader_is_unavailable_and_not_refused(tmp_path: Path) -> None:
    """As in every election, and for as long as it is cut off from its peers: whoever starts just then must not give up."""
    port, route, *peers = (free_port() for _ in range(4))
    routes = ", ".join(f"nats://127.0.0.1:{peer}" for peer in peers)
    conf = tmp_path / "one.conf"
    conf.write_text(
        f"server_name: n1\nlisten: 127.0.0.1:{port}\njetstream {{ store_dir: {tmp_path} }}\n"
        f"cluster {{ name: c, listen: 127.0.0.1:{route}, routes: [{routes}] }}\n"
    )
    process = await asyncio.create_subprocess_exec(
        binary(), "-c", str(conf), stderr=asyncio.subprocess.DEVNULL
    )
    try:

        async def said() -> str:
            try:
                await connect([f"nats://127.0.0.1:{port}"], "one", closed=closed, wait_s=1.0)
            except UnavailableError as error:
                return str(error) if "has no leader" in str(error) else ""
            return ""

        # for its first ten seconds it says nothing at all
        await eventually(said, "it says so", within_s=40.0)
    finally:
        process.terminate()
        await process.wait()


async def test_nobody_there_is_unavailable_and_the_secret_is_not_told() -> None:
    with pytest.raises(UnavailableError) as error:
        await connect([f"nats://hunter2@127.0.0.1:{free_port()}"], "one", closed=closed, wait_s=0.5)
    assert "127.0.0.1" in str(error.value)
    assert "hunter2" not in str(error.value)


async def test_an_address_that_was_not_written_yet_leads_to_nobody() -> None:
    with pytest.raises(UnavailableError):
        await connect([""], "one", closed=closed, wait_s=0.5)


async def test_a_wrong_token_is_refused_without_telling_it(server: EmbeddedServer) -> None:
    url = server.url.replace("nats://", "nats://hunter2")
    with pytest.raises(UnavailableError) as error:
        await connect([url], "one", closed=closed, wait_s=1.0)
    assert "hunter2" not in str(error.value)


async def test_a_name_that_does_not_resolve_is_named() -> None:
    with pytest.raises(UnavailableError, match=r"nowhere\.invalid"):
        await connect(["nats://nowhere.invalid:4222"], "one", closed=closed)


async def test_one_name_of_several_that_does_not_resolve_is_no_obstacle(server: EmbeddedServer) -> None:
    one = await connect(["nats://nowhere.invalid:4222", server.url], "one", closed=closed)
    assert one.is_connected
    await one.close()


async def test_an_embedded_server_keeps_its_port_and_its_secrets_to_itself(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    port = server.port
    await server.stop()
    again = EmbeddedServer(tmp_path / "nats")
    await again.start()
    assert again.port == port
    for name in ("token", "url", "nats.conf"):
        assert (tmp_path / "nats" / name).stat().st_mode & 0o077 == 0, name
    await again.stop()


async def test_a_port_that_is_taken_is_said_to_be(server: EmbeddedServer, tmp_path: Path) -> None:
    other = EmbeddedServer(tmp_path / "other", port=server.port)
    with pytest.raises(UnavailableError, match=str(server.port)):
        await other.start()
    assert other.process is None or other.process.returncode is not None
