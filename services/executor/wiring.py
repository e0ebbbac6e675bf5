"""The executor put together, the same in both worlds."""

from __future__ import annotations

from libs.core.ports import Hypervisors
from libs.core.shell import Shell
from libs.core.wiring import Ports, Table, Wiring
from libs.model import RunLease
from services.executor.act import Hands
from services.executor.decide import Executor, ExecutorState
from services.executor.orders import REQUESTS


def shell(ports: Ports, hypervisors: Hypervisors) -> Shell[ExecutorState]:
    leases = ports.store("leases")
    hands = Hands(leases, ports.store("definitions"), hypervisors, ports.bus, ports.clock)
    wiring = Wiring(
        service=ports.service,
        bus=ports.bus,
        clock=ports.clock,
        store=ports.store("state"),
        lease=ports.lease(),
        signals=("inventory.*", "lease.*"),
        kinds=("failover.planned", "host.fenced", "host.removed"),
        tables=(Table("leases", leases, "", RunLease),),
        perform=hands.perform,
        requests=REQUESTS,
    )
    return Shell(Executor(ports.settings.restart), wiring)
