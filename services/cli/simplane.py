"""The services put together for the simulator: the same wiring as in their mains, over simulated ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from libs.core.decider import Outcome
from libs.core.shell import Shell
from libs.sim.plane import AgentLife, Plane, SimPorts, Work
from services.alerting import wiring as alerting
from services.alerting.decide import Announce, Announced, Posted, PostWebhook
from services.detector import wiring as detector
from services.detector.asks import Disconnected
from services.executor import wiring as executor
from services.fencer import wiring as fencer
from services.heartbeat import wiring as heartbeat
from services.heartbeat.orders import Stirred
from services.placement import wiring as placement


async def _told(request: PostWebhook | Announce) -> Outcome:
    """Nobody listens to a simulated world's alerts; they are delivered."""
    if isinstance(request, Announce):
        return Announced(key=request.key)
    return Posted(key=request.key, record=request.record, ok=True)


SHELLS: dict[str, Callable[[SimPorts], Shell[Any]]] = {
    "detector": lambda ports: detector.shell(
        ports, ports.power, ports.hypervisors, ports.hypervisors, ports.plane_started
    ),
    "fencer": lambda ports: fencer.shell(ports, ports.power, ports.hypervisors),
    "placement": lambda ports: placement.shell(ports),
    "executor": lambda ports: executor.shell(ports, ports.hypervisors),
    "alerting": lambda ports: alerting.shell(ports, _told),
}


async def service(ports: SimPorts) -> Work:
    shell = SHELLS[ports.service](ports)
    ports.mind = lambda: shell.state
    if ports.service == "detector":
        ports.on_ended.append(lambda host: shell.hear(Disconnected(key="notice", host=host)))
    return [shell.run()]


async def agent(ports: SimPorts, life: AgentLife) -> Work:
    shell, hands = heartbeat.agent(
        ports,
        life.entry,
        life.at,
        life.life,
        life.hypervisor,
        ports.hypervisors,
        life.slots,
        life.probes,
    )
    ports.mind = lambda: shell.state
    life.on_stir(lambda: shell.hear(Stirred(key="libvirt")))
    await ports.bus.answer(f"ask.{life.entry.name}", hands.answer)
    return [shell.run()]


PLANE = Plane(services=tuple(SHELLS), service=service, agent=agent)
