"""Compose files read as Compose reads them: variables filled in, one laid over the other, anchors merged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def filled(value: Any, variables: dict[str, str]) -> Any:
    """Every ${NAME}, ${NAME:-default} and ${NAME:?why}. Raises KeyError for one that has to be given."""

    def one(match: re.Match[str]) -> str:
        name, how, rest = match[1], match[2], match[3]
        if variables.get(name):
            return variables[name]
        if how == "-":
            return rest
        raise KeyError(f"{name}: {rest or 'not given'}")

    if isinstance(value, str):
        return VARIABLE.sub(one, value)
    if isinstance(value, list):
        return [filled(each, variables) for each in value]
    if isinstance(value, dict):
        return {key: filled(each, variables) for key, each in value.items()}
    return value


def laid_over(below: Any, above: Any, key: str = "") -> Any:
    """Mappings are merged, lists appended, but what is run is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {
            name: laid_over(below.get(name), above[name], name) if name in above else below[name]
            for name in {**below, **above}
        }
    if isinstance(below, list) and isinstance(above, list) and key not in ("command", "entrypoint", "test"):
        return below + [each for each in above if each not in below]
    return above


def read(*names: str, **variables: str) -> dict[str, Any]:
    """These files as one."""
    merged: dict[str, Any] = {}
    for name in names:
        merged = laid_over(merged, yaml.safe_load((ROOT / name).read_text()))
    parts = ("services", "secrets", "volumes")
    return {part: filled(merged.get(part, {}), variables) for part in parts}
