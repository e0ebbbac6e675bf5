"""Keeps libraries out of a process that others import just in case.

nats-py imports aiohttp for web sockets, structlog and typer import rich for colours. Together they are two fifths of
a service's start (measured: 0.88 s of CPU instead of 1.45 s), and its start is downtime after a crash.
"""

from __future__ import annotations

import sys

JUST_IN_CASE = ("aiohttp", "rich")


def keep_out(*needed: str) -> None:
    """Before anything else is imported: whoever tries one of these, unless it is needed, finds it missing."""
    for name in JUST_IN_CASE:
        if name not in needed:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # import's own way to say "not there"


def let_in(name: str) -> None:
    """Undo that for one that is needed after all."""
    if sys.modules.get(name, name) is None:
        del sys.modules[name]
