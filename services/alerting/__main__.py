"""Process of alerting."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp

from libs.core.shell import Shell
from libs.jetstream.archive import JetStreamArchive
from libs.jetstream.schema import Names
from libs.service import Context, run
from services.alerting import notify, posting
from services.alerting.act import Hands
from services.alerting.front import fronts
from services.alerting.targets import targets
from services.alerting.wiring import asking, courier, shell, standing


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    settings = context.settings
    alerts = settings.alerts
    endpoints = targets(settings)
    speakers, managers = notify.speakers(settings), notify.managers(settings)
    session, outside = aiohttp.ClientSession(), posting.session()
    lease = context.lease()
    hands = Hands(alerts.webhook_url or "", alerts.webhook_timeout_s, session)
    running = shell(context, hands.perform, lease)
    poster = posting.Poster(outside, context.clock)
    archive = JetStreamArchive(context.bus.client, Names(settings.pool))
    reading = posting.Hands(archive, poster, context.clock, endpoints)
    telling = notify.Hands(
        settings.pool, alerts.runbooks, reading, speakers, managers, outside, context.clock
    )
    beside: list[Shell[Any]] = [standing(context, telling.perform, lease)]
    if endpoints:
        beside.append(courier(context, reading.perform, lease))
    if alerts.scale_out is not None:
        beside.append(asking(context, reading.perform, lease, alerts.scale_out))
    served = fronts(context)

    async def work() -> None:
        async with session:
            await running.run()

    async def closing(one: Shell[Any]) -> None:
        async with outside:
            await one.run()

    return [work(), *(closing(one) for one in beside), *served]


def main(config: Path) -> int:
    return run("alerting", config, wire)
