"""Process of the executor."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from libs.core.shell import Shell, Table, Wiring
from libs.model import RunLease
from libs.service import Context, run
from libs.virt.hosts import LibvirtHosts
from services.executor.act import Hands
from services.executor.decide import Executor
from services.executor.orders import REQUESTS


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    settings = context.settings
    hypervisors = LibvirtHosts(settings.hosts, settings.vm_defaults, context.bus, context.clock)
    await hypervisors.listen()
    leases = context.store("leases")
    hands = Hands(leases, context.store("definitions"), hypervisors, context.bus, context.clock)
    wiring = Wiring(
        service=context.service,
        bus=context.bus,
        clock=context.clock,
        store=context.store("state"),
        lease=context.lease(),
        signals=("inventory.*", "lease.*"),
        kinds=("failover.planned", "host.fenced"),
        tables=(Table("leases", leases, "", RunLease),),
        perform=hands.perform,
        requests=REQUESTS,
    )
    return [Shell(Executor(settings.restart), wiring).run(), hypervisors.run()]


def main(config: Path) -> int:
    return run("executor", config, wire)
