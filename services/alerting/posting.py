"""The courier's hands: reading the stream, and one signed POST at a time to each endpoint."""

from __future__ import annotations

import email.utils
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import aiohttp
import structlog
from standardwebhooks.webhooks import Webhook as Signer

from libs.config.webhooks import Webhook
from libs.core.decider import Outcome
from libs.core.ports import Archive, Clock
from libs.events.envelope import CONTENT_TYPE
from services.alerting.letters import Fetch, Letter, Post, Resend, Tried, letter, message_id
from services.alerting.reading import Reading
from services.alerting.schedule import Verdict, judge
from services.alerting.shaping import shaped

HOPS = 3
DRAIN_S = 0.5
AGENT = f"rekindle/{version('rekindle')}"
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint with what is read from files for it: keys that sign, and whom it trusts."""

    webhook: Webhook
    keys: tuple[str, ...]
    trust: ssl.SSLContext
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, webhook: Webhook, where: str) -> Target:
        """Raises BadInputError naming field and reason."""
        return cls(webhook, webhook.keys(where), webhook.trust(where), webhook.extra(where))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one POST."""

    verdict: Verdict
    reason: str
    asked_s: float | None = None


def signed(keys: tuple[str, ...], event: str, body: str, wall: datetime) -> dict[str, str]:
    """The headers of one try: Standard Webhooks 1.0, signed by every key. `wall` must be in UTC: the library takes
    whatever time it is given for that."""
    assert wall.tzinfo is UTC
    name = message_id(event)
    headers = {"webhook-id": name, "webhook-timestamp": str(int(wall.timestamp()))}
    if keys:
        headers["webhook-signature"] = " ".join(Signer(key).sign(name, wall, body) for key in keys)
    return headers


class Posts(Protocol):
    """Who makes one try."""

    async def post(self, target: Target, event: str, body: str) -> Answer:
        """Never raises for what an endpoint or the network does."""


@dataclass(slots=True)
class Poster:
    """Posts to endpoints. Nothing of an answer is kept but its status and Retry-After."""

    session: aiohttp.ClientSession
    clock: Clock

    async def post(self, target: Target, event: str, body: str) -> Answer:
        """One try. Never raises for what an endpoint or the network does."""
        url, hops, form = target.webhook.url, 0, target.webhook.body
        if form is not None:
            body = json.dumps(shaped(form, json.loads(body)), separators=(",", ":"))
        headers = {
            "Content-Type": CONTENT_TYPE if form is None else "application/json",
            "User-Agent": AGENT,
            **target.headers,
            **signed(target.keys, event, body, self.clock.wall().astimezone(UTC)),
        }
        timeout = aiohttp.ClientTimeout(total=target.webhook.timeout_s)
        try:
            while True:
                async with self.session.post(
                    url,
                    data=body.encode(),
                    headers=headers,
                    timeout=timeout,
                    ssl=target.trust,
                    allow_redirects=False,
                ) as response:
                    if response.status in (307, 308) and hops < HOPS:
                        onward = _onward(target.webhook, url, response.headers.get("Location", ""))
                        if onward is not None:
                            url, hops = onward, hops + 1
                            # a token is for the endpoint that it was given for
                            headers = {k: v for k, v in headers.items() if k not in target.headers}
                            continue
                    answer = self._answer(response)
                    await _drain(response, target.webhook.answer_max_kib * 1024)
                    return answer
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return Answer(Verdict.FAILED, _told(error, target.webhook.timeout_s))

    def _answer(self, response: aiohttp.ClientResponse) -> Answer:
        reason = f"HTTP {response.status}"
        if 300 <= response.status < 400:
            place = urlsplit(response.headers.get("Location", "")).netloc
            reason += f", a redirect to {place or 'elsewhere'} that is not allowed"
        asked_s = None
        if response.status in (429, 503):
            asked_s = retry_after_s(response.headers.get("Retry-After", ""), self.clock.wall())
        return Answer(judge(response.status), reason, asked_s)


def retry_after_s(text: str, wall: datetime) -> float | None:
    """Retry-After as seconds from now, given as such or as a date; None where it is neither. Source: RFC 9110."""
    if text.strip().isdigit():
        return float(text.strip()[:9])
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at - wall).total_seconds()) if at.tzinfo is not None else None


def _onward(webhook: Webhook, url: str, location: str) -> str | None:
    """Where a redirect leads, if it may: to a host that is named for it, and never from https to http."""
    onward = urljoin(url, location)
    to = urlsplit(onward)
    allowed = to.netloc.lower() in webhook.redirects_to
    safe = to.scheme == "https" or (to.scheme == "http" and urlsplit(url).scheme == "http")
    return onward if location and allowed and safe else None


async def _drain(response: aiohttp.ClientResponse, most: int) -> None:
    """Read what is left of a short answer, so that the connection can be used again; a long, slow or false one costs
    the connection. The status is the answer, whatever follows it."""
    try:
        left = most
        while left > 0:
            chunk = await response.content.read(min(left, 16384))
            if not chunk:
                return
            left -= len(chunk)
    except (aiohttp.ClientError, TimeoutError, OSError):
        pass
    response.close()


def _told(error: Exception, timeout_s: float) -> str:
    """What went wrong, without the URL: its path may hold a secret, and this stands in logs and events."""
    if isinstance(error, TimeoutError):
        return f"no answer in {timeout_s:g} s"
    said = str(error)
    if isinstance(error, aiohttp.ClientResponseError):
        said = error.message.partition("\n")[0]
    elif isinstance(error, aiohttp.ClientConnectorError):
        said = f"{error.host}:{error.port}: {error.os_error}"
    elif isinstance(error, aiohttp.InvalidURL):
        said = "no URL"
    return f"{type(error).__name__}: {said}"[:300]


@dataclass(slots=True)
class Hands:
    """Performs the courier's requests."""

    archive: Archive
    poster: Posts
    clock: Clock
    targets: Mapping[str, Target]
    _reading: Reading = field(init=False)

    def __post_init__(self) -> None:
        self._reading = Reading(self.archive)

    async def perform(self, request: Fetch | Post | Resend) -> Outcome:
        """Raises UnavailableError where the stream cannot be read."""
        match request:
            case Fetch():
                return await self._reading.perform(request)
            case Post():
                return await self._post(request, request.letter, "")
            case Resend():
                found = await self.archive.after(request.sequence - 1, 1)
                if not found or found[0].sequence != request.sequence:
                    return Tried(
                        key=request.key,
                        endpoint=request.endpoint,
                        sequence=request.sequence,
                        verdict=Verdict.FAILED,
                        reason="the event is older than what the stream keeps",
                        record=request.record,
                    )
                return await self._post(request, letter(found[0]), request.record)

    async def _post(self, request: Post | Resend, made: Letter, record: str) -> Tried:
        target = self.targets.get(request.endpoint)
        if target is None:
            answer = Answer(Verdict.FAILED, "no endpoint of this name is configured")
        else:
            answer = await self.poster.post(target, made.id, made.body)
        if answer.verdict is not Verdict.DELIVERED:
            log.warning("webhook not delivered", endpoint=request.endpoint, id=made.id, reason=answer.reason)
        return Tried(
            key=request.key,
            endpoint=request.endpoint,
            sequence=made.sequence,
            verdict=answer.verdict,
            reason=answer.reason,
            asked_s=answer.asked_s,
            age_s=(self.clock.wall() - made.told).total_seconds(),
            record=record,
        )


def session() -> aiohttp.ClientSession:
    """For all endpoints: no cookies, no proxies from the environment, a connection kept for each."""
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=200, limit_per_host=4)
    )
