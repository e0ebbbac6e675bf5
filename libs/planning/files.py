"""Snapshot files: read, with file, field and reason of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from libs.config.yamlfile import BadInputError, reason_of, text_of
from libs.planning.snapshot import Snapshot, SnapshotVm

M = TypeVar("M", bound=BaseModel)


def load_snapshot(path: Path) -> Snapshot:
    """A whole pool. Raises BadInputError."""
    return _load(path, Snapshot)


def load_vm(path: Path) -> SnapshotVm:
    """One VM, as it would stand in a snapshot. Raises BadInputError."""
    return _load(path, SnapshotVm)


def _load(path: Path, model: type[M]) -> M:
    document = _read(path)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        lines = [
            f"{path}: {_field(document, problem['loc'])}{reason_of(problem, model)}"
            for problem in error.errors()
        ]
        raise BadInputError("\n".join(lines)) from error


def _read(path: Path) -> dict[str, Any]:
    text = text_of(path)
    try:
        document = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise BadInputError(f"{path}: line {error.lineno}: is no JSON: {error.msg}") from error
    except RecursionError as error:
        raise BadInputError(f"{path}: is nested too deeply") from error
    except _TwiceError as error:
        raise BadInputError(f"{path}: {error.args[0]}: is given twice in one object") from error
    if not isinstance(document, dict):
        raise BadInputError(f"{path}: must be one JSON object of fields")
    return document


class _TwiceError(Exception):
    """A field was given twice: neither is the right one."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


def _field(document: Any, where: Sequence[int | str]) -> str:
    """The place in the file, an entry of a list with its name. What is wrong with the whole names its own place."""
    parts = []
    for step in where:
        below = None
        if isinstance(document, dict):
            below = document.get(str(step))
        elif isinstance(document, list) and isinstance(step, int) and step < len(document):
            below = document[step]
        name = below.get("name") if isinstance(step, int) and isinstance(below, dict) else None
        parts.append(f"{step} ({name})" if isinstance(name, str) else str(step))
        document = below
    return f"{'.'.join(parts)}: " if parts else ""
