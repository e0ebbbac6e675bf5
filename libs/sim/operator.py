"""A person at a terminal of the management machine: the command's own code over the simulated bus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from libs import fencetest
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.events.base import Fact
from libs.events.guests import HostDrainEnded, HostDraining
from libs.events.hosts import HostJoined, HostQuarantined, HostReadmitted
from libs.events.standby import StandbyLeaving
from libs.events.words import HostFenceTestOrdered, HostMaintenanceEntered, HostMaintenanceExited, HostRemoved
from libs.model import Incarnation
from libs.operator import Operator, RefusedError
from libs.poolview import PoolView
from libs.sim.broker import Stored
from libs.sim.bus import SimBus, SimStore
from libs.sim.loop import Process, SimClock

if TYPE_CHECKING:
    from libs.sim.world import World

NODE = "m0"
CONNECT_S, LOOK_S = 3.0, 0.1


class SimOperator:
    """Says what a scenario wants to be said, each word by a process of its own that ends with it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.on_no: list[Callable[[str, str], None]] = []
        """A command ended with "no": which, and why."""
        self.maintained: set[str] = set()
        self.removed: set[str] = set()
        self.quarantined: set[str] = set()
        self.tested: set[Incarnation] = set()
        """Boots that a fence test is to switch off."""
        self.leaving: set[Incarnation] = set()
        """Boots that are to be switched off to go back to standby."""
        self.drained: set[str] = set()
        """By placement, until a word of an operator or better news."""
        world.broker.on_fact.append(self._fact)

    @property
    def closed(self) -> set[str]:
        """Hosts that are to take no VMs: by an operator's word, for having failed too often, or being grey."""
        return self.maintained | self.removed | self.quarantined | self.drained

    def confirm_failed(self, host: str) -> None:
        async def work(operator: Operator) -> None:
            await operator.confirm_failed(await operator.verdict(host))

        self._command(f"confirm-failed {host}", work)

    def fence_test(self, host: str, *, forced: bool, drain: bool = False) -> None:
        async def work(operator: Operator) -> None:
            wanted = fencetest.Wanted(forced=forced, drain=drain, back_s=60.0)
            await fencetest.run(operator, await fencetest.look(operator, host), wanted, lambda _: None)

        self._command(f"fence-test {host}", work)

    def enter_maintenance(self, host: str, *, drain: bool = False) -> None:
        self._command(
            f"maintenance enter {host}", lambda operator: operator.enter_maintenance(host, drain=drain)
        )

    def exit_maintenance(self, host: str) -> None:
        self._command(f"maintenance exit {host}", lambda operator: operator.exit_maintenance(host))

    def remove(self, host: str) -> None:
        self._command(f"remove-host {host}", lambda operator: operator.remove(host))

    def readmit(self, host: str) -> None:
        self._command(f"readmit {host}", lambda operator: operator.readmit(host))

    def confirm_absent(self, host: str) -> None:
        self._command(f"confirm-absent {host}", lambda operator: operator.confirm_absent(host))

    def release_storm(self) -> None:
        async def work(operator: Operator) -> None:
            await operator.release_storm(await operator.storm())

        self._command("storm release", work)

    def _command(self, command: str, work: Callable[[Operator], Awaitable[None]]) -> None:
        process = Process(self._world.loop, "operator", NODE)
        task = process.spawn(self._run(process, command, work), command)
        task.add_done_callback(lambda task: self._ended(process, task))

    async def _run(self, process: Process, command: str, work: Callable[[Operator], Awaitable[None]]) -> None:
        world = self._world
        bus = SimBus(world.broker, process, "operator")
        view = PoolView(world.settings, lambda bucket: SimStore(bus, bucket))
        operator = Operator(view, bus, SimClock(world.loop), "operator@m0")
        try:
            async with asyncio.timeout(CONNECT_S):
                while not bus.connected:  # noqa: ASYNC110  the connection's own state, as in production
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            self._no(command, "the bus does not answer")
            return
        try:
            await work(operator)
        except (RefusedError, UnavailableError, BadInputError) as error:
            self._no(command, str(error))

    def _no(self, command: str, why: str) -> None:
        for told in self.on_no:
            told(command, why)

    def _ended(self, process: Process, task: asyncio.Task[None]) -> None:
        process.alive = False
        world = self._world
        world.broker.clients = [one for one in world.broker.clients if one.process is not process]
        if not task.cancelled() and (error := task.exception()) is not None:
            world.crashed.append((process.name, error))

    def _fact(self, stored: Stored) -> None:
        fact: Fact = stored.fact
        match fact:
            case HostMaintenanceEntered(host=host):
                self.maintained.add(host)
            case HostMaintenanceExited(host=host):
                self.maintained.discard(host)
            case HostFenceTestOrdered(at=at):
                self.tested.add(at)
            case StandbyLeaving(at=at):
                self.leaving.add(at)
            case HostQuarantined(host=host):
                self.quarantined.add(host)
            case HostReadmitted(host=host):
                self.quarantined.discard(host)
                self.drained.discard(host)
            case HostDraining(at=at):
                self.drained.add(at.host)
            case HostDrainEnded(at=at):
                self.drained.discard(at.host)
            case HostRemoved(at=at):
                self.maintained.discard(at.host)
                self.quarantined.discard(at.host)
                self.removed.add(at.host)
            case HostJoined(at=at):
                self.removed.discard(at.host)
            case _:
                return
