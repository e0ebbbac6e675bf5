"""Process of the fencer."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from libs.power.devices import FenceDevices, agent_devices
from libs.service import Context, check_fence_devices, run
from libs.virt.hosts import LibvirtHosts
from services.fencer.wiring import shell


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    settings = context.settings
    hypervisors = LibvirtHosts(settings.hosts, settings.vm_defaults, context.bus, context.clock)
    power = FenceDevices(agent_devices(settings.hosts, settings.fencing), settings.fencing)
    return [shell(context, power, hypervisors).run()]


def main(config: Path) -> int:
    async def begin(context: Context) -> list[Coroutine[Any, Any, None]]:
        await check_fence_devices(context, config)
        return await wire(context)

    return run("fencer", config, begin)
