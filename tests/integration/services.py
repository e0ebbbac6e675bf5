"""Services in this process on a real NATS server, over hypervisors in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from libs.config.settings import Settings
from libs.core.cancelling import ended
from libs.core.clock import SystemClock
from libs.core.wiring import Meter
from libs.events.signals import InventorySeen
from libs.jetstream.bus import NatsBus
from libs.jetstream.lease import JetStreamLease
from libs.jetstream.schema import Names
from libs.jetstream.store import JetStreamStore
from libs.model import Incarnation, Inventory, RunLease, VmReport
from libs.restored.guard import Guard
from libs.restored.mark import BUCKET
from libs.restored.memory import MarkMemory

NAMES = Names("p")
SETTINGS = Settings.model_validate(
    {
        "pool": "p",
        "hosts": [{"name": name, "uri": "test:///default", "agent": True} for name in ("h1", "h2", "h3")],
        "restart": {"start_timeout_s": 5},
    }
)


@dataclass
class Ports:
    """Of one service, or of one of its replicas."""

    bus: NatsBus
    service: str
    me: str = "one"
    settings: Settings = SETTINGS
    clock: SystemClock = field(default_factory=SystemClock)
    works: list[Coroutine[Any, Any, None]] = field(default_factory=list)
    meter: Meter | None = None

    def store(self, bucket: str) -> JetStreamStore:
        return JetStreamStore(self.bus.client, NAMES, bucket)

    def lease(self) -> JetStreamLease:
        lease = JetStreamLease(self.store("leaders"), self.service, self.clock, me=self.me)
        self.works.append(lease.run())
        return lease

    def guard(self) -> Guard:
        guard = Guard(self.bus, self.store(BUCKET), self.clock)
        self.beside(guard.run)
        return guard

    def beside(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.works.append(work())


@asynccontextmanager
async def running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """All of these side by side; what ends one of them by an error ends the test."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield tasks
    finally:
        wrong = [one.exception() for one in tasks if one.done() and not one.cancelled() and one.exception()]
        for task in tasks:
            await ended(task)  # asyncio loses a cancellation that comes in the moment of an answer
        assert not wrong, wrong


@dataclass
class Agent:
    """What an agent says on the bus, over and over: its inventory, and how far it has heard the mark."""

    bus: NatsBus
    at: Incarnation
    vms: tuple[VmReport, ...] = ()
    rev: int = 1
    silent: bool = False

    async def run(self) -> None:
        self.memory = MarkMemory(self.bus, lambda: None)
        await self.memory.listen()
        while True:
            if not self.silent:
                told = Inventory(
                    at=self.at, agent="life", rev=self.rev, memory_mib=4096, cpus=4, vms=self.vms
                )
                await self.bus.send(f"inventory.{self.at.host}", InventorySeen(inventory=told))
            await asyncio.sleep(0.2)

    def shows(self, *vms: VmReport) -> None:
        self.vms, self.rev = vms, self.rev + 1


async def lease_of(bus: NatsBus, vm: str) -> RunLease | None:
    row = await JetStreamStore(bus.client, NAMES, "leases").get(vm)
    return None if row is None else RunLease.model_validate_json(row.value)
