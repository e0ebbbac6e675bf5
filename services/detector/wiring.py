"""The detector put together, the same in both worlds."""

from __future__ import annotations

import re
from collections.abc import Callable

from libs.config.settings import Settings
from libs.core.ports import Hypervisors, Power
from libs.core.shell import Shell
from libs.core.wiring import Ports, Table, Wiring
from libs.events.signals import Signal
from libs.model import Inventory
from services.detector.act import Hands
from services.detector.asks import REQUESTS
from services.detector.decide import Detector
from services.detector.state import DetectorState


def failure_domains(settings: Settings) -> dict[str, str]:
    """By host the value of the label that names what fails together, where the host has one."""
    label = settings.detection.domain_label
    return {host.name: host.labels[label] for host in settings.hosts if label in host.labels}


def shell(
    ports: Ports,
    power: Power,
    hypervisors: Hypervisors,
    watched: Hypervisors,
    plane_started: float | None,
    overhears: Callable[[Signal], None] | None = None,
) -> Shell[DetectorState]:
    """`watched`: connections kept warm, for looks at hosts whose agent is down; `overhears` is told all heartbeats, for these. `plane_started`: when the management
    plane started, by `ports.clock`; None: with this process."""
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
        grey_min=settings.guests.grey_min,
    )
    inventory = ports.store("inventory")
    wiring = Wiring(
        service=ports.service,
        bus=ports.bus,
        clock=ports.clock,
        store=ports.store("state"),
        lease=ports.lease(),
        signals=("heartbeat.*", "inventory.*", "goodbye.*", f"canary.{replica}"),
        kinds=("host.fenced", "host.removed", "host.readmit_ordered", "storm.release_ordered"),
        tables=(Table("inventory", inventory, "", Inventory, every_s=30.0),),
        perform=Hands(
            power, hypervisors, watched, ports.bus, inventory, settings.detection.ask_timeout_s
        ).perform,
        requests=REQUESTS,
        overhears=overhears,
        notices_pauses=True,
    )
    return Shell(decider, wiring)
