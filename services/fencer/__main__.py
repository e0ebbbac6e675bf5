"""Process of the fencer."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from libs.core.shell import Shell, Wiring
from libs.power.devices import FenceDevices
from libs.service import Context, run
from services.fencer.act import Hands
from services.fencer.decide import REQUESTS, Fencer


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    settings = context.settings
    power = FenceDevices(settings.hosts, settings.fencing)
    decider = Fencer(settings.fencing, {host.name: power.deadline_s(host.name) for host in settings.hosts})
    wiring = Wiring(
        service=context.service,
        bus=context.bus,
        clock=context.clock,
        store=context.store("state"),
        lease=context.lease(),
        kinds=("host.failed", "host.joined", "host.recovered"),
        perform=Hands(power, context.bus).perform,
        requests=REQUESTS,
        parallel_acts=16,
    )
    return [Shell(decider, wiring).run()]


def main(config: Path) -> int:
    return run("fencer", config, wire)
