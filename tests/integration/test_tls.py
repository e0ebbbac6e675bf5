"""The bus over TLS: certificates that are replaced while heartbeats flow, and servers that are not who they should be."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.access.login import Login
from libs.core.clock import SystemClock
from libs.core.ports import UnavailableError
from libs.events.signals import Heartbeat, Signal
from libs.jetstream import subscribers
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.connection import connect
from libs.jetstream.server import EmbeddedServer
from libs.pki import Pki, issued_by
from tests.unit.made import boot
from tests.waiting import eventually

BEAT_S = 0.1
ELSEWHERE = "127.0.0.2"


class Outside(EmbeddedServer):
    """A server that takes its own loopback for a network."""

    @property
    def encrypted(self) -> bool:
        return True


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Outside]:
    one = Outside(tmp_path / "nats", pool="p", hosts=("h1",))
    await one.start()
    yield one
    await one.stop()


async def _closed() -> None:
    return None


async def as_user(server: EmbeddedServer, user: str) -> NatsBus:
    login = Login(user, server.directory / "keys" / f"{user}.nk", server.directory / "tls" / "ca.pem")
    return await open_bus([server.address], "p", user, SystemClock(), user, closed=_closed, login=login)


def shown(server: EmbeddedServer) -> bytes:
    """The certificate that the server shows to who connects now."""
    context = ssl.create_default_context(cafile=str(server.directory / "tls" / "ca.pem"))
    with socket.create_connection((server.listen, server.port), timeout=5) as plain:
        plain.recv(4096)  # its greeting, before the handshake
        with context.wrap_socket(plain, server_hostname=server.listen) as secure:
            found = secure.getpeercert(binary_form=True)
            assert found is not None
            return found


async def test_certificates_are_replaced_while_heartbeats_flow(server: Outside) -> None:
    """No connection ends, no heartbeat is missed by more than a beat or two; who connects afterwards is shown the new one."""
    agent, detector = await as_user(server, "agent-h1"), await as_user(server, "detector")
    changes: list[bool] = []
    agent.on_change(changes.append)
    detector.on_change(changes.append)
    heard: list[float] = []
    loop = asyncio.get_running_loop()

    def hear(_: Signal) -> None:
        heard.append(loop.time())

    await detector.listen(["heartbeat.*"], hear)
    before = await asyncio.to_thread(shown, server)

    async def beat() -> None:
        for number in range(10_000):
            await agent.send("heartbeat.h1", Heartbeat(at=boot("h1"), agent="a", seq=number))
            await asyncio.sleep(BEAT_S)

    beating = asyncio.create_task(beat())
    try:
        await eventually(lambda: len(heard) > 5, "heartbeats flow")
        place = Pki(server.directory / "tls")
        for _ in range(3):
            place.renew("nats")
            await server.reload()
        pid = server.process
        after = await asyncio.to_thread(shown, server)
        count = len(heard)
        await eventually(lambda: len(heard) > count + 5, "heartbeats flow on")
    finally:
        beating.cancel()
    assert after != before
    assert server.process is pid
    assert changes == [], "no connection was lost"
    gaps = [later - earlier for earlier, later in itertools.pairwise(heard)]
    assert max(gaps) < 1.5, "the default profile suspects a host after 1.5 s of silence"
    # a client that loses its connection comes back and checks the new certificate
    agent.client._abort()
    await eventually(lambda: changes[-2:] == [False, True], "the agent is connected again", within_s=15)
    for bus in (agent, detector):
        await bus.client.close()


async def test_another_authority_takes_over_while_both_are_trusted(server: Outside, tmp_path: Path) -> None:
    detector = await as_user(server, "detector")
    changes: list[bool] = []
    detector.on_change(changes.append)
    place, other = Pki(server.directory / "tls"), Pki(tmp_path / "other")
    other.init("the next one")
    other.issue("nats", ["127.0.0.1"])
    both = place.certificate("ca").read_bytes() + other.certificate("ca").read_bytes()
    place.certificate("ca").write_bytes(both)
    for file in ("nats.pem", "nats.key"):
        shutil.copyfile(other.directory / file, place.directory / file)
    await subscribers.reload(server.system_url, server.login)
    assert changes == []
    detector.client._abort()
    await eventually(lambda: changes == [False, True], "it trusts the next authority, too", within_s=15)
    assert issued_by(place.certificate("nats"), other.certificate("ca"))
    assert not issued_by(place.certificate("nats"), place.certificate("ca"))
    await detector.client.close()


async def test_a_server_that_is_not_the_pools_is_told_nothing(server: Outside, tmp_path: Path) -> None:
    stranger = Pki(tmp_path / "stranger")
    stranger.init("somebody else")
    keys = server.directory / "keys" / "detector.nk"
    for what, login, address in (
        ("another authority", Login("detector", keys, stranger.certificate("ca")), server.address),
        (
            "another name",
            Login("detector", keys, server.directory / "tls" / "ca.pem"),
            server.address.replace("127.0.0.1", ELSEWHERE),
        ),
    ):
        with pytest.raises(UnavailableError):
            await connect([address], "x", closed=_closed, login=login, wait_s=1.5)
        assert what


async def test_who_asks_for_no_tls_gets_no_password(tmp_path: Path) -> None:
    """nats-py would send it in the clear, if the server, or somebody in between, says that it has no TLS."""
    said: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "X", "version": "2.15.1", "headers": True, "max_payload": 1, "nonce": "abc"}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        await writer.drain()
        with contextlib.suppress(OSError):
            said.append(await reader.read(4096))
        writer.close()

    impostor = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = impostor.sockets[0].getsockname()[1]
    authority = Pki(tmp_path)
    authority.init("x")
    with pytest.raises(UnavailableError):
        await connect(
            [f"tls://user:hunter2@127.0.0.1:{port}"],
            "x",
            closed=_closed,
            login=Login(ca=authority.certificate("ca")),
            wait_s=1.5,
        )
    impostor.close()
    assert said, "it was connected to"
    assert b"hunter2" not in b"".join(said)
    assert b"CONNECT" not in b"".join(said)


def test_the_command_makes_shows_and_renews_certificates(tmp_path: Path) -> None:
    def rekindle(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.cli", "pki", *words, "--dir", str(tmp_path / "ca")]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert rekindle("init").returncode == 0
    assert rekindle("issue", "m1", "--name", "10.0.0.1", "--name", "m1.example").returncode == 0
    assert rekindle("issue", "erp").returncode == 0
    assert rekindle("issue", "old", "--days", "5", "--name", "old.example").returncode == 0
    shown = rekindle("show", "--json")
    rows = {row["name"]: row for row in json.loads(shown.stdout)["certificates"]}
    assert shown.returncode == 1, "one ends soon"
    assert list(rows) == ["ca", "erp", "m1", "old"]
    assert set(rows["m1"]["names"]) == {"10.0.0.1", "m1.example"}
    first = (tmp_path / "ca" / "m1.pem").read_bytes()
    assert rekindle("renew").stdout.startswith("old")
    assert rekindle("show").returncode == 0
    assert (tmp_path / "ca" / "m1.pem").read_bytes() == first, "only what ends soon"
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "ca").glob("*.key")} == {0o600}
    assert rekindle("issue", "m2", "--name", "not a name").returncode == 2
    os.unlink(tmp_path / "ca" / "ca.key")
    assert rekindle("issue", "m2").returncode == 2
