"""What every service's __main__ shares: settings, logs, bus, schema, lease, signals. Named adapters live here
and in the __main__s, nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from libs.access.rights import BY_NAME, Role, agent
from libs.config.settings import Settings, load_settings
from libs.config.yamlfile import BadInputError
from libs.core.cancelling import ended
from libs.core.clock import SystemClock
from libs.core.ports import ConflictError, UnavailableError
from libs.core.wiring import Meter
from libs.healthserver import Endpoint, HealthAddressError
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.connection import BusRefusedError
from libs.jetstream.lease import JetStreamLease
from libs.jetstream.notices import agent_name
from libs.jetstream.schema import BUCKETS, Names, WrongStreamError, ensure
from libs.jetstream.store import JetStreamStore
from libs.logs import configure
from libs.restored.guard import Guard
from libs.restored.mark import BUCKET

PR_SET_PDEATHSIG = 1
BUS_RETRY_S = 0.3
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
log = structlog.get_logger()


def this_machine() -> str:
    """The boot of this machine. In a container it is that of the host below, whose clock is ours."""
    return BOOT_ID.read_text().strip()


@dataclass(slots=True)
class Context:
    """What a service's main is given."""

    settings: Settings
    service: str
    bus: NatsBus
    clock: SystemClock
    leases: list[JetStreamLease] = field(default_factory=list)
    stores: dict[str, JetStreamStore] = field(default_factory=dict)
    """Those that it uses, by bucket."""
    guards: list[Guard] = field(default_factory=list)
    meter: Meter | None = None
    works: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)
    me: str = field(default_factory=lambda: os.environ.get("REKINDLE_HOLDER") or uuid.uuid4().hex)
    """Names this process among all that ever run the service."""

    def store(self, bucket: str) -> JetStreamStore:
        found = JetStreamStore(self.bus.client, Names(self.settings.pool), bucket)
        return self.stores.setdefault(bucket, found)

    def read_by(self, role: Role) -> tuple[JetStreamStore, ...]:
        """Those of its stores in which it may look for a row: of definitions an agent may write its own, and read none."""
        return tuple(store for bucket, store in self.stores.items() if bucket in (*role.gets, *role.scans))

    def lease(self) -> JetStreamLease:
        """The leadership of this service's role; renewed while the service runs."""
        lease = JetStreamLease(
            self.store("leaders"),
            self.service,
            self.clock,
            me=self.me,
            predecessor=os.environ.get("REKINDLE_PREDECESSOR"),
        )
        self.leases.append(lease)
        return lease

    def guard(self) -> Guard:
        """Whether the store may be acted on; at work while the service runs."""
        guard = Guard(self.bus, self.store(BUCKET), self.clock)
        self.guards.append(guard)
        self.beside(guard.run)
        return guard

    def beside(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run this while the service runs."""
        self.works.append(work)


Main = Callable[[Context], Awaitable[list[Coroutine[Any, Any, None]]]]
Meanwhile = Callable[[Settings], Coroutine[Any, Any, None]]
"""What a service does while there is no bus yet: cancelled once there is."""


async def check_fence_devices(context: Context, config: Path) -> None:
    """For a service that uses them, at its start: see libs/power/checked.py. Raises BadInputError. Under `rekindle up`,
    which has looked already, nothing is asked: a service that starts again must not wait for agents."""
    if os.environ.get("REKINDLE_SUPERVISED"):
        return
    from libs.power.checked import refuse_misfits  # what it imports is downtime after a crash

    await refuse_misfits(context.settings.hosts, context.settings.fencing, config)


def collect_rarely() -> None:
    """For a service whose state is large and made anew all the time, and has no cycles: with 10,000 hosts a full search for
    cycles takes 0.3 s, in which nothing is heard, and Python's own thresholds asked for one each second or two."""
    gc.set_threshold(50_000, 20, 10)


def die_with_parent(supervisor: int) -> bool:
    """Ask the kernel for SIGTERM when our supervisor is gone, however it went. False where it went before that."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return os.getppid() == supervisor


def run(
    service: str,
    config: Path,
    main: Main,
    stopping: Callable[[Context], Awaitable[None]] | None = None,
    host: str | None = None,
    meanwhile: Meanwhile | None = None,
) -> int:
    """Run a service until SIGTERM or SIGINT, on a host of the pool or beside it. Returns the exit status: 2 for bad
    input, 1 for a bus that cannot be used or an address of /healthz that is taken."""
    supervisor = os.environ.get("REKINDLE_SUPERVISED")
    if supervisor and not die_with_parent(int(supervisor)):
        log.error("its supervisor is gone", service=service)
        return 1
    try:
        settings = load_settings(config)
        configure(settings.logging)
        if host is not None:
            settings.host(host)  # one that is not in the file is said now, not once there is a bus
        asyncio.run(_run(settings, service, main, stopping, host, meanwhile))
    except BadInputError as error:
        log.error("bad input", reason=str(error))
        return 2
    except (BusRefusedError, WrongStreamError, UnavailableError) as error:
        log.error("the bus cannot be used", reason=str(error))
        return 1
    except HealthAddressError as error:
        log.error("health cannot be told", reason=str(error))
        return 1
    return 0


def _role(service: str, host: str | None) -> Role:
    return BY_NAME[service] if host is None else agent(host)


async def connect(settings: Settings, service: str, host: str | None = None) -> NatsBus:
    """The bus, with the pool's stream and buckets there and right. Waits for it for ever: a host that boots
    while the management plane is away must not stay without its agent."""
    replica = f"{service}-{os.getpid()}"
    if host is not None:
        replica = agent_name(settings.pool, host, os.getpid())
    role = _role(service, host)
    told = ""
    while True:
        try:
            login = settings.login(role.name)
            bus = await open_bus(
                settings.servers(), settings.pool, service, SystemClock(), replica, login=login
            )
            await _ensure(bus, settings, None if login.key is None else role)
            return bus
        except (UnavailableError, BadInputError) as error:
            if str(error) != told:
                told = str(error)
                log.warning("waiting for the bus", reason=told)
            await asyncio.sleep(BUS_RETRY_S)


async def _ensure(bus: NatsBus, settings: Settings, role: Role | None) -> None:
    """The pool's stream and buckets: all, or those that concern a role, which may not make any."""
    js, pool, replicas = bus.client.jetstream(timeout=5), settings.pool, settings.bus.replicas
    if role is None:
        await ensure(js, pool, replicas=replicas)
    else:
        buckets = BUCKETS if role.creates else sorted({*role.gets, *role.scans, *role.writes})
        await ensure(js, pool, replicas=replicas, buckets=buckets, create=role.creates)


async def _begin(
    settings: Settings,
    service: str,
    main: Main,
    host: str | None,
    meanwhile: Meanwhile | None,
    meter: Meter | None,
) -> tuple[Context, list[Coroutine[Any, Any, None]]]:
    bus = await _awaited(connect(settings, service, host), meanwhile, settings)
    context = Context(settings, service, bus, SystemClock(), meter=meter)
    return context, await main(context)


async def _awaited(
    connecting: Coroutine[Any, Any, NatsBus], meanwhile: Meanwhile | None, settings: Settings
) -> NatsBus:
    """The bus, once it is there. What is done meanwhile has ended by then; an error of its own is this process's at once, so
    that it is started again."""
    bus = asyncio.create_task(connecting)
    waiting = asyncio.create_task(_nothing() if meanwhile is None else meanwhile(settings))
    try:
        await asyncio.wait([bus, waiting], return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            waiting.result()
        return await bus
    finally:
        await ended(waiting)
        await ended(bus)


async def _nothing() -> None:
    return


async def _run(
    settings: Settings,
    service: str,
    main: Main,
    stopping: Callable[[Context], Awaitable[None]] | None,
    host: str | None,
    meanwhile: Meanwhile | None,
) -> None:
    health = Endpoint(service, settings.health, SystemClock())
    async with health.served():
        await _work(settings, service, main, stopping, host, meanwhile, health)


async def _work(
    settings: Settings,
    service: str,
    main: Main,
    stopping: Callable[[Context], Awaitable[None]] | None,
    host: str | None,
    meanwhile: Meanwhile | None,
    health: Endpoint,
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopped = asyncio.create_task(stop.wait())
    beginning = asyncio.create_task(_begin(settings, service, main, host, meanwhile, health.measures))
    await asyncio.wait([stopped, beginning], return_when=asyncio.FIRST_COMPLETED)
    if not beginning.done():  # the bus is waited for for ever, but not against our supervisor's word
        await ended(beginning)
        log.info("service stopped before it began", service=service)
        return
    context, work = beginning.result()
    bus = health.bus = context.bus
    health.leases, health.stores = context.leases, context.read_by(_role(service, host))
    health.guards, health.ping = context.guards, bus.ping
    if health.measures is not None:
        bus.on_mended = health.measures.resubscribed
    tasks = [asyncio.create_task(one) for one in work]
    tasks += [asyncio.create_task(lease.run()) for lease in context.leases]
    tasks += [asyncio.create_task(one()) for one in context.works]
    log.info("service runs", service=service, pool=settings.pool, pid=os.getpid())
    try:
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopped}:
            task.result()  # a service's work never ends by itself: this raises what ended it
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(UnavailableError, ConflictError):
            if stopping is not None:
                await stopping(context)
            for lease in context.leases:
                await lease.resign()
        bus.client._closed_cb = None  # closing on purpose is no reason to exit with an error
        await bus.client.close()
        log.info("service stopped", service=service)
