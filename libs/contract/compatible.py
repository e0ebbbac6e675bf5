"""What between two versions of one schema breaks a reader.

Two readers count: one of today that is handed events of the next version, and one of the next version that is handed
what lies in the stream from today. So nothing that is there may go or change its type, and nothing may become required
or narrower. Allowed are new fields that are not required, new words of an enumeration and new kinds of events: readers
are told to expect them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems")
MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
EXACT = ("pattern", "format")
Schema = Mapping[str, Any]


def breaks(before: Mapping[str, Schema], after: Mapping[str, Schema]) -> list[str]:
    """One line for each change that breaks a reader: schema, place in it, what changed. Empty where none does."""
    found: list[str] = []
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            found.append(f"{name}: it is not published any more")
            continue
        found += [f"{name}: {where or 'the whole'}: {what}" for where, what in _Comparison(old, new).run()]
    return found


class _Comparison:
    """One walk over two versions of a schema, through their references."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old, self._new = old, new
        self._seen: set[tuple[str, str]] = set()

    def run(self) -> Iterator[tuple[str, str]]:
        yield from self._compare("", self._old, self._new)

    def _compare(self, where: str, old: Schema, new: Schema) -> Iterator[tuple[str, str]]:
        pair = (str(old.get("$ref")), str(new.get("$ref")))
        if "$ref" in old or "$ref" in new:
            if pair in self._seen:
                return
            self._seen.add(pair)
        old, new = _resolved(self._old, old), _resolved(self._new, new)
        if _types(self._old, old) != _types(self._new, new):
            was, is_ = sorted(_types(self._old, old)), sorted(_types(self._new, new))
            yield where, f"its type was {' or '.join(was)} and is {' or '.join(is_)}"
            return
        yield from self._narrower(where, old, new)
        yield from self._fields(where, old, new)
        for key in ("items", "additionalProperties"):
            if isinstance(old.get(key), Mapping) and isinstance(new.get(key), Mapping):
                yield from self._compare(f"{where}[]", old[key], new[key])
        if new.get("additionalProperties") is False and old.get("additionalProperties") is not False:
            yield where, "unknown fields were allowed and are not any more"
        yield from self._branches(where, old, new)

    def _narrower(self, where: str, old: Schema, new: Schema) -> Iterator[tuple[str, str]]:
        gone = [word for word in _words(old) if word not in _words(new)] if _words(new) else []
        if gone:
            yield where, f"{', '.join(map(str, gone))} is no value of it any more"
        if _words(new) and not _words(old):
            yield where, "it had any value and has only listed ones"
        for key in (*LEAST, *MOST, *EXACT):
            was, is_ = old.get(key), new.get(key)
            if was == is_ or is_ is None:
                continue
            if was is not None and ((key in LEAST and is_ < was) or (key in MOST and is_ > was)):
                continue
            yield where, f"{key} was {was!r} and is {is_!r}, which is narrower"

    def _fields(self, where: str, old: Schema, new: Schema) -> Iterator[tuple[str, str]]:
        before: Mapping[str, Schema] = old.get("properties", {})
        after: Mapping[str, Schema] = new.get("properties", {})
        needed, needs = set(old.get("required", ())), set(new.get("required", ()))
        for field in before:
            place = f"{where}.{field}" if where else field
            if field not in after:
                yield place, "it is gone"
                continue
            if field in needs - needed:
                yield place, "it was not required and is"
            if field in needed - needs:
                yield place, "it was always there and need not be any more"
            yield from self._compare(place, before[field], after[field])
        for field in sorted(needs - needed - set(before)):
            yield (f"{where}.{field}" if where else field), "it is new and required"

    def _branches(self, where: str, old: Schema, new: Schema) -> Iterator[tuple[str, str]]:
        """Alternatives are matched by their type, or by the reference that they are."""
        was = {_branch(self._old, one): one for one in _alternatives(old)}
        is_ = {_branch(self._new, one): one for one in _alternatives(new)}
        for name, one in was.items():
            if name in is_:
                yield from self._compare(where, one, is_[name])
            else:
                yield where, f"it may not be {name} any more"


def _resolved(root: Schema, schema: Schema) -> Schema:
    while "$ref" in schema:
        found: Any = root
        for step in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found[step]
        schema = found
    return schema


def _alternatives(schema: Schema) -> list[Schema]:
    return [*schema.get("anyOf", ()), *schema.get("oneOf", ())]


def _branch(root: Schema, schema: Schema) -> str:
    return str(schema.get("$ref", "")).rsplit("/", 1)[-1] or " or ".join(sorted(_types(root, schema)))


def _types(root: Schema, schema: Schema) -> frozenset[str]:
    """The JSON types that a value may have."""
    schema = _resolved(root, schema)
    kind = schema.get("type")
    if isinstance(kind, str):
        return frozenset({kind})
    if isinstance(kind, list):
        return frozenset(kind)
    found: set[str] = set()
    for one in _alternatives(schema):
        found |= _types(root, one)
    return frozenset(found)


def _words(schema: Schema) -> list[Any]:
    """The only values that it may have; empty where it may have any."""
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))
