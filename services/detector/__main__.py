"""Process of the detector."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from libs.power.devices import FenceDevices, agent_devices
from libs.service import Context, run
from libs.virt.hosts import LibvirtHosts
from services.detector.wiring import shell


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    settings = context.settings
    hypervisors = LibvirtHosts(settings.hosts, settings.vm_defaults, context.bus, context.clock)
    power = FenceDevices(agent_devices(settings.hosts), settings.fencing)
    started = os.environ.get("REKINDLE_PLANE_STARTED")
    return [shell(context, power, hypervisors, float(started) if started else None).run()]


def main(config: Path) -> int:
    return run("detector", config, wire)
