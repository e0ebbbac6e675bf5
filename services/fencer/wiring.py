"""The fencer put together, the same in both worlds."""

from __future__ import annotations

from libs.core.ports import Hypervisors
from libs.core.shell import Shell, Wiring
from libs.core.wiring import Ports
from libs.power.devices import FenceDevices
from services.fencer.act import Hands
from services.fencer.decide import REQUESTS, Fencer, FencerState


def shell(ports: Ports, power: FenceDevices, hypervisors: Hypervisors) -> Shell[FencerState]:
    settings = ports.settings
    decider = Fencer(settings.fencing, {host.name: power.deadline_s(host.name) for host in settings.hosts})
    wiring = Wiring(
        service=ports.service,
        bus=ports.bus,
        clock=ports.clock,
        store=ports.store("state"),
        lease=ports.lease(),
        kinds=("host.failed", "host.joined", "host.recovered", "host.confirmed_failed"),
        perform=Hands(power, ports.bus, hypervisors, settings.fencing.status_spacing_s).perform,
        requests=REQUESTS,
        parallel_acts=16,
    )
    return Shell(decider, wiring)
