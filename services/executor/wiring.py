"""The executor put together, the same in both worlds."""

from __future__ import annotations

from collections.abc import Callable

from libs.core.ports import GuestProbes, Hypervisors
from libs.core.shell import Shell
from libs.core.wiring import Ports, Table, Wiring
from libs.model import Incarnation, RunLease
from libs.restored.keeper import Keeper
from libs.restored.mark import BUCKET
from services.executor.act import Hands
from services.executor.decide import Executor
from services.executor.orders import REQUESTS
from services.executor.state import ExecutorState


def gauges(state: ExecutorState) -> dict[tuple[str, ...], float]:
    """See libs/measures.py."""
    return {("rekindle_starts_queued",): float(len(state.starts()))}


def shell(
    ports: Ports,
    hypervisors: Hypervisors,
    lives: Callable[[Incarnation], bool] = lambda at: False,
    probes: GuestProbes | None = None,
) -> Shell[ExecutorState]:
    """`lives`: whether this very boot was heard a moment ago; `probes`: None where no guest can be asked from here."""
    leases = ports.store("leases")
    hands = Hands(leases, ports.store("definitions"), hypervisors, ports.bus, ports.clock, lives, probes)
    lease, guard = ports.lease(), ports.guard()
    hosts = [host.name for host in ports.settings.hosts]
    stores = (ports.store(BUCKET), leases, ports.store("state"))
    ports.beside(Keeper(ports.bus, ports.clock, lease, guard, hosts, stores).run)
    wiring = Wiring(
        service=ports.service,
        bus=ports.bus,
        clock=ports.clock,
        meter=ports.meter,
        gauges=gauges,
        store=ports.store("state"),
        lease=lease,
        guard=guard,
        signals=("arriving.*", "inventory.*", "lease.*"),
        kinds=("failover.planned", "host.drain_planned", "host.fenced", "host.removed"),
        tables=(Table("leases", leases, "", RunLease),),
        perform=hands.perform,
        requests=REQUESTS,
    )
    return Shell(Executor(ports.settings.restart), wiring)
