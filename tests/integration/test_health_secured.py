"""What a service tells of itself, where others reach it: by a token, over TLS, with a certificate that is replaced."""

from __future__ import annotations

import asyncio
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from libs.config.health import HealthPorts, HealthSettings
from libs.core.clock import SystemClock
from libs.healthserver import Endpoint
from libs.jetstream.server import free_port
from libs.pki import Pki
from tests.waiting import eventually


def asked(url: str, authority: Path, token: str = "") -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def shown(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=5)


async def test_who_bears_no_token_learns_nothing_and_the_certificate_is_replaced_meanwhile(
    tmp_path: Path,
) -> None:
    pki, port, token = Pki(tmp_path), free_port(), tmp_path / "token"
    pki.init("x")
    pki.issue("fencer", ["127.0.0.1"])
    token.write_text("open-sesame\n")
    settings = HealthSettings(
        ports=HealthPorts(fencer=port),
        token_file=token,
        cert_file=pki.certificate("fencer"),
        cert_key_file=pki.key("fencer"),
    )
    url = f"https://127.0.0.1:{port}/healthz"
    async with Endpoint("fencer", settings, SystemClock()).served():
        authority = pki.certificate("ca")
        for wrong in ("", "open-sesam", "open-sesame2"):
            assert await asyncio.to_thread(asked, url, authority, wrong) == 401
        assert await asyncio.to_thread(asked, url.replace("healthz", "metrics"), authority) == 401
        known = await asyncio.to_thread(asked, url, authority, "open-sesame")
        assert known in (200, 503)
        before = await asyncio.to_thread(shown, port)
        pki.renew("fencer")

        async def replaced() -> bool:
            return await asyncio.to_thread(shown, port) != before

        await eventually(replaced, "who connects now is shown the new certificate", within_s=10, every_s=0.1)
        assert await asyncio.to_thread(asked, url, authority, "open-sesame") == known


def test_an_address_that_others_reach_needs_a_token() -> None:
    with pytest.raises(ValueError, match="token_file"):
        HealthSettings(address="0.0.0.0", ports=HealthPorts(fencer=7412))
    HealthSettings(address="0.0.0.0")
    HealthSettings(address="::1", ports=HealthPorts(fencer=7412))
