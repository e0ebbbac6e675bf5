"""Process of the executor."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from libs.guestprobes import NetworkGuestProbes
from libs.service import Context, run
from libs.virt.hosts import LibvirtHosts
from services.executor.wiring import shell


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    settings = context.settings
    hypervisors = LibvirtHosts(settings.hosts, settings.vm_defaults, context.bus, context.clock)
    await hypervisors.listen()
    probes = NetworkGuestProbes()
    return [shell(context, hypervisors, hypervisors.lives, probes).run(), hypervisors.run()]


def main(config: Path) -> int:
    return run("executor", config, wire)
