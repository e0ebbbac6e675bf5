"""One signed POST, and whatever an endpoint may do with it."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from standardwebhooks.webhooks import Webhook as Reference
from standardwebhooks.webhooks import WebhookVerificationError

from libs.config.entries import Secret
from libs.config.settings import load_settings
from libs.config.webhooks import Webhook, key_of, refuse_unusable
from libs.config.yamlfile import BadInputError
from libs.core.clock import SystemClock
from libs.core.ports import Kept
from libs.events.envelope import wrap
from services.alerting import posting
from services.alerting.letters import letter
from services.alerting.posting import Answer, Poster, Target, retry_after_s, signed
from services.alerting.schedule import Verdict
from tests.unit.made import boot, failed

pytestmark = pytest.mark.fast
OLD, NEW = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
LETTER = letter(
    Kept(7, wrap(failed(boot("h1")), pool="p", service="s", wall=datetime(2026, 3, 1, tzinfo=UTC)))
)
Raw = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(answer: Raw, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that does as it likes: it is given the whole request, and writes what it wants."""

    async def on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                await answer(head + await reader.readexactly(length), writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(on, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def says(status: str, headers: str = "", body: bytes = b"") -> Raw:
    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)

    return answer


async def post(port: int, *, scheme: str = "http", keys: tuple[str, ...] = (), **more: Any) -> Answer:
    webhook = Webhook.model_validate(
        {"name": "a", "url": f"{scheme}://127.0.0.1:{port}/hook?token=geheim", "timeout_s": 1.0, **more}
    )
    async with posting.session() as session:
        target = Target(webhook, keys, webhook.trust("alerts.webhooks.0"))
        return await Poster(session, SystemClock()).post(target, LETTER.id, LETTER.body)


async def test_a_receiver_verifies_it_with_the_reference_library_by_the_old_key_and_by_the_new() -> None:
    requests: list[bytes] = []

    async def keep(request: bytes, writer: asyncio.StreamWriter) -> None:
        requests.append(request)
        await says("204 No Content")(request, writer)

    async with listening(keep) as port:
        answer = await post(port, keys=(NEW, OLD))
    assert answer.verdict is Verdict.DELIVERED
    head, _, body = requests[0].partition(b"\r\n\r\n")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head.decode().split("\r\n")[1:])
    }
    for key in (OLD, NEW):
        event = Reference(key).verify(body, headers)
        assert (event["id"], event["severity"], event["specversion"]) == (
            "host.failed/h1-1",
            "critical",
            "1.0",
        )
        assert "h1 has failed" in event["text"]
    with pytest.raises(WebhookVerificationError):
        Reference("whsec_" + base64.b64encode(bytes(32)).decode()).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Reference(OLD).verify(body.replace(b"h1", b"h2"), headers)
    assert headers["content-type"] == "application/cloudevents+json"


def test_a_repeat_has_the_same_id_and_the_time_of_its_own_try() -> None:
    now = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
    one, two = (signed((OLD,), LETTER.id, LETTER.body, now + timedelta(seconds=s)) for s in (0, 90))
    assert one["webhook-id"] == two["webhook-id"]
    assert "." not in one["webhook-id"]
    assert int(two["webhook-timestamp"]) - int(one["webhook-timestamp"]) == 90
    assert one["webhook-signature"] != two["webhook-signature"]


@pytest.mark.parametrize(
    ("status", "headers", "verdict", "asked_s"),
    [
        ("200 OK", "", Verdict.DELIVERED, None),
        ("500 Oh", "", Verdict.FAILED, None),
        ("404 Oh", "", Verdict.FAILED, None),
        ("400 Oh", "", Verdict.REFUSED, None),
        ("410 Gone", "", Verdict.GONE, None),
        ("429 Slow", "Retry-After: 7\r\n", Verdict.FAILED, 7.0),
        ("503 Later", "Retry-After: 120\r\n", Verdict.FAILED, 120.0),
        ("429 Slow", "Retry-After: soon\r\n", Verdict.FAILED, None),
    ],
)
async def test_what_an_endpoint_answers(
    status: str, headers: str, verdict: Verdict, asked_s: float | None
) -> None:
    async with listening(says(status, headers)) as port:
        answer = await post(port)
    assert (answer.verdict, answer.asked_s) == (verdict, asked_s)


def test_retry_after_may_be_a_date() -> None:
    now = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s("Sun, 01 Mar 2026 12:02:00 GMT", now) == 120.0
    assert retry_after_s("Sun, 01 Mar 2026 11:00:00 GMT", now) == 0.0
    assert retry_after_s("", now) is None


async def test_a_slow_endpoint_costs_its_time_out_and_no_more() -> None:
    async def sleep(request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with listening(sleep) as port:
        began = asyncio.get_running_loop().time()
        answer = await post(port, timeout_s=0.3)
        assert asyncio.get_running_loop().time() - began < 2.0
    assert answer.verdict is Verdict.FAILED
    assert answer.reason == "no answer in 0.3 s"


async def test_an_endpoint_that_drips_its_answer_for_ever_costs_no_more_either() -> None:
    async def drip(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with listening(drip) as port:
        began = asyncio.get_running_loop().time()
        answer = await post(port, timeout_s=0.5)
        assert asyncio.get_running_loop().time() - began < 2.0
    assert (answer.verdict, answer.reason) == (Verdict.FAILED, "HTTP 500")


async def test_one_that_lies_about_its_length_has_taken_it_all_the_same() -> None:
    async def lie(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nConnection: close\r\n\r\nshort")
        await writer.drain()
        writer.close()

    async with listening(lie) as port:
        assert (await post(port)).verdict is Verdict.DELIVERED


async def test_no_more_of_an_answer_is_read_than_is_allowed() -> None:
    sent = 0

    async def pour(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with listening(pour) as port:
        assert (await post(port, answer_max_kib=64)).verdict is Verdict.DELIVERED
        await asyncio.sleep(0.1)
    assert sent < 64 << 20, "what the kernels hold, and little else"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 99999 What\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 9999,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nnonsense",
    ],
)
async def test_what_is_no_answer_is_none(raw: bytes) -> None:
    async def nonsense(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.close()

    async with listening(nonsense) as port:
        url = f"http://127.0.0.1:{port}/hook?token=geheim"
        there = await post(port, url=url)
    nobody = await post(port, url=url)
    for answer in (there, nobody):
        assert answer.verdict is Verdict.FAILED
        assert "geheim" not in answer.reason, "a path may hold a secret, and this stands in events"


async def test_a_redirect_leads_only_to_where_it_is_allowed() -> None:
    async with listening(says("204 No Content")) as end:
        there = f"Location: http://127.0.0.1:{end}/elsewhere\r\n"
        async with listening(says("307 Moved", there)) as port:
            refused = await post(port)
            allowed = await post(port, redirects_to=[f"127.0.0.1:{end}"])
        async with listening(says("302 Found", there)) as port:
            as_a_get = await post(port, redirects_to=[f"127.0.0.1:{end}"])
    assert (refused.verdict, allowed.verdict, as_a_get.verdict) == (
        Verdict.FAILED,
        Verdict.DELIVERED,
        Verdict.FAILED,
    )
    assert refused.reason == f"HTTP 307, a redirect to 127.0.0.1:{end} that is not allowed"


async def test_a_redirect_that_never_ends_is_a_failure() -> None:
    async def round_and_round(request: bytes, writer: asyncio.StreamWriter) -> None:
        host = request.split(b"Host: ")[1].split(b"\r\n")[0].decode()
        await says("308 Moved", f"Location: http://{host}/x\r\n")(request, writer)

    async with listening(round_and_round) as port:
        assert (await post(port, redirects_to=[f"127.0.0.1:{port}"])).verdict is Verdict.FAILED


async def test_a_certificate_is_verified(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    command = [
        *made.split(),
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(command, check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with listening(says("204 No Content"), tls) as port:
        unknown = await post(port, scheme="https")
        known = await post(port, scheme="https", ca_file=str(certificate))
    assert unknown.verdict is Verdict.FAILED
    assert "certificate" in unknown.reason.lower()
    assert known.verdict is Verdict.DELIVERED


def pool(tmp_path: Path, webhook: str) -> Path:
    path = tmp_path / "pool.yaml"
    path.write_text(
        f"hosts: [{{name: h1, uri: 'test:///default'}}]\nalerts:\n  webhooks:\n    - {{name: a, {webhook}}}\n"
    )
    return path


@pytest.mark.parametrize(
    ("webhook", "told"),
    [
        ("url: 'ftp://x/y'", "line 4: alerts.webhooks.0.url: is no URL of an endpoint"),
        ("url: nonsense", "line 4: alerts.webhooks.0.url: is no URL"),
        (
            "url: 'https://u:geheim@x/y'",
            "alerts.webhooks.0.url: a password does not belong into the pool file",
        ),
        ("url: 'https://x:99999/y'", "alerts.webhooks.0.url: is no URL: Port out of range"),
        (
            "url: 'https://x/y', events: [host.faild]",
            "alerts.webhooks.0.events.0: no kind of event is called host.faild (did you mean host.failed?)",
        ),
        ("url: 'https://x/y', event: [host.failed]", "event: unknown field (did you mean events?)"),
        ("url: 'https://x/y', severities: [bad]", "alerts.webhooks.0.severities.0: "),
        (
            "url: 'https://x/y', hosts: [h2]",
            "alerts.webhooks.0.hosts: no host is called h2",
        ),
        ("url: 'https://x/y', secrets: [{}]", "alerts.webhooks.0.secrets.0: give either file or env"),
        ("url: 'https://x/y', redirects_to: ['http://z']", "alerts.webhooks.0.redirects_to.0: "),
    ],
)
def test_what_is_wrong_in_the_pool_file_is_named(tmp_path: Path, webhook: str, told: str) -> None:
    with pytest.raises(BadInputError) as error:
        load_settings(pool(tmp_path, webhook))
    assert told in str(error.value)
    assert "geheim" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file or directory"),
        ("geheim", "is no key: whsec_ and then 24 to 64 bytes in base64"),
        ("whsec_geheim", "is no key"),
        ("whsec_!!!", "is no key"),
    ],
)
def test_a_key_that_cannot_be_used_is_named_and_not_shown(
    tmp_path: Path, content: str | None, told: str
) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_text(content)
    path = pool(tmp_path, f"url: 'https://x/y', secrets: [{{file: {key}}}]")
    with pytest.raises(BadInputError) as error:
        refuse_unusable(load_settings(path).alerts.webhooks, path)
    assert f"{path}: line 4: alerts.webhooks.0.secrets.0: " in str(error.value)
    assert told in str(error.value)
    assert "geheim" not in str(error.value)


def test_authorities_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = pool(tmp_path, f"url: 'https://x/y', ca_file: {tmp_path / 'none'}")
    with pytest.raises(BadInputError, match=r"line 4: alerts.webhooks.0.ca_file: .*cannot be read"):
        refuse_unusable(load_settings(path).alerts.webhooks, path)


def test_a_key_is_as_the_hint_makes_it(tmp_path: Path) -> None:
    made = subprocess.run(
        "echo whsec_$(head -c 32 /dev/urandom | base64)",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "key").write_text(made.stdout)
    assert key_of(Secret(file=tmp_path / "key"), "x") == made.stdout.strip()
    assert json.loads(LETTER.body)["data"]["incident"] == "h1-1"
    assert issubclass(aiohttp.ClientConnectorCertificateError, aiohttp.ClientError)
