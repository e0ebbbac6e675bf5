"""The read model of an onlooker (the command line, the lab): what the buckets and the stream say at this moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from libs.access.rights import OPERATOR
from libs.config.settings import Settings
from libs.core.clock import SystemClock
from libs.events.envelope import Envelope
from libs.events.signals import Canary, Signal
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.reader import events
from libs.jetstream.schema import Names
from libs.jetstream.store import JetStreamStore
from libs.poolview import PoolView
from libs.report import FailoverStory, failovers

CANARY_S = 1.6
"""Three canaries and a little."""


@dataclass(slots=True)
class Reader(PoolView):
    """One connection of an onlooker. Raises UnavailableError where the bus does not answer."""

    bus: NatsBus

    async def events(self, *, follow: bool = False, after: int = 0) -> AsyncIterator[tuple[int, Envelope]]:
        """Facts in order."""
        async for stored in events(self.bus, Names(self.settings.pool), follow=follow, after=after):
            yield stored.sequence, stored.envelope

    async def detector(self) -> dict[str, Any]:
        """Whether the detector can detect. It flies its canary only while it leads, which needs writes that succeed,
        and while none of its own writes is held up."""
        heard: asyncio.Future[Canary] = asyncio.get_running_loop().create_future()

        def note(signal: Signal) -> None:
            if isinstance(signal, Canary) and not heard.done():
                heard.set_result(signal)

        listening = await self.bus.listen(["canary.*"], note)
        try:
            found = await asyncio.wait_for(heard, CANARY_S)
        except TimeoutError:
            why = f"not heard for {CANARY_S:g} s: it does not run, does not lead, or cannot write"
            return {"state": "degraded", "reason": why, "round_trip_ms": None}
        finally:
            await listening.stop()
        late_ms = None if found.round_trip_s is None else round(1000 * found.round_trip_s, 1)
        if found.deaf:
            return {
                "state": "degraded",
                "reason": "it does not hear itself on the bus",
                "round_trip_ms": late_ms,
            }
        return {"state": "ok", "reason": "", "round_trip_ms": late_ms}

    async def failovers(self) -> list[FailoverStory]:
        """One story an incident, oldest first."""
        return failovers([envelope async for _, envelope in self.events()])


@contextlib.asynccontextmanager
async def reader(settings: Settings) -> AsyncIterator[Reader]:
    """Connect as an onlooker and leave again."""

    async def closed() -> None:
        return None

    bus = await open_bus(
        settings.servers(),
        settings.pool,
        "cli",
        SystemClock(),
        "rekindle-cli",
        closed=closed,
        wait_s=3.0,
        login=settings.login(OPERATOR.name),
    )
    try:
        names = Names(settings.pool)
        yield Reader(settings, lambda bucket: JetStreamStore(bus.client, names, bucket), bus)
    finally:
        with contextlib.suppress(OSError):  # there is nothing to be said on a connection that broke
            await bus.client.close()
