"""Writes the published files anew: `python -m libs.contract` from the repository's root (`make schemas`).

`--release` also makes them what later versions are compared with: when a version is released, never else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from libs.contract.asyncapi import asyncapi
from libs.contract.documents import schemas

PLACE = Path("docs/schemas")
RELEASED = "released.json"
ELSEWHERE = ("rekindle.admit.v1", "rekindle.capacity.v1", "rekindle.plan.v1", "rekindle.snapshot.v1")
"""Formats of planning: their files are written with their own test (tests/unit/test_planning_schemas.py)."""


def published() -> dict[str, str]:
    """Every file below docs/schemas/ that is made from the code, by name."""
    mine = {name: schema for name, schema in schemas().items() if name not in ELSEWHERE}
    files: dict[str, Any] = {f"{name}.json": schema for name, schema in mine.items()}
    files["asyncapi.json"] = asyncapi()
    return {name: json.dumps(body, indent=1, sort_keys=True) + "\n" for name, body in files.items()}


def write(place: Path, *, release: bool) -> None:
    """Write what is published, and remove what is not any more."""
    place.mkdir(parents=True, exist_ok=True)
    files = published()
    for path in place.glob("*.json"):
        if path.name not in files and path.name != RELEASED and path.stem not in ELSEWHERE:
            path.unlink()
    for name, text in files.items():
        (place / name).write_text(text)
    if release:
        (place / RELEASED).write_text(json.dumps(schemas(), sort_keys=True) + "\n")


if __name__ == "__main__":
    write(PLACE, release="--release" in sys.argv[1:])
