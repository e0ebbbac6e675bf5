"""`GET /healthz` of a service's process, where `health.ports` names the service.

Plain asyncio: one fixed request is read and one answer written. aiohttp would cost each start of a service 0.3 s of CPU
(measured), which is downtime after a crash (libs/lean.py), and sets no deadline to a request that comes slowly.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from libs.config.settings import HealthSettings
from libs.core.ports import Bus, Clock, Lease
from libs.health import BusState, Condition, LoopLag, document

TICK_S = 0.1
REQUEST_S = 2.0
"""For one request to come and its answer to leave."""
REQUEST_BYTES = 8192
WANTED = (b"GET", b"/healthz")


class HealthAddressError(Exception):
    """The address of /healthz cannot be listened on. Says which setting, which address and why."""


@dataclass(slots=True)
class Endpoint:
    """What is asked about: the process that this runs in. `bus` is None until there has been a connection."""

    service: str
    settings: HealthSettings
    clock: Clock
    bus: Bus | None = None
    leases: Sequence[Lease] = ()
    _lag: LoopLag = field(init=False)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._lag = LoopLag(self.settings.lag_window_s, self.clock.monotonic())

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Answer meanwhile, where this service has a port. Raises HealthAddressError."""
        port = self.settings.ports.of(self.service)
        if port is None:
            yield
            return
        where = self.settings.address
        try:
            server = await asyncio.start_server(self._answer, where, port, limit=REQUEST_BYTES)
        except OSError as error:
            reason = error.strerror or str(error)  # of several addresses asyncio gives a sentence alone
            raise HealthAddressError(f"health.ports.{self.service}: {where}:{port}: {reason}") from error
        self._tick()
        try:
            yield
        finally:
            server.close()  # who is being answered is not waited for
            if self._timer is not None:
                self._timer.cancel()

    def condition(self) -> Condition:
        """As it is now."""
        bus = BusState.WAITING
        if self.bus is not None:
            bus = BusState.CONNECTED if self.bus.connected else BusState.LOST
        leading = all(lease.held() for lease in self.leases) if self.leases else None
        return Condition(self._lag.worst_s(self.clock.monotonic()), bus, leading)

    def _tick(self) -> None:
        now = self.clock.monotonic()
        self._lag.ran(now, now + TICK_S)
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection. What is no request in time gets no answer."""
        broken = (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError)
        try:
            with contextlib.suppress(*broken):
                async with asyncio.timeout(REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._response(tuple(head.split(b" ", 2)[:2])))
                    await writer.drain()
        finally:
            writer.close()

    def _response(self, asked: tuple[bytes, ...]) -> bytes:
        if asked != WANTED:
            status, body = HTTPStatus.NOT_FOUND, b""
        else:
            condition = self.condition()
            reasons = condition.reasons(self.settings)
            status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
            body = json.dumps(document(self.service, os.getpid(), condition, reasons)).encode()
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
            "",
            "",
        )
        return "\r\n".join(lines).encode() + body
