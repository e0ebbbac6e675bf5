"""Process of the fencer."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from libs.power.devices import FenceDevices, agent_devices
from libs.service import Context, run, supervised
from libs.virt.hosts import LibvirtHosts
from services.fencer.wiring import shell


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    settings = context.settings
    hypervisors = LibvirtHosts(settings.hosts, settings.vm_defaults, context.bus, context.clock)
    power = FenceDevices(agent_devices(settings.hosts, settings.fencing), settings.fencing)
    return [shell(context, power, hypervisors).run()]


def main(config: Path) -> int:
    async def begin(context: Context) -> list[Coroutine[Any, Any, None]]:
        if (
            not supervised()
        ):  # `rekindle up` has looked already: one that starts again must not wait for agents
            from libs.power.checked import refuse_misfits

            await refuse_misfits(context.settings.hosts, context.settings.fencing, config)
        return await wire(context)

    return run("fencer", config, begin)
