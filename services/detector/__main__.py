"""Process of the detector."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from libs.core.shell import Shell, Table, Wiring
from libs.model import Inventory
from libs.power.devices import FenceDevices
from libs.service import Context, run
from libs.virt.hosts import LibvirtHosts
from services.detector.act import Hands
from services.detector.asks import REQUESTS
from services.detector.decide import Detector


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    settings = context.settings
    hypervisors = LibvirtHosts(settings.hosts, settings.vm_defaults, context.bus, context.clock)
    power = FenceDevices(settings.hosts, settings.fencing)
    hands = Hands(power, hypervisors, context.bus, settings.detection.ask_timeout_s)
    started = os.environ.get("REKINDLE_PLANE_STARTED")
    decider = Detector(
        hosts=tuple(host.name for host in settings.hosts),
        settings=settings.detection,
        plane_started=float(started) if started else None,
    )
    wiring = Wiring(
        service=context.service,
        bus=context.bus,
        clock=context.clock,
        store=context.store("state"),
        lease=context.lease(),
        signals=("heartbeat.*", "inventory.*", "goodbye.*"),
        kinds=("host.fenced",),
        tables=(Table("inventory", context.store("inventory"), "", Inventory, every_s=30.0),),
        perform=hands.perform,
        requests=REQUESTS,
    )
    return [Shell(decider, wiring).run()]


def main(config: Path) -> int:
    return run("detector", config, wire)
