"""`GET /healthz`, `/readyz` and `/metrics` of a service's process, where `health.ports` names the service.

Plain asyncio: one fixed request is read and one answer written. aiohttp would cost each start of a service 0.3 s of CPU
(measured), which is downtime after a crash (libs/lean.py), and sets no deadline to a request that comes slowly.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from libs.config.health import HealthSettings
from libs.core.ports import Bus, Clock, Guard, Lease, Store, UnavailableError
from libs.health import BusState, Condition, LoopLag, Readiness, document, readiness

if TYPE_CHECKING:  # imported only where there is a port
    from libs.measures import Measures
    from libs.servertls import ServerTls

TICK_S = 0.1
REQUEST_S = 2.0
"""For one request to come and its answer to leave."""
REQUEST_BYTES = 8192
STORE_S = 1.0
ROW = "health.none"
"""A row that is never there."""
JSON, TEXT = "application/json", "text/plain; version=0.0.4; charset=utf-8"
Answer = tuple[HTTPStatus, str, bytes]


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
    stores: Sequence[Store] = ()
    """What it may read: looked into when it is asked, since a store that is gone is noticed by no write while
    nothing happens."""
    guards: Sequence[Guard] = ()
    ping: Callable[[], Awaitable[None]] | None = None
    """To the server of the bus and back. Raises UnavailableError."""
    measures: Measures | None = field(init=False, default=None)
    """Where there is a port."""
    _lag: LoopLag = field(init=False)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)
    _tls: ServerTls | None = field(init=False, default=None)
    _at_look: tuple[Readiness, list[str]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._lag = LoopLag(self.settings.lag_window_s, self.clock.monotonic())
        if self.settings.ports.of(self.service) is not None:
            from libs.measures import Measures

            self.measures = Measures(self.clock)
            self.measures.gauges(self._gauges)
            if self.settings.cert_file is not None:
                from libs.servertls import ServerTls

                self._tls = ServerTls(self.settings.cert_file, self.settings.cert_key_file)

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Answer meanwhile, where this service has a port. Raises HealthAddressError."""
        port = self.settings.ports.of(self.service)
        if port is None:
            yield
            return
        where = self.settings.address
        try:
            if self._tls is not None:
                self._tls.look()
            secure = None if self._tls is None else self._tls.context
            server = await asyncio.start_server(self._answer, where, port, limit=REQUEST_BYTES, ssl=secure)
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

    async def _stored(self) -> str:
        """Why a store does not answer; "" where all do."""
        try:
            async with asyncio.timeout(STORE_S):
                await asyncio.gather(*(store.get(ROW) for store in self.stores))
        except UnavailableError as error:
            return str(error)
        except TimeoutError:
            return f"no answer in {STORE_S:g} s"
        return ""

    def condition(self, store: str = "") -> Condition:
        """As it is now."""
        bus = BusState.WAITING
        if self.bus is not None:
            bus = BusState.CONNECTED if self.bus.connected else BusState.LOST
        leading = all(lease.held() for lease in self.leases) if self.leases else None
        return Condition(self._lag.worst_s(self.clock.monotonic()), bus, leading, store)

    def _tick(self) -> None:
        now = self.clock.monotonic()
        self._lag.ran(now, now + TICK_S)
        if self._tls is not None:
            with contextlib.suppress(OSError):  # half of a pair that is being replaced: at the next tick
                self._tls.look()
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection. What is no request in time gets no answer."""
        broken = (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError)
        try:
            with contextlib.suppress(*broken):
                async with asyncio.timeout(REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._response(tuple(head.split(b" ", 2)[:2]), self._may(head)))
                    await writer.drain()
        finally:
            writer.close()

    def _may(self, head: bytes) -> bool:
        """Whether who asks bears the token, as its file is now."""
        if self.settings.token_file is None:
            return True
        try:
            token = self.settings.token_file.read_bytes().strip()
        except OSError:
            return False
        said = [
            line.partition(b":")[2].strip()
            for line in head.split(b"\r\n")
            if line[:14].lower() == b"authorization:"
        ]
        return bool(token) and any(hmac.compare_digest(one, b"Bearer " + token) for one in said)

    async def _response(self, asked: tuple[bytes, ...], may: bool) -> bytes:
        status, form, body = await self._answered(asked) if may else (HTTPStatus.UNAUTHORIZED, JSON, b"")
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {form}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
            "",
            "",
        )
        return "\r\n".join(lines).encode() + body

    async def _answered(self, asked: tuple[bytes, ...]) -> Answer:
        match asked:
            case (b"GET", b"/healthz"):
                condition = await self._looked()
                reasons = condition.reasons(self.settings)
                return _told(document(self.service, os.getpid(), condition, reasons), reasons)
            case (b"GET", b"/readyz"):
                ready, reasons = await self._ready()
                return _told(readiness(self.service, os.getpid(), ready, reasons), reasons)
            case (b"GET", b"/metrics") if self.measures is not None:
                self._at_look = await self._ready()
                return HTTPStatus.OK, TEXT, self.measures.text()
            case _:
                return HTTPStatus.NOT_FOUND, JSON, b""

    async def _looked(self) -> Condition:
        connected = self.bus is not None and self.bus.connected
        return self.condition(await self._stored() if connected else "")

    async def _ready(self) -> tuple[Readiness, list[str]]:
        trip_s, condition = await asyncio.gather(self._round_trip(), self._looked())
        heard_at = None if self.measures is None else self.measures.evidence_at
        ready = Readiness(
            condition=condition,
            round_trip_s=trip_s,
            leader_seen_s=max((lease.unseen_s() for lease in self.leases), default=None),
            evidence_age_s=None if heard_at is None else self.clock.monotonic() - heard_at,
            trusted=all(guard.ok for guard in self.guards),
        )
        return ready, ready.reasons(self.service, self.settings)

    async def _round_trip(self) -> float | None:
        if self.ping is None or self.bus is None or not self.bus.connected:
            return None
        began = self.clock.monotonic()
        try:
            async with asyncio.timeout(STORE_S):
                await self.ping()
        except (UnavailableError, TimeoutError):
            return None
        return self.clock.monotonic() - began

    def _gauges(self) -> Mapping[tuple[str, ...], float]:
        if self._at_look is None:
            return {}
        ready, reasons = self._at_look
        condition = ready.condition
        told = {
            "rekindle_ready": float(not reasons),
            "rekindle_loop_lag_seconds": condition.loop_lag_s,
            "rekindle_bus_connected": float(condition.bus is BusState.CONNECTED),
            "rekindle_bus_round_trip_seconds": ready.round_trip_s,
            "rekindle_leading": None if condition.leading is None else float(condition.leading),
            "rekindle_leader_seen_seconds": ready.leader_seen_s,
            "rekindle_evidence_age_seconds": ready.evidence_age_s,
        }
        return {(name, self.service): value for name, value in told.items() if value is not None}


def _told(document: dict[str, object], reasons: list[str]) -> Answer:
    status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
    return status, JSON, json.dumps(document).encode()
