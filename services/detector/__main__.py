"""Process of the detector."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from libs import kdump
from libs.jetstream import notices
from libs.power.devices import fence_devices
from libs.service import Context, check_fence_devices, collect_rarely, run, this_machine
from libs.virt.hosts import LibvirtHosts
from services.detector.asks import Disconnected, Panicked
from services.detector.wiring import shell

WATCHED_S = 30.0
"""How often a connection that nobody uses yet is looked at: it only has to be there when an agent falls silent."""


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    collect_rarely()
    settings = context.settings
    hypervisors, watched = (
        LibvirtHosts(settings.hosts, settings.vm_defaults, context.bus, context.clock) for _ in range(2)
    )
    power = fence_devices(settings)
    started = os.environ.get("REKINDLE_PLANE_STARTED")
    began = float(started) if started else None
    detector = shell(context, power, hypervisors, watched, began, watched.heard, this_machine())
    work = [detector.run(), watched.run(WATCHED_S)]
    if settings.system_servers():
        name = f"notices-{os.getpid()}"

        def ended(host: str) -> None:
            detector.hear(Disconnected(key="notice", host=host))

        work.append(
            notices.listen(settings.system_servers, settings.pool, name, ended, settings.system_login)
        )
    if settings.detection.kdump_listen is not None:

        def panicked(host: str) -> None:
            detector.hear(Panicked(key="kdump", host=host))

        work.append(kdump.listen(settings.detection.kdump_listen, kdump.addresses(settings), panicked))
    return work


def main(config: Path) -> int:
    async def begin(context: Context) -> list[Coroutine[Any, Any, None]]:
        await check_fence_devices(context, config)
        return await wire(context)

    return run("detector", config, begin)
