"""Process of alerting."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp

from libs.service import Context, run
from services.alerting.act import Hands
from services.alerting.wiring import shell


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    alerts = context.settings.alerts
    session = aiohttp.ClientSession()
    hands = Hands(alerts.webhook_url or "", alerts.webhook_timeout_s, session)
    running = shell(context, hands.perform)

    async def work() -> None:
        async with session:
            await running.run()

    return [work()]


def main(config: Path) -> int:
    return run("alerting", config, wire)
