"""The services put together for the simulator: the same wiring as in their mains, over simulated ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from libs.core.absent import AbsentPorts
from libs.core.decider import Outcome
from libs.core.ports import Lease
from libs.core.shell import Shell
from libs.model import Incarnation
from libs.sim.archive import SimArchive
from libs.sim.guestprobes import SimGuestProbes
from libs.sim.plane import AgentLife, Plane, SimPorts, WatchLife, Work
from libs.sim.reached import SimReached
from services.alerting import wiring as alerting
from services.alerting.decide import Announce, Announced, Posted, PostWebhook
from services.alerting.reading import Reading
from services.detector import wiring as detector
from services.detector.asks import Disconnected
from services.executor import wiring as executor
from services.fencer import wiring as fencer
from services.heartbeat import agentless
from services.heartbeat import wiring as heartbeat
from services.heartbeat.orders import ArrivalAsked, Fired, Stirred
from services.placement import wiring as placement


async def _told(request: PostWebhook | Announce) -> Outcome:
    """Nobody listens to a simulated world's alerts; they are delivered."""
    if isinstance(request, Announce):
        return Announced(key=request.key)
    return Posted(key=request.key, record=request.record, ok=True)


SHELLS: dict[str, Callable[[SimPorts], Shell[Any]]] = {
    "detector": lambda ports: detector.shell(
        ports,
        ports.power,
        ports.hypervisors,
        ports.hypervisors,
        ports.plane_started,
        machine=ports.machine,
    ),
    "fencer": lambda ports: fencer.shell(ports, ports.power, ports.hypervisors),
    "placement": lambda ports: placement.shell(ports),
    "executor": lambda ports: executor.shell(
        ports, ports.hypervisors, probes=SimGuestProbes(ports.hypervisors)
    ),
}


def _beside(ports: SimPorts, lease: Lease) -> Work:
    """What runs in the process of alerting beside it, where the pool asks for capacity."""
    wanted = ports.settings.alerts.scale_out
    if wanted is None:
        return []
    reading = Reading(SimArchive(ports.bus))
    return [alerting.asking(ports, reading.perform, lease, wanted).run()]


async def service(ports: SimPorts) -> Work:
    if ports.service == "alerting":
        lease = ports.lease()
        told = alerting.shell(ports, _told, lease)
        ports.mind = lambda: told.state
        return [told.run(), *_beside(ports, lease)]
    shell = SHELLS[ports.service](ports)
    ports.mind = lambda: shell.state
    if ports.service == "detector":
        ports.on_ended.append(lambda host: shell.hear(Disconnected(key="notice", host=host)))
    return [shell.run()]


async def agent(ports: SimPorts, life: AgentLife) -> Work:
    local = heartbeat.Local(
        slots=life.slots,
        greetings=life.greetings,
        device=life.watchdog,
        promised=life.promised,
        held=life.held,
        hardware=life.entry.name,
        passed=life.passed,
        door=life.door,
    )
    shell, hands, memory = heartbeat.agent(
        ports, life.entry, life.at, life.life, life.hypervisor, ports.hypervisors, life.probes, local
    )
    life.door.serve(lambda ask, report: shell.hear(ArrivalAsked(key=ask, report=report)))
    memory.mark = life.mark
    memory.keeps.append(life.keep_mark)
    await memory.listen()
    ports.mind = lambda: shell.state
    life.on_stir(lambda: shell.hear(Stirred(key="libvirt")))
    life.on_fired(lambda vm, run: shell.hear(Fired(key="watchdog", vm=vm, run=run, action="none")))
    await ports.bus.answer(f"ask.{life.entry.name}", hands.answer)
    return [shell.run()]


async def keep_alive(ports: SimPorts, life: AgentLife) -> None:
    """As services.heartbeat: what an earlier life armed is fed while there is no bus."""
    if life.watchdog is None or not life.promised.recall(life.at):
        return
    absent = AbsentPorts(ports.settings, ports.service, ports.clock)
    shell, _, _ = heartbeat.agent(
        absent,
        life.entry,
        life.at,
        f"{life.life}-alone",
        life.hypervisor,
        ports.hypervisors,
        life.probes,
        heartbeat.Local(
            slots=life.slots, greetings=life.greetings, device=life.watchdog, promised=life.promised
        ),
    )
    ports.mind = lambda: shell.state
    await shell.run()


async def watch(ports: SimPorts, life: WatchLife) -> Work:
    async def begun(hypervisor: SimReached, at: Incarnation, former: tuple[str, ...]) -> Work:
        shell, hands, memory = heartbeat.agent(
            ports,
            life.entry,
            at,
            life.life(),
            hypervisor,
            ports.hypervisors,
            life.probes,
            heartbeat.Local(former=former),
        )
        ports.mind = lambda: shell.state
        life.on_stir(lambda: shell.hear(Stirred(key="libvirt")))
        answering = await ports.bus.answer(f"ask.{life.entry.name}", hands.answer)
        await memory.listen()

        async def work() -> None:
            try:
                await shell.run()
            finally:
                await answering.stop()
                await memory.stop()

        return [work()]

    inventory, ages = ports.store("inventory"), ports.store("state")
    interval_s = ports.settings.heartbeats.interval_s
    names = life.named, life.begun
    work = agentless.watch(
        life.reach, inventory, ages, interval_s, begun, lambda host: None, *names, life.clock, "m0"
    )
    return [work]


PLANE = Plane(
    services=(*SHELLS, "alerting"), service=service, agent=agent, keep_alive=keep_alive, watch=watch
)
