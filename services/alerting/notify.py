"""The hands of the keeper of alerts: people through the apprise library, and Prometheus Alertmanager (API v2)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import aiohttp
import structlog

from libs.config.notify import Alertmanager, Channel
from libs.config.settings import Settings
from libs.config.webhooks import trust
from libs.config.yamlfile import BadInputError
from libs.core.decider import Outcome
from libs.core.ports import Clock, UnavailableError
from services.alerting.letters import Fetch
from services.alerting.notices import Mirror, Mirrored, Notice, Said, Tell
from services.alerting.posting import Hands as Reading
from services.alerting.texts import Severity

KEPT_S = 300.0
"""An alert that is not shown again for so long is over for an Alertmanager: its own default for what has no end."""
DIGEST_LINES = 50
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Speaker:
    """One channel, with the address that its file holds."""

    channel: Channel
    sender: Any
    """An apprise.Apprise: the library has no types."""

    @classmethod
    def of(cls, channel: Channel, where: str) -> Speaker:
        """Raises BadInputError naming field and reason, never the address."""
        import apprise  # half a second of imports, for those alone who use it

        address = channel.address(where)
        sender = apprise.Apprise(asset=apprise.AppriseAsset(app_id="Rekindle", app_desc="Rekindle"))
        if not sender.add(address):
            raise BadInputError(f"{where}.url: what lies there is no address that the apprise library knows")
        return cls(channel, sender)

    async def say(self, title: str, body: str, severity: Severity, *, over: bool) -> bool:
        kinds = {Severity.INFO: "info", Severity.WARNING: "warning", Severity.CRITICAL: "failure"}
        kind = "success" if over else kinds[severity]
        return bool(await self.sender.async_notify(title=title, body=body, notify_type=kind))


def subject(notices: Sequence[Notice], pool: str) -> str:
    """The title of a message: of one alert, or of a digest."""
    if len(notices) == 1:
        one = notices[0]
        state = "resolved" if one.state == "resolved" else one.severity.value
        return f"[{pool}] {state}: {one.key}"
    firing = [one for one in notices if one.state == "firing"]
    worst = "critical" if any(one.severity is Severity.CRITICAL for one in firing) else "warning"
    return f"[{pool}] {len(firing)} alerts ({worst}), {len(notices) - len(firing)} resolved"


def text(notices: Sequence[Notice], runbooks: str) -> str:
    """The body: everything of one alert; of a digest one line each, what fires and is worst first."""
    if len(notices) == 1:
        one = notices[0]
        since = f"since {one.since}" + (f", raised {one.count} times" if one.count > 1 else "")
        lines = [one.text, since, f"key: {one.key}"]
        return "\n".join(lines if one.state == "resolved" else [*lines, "", one.do, f"{runbooks}#{one.name}"])
    ranks = {Severity.CRITICAL: 0, Severity.WARNING: 1, Severity.INFO: 2}
    ordered = sorted(notices, key=lambda one: (one.state == "resolved", ranks[one.severity], one.key))
    told = [
        f"{'resolved' if one.state == 'resolved' else one.severity.value}: {one.key}: {one.text}"
        for one in ordered[:DIGEST_LINES]
    ]
    if len(ordered) > DIGEST_LINES:
        told.append(f"and {len(ordered) - DIGEST_LINES} more: `rekindle alerts` has them all")
    return "\n".join([*told, "", runbooks])


def postable(notices: Sequence[Notice], pool: str, runbooks: str, clock: Clock) -> list[dict[str, Any]]:
    """The body of POST /api/v2/alerts. Labels identify an alert and never change while it stands."""
    now = clock.wall()
    return [
        {
            "labels": {
                "alertname": one.name,
                "pool": pool,
                "key": one.key,
                "severity": one.severity.value,
                "source": "rekindle",
            },
            "annotations": {
                "summary": one.text,
                "description": one.do,
                "runbook_url": f"{runbooks}#{one.name}",
            },
            "startsAt": one.since,
            "endsAt": (now if one.state == "resolved" else now + timedelta(seconds=KEPT_S)).isoformat(),
        }
        for one in notices
    ]


@dataclass(slots=True)
class Hands:
    """Performs the requests of the keeper of alerts."""

    pool: str
    runbooks: str
    reading: Reading
    speakers: Mapping[str, Speaker]
    managers: Mapping[str, tuple[Alertmanager, ssl.SSLContext]]
    session: aiohttp.ClientSession
    clock: Clock

    async def perform(self, request: Fetch | Tell | Mirror) -> Outcome:
        """Raises UnavailableError where the stream cannot be read."""
        match request:
            case Fetch():
                return await self.reading.perform(request)
            case Tell():
                return await self._tell(request)
            case Mirror():
                return await self._mirror(request)

    async def _tell(self, request: Tell) -> Said:
        speaker = self.speakers.get(request.channel)
        if speaker is None:
            return Said(key=request.key, record=request.record, ok=True, reason="configured no more")
        firing = [one for one in request.notices if one.state == "firing"]
        worst = (
            Severity.CRITICAL if any(o.severity is Severity.CRITICAL for o in firing) else Severity.WARNING
        )
        title, body = subject(request.notices, self.pool), text(request.notices, self.runbooks)
        ok = await speaker.say(title, body, worst, over=not firing)
        if not ok:
            log.warning("nobody could be told", channel=request.channel, title=title)
        return Said(key=request.key, record=request.record, ok=ok, reason="" if ok else "it was not taken")

    async def _mirror(self, request: Mirror) -> Mirrored:
        found = self.managers.get(request.manager)
        if found is None:
            raise UnavailableError(f"no alertmanager is called {request.manager}")
        manager, trusted = found
        url = f"{manager.url.rstrip('/')}/api/v2/alerts"
        body = postable(request.notices, self.pool, self.runbooks, self.clock)
        timeout = aiohttp.ClientTimeout(total=manager.timeout_s)
        try:
            async with self.session.post(
                url, json=body, timeout=timeout, ssl=trusted, allow_redirects=False
            ) as response:
                ok, reason = response.status == 200, f"HTTP {response.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            ok, reason = False, f"{type(error).__name__}: {error}"[:300]
        if not ok:
            log.warning("alertmanager not told", manager=manager.name, reason=reason)
        return Mirrored(key=request.key, manager=manager.name, ok=ok, reason=reason)


def speakers(settings: Settings) -> dict[str, Speaker]:
    """Every channel by its name. Raises BadInputError."""
    return {
        one.name: Speaker.of(one, f"alerts.channels.{index}")
        for index, one in enumerate(settings.alerts.channels)
    }


def managers(settings: Settings) -> dict[str, tuple[Alertmanager, ssl.SSLContext]]:
    """Every Alertmanager by its name, with whom it is trusted by. Raises BadInputError."""
    return {
        one.name: (one, trust(one.ca_file, f"alerts.alertmanagers.{index}"))
        for index, one in enumerate(settings.alerts.alertmanagers)
    }
