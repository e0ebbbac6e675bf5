"""Whether a secret of the lab's bus stands where it must not: in a log, an event, a command line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

SECRETS = ("token", "system_token", "keys/*.nk", "tls/*.key")
LONG = 16
"""A line of a secret that is shorter, as the frame of a PEM file is not, would be found anywhere."""


def secrets_of(nats: Path) -> dict[str, str]:
    """By file, below the embedded server's directory, what must stand nowhere else."""
    found: dict[str, str] = {}
    for pattern in SECRETS:
        for path in nats.glob(pattern):
            lines = [line for line in path.read_text().splitlines() if "-----" not in line]
            found[str(path.relative_to(nats))] = max(lines, key=len, default="")
    return {name: secret for name, secret in found.items() if len(secret) >= LONG}


def leaks(nats: Path, logs: Path, events: Iterable[str]) -> list[str]:
    """Where a secret stands, and which; never the secret."""
    known = secrets_of(nats)
    return sorted(
        {
            f"{name} in {where}"
            for where, text in _texts(logs, events)
            for name, secret in known.items()
            if secret in text
        }
    )


def _texts(logs: Path, events: Iterable[str]) -> Iterator[tuple[str, str]]:
    # the lab lives on meanwhile: a host that boots takes directories and logs away under our eyes, which os.walk bears
    for folder, _, names in os.walk(logs):
        for path in sorted(Path(folder, name) for name in names if name.endswith(".log")):
            try:
                text = path.read_text(errors="replace")
            except FileNotFoundError:
                continue
            yield str(path.relative_to(logs)), text
    yield "an event", "\n".join(events)
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield f"the command line of {cmdline.parent.name}", cmdline.read_text(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
