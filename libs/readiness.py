"""When a VM is ready for those that start after it, as its policy says it (`ready` in libs/model.py:VmPolicy). Pure.

A probe of a port, `tcp:5432`, or of a page, `http:8080/health`; at the guest's own address, or at one that is given:
`tcp:10.1.0.7:5432`, `http:[fd00::7]:8080/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from libs.model import PROBE

_WHOLE = re.compile(PROBE)


@dataclass(frozen=True, slots=True)
class Target:
    """What is probed. `host` is empty where that is the guest's own address; `path` where only a port is."""

    host: str
    port: int
    path: str = ""


def target_of(text: str) -> Target | None:
    """None where it is no probe that this version knows."""
    if not _WHOLE.fullmatch(text):
        return None
    address, slash, path = text.partition("/")
    kind, _, where = address.partition(":")
    host, _, port = where.rpartition(":")
    return Target(host.strip("[]"), int(port), "" if kind == "tcp" else slash + path or "/")
