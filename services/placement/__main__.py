"""Process of placement."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from libs.core.shell import Shell, Table, Wiring
from libs.model import Inventory, RunLease
from libs.service import Context, run
from services.placement.decide import Placement

KINDS = (
    "host.joined",
    "host.suspected",
    "host.refuted",
    "host.recovered",
    "host.agent_down",
    "host.failed",
    "host.fenced",
    "vm.failed",
    "vm.restarted",
    "vm.restart_failed",
)


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    settings = context.settings
    decider = Placement(settings.restart, labels={host.name: host.labels for host in settings.hosts})
    wiring = Wiring(
        service=context.service,
        bus=context.bus,
        clock=context.clock,
        store=context.store("state"),
        lease=context.lease(),
        signals=("heartbeat.*", "inventory.*", "lease.*"),
        kinds=KINDS,
        tables=(
            Table("leases", context.store("leases"), "", RunLease),
            Table("inventory", context.store("inventory"), "", Inventory, every_s=10.0),
        ),
    )
    return [Shell(decider, wiring).run()]


def main(config: Path) -> int:
    return run("placement", config, wire)
