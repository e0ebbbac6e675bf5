"""What every service is given by whoever wires it (a process's main over real adapters, or the simulator), and what
it gives its shell: its ports, what it hears and reads, who performs its acts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, TypeAdapter, ValidationError

from libs.config.settings import Settings
from libs.core.decider import Input, Outcome, Request, TableRead
from libs.core.ports import Bus, Clock, Lease, Row, Store, UnavailableError
from libs.events.signals import Signal

Perform = Callable[[Any], Awaitable[Outcome]]
UNREADABLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Table:
    """A bucket that a decider wants to read: at start and every `every_s`."""

    name: str
    store: Store
    prefix: str
    model: type[BaseModel]
    every_s: float = 5.0

    async def read_on(self, hear: Callable[[Input], None], log: Any) -> None:
        """Read it again and again, for ever; each reading is an input. Most rows are what they were: each revision is
        parsed once."""
        known: dict[str, tuple[int, BaseModel | None]] = {}
        while True:
            try:
                rows = await self.store.scan(self.prefix)
                before, known = known, {}
                for row in rows:
                    revision, model = before.get(row.key, (0, None))
                    if revision != row.revision:
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
            return self.model.model_validate_json(row.value)
        except ValidationError as error:
            log.error("row unreadable", table=self.name, key=row.key, reason=str(error)[:300])
            return None


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

    def store(self, bucket: str) -> Store:
        """One bucket of the pool."""

    def lease(self) -> Lease:
        """The leadership of this service's role, renewed while the process runs."""
