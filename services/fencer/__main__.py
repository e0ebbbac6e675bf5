"""Process of the fencer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from libs.planning.admit import Answer, admit_without
from libs.planning.snapshot import Snapshot
from libs.power.devices import fence_devices
from libs.service import Context, check_fence_devices, run
from libs.virt.hosts import LibvirtHosts
from services.fencer.wiring import shell


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    settings = context.settings
    hypervisors = LibvirtHosts(settings.hosts, settings.vm_defaults, context.bus, context.clock)
    power = fence_devices(settings)
    return [shell(context, power, hypervisors, _admit_aside).run()]


async def _admit_aside(snapshot: Snapshot, host: str) -> Answer:
    """In a thread: nothing of the fencer waits for it."""
    return await asyncio.to_thread(admit_without, snapshot, host, removed=True)


def main(config: Path) -> int:
    async def begin(context: Context) -> list[Coroutine[Any, Any, None]]:
        await check_fence_devices(context, config)
        return await wire(context)

    return run("fencer", config, begin)
