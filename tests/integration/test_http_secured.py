"""Alerting's HTTP endpoint over TLS: its own process, real clients, and a certificate that is replaced meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from libs.jetstream.server import EmbeddedServer, free_port
from libs.pki import Pki
from services.alerting.intake import ALERTMANAGER
from tests.integration import test_alerts
from tests.integration.conftest import OpenBus
from tests.unit.test_incoming import notification
from tests.waiting import eventually

TOKEN = "a-token-of-sixteen-and-more"


@dataclass
class Front:
    """The process of alerting, as others reach it."""

    port: int
    pki: Pki

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}{ALERTMANAGER}"

    def trusting(self, authority: Path | None = None) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(authority or self.pki.certificate("ca")))

    def shown(self) -> str:
        return ssl.get_server_certificate(("127.0.0.1", self.port), timeout=5)


@pytest.fixture
async def front(server: EmbeddedServer, open_as: OpenBus, tmp_path: Path) -> AsyncIterator[Front]:
    await open_as("placement")
    one = Front(free_port(), Pki(tmp_path / "pki"))
    one.pki.init("x")
    one.pki.issue("alerting", ["127.0.0.1"])
    (tmp_path / "token").write_text(TOKEN)
    alerts = {
        "http": {
            "cert_file": str(one.pki.certificate("alerting")),
            "cert_key_file": str(one.pki.key("alerting")),
        },
        "incoming": {
            "listen": f"127.0.0.1:{one.port}",
            "tokens": [{"file": str(tmp_path / "token")}],
        },
    }
    config = tmp_path / "pool.yaml"
    config.write_text(
        f"pool: p\ndata_dir: {tmp_path}\nbus: {{url_file: {server.directory / 'url'}}}\n"
        f"hosts: [{{name: kvm2, uri: 'test:///default'}}]\nalerts: {json.dumps(alerts)}\n"
    )
    process = test_alerts.start(config)
    try:

        async def answers() -> bool:
            with contextlib.suppress(OSError):
                return bool(await asyncio.to_thread(one.shown))
            return False

        await eventually(answers, "alerting answers over TLS", within_s=30, every_s=0.2)
        yield one
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 15)


async def posted(session: aiohttp.ClientSession, front: Front, secure: ssl.SSLContext) -> int:
    """The status of one notification, with the token."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with session.post(front.url, json=notification(), headers=headers, ssl=secure) as response:
        return response.status


async def test_who_knows_the_authority_is_answered_and_who_speaks_in_the_clear_is_not(
    front: Front, tmp_path: Path
) -> None:
    stranger = Pki(tmp_path / "stranger")
    stranger.init("y")
    async with aiohttp.ClientSession() as session:
        assert await posted(session, front, front.trusting()) == 202
        async with session.post(front.url, json=notification(), ssl=front.trusting()) as response:
            assert response.status == 401, "TLS alone is no word of who asks"
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await posted(session, front, front.trusting(stranger.certificate("ca")))
        with pytest.raises(aiohttp.ClientError):
            await session.get(front.url.replace("https:", "http:"))


async def test_a_certificate_is_replaced_and_nobody_who_is_connected_notices(front: Front) -> None:
    secure, before = front.trusting(), await asyncio.to_thread(front.shown)
    connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector) as held, aiohttp.ClientSession() as fresh:
        assert await posted(held, front, secure) == 202
        front.pki.renew("alerting")

        async def replaced() -> bool:
            return await asyncio.to_thread(front.shown) != before

        await eventually(replaced, "who connects now is shown the new certificate", within_s=10, every_s=0.2)
        assert await posted(held, front, secure) == 202
        assert await posted(fresh, front, secure) == 202
