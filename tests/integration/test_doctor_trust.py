"""`rekindle doctor` at real servers: certificates that end, and a bus that speaks in the clear."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import libs.pki
from libs.config.settings import Settings
from libs.doctor.seen import ServerSeen
from libs.jetstream.server import EmbeddedServer
from libs.pki import Pki
from services.cli.trustlook import look_at_trust
from tests.integration.test_cli import rekindle
from tests.integration.test_tls import Outside
from tests.waiting import eventually

NOWHERE = Path("/no/authority")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Outside]:
    one = Outside(tmp_path / "nats", pool="p", hosts=("h1",))
    await one.start()
    yield one
    await one.stop()


def pool_of(server: EmbeddedServer, **bus: object) -> Settings:
    """A pool of one host whose bus that server is."""
    hosts = [{"name": "h1", "uri": "test:///default"}]
    return Settings.model_validate({"pool": "p", "hosts": hosts, "bus": {"url": server.address, **bus}})


async def test_a_server_is_seen_by_its_greeting_and_its_certificate_by_its_handshake(server: Outside) -> None:
    servers, certificates = await look_at_trust(pool_of(server), NOWHERE)
    where = f"127.0.0.1:{server.port}"
    assert servers == (ServerSeen(where, beyond=False, asks_for_tls=True, offers_tls=True),)
    assert [one.what for one in certificates] == [where]
    assert certificates[0].days_left == pytest.approx(397, abs=1)


async def test_a_certificate_that_has_ended_is_seen_though_nobody_could_connect_by_it(
    server: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as then:
        then.setattr(libs.pki, "_now", lambda: datetime.now(UTC) - timedelta(days=400))
        Pki(server.directory / "tls").renew("nats")
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)  # its own client, which would order it, knows it no more

    async def left() -> float | None:
        return (await look_at_trust(pool_of(server), NOWHERE))[1][0].days_left

    async def ended() -> bool:
        return ((await left()) or 1) < 0

    await eventually(ended, "the server shows what it was given")
    assert await left() == pytest.approx(-3, abs=1)


async def test_a_bus_that_others_reach_in_the_clear_says_so_itself(tmp_path: Path) -> None:
    one = EmbeddedServer(tmp_path / "nats", listen="0.0.0.0", tls=False)
    await one.start()
    try:
        settings = pool_of(one, url=f"nats://user:secret@127.0.0.1:{one.port}")
        servers, certificates = await look_at_trust(settings, NOWHERE)
    finally:
        await one.stop()
    assert servers == (ServerSeen(f"127.0.0.1:{one.port}", True, False, False),), (
        "and no password is repeated"
    )
    assert certificates == ()


async def test_who_is_no_server_of_nats_is_left_to_the_look_at_the_bus(tmp_path: Path) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        nobody = EmbeddedServer(tmp_path / "nats", port=1)
        settings = pool_of(nobody, url=f"nats://127.0.0.1:{port},nats://127.0.0.1:1")
        assert await look_at_trust(settings, NOWHERE) == ((), ())


async def test_files_are_read_once_each_and_of_two_authorities_the_last_end_counts(tmp_path: Path) -> None:
    place, older = Pki(tmp_path / "authority"), Pki(tmp_path / "older")
    place.init("x")
    older.init("x", days=5)
    place.issue("nats", ["localhost"], days=7)
    place.issue("plane", days=8)
    both = tmp_path / "both.pem"
    both.write_bytes(older.certificate("ca").read_bytes() + place.certificate("ca").read_bytes())
    nobody = EmbeddedServer(tmp_path / "nats", port=1)
    settings = pool_of(
        nobody,
        url="nats://127.0.0.1:1",
        ca_file=both,
        cert_file=place.certificate("plane"),
        cert_key_file=place.key("plane"),
    )
    _, found = await look_at_trust(settings, place.directory)
    days = {one.what.split(" ")[0].rsplit("/", 1)[-1]: one.days_left for one in found}
    assert days == {
        "both.pem": pytest.approx(3650, abs=1),
        "plane.pem": pytest.approx(8, abs=1),
        "ca.pem": pytest.approx(3650, abs=1),
        "nats.pem": pytest.approx(7, abs=1),
    }
    place.certificate("plane").write_text("no certificate\n")
    _, found = await look_at_trust(settings, place.directory)
    broken = [one for one in found if one.days_left is None]
    assert [(one.what, "is no certificate" in one.said) for one in broken] == [("bus.cert_file", True)]


def test_the_command_tells_of_what_ends_with_its_code_for_machines(tmp_path: Path) -> None:
    authority = Pki(tmp_path / "authority")
    authority.init("x")
    authority.issue("nats", ["localhost"], days=10)
    pool = tmp_path / "pool.yaml"
    pool.write_text(
        f"pool: p\ndata_dir: {tmp_path / 'data'}\nhosts:\n"
        "  - {name: h1, uri: 'test:///default'}\n  - {name: h2, uri: 'qemu+tcp://127.0.0.9:1/system', insecure: true}\n"
    )
    done = rekindle("doctor", "--config", str(pool), "--json", "--pki", str(authority.directory))
    told = {one["code"]: one for one in json.loads(done.stdout)["findings"]}
    soon, unverified = told["certificate-ends-soon"], told["libvirt-unverified"]
    assert soon["severity"] == "warning"
    assert soon["subject"] == "p"
    assert soon["seen"].startswith(str(authority.certificate("nats")))
    assert "rekindle pki renew" in soon["do"]
    assert (unverified["host"], unverified["seen"]) == (
        "h2",
        "uri: qemu+tcp:// is in the clear and knows no peer",
    )
    assert "certificate-ended" not in told
