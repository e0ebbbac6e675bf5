"""The mark: a number that only grows, in the store and in the memory of every agent. A store whose mark is behind what
an agent has heard is an old copy of itself."""

from __future__ import annotations

from pydantic import Field

from libs.core.ports import Row, Store, UnavailableError
from libs.model import Mark, Value

BUCKET, KEY = "marks", "mark"
EVERY_S = 5.0
"""How often the mark grows and is told. What was written in the last seconds before a copy was made may be missed."""


class Restoring(Value):
    """The store was found to be an old copy, and what runs is being asked for."""

    told: Mark = Field(description="the highest mark that an agent has heard")
    since: str = Field(description="wall time, ISO 8601; for people")
    missing: tuple[str, ...] = Field((), description="hosts that have not told yet what they run")
    confirmed: tuple[str, ...] = Field((), description="hosts that an operator said not to wait for")


class MarkRecord(Value):
    """What lies in the store."""

    mark: Mark = Mark()
    at: str = Field(
        "", description="wall time of this writing, ISO 8601: how long to wait for agents goes by it"
    )
    restoring: Restoring | None = None


async def read(store: Store) -> tuple[MarkRecord, int]:
    """Raises UnavailableError, also for what no version of ours wrote: then nothing may be held to be right."""
    row = await store.get(KEY)
    return (MarkRecord(), 0) if row is None else (_parsed(row), row.revision)


def _parsed(row: Row) -> MarkRecord:
    try:
        return MarkRecord.model_validate_json(row.value)
    except ValueError as error:
        raise UnavailableError(f"the mark cannot be read: {str(error)[:200]}") from error


async def write(store: Store, record: MarkRecord, expected: int) -> int:
    """By compare-and-set. Raises ConflictError, UnavailableError."""
    return await store.put(KEY, record.model_dump_json().encode(), expected)


def held(value: bytes, hosts: tuple[str, ...], now: str) -> bytes:
    """The mark of a backup that is put back: read-only until all these hosts have told what they run, whether or not any of
    them has heard of a later mark. Raises ValueError for what is no mark of ours."""
    record = MarkRecord.model_validate_json(value)
    restoring = Restoring(told=record.mark, since=now, missing=hosts)
    return record.model_copy(update={"restoring": restoring, "at": now}).model_dump_json().encode()
