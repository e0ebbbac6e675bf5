"""The part of a decider's state that outlives the process: one small frozen model per incident, host or VM, by name.

A persistent map that also remembers which names were changed last. What is to be stored after a step is what differs from what
lies there, nearly always one record; to find it by comparing all was most of what the join of one among 10,000 hosts cost.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from rpds import HashTrieMap

REMEMBERED = 512
"""So many changes in a row; then it is as if nothing were remembered, and all are compared."""


class _Change:
    """One change, and those before it."""

    __slots__ = ("before", "length", "name")

    def __init__(self, name: str, before: _Change | None) -> None:
        remembered = before is not None and before.length < REMEMBERED
        self.name: str = name
        self.before: _Change | None = before if remembered else None
        self.length: int = 1 + (before.length if before is not None and remembered else 0)


class Records:
    """Records by name. `insert`, `remove` and `discard` return another map; this one stays as it is."""

    __slots__ = ("_by_name", "_latest", "get")

    get: Callable[..., Any]

    def __init__(self, records: Mapping[str, Any] | None = None, *, after: _Change | None = None) -> None:
        """`after`: what was changed for it, by whoever made it of another."""
        self._by_name: HashTrieMap[str, Any] = (
            records if isinstance(records, HashTrieMap) else HashTrieMap(records or {})
        )
        self._latest = after or _Change("", None)
        self.get = self._by_name.get  # asked several times for each heartbeat

    def insert(self, name: str, record: Any) -> Records:
        """With this record under this name, whatever was there."""
        return Records(self._by_name.insert(name, record), after=_Change(name, self._latest))

    def remove(self, name: str) -> Records:
        """Without it. Raises KeyError where there is none."""
        return Records(self._by_name.remove(name), after=_Change(name, self._latest))

    def discard(self, name: str) -> Records:
        """Without it."""
        return self.remove(name) if name in self._by_name else self

    def differing(self, stored: Records) -> set[str]:
        """Names under which another record lies than in `stored`, or in one of them none."""
        latest, names = self._latest, set[str]()
        while latest is not stored._latest:
            names.add(latest.name)
            if latest.before is None:  # not made of what is stored, or too long ago
                names = {*self._by_name, *stored._by_name}
                break
            latest = latest.before
        return {name for name in names if self.get(name) is not stored.get(name)}

    def __getitem__(self, name: str) -> Any:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def keys(self) -> KeysView[str]:
        return self._by_name.keys()

    def items(self) -> ItemsView[str, Any]:
        return self._by_name.items()

    def values(self) -> ValuesView[Any]:
        return self._by_name.values()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Records) and self._by_name == other._by_name

    def __hash__(self) -> int:
        return hash(self._by_name)

    def __repr__(self) -> str:
        return f"Records({dict(self._by_name.items())!r})"
