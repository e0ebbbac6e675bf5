"""Whom alerting answers in the clear: nobody on other machines, unless the pool file says so."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import libs.servertls
from libs.config.alerts import refuse_files
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.pki import Pki
from libs.servertls import ServerTls
from tests.waiting import eventually

pytestmark = pytest.mark.fast
TLS = {"cert_file": "/x.pem", "cert_key_file": "/x.key"}


def settings(listen: str, how: str = "incoming", **http: Any) -> Settings:
    alerts: dict[str, Any] = {"http": http}
    if how == "incoming":
        alerts["incoming"] = {"listen": listen, "tokens": [{"env": "X"}]}
    else:
        callbacks = {"listen": listen, "url": "https://rekindle.example/", "secrets": [{"env": "X"}]}
        alerts["scale_out"] = {"callbacks": callbacks}
    return Settings.model_validate(
        {"pool": "p", "hosts": [{"name": "h1", "uri": "test:///default"}], "alerts": alerts}
    )


@pytest.mark.parametrize("how", ["incoming", "callbacks"])
@pytest.mark.parametrize("listen", ["0.0.0.0:7420", "10.0.0.1:7420", "mgmt.example:7420"])
def test_an_address_that_others_reach_is_refused_in_the_clear_by_its_name(how: str, listen: str) -> None:
    with pytest.raises(
        ValueError, match=rf"alerts\.[a-z_.]*{how}[a-z_.]*listen: {listen} is reached by others"
    ):
        settings(listen, how)
    settings(listen, how, in_the_clear=True)
    settings(listen, how, **TLS)


@pytest.mark.parametrize("listen", ["127.0.0.1:7420", "localhost:7420"])
def test_on_loopback_nothing_need_be_said(listen: str) -> None:
    settings(listen)
    settings(listen, "callbacks")


@pytest.mark.parametrize(
    ("http", "told"),
    [
        ({"cert_file": "/x.pem"}, "both of cert_file and cert_key_file"),
        ({**TLS, "in_the_clear": True}, "give one of them"),
    ],
)
def test_halves_and_contradictions_are_refused(http: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        settings("127.0.0.1:7420", **http)


def test_a_certificate_that_does_not_fit_its_key_is_named_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("X", "a-token-of-sixteen-and-more")
    pki = Pki(tmp_path)
    pki.init("x")
    pki.issue("one", ["localhost"])
    pki.issue("two", ["localhost"])
    pool = tmp_path / "pool.yaml"
    pool.write_text("pool: p\nalerts:\n  http:\n    cert_file: there\n")
    good = settings("0.0.0.0:7420", cert_file=pki.certificate("one"), cert_key_file=pki.key("one"))
    refuse_files(good.alerts, pool)
    for key in (pki.key("two"), tmp_path / "gone.key"):
        bad = settings("0.0.0.0:7420", cert_file=pki.certificate("one"), cert_key_file=key)
        with pytest.raises(
            BadInputError, match=r"pool\.yaml: line 4: alerts\.http\.cert_file: .*cannot be used"
        ):
            refuse_files(bad.alerts, pool)


def handshake(server: ssl.SSLContext, authority: Path) -> bytes:
    """In memory: the certificate that the server shows."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    trusting = ssl.create_default_context(cafile=str(authority))
    client = trusting.wrap_bio(to_client, to_server, server_hostname="localhost")
    served = server.wrap_bio(to_server, to_client, server_side=True)
    ends = [client, served]
    for _ in range(10):
        for one in list(ends):
            try:
                one.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(one)
    found = client.getpeercert(binary_form=True)
    assert not ends
    assert found is not None
    return found


def test_half_of_a_pair_leaves_what_is_shown_and_the_other_half_completes_it(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    pki.init("x")
    pki.issue("nats", ["localhost"])
    tls = ServerTls(pki.certificate("nats"), pki.key("nats"))
    tls.look()
    assert tls.context is not None
    context, before = tls.context, handshake(tls.context, pki.certificate("ca"))
    old = pki.certificate("nats").read_bytes()
    pki.renew("nats")
    new = pki.certificate("nats").read_bytes()
    pki.certificate("nats").write_bytes(old)
    for _ in range(2):
        with pytest.raises(ssl.SSLError, match=r"(?i)key.values.mismatch"):
            tls.look()
        assert handshake(context, pki.certificate("ca")) == before
    pki.certificate("nats").write_bytes(new)
    tls.look()
    assert tls.context is context, "it is the server's, for good"
    assert handshake(context, pki.certificate("ca")) == ssl.PEM_cert_to_DER_cert(new.decode())


async def test_why_a_certificate_is_not_taken_over_is_said_once_and_that_the_next_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libs.servertls, "LOOK_S", 0.01)
    pki = Pki(tmp_path)
    pki.init("x")
    pki.issue("nats", ["localhost"])
    tls = ServerTls(pki.certificate("nats"), pki.key("nats"))
    tls.look()
    looks = 0

    def look(self: ServerTls) -> None:
        nonlocal looks
        looks += 1
        seen(self)

    seen = ServerTls.look
    monkeypatch.setattr(ServerTls, "look", look)
    with capture_logs() as logs:
        following = asyncio.create_task(tls.follow())
        pki.certificate("nats").write_text("half of a cert")
        await eventually(lambda: logs, "it is said")
        after = looks
        await eventually(lambda: looks > after + 5, "it has looked again and again")
        pki.issue("nats", ["localhost"])
        await eventually(lambda: len(logs) > 1, "the next one is taken over")
        following.cancel()
    assert [one["event"] for one in logs] == ["certificate not taken over", "certificate taken over"]
