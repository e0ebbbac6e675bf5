"""Placement put together, the same in both worlds."""

from __future__ import annotations

from libs.core.shell import Shell
from libs.core.wiring import Ports, Table, Wiring
from libs.model import Inventory, RunLease
from libs.planning.snapshot import PoolPolicy
from services.placement.decide import Placement
from services.placement.state import Phase, PlacementState

KINDS = (
    "host.joined",
    "host.suspected",
    "host.refuted",
    "host.recovered",
    "host.agent_down",
    "host.failed",
    "host.fenced",
    "host.isolated",
    "host.obeyed",
    "host.maintenance_entered",
    "host.maintenance_exited",
    "host.quarantined",
    "host.readmitted",
    "host.removed",
    "host.grey",
    "datastore.lost",
    "datastore.failed",
    "datastore.recovered",
    "vm.failed",
    "vm.stop_failed",
    "vm.moved",
    "vm.move_failed",
    "vm.preempted",
    "vm.preempt_failed",
    "vm.restarted",
    "vm.restart_failed",
)


def gauges(state: PlacementState, target: int) -> dict[tuple[str, ...], float]:
    """See libs/measures.py."""
    phases = [item.phase for incident in state.incidents() for item in incident.items]
    found: dict[tuple[str, ...], float] = {
        ("rekindle_vms_waiting",): float(phases.count(Phase.WAITING)),
        ("rekindle_vms_planned",): float(phases.count(Phase.PLANNED)),
        ("rekindle_failures_to_tolerate",): float(target),
    }
    if target and state.proved is not None:
        found["rekindle_failures_tolerated",] = float(state.proved.found.tolerates)
    return found


def shell(ports: Ports) -> Shell[PlacementState]:
    settings = ports.settings
    labels = {host.name: host.labels for host in settings.hosts}
    datastores = {
        host.name: tuple(store.name for store in settings.datastores_of(host.name)) for host in settings.hosts
    }
    decider = Placement(
        settings.restart,
        policy=PoolPolicy(
            failures_to_tolerate=settings.placement.failures_to_tolerate,
            cpu_overcommit=settings.placement.cpu_overcommit,
            memory_overcommit=settings.placement.memory_overcommit,
            migrations=settings.placement.migrations,
            preemption=settings.placement.preemption,
        ),
        labels=labels,
        guests=settings.guests,
        datastores=datastores,
        lost_s=settings.detection.datastore_lost_s,
    )
    wiring = Wiring(
        service=ports.service,
        bus=ports.bus,
        clock=ports.clock,
        meter=ports.meter,
        gauges=lambda state: gauges(state, settings.placement.failures_to_tolerate),
        store=ports.store("state"),
        lease=ports.lease(),
        guard=ports.guard(),
        signals=("heartbeat.*", "inventory.*", "lease.*"),
        kinds=KINDS,
        marks=(
            "crashes.",
            "datastore.",
            "fenced.",
            "obeyed.",
            "room.",  # an order that nobody was told of would hold its VM for ever
        ),  # without its incident, a fact that is marked as told is lost
        tables=(
            Table("leases", ports.store("leases"), "", RunLease),
            Table(
                "inventory",
                ports.store("inventory"),
                "",
                Inventory,
                every_s=10.0,
                key=lambda one: one.at.host,
            ),
        ),
    )
    return Shell(decider, wiring)
