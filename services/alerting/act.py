"""Alerting's hands: one line in the log, one POST of JSON."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp
import structlog

from libs.core.decider import Outcome
from services.alerting.decide import Announce, Announced, Posted, PostWebhook

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Hands:
    url: str
    timeout_s: float
    session: aiohttp.ClientSession

    async def perform(self, request: PostWebhook | Announce) -> Outcome:
        """2xx is delivered; anything else is tried again. Redirects are not followed."""
        if isinstance(request, Announce):
            log.info(request.text, severity=request.severity, key=request.key.removeprefix("log/"))
            return Announced(key=request.key)
        headers = {"webhook-id": request.id.replace("/", "_")}
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        try:
            async with self.session.post(
                self.url, json=request.body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                ok, reason = 200 <= response.status < 300, f"HTTP {response.status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            ok, reason = False, repr(error)
        if not ok:
            log.warning("webhook not delivered", id=request.id, reason=reason)
        return Posted(key=request.key, record=request.record, ok=ok, reason=reason)
