"""Process of alerting."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp

from libs.core.shell import Shell, Wiring
from libs.service import Context, run
from services.alerting.act import Hands
from services.alerting.decide import REQUESTS, Alerting
from services.alerting.texts import TEXTS


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    alerts = context.settings.alerts
    session = aiohttp.ClientSession()
    hands = Hands(alerts.webhook_url or "", alerts.webhook_timeout_s, session)
    wiring = Wiring(
        service=context.service,
        bus=context.bus,
        clock=context.clock,
        store=context.store("state"),
        lease=context.lease(),
        kinds=tuple(TEXTS),
        perform=hands.perform,
        requests=REQUESTS,
        parallel_acts=8,
    )
    shell = Shell(Alerting(alerts.webhook_url is not None, alerts.webhook_timeout_s), wiring)

    async def work() -> None:
        async with session:
            await shell.run()

    return [work()]


def main(config: Path) -> int:
    return run("alerting", config, wire)
