"""What a service owes, written down: one small document per record, by compare-and-set.

A document holds the record itself and the effects still owed for it, so that state and debt change together
and a crash between any two lines leaves either both or neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from libs.core.decider import Act, Publish, Records, Request
from libs.core.ports import ConflictError, Store, UnavailableError
from libs.events.facts import AnyFact
from libs.model import Value

FORMAT = 1
AT_ONCE = 64
"""Writes under way: of ten thousand at one moment none was answered in its time, and so none for ever."""
Owed = Publish | Act


class _OwedFact(Value):
    what: Literal["publish"] = "publish"
    fact: AnyFact


class _OwedAct(Value):
    what: Literal["act"] = "act"
    request: dict[str, Any]


class _Document(Value):
    """One stored record with its debt."""

    format: int = FORMAT
    record: dict[str, Any] | None
    owed: tuple[Annotated[_OwedFact | _OwedAct, Field(discriminator="what")], ...] = ()


class DeposedError(Exception):
    """Another replica wrote our records: this one leads no longer and must read everything again."""


class CorruptRecordError(Exception):
    """A stored record cannot be read. It is named and nothing is decided without it."""


class Ledger:
    """The records of one service in one bucket. Used by one task only."""

    def __init__(
        self,
        service: str,
        store: Store,
        record_type: Any,
        requests: TypeAdapter[Any],
        marks: Sequence[str] = (),
    ) -> None:
        self._service, self._marks = service, tuple(marks)
        self._store = store
        self._reads: TypeAdapter[Any] = TypeAdapter(record_type)
        self._requests = requests
        self._revisions: dict[str, int] = {}
        self._owed: dict[str, dict[str, Owed]] = {}
        self._records = Records()
        self._unknown: dict[str, tuple[type, dict[str, Any]]] = {}
        """By record the fields that another version put there, and the kind that it is of: they stay (ADR 9)."""

    @property
    def records(self) -> Records:
        """The records as last written."""
        return self._records

    def owed(self) -> list[Owed]:
        """All debts, by record and then in the order in which they arose."""
        return [effect for record in sorted(self._owed) for effect in self._owed[record].values()]

    async def load(self) -> None:
        """Read everything. Raises UnavailableError or CorruptRecordError."""
        self._revisions, self._owed, self._records, self._unknown = {}, {}, Records(), {}
        for row in await self._store.scan(f"{self._service}."):
            name = row.key.removeprefix(f"{self._service}.")
            try:
                document = _Document.model_validate_json(row.value)
                if document.format != FORMAT:
                    raise CorruptRecordError(
                        f"{row.key}: format {document.format}, this version reads {FORMAT}"
                    )
                self._revisions[name] = row.revision
                debts = [self._revive(name, owed) for owed in document.owed]
                if debts:
                    self._owed[name] = {effect.key: effect for effect in debts}
                if document.record is not None:
                    record = self._reads.validate_python(document.record)
                    self._records = self._records.insert(name, record)
                    unknown = document.record.keys() - type(record).model_fields.keys()
                    if unknown:
                        kept = {field: document.record[field] for field in unknown}
                        self._unknown[name] = type(record), kept
            except ValidationError as error:
                raise CorruptRecordError(f"{row.key}: {error}") from error

    def _revive(self, record: str, owed: _OwedFact | _OwedAct) -> Owed:
        if isinstance(owed, _OwedFact):
            return Publish(record, owed.fact)
        return Act(record, self._requests.validate_python(owed.request))

    async def commit(
        self, records: Records, effects: Iterable[Owed], settles: tuple[str, str] | None = None
    ) -> None:
        """Write what changed since the last commit together with the new debts, and strike out the debt
        (record and effect key) whose outcome led here.

        Raises UnavailableError (nothing is known: call again with the same arguments) or DeposedError."""
        fresh: dict[str, list[Owed]] = {}
        for effect in effects:
            assert effect.record is not None
            fresh.setdefault(effect.record, []).append(effect)
        names = records.differing(self._records) | set(fresh)
        if settles is not None:
            self._owed.get(settles[0], {}).pop(settles[1], None)
            names.add(settles[0])
        for name, effects_of in fresh.items():
            debts = self._owed.setdefault(name, {})
            for effect in effects_of:
                debts.setdefault(effect.key, effect)
        await self._write_all([(name, records.get(name)) for name in sorted(names)])
        self._records = records

    async def settle(self, done: Iterable[tuple[str, str]]) -> None:
        """Strike out debts that were performed: pairs of record and effect key.

        Every record named is written, also one whose debt is gone already: the last write may have failed."""
        touched: set[str] = set()
        for name, key in done:
            self._owed.get(name, {}).pop(key, None)
            touched.add(name)
        await self._write_all([(name, self._records.get(name)) for name in sorted(touched)])

    async def _write_all(self, writes: list[tuple[str, BaseModel | None]]) -> None:
        """Side by side, AT_ONCE of them: the records are independent of each other, but for marks. A mark says that
        something was dealt with, so that a repeat of it is no news: it is written once all that was made of it is. All that
        are under way end before the first error is raised."""
        for mark in (False, True):
            batch = [one for one in writes if one[0].startswith(self._marks) is mark]
            for first in range(0, len(batch), AT_ONCE):
                some = batch[first : first + AT_ONCE]
                results = await asyncio.gather(*(self._write(*one) for one in some), return_exceptions=True)
                for result in results:
                    if result is not None:
                        raise result

    async def _write(self, name: str, record: BaseModel | None) -> None:
        key, debts = f"{self._service}.{name}", self._owed.get(name, {})
        expected = self._revisions.get(name, 0)
        if record is None and not debts:
            self._owed.pop(name, None)
            self._unknown.pop(name, None)
            if name in self._revisions:
                await self._compare(key, None, expected)
                del self._revisions[name]
            return
        document = _Document(
            record=None if record is None else self._dumped(name, record),
            owed=tuple(_strike(effect) for effect in debts.values()),
        )
        payload = document.model_dump_json().encode()
        self._revisions[name] = await self._compare(key, payload, expected)

    def _dumped(self, name: str, record: BaseModel) -> dict[str, Any]:
        kind, unknown = self._unknown.get(name, (type(record), {}))
        return {**record.model_dump(mode="json"), **(unknown if kind is type(record) else {})}

    async def _compare(self, key: str, payload: bytes | None, expected: int) -> int:
        """One compare-and-set whose lost answer is told apart from a lost race by reading back."""
        try:
            if payload is None:
                await self._store.delete(key, expected)
                return 0
            return await self._store.put(key, payload, expected)
        except ConflictError:
            row = await self._store.get(key)
            if row is None and payload is None:
                return 0
            if row is not None and row.value == payload and row.revision > expected:
                return row.revision  # our own earlier write, whose answer was lost
            found = "nothing" if row is None else f"revision {row.revision}"
            raise DeposedError(f"{key}: expected revision {expected}, found {found}") from None


def _strike(effect: Owed) -> _OwedFact | _OwedAct:
    if isinstance(effect, Publish):
        return _OwedFact(fact=effect.fact)
    request: Request = effect.request
    return _OwedAct(request=request.model_dump(mode="json"))


__all__ = ["CorruptRecordError", "DeposedError", "Ledger", "Owed", "UnavailableError"]
