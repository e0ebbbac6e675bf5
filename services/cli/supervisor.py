"""`rekindle up`: the embedded bus and every service as its own process, started again when one ends."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from libs.access.rights import OPERATOR
from libs.config.alerts import refuse_files
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.core.cancelling import ended
from libs.core.clock import SystemClock
from libs.core.ports import UnavailableError
from libs.jetstream.bus import open_bus
from libs.jetstream.schema import ensure
from libs.jetstream.server import EmbeddedServer, embedded
from libs.power.checked import refuse_misfits
from libs.power.devices import agent_devices
from services.cli.nursery import Child, Nursery

SERVICES = ("alerting", "executor", "placement", "fencer", "detector")
STOP_S = 8.0
BACKOFF_FIRST_S, BACKOFF_MOST_S, STEADY_S = 0.1, 5.0, 30.0
BAD_INPUT = 2
log = structlog.get_logger()


@dataclass(slots=True)
class Supervisor:
    """Runs the management plane of one pool until it is told to stop. Touches no VM."""

    settings: Settings
    config: Path
    log_directory: Path | None = None
    nursery: Nursery | None = None
    _processes: dict[str, Child | asyncio.subprocess.Process] = field(default_factory=dict)
    _stopping: bool = False
    _exit: int = 0

    def names(self) -> tuple[str, ...]:
        """Services of this pool; the agentless watch only where it is needed."""
        watched = any(not host.agent for host in self.settings.hosts)
        return (*SERVICES, "heartbeat") if watched else SERVICES

    async def run(self) -> int:
        """Returns the exit status. Raises BadInputError before anything is started."""
        agent_devices(self.settings.hosts, self.settings.fencing)  # a device that cannot work is said now
        refuse_files(self.settings.alerts, self.config)
        await refuse_misfits(self.settings.hosts, self.settings.fencing, self.config)
        directory = self.settings.data_dir
        try:
            (directory / "run").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"data_dir: {directory}: {error.strerror}") from error
        self._try_logs()
        with _alone(directory):
            stop = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            server = None
            if self.settings.embedded:
                server = embedded(self.settings)
            stopped = asyncio.create_task(stop.wait())
            try:
                if await self._has_bus(server, stopped):
                    await self._run_services(server, stop, stopped)
                else:
                    log.info("management plane stopped before it began", pool=self.settings.pool)
            finally:
                stopped.cancel()
                if self.nursery is not None:
                    await self.nursery.stop()
                if server is not None:
                    await server.stop()
        return self._exit

    async def _has_bus(self, server: EmbeddedServer | None, stopped: asyncio.Task[bool]) -> bool:
        """Start the server that is ours and see that the bus can be used. False where we were told to stop first."""

        async def begin() -> None:
            if server is not None:
                await server.start()
            await _usable(self.settings)

        beginning = asyncio.create_task(begin())
        try:
            await asyncio.wait([stopped, beginning], return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                await beginning
            return not stopped.done()
        finally:
            await ended(beginning)

    async def _run_services(
        self, server: EmbeddedServer | None, stop: asyncio.Event, stopped: asyncio.Task[bool]
    ) -> None:
        environment = {
            **os.environ,
            "REKINDLE_SUPERVISED": str(os.getpid()),
            "REKINDLE_PLANE_STARTED": str(time.clock_gettime(time.CLOCK_BOOTTIME)),
        }
        keepers = [asyncio.create_task(self._keep(name, environment, stop)) for name in self.names()]
        if server is not None:
            keepers.append(asyncio.create_task(self._keep_server(server, stop)))
        log.info("management plane runs", pool=self.settings.pool, services=list(self.names()))
        try:
            done, _ = await asyncio.wait([stopped, *keepers], return_when=asyncio.FIRST_COMPLETED)
            for keeper in done & set(keepers):
                keeper.result()  # without its keeper a service would be missed by nobody
            await stopped
        finally:
            await self._stop(keepers)
        log.info("management plane stopped; no VM was touched", pool=self.settings.pool)

    def _try_logs(self) -> None:
        """Raises BadInputError where a service could not write its log."""
        if self.log_directory is None:
            return
        try:
            self.log_directory.mkdir(parents=True, exist_ok=True)
            for name in self.names():
                _log_file(self.log_directory, name).open("ab").close()
        except OSError as error:
            where = error.filename or self.log_directory
            raise BadInputError(f"--log-dir: {where}: {error.strerror}") from error

    async def _keep(self, name: str, environment: dict[str, str], stop: asyncio.Event) -> None:
        backoff_s, holder = 0.0, ""
        while not self._stopping:
            began = time.monotonic()
            # each process has its own name as a leader; the next one knows that this one has ended
            names = {"REKINDLE_PREDECESSOR": holder, "REKINDLE_HOLDER": (holder := uuid.uuid4().hex)}
            code = await self._once(name, {**environment, **names})
            if self._stopping:
                return
            if code == BAD_INPUT:
                log.error("a service refuses its configuration", service=name)
                self._exit = BAD_INPUT
                stop.set()
                return
            steady = time.monotonic() - began > STEADY_S
            backoff_s = 0.0 if steady else min(max(BACKOFF_FIRST_S, backoff_s * 2), BACKOFF_MOST_S)
            log.warning("service ended, starting it again", service=name, code=code, in_s=backoff_s)
            await asyncio.sleep(backoff_s)

    async def _once(self, name: str, environment: dict[str, str]) -> int:
        process = self._processes[name] = await self._begin(name, environment)
        pid_file = self.settings.data_dir / "run" / f"{name}.pid"
        pid_file.write_text(str(process.pid))
        try:
            return await process.wait()
        finally:
            pid_file.unlink(missing_ok=True)

    async def _begin(self, name: str, environment: dict[str, str]) -> Child | asyncio.subprocess.Process:
        log_file = None if self.log_directory is None else _log_file(self.log_directory, name)
        if self.nursery is not None:
            try:
                return await self.nursery.begin(name, self.config, environment, log_file)
            except UnavailableError as error:
                # each a program of its own from now on: slower, and the same services
                log.error("a service could not be forked", service=name, reason=str(error))
                # a name of its own: what was begun under the other one may not be quite gone
                environment = {**environment, "REKINDLE_HOLDER": uuid.uuid4().hex}
        with contextlib.ExitStack() as files:
            sink = None if log_file is None else files.enter_context(log_file.open("ab"))
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "services.cli", "service", name, "--config", str(self.config)),
                env=environment,
                start_new_session=True,  # a Ctrl-C is for us; we stop the services in order
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )

    async def _keep_server(self, server: EmbeddedServer, stop: asyncio.Event) -> None:
        while not self._stopping:
            assert server.process is not None
            code = await server.process.wait()
            if not self._stopping:
                log.warning("nats-server ended, starting it again", code=code)
                try:
                    await server.start()
                except UnavailableError as error:
                    log.error("nats-server does not start, trying again", reason=str(error))
                    await asyncio.sleep(BACKOFF_MOST_S)

    async def _stop(self, keepers: list[asyncio.Task[None]]) -> None:
        self._stopping = True
        running = [process for process in self._processes.values() if process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        waits = [asyncio.create_task(process.wait()) for process in running]
        if waits:
            await asyncio.wait(waits, timeout=STOP_S)
        for process in running:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        for keeper in keepers:
            keeper.cancel()
        results = await asyncio.gather(*keepers, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                log.error("a supervisor task failed", error=repr(result))


def _log_file(directory: Path, name: str) -> Path:
    return directory / f"{name}.log"


async def _usable(settings: Settings) -> None:
    """Refuse a bus that cannot be used, now and clearly. Raises UnavailableError, BusRefusedError or
    WrongStreamError."""

    async def closed() -> None:
        return None

    login = settings.login(OPERATOR.name)
    bus = await open_bus(
        settings.servers(), settings.pool, "up", SystemClock(), "up", closed=closed, login=login
    )
    try:
        await ensure(bus.client.jetstream(timeout=5), settings.pool, replicas=settings.bus.replicas)
    finally:
        await bus.client.close()


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: two planes over one store would fight."""
    with (directory / "run" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadInputError(f"data_dir: {directory} is in use by another `rekindle up`") from error
        yield
