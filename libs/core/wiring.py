"""What every service is given by whoever wires it (a process's main over real adapters, or the simulator), and what
it gives its shell: its ports, what it hears and reads, who performs its acts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, TypeAdapter, ValidationError

from libs.config.settings import Settings
from libs.core.decider import Effect, Input, Outcome, Request, TableRead
from libs.core.ports import Bus, Clock, Guard, Lease, Row, Store, UnavailableError
from libs.events.base import Fact
from libs.events.signals import Signal
from libs.restored.guard import Guard as StateGuard

Perform = Callable[[Any], Awaitable[Outcome]]
Gauges = Callable[[], Mapping[tuple[str, ...], float]]
"""By the name of a metric and the values of its labels what it shows at this moment."""
UNREADABLE_S = 1.0
PARSED_AT_ONCE = 50


class Meter(Protocol):
    """Who counts what a shell does, for people's monitoring (libs/measures.py). Nothing follows from it."""

    def heard(self, event: Input, now: float) -> None:
        """An input was taken, also by a process that only follows."""

    def stepped(self, effects: Sequence[Effect], took_s: float) -> None:
        """A leader's step took so long, and these are its effects."""

    def told(self, fact: Fact) -> None:
        """A fact is stored."""

    def acted(self, request: Request, outcome: Outcome, took_s: float) -> None:
        """An act has ended so, after so long."""

    def gauges(self, read: Gauges) -> None:
        """Ask for these whenever somebody looks."""


@dataclass(frozen=True, slots=True)
class Table:
    """A bucket that a decider wants to read: at start and every `every_s`."""

    name: str
    store: Store
    prefix: str
    model: type[BaseModel]
    every_s: float = 5.0
    key: Callable[[Any], str] = lambda one: ""
    """Under which key a row must lie, by what it says; "" where any will do. Who may write one key is the server's to say."""

    async def read_on(self, hear: Callable[[Input], None], log: Any) -> None:
        """Read it again and again, for ever; each reading is an input. Most rows are what they were: each revision is
        parsed once."""
        known: dict[str, tuple[int, BaseModel | None]] = {}
        while True:
            try:
                rows = await self.store.scan(self.prefix)
                before, known, parsed = known, {}, 0
                for row in rows:
                    revision, model = before.get(row.key, (0, None))
                    if revision != row.revision:
                        parsed += 1
                        if parsed % PARSED_AT_ONCE == 0:
                            await asyncio.sleep(
                                0
                            )  # ten thousand at once are a second in which nothing is heard
                        model = self._parsed(row, log)
                    known[row.key] = row.revision, model
                hear(TableRead(self.name, tuple(m for _, m in known.values() if m is not None)))
                await asyncio.sleep(self.every_s)
            except UnavailableError as error:
                log.info("table unreadable", table=self.name, reason=str(error))
                await asyncio.sleep(UNREADABLE_S)

    def _parsed(self, row: Row, log: Any) -> BaseModel | None:
        """None where no version of ours wrote it: evidence of nothing, and no reason to stop working."""
        try:
            found = self.model.model_validate_json(row.value)
        except ValidationError as error:
            log.error("row unreadable", table=self.name, key=row.key, reason=str(error)[:300])
            return None
        if self.key(found) not in ("", row.key):
            log.error("row is not its own", table=self.name, key=row.key, says=self.key(found))
            return None
        return found


@dataclass(frozen=True, slots=True)
class Wiring:
    """All that a shell is given. Only a service's __main__ and the simulator make one."""

    service: str
    bus: Bus
    clock: Clock
    store: Store | None = None
    lease: Lease | None = None
    signals: Sequence[str] = ()
    kinds: Sequence[str] = ()
    tables: Sequence[Table] = ()
    perform: Perform | None = None
    requests: TypeAdapter[Any] = field(default_factory=lambda: TypeAdapter(Request))
    marks: Sequence[str] = ()
    """How the names of records begin that say that an input was dealt with: written after all others."""
    parallel_acts: int = 64
    overhears: Callable[[Signal], None] | None = None
    """Told each signal as it comes, also while this process does not lead."""
    guard: Guard | None = None
    """Nothing is led before it says that the store may be acted on."""
    meter: Meter | None = None
    gauges: Callable[[Any], Mapping[tuple[str, ...], float]] | None = None
    """What the state of its decider shows, told while this process leads."""
    notices_pauses: bool = False
    """Tell the decider, by Paused, when this process stood still."""


class Ports(Protocol):
    """The ports of one process of one service."""

    @property
    def settings(self) -> Settings: ...

    @property
    def service(self) -> str: ...

    @property
    def me(self) -> str:
        """Names this process among all that ever run the service."""

    @property
    def bus(self) -> Bus: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def meter(self) -> Meter | None:
        """Who counts what this process does; None where nobody asks."""

    def store(self, bucket: str) -> Store:
        """One bucket of the pool."""

    def lease(self) -> Lease:
        """The leadership of this service's role, renewed while the process runs."""

    def guard(self) -> StateGuard:
        """Of this process, at work while it runs."""

    def beside(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run this, too, while the process runs."""
