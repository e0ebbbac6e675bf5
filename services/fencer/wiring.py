"""The fencer put together, the same in both worlds."""

from __future__ import annotations

from libs.core.ports import Hypervisors
from libs.core.shell import Shell
from libs.core.wiring import Ports, Wiring
from libs.power.devices import FenceDevices
from services.fencer.act import Hands
from services.fencer.decide import Fencer
from services.fencer.state import REQUESTS, FencerState

SLOT_SPACING = 1.2
"""Intervals between two readings of a slot: a host that works has written in between."""


def shell(ports: Ports, power: FenceDevices, hypervisors: Hypervisors) -> Shell[FencerState]:
    settings = ports.settings
    decider = Fencer(settings.fencing, {host.name: power.deadline_s(host.name) for host in settings.hosts})
    wiring = Wiring(
        service=ports.service,
        bus=ports.bus,
        clock=ports.clock,
        store=ports.store("state"),
        lease=ports.lease(),
        kinds=("host.failed", "host.isolated", "host.joined", "host.recovered", "host.confirmed_failed"),
        perform=Hands(
            power,
            ports.bus,
            hypervisors,
            ports.clock,
            witness_s=settings.fencing.status_spacing_s,
            peers=[host.name for host in settings.hosts if host.agent],
            ask_timeout_s=settings.detection.ask_timeout_s,
            slot_spacing_s=SLOT_SPACING * settings.heartbeats.slot_interval_s
            if settings.datastores
            else None,
        ).perform,
        requests=REQUESTS,
        parallel_acts=16,
    )
    return Shell(decider, wiring)
