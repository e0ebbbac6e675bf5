"""The detector put together, the same in both worlds."""

from __future__ import annotations

import re
from collections.abc import Callable

from libs.config.settings import Settings
from libs.core.ports import Hypervisors, Power, WatchedHypervisors
from libs.core.shell import Shell
from libs.core.wiring import Ports, Table, Wiring
from libs.events.signals import Signal
from libs.model import HostState, Inventory
from services.detector.act import Hands
from services.detector.asks import REQUESTS
from services.detector.decide import Detector
from services.detector.state import DetectorState, HostRecord

UNREAD_READS = 3
"""So many readings of its VMs must be missing before a host is told of."""


def failure_domains(settings: Settings) -> dict[str, str]:
    """By host the value of the label that names what fails together, where the host has one."""
    label = settings.detection.domain_label
    return {host.name: host.labels[label] for host in settings.hosts if label in host.labels}


def gauges(state: DetectorState) -> dict[tuple[str, ...], float]:
    """See libs/measures.py."""
    states = [one.state for one in state.records.values() if isinstance(one, HostRecord)]
    return {("rekindle_hosts", one.value): float(states.count(one)) for one in HostState}


def shell(
    ports: Ports,
    power: Power,
    hypervisors: Hypervisors,
    watched: WatchedHypervisors,
    plane_started: float | None,
    overhears: Callable[[Signal], None] | None = None,
    machine: str = "",
) -> Shell[DetectorState]:
    """`watched`: connections kept warm, for looks at hosts whose agent is down; `overhears` is told all heartbeats, for these. `plane_started`: when the management
    plane started, by `ports.clock`; None: with this process. `machine`: this boot of the machine whose clock that is."""
    settings = ports.settings
    replica = re.sub(r"[^A-Za-z0-9_-]", "-", ports.me)
    decider = Detector(
        hosts=tuple(host.name for host in settings.hosts),
        settings=settings.detection,
        replica=replica,
        plane_started=plane_started,
        beat_interval_s=settings.heartbeats.interval_s,
        slot_interval_s=settings.heartbeats.slot_interval_s,
        domains=failure_domains(settings),
        agentless=frozenset(host.name for host in settings.hosts if not host.agent),
        standby=frozenset(host.name for host in settings.hosts if host.standby),
        grey_min=settings.guests.grey_min,
        machine=machine,
        unheard_after_s=settings.detection.confirm_silence_s,
        unread_after_s=UNREAD_READS * settings.heartbeats.inventory_every_s,
    )
    inventory = ports.store("inventory")
    wiring = Wiring(
        service=ports.service,
        bus=ports.bus,
        clock=ports.clock,
        meter=ports.meter,
        gauges=gauges,
        store=ports.store("state"),
        lease=ports.lease(),
        guard=ports.guard(),
        signals=("heartbeat.*", "inventory.*", "goodbye.*", f"canary.{replica}"),
        kinds=(
            "host.fenced",
            "host.removed",
            "host.readmit_ordered",
            "standby.leaving",
            "outside.told",
            "storm.release_ordered",
        ),
        tables=(Table("inventory", inventory, "", Inventory, every_s=30.0, key=lambda one: one.at.host),),
        perform=Hands(
            power, hypervisors, watched, ports.bus, inventory, settings.detection.ask_timeout_s
        ).perform,
        requests=REQUESTS,
        overhears=overhears,
        notices_pauses=True,
    )
    return Shell(decider, wiring)
