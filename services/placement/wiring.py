"""Placement put together, the same in both worlds."""

from __future__ import annotations

from libs.core.shell import Shell
from libs.core.wiring import Ports, Table, Wiring
from libs.model import Inventory, RunLease
from services.placement.decide import Placement
from services.placement.state import PlacementState

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
    "vm.restarted",
    "vm.restart_failed",
)


def shell(ports: Ports) -> Shell[PlacementState]:
    settings = ports.settings
    labels = {host.name: host.labels for host in settings.hosts}
    datastores = {
        host.name: tuple(store.name for store in settings.datastores_of(host.name)) for host in settings.hosts
    }
    decider = Placement(
        settings.restart,
        labels=labels,
        guests=settings.guests,
        datastores=datastores,
        lost_s=settings.detection.datastore_lost_s,
    )
    wiring = Wiring(
        service=ports.service,
        bus=ports.bus,
        clock=ports.clock,
        store=ports.store("state"),
        lease=ports.lease(),
        signals=("heartbeat.*", "inventory.*", "lease.*"),
        kinds=KINDS,
        marks=(
            "crashes.",
            "datastore.",
            "fenced.",
            "obeyed.",
        ),  # without its incident, a fact that is marked as told is lost
        tables=(
            Table("leases", ports.store("leases"), "", RunLease),
            Table("inventory", ports.store("inventory"), "", Inventory, every_s=10.0),
        ),
    )
    return Shell(decider, wiring)
