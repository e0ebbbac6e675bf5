"""Whether a directory is the datastore, or what lies below where it should be mounted.

A datastore that is not mounted leaves an empty directory that takes writes as well: its host would vouch for it, and
read there that nobody else writes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

FSTAB = Path("/etc/fstab")


def expected(path: Path, fstab: str) -> Path | None:
    """Where something must be mounted for `path` to be what is meant, by the longest entry; None where none but the
    root is in its way."""
    points = []
    for line in fstab.splitlines():
        fields = line.split()
        if len(fields) < 2 or fields[0].startswith("#") or not fields[1].startswith("/"):
            continue
        point = Path(fields[1].replace(r"\040", " "))
        if point != Path("/") and path.is_relative_to(point):
            points.append(point)
    return max(points, key=lambda point: len(point.parts), default=None)


@dataclass(slots=True)
class Mounted:
    """One directory. `point`: what must be mounted; by default what /etc/fstab says. Every method may hang with the
    datastore."""

    path: Path
    point: Path | None = None
    fstab: Path = FSTAB
    _was: bool = False
    """Something was mounted on the directory itself."""

    def lacking(self) -> str:
        """What is not mounted, in words; "" where nothing shows that."""
        point = self.point or expected(self.path, self._fstab())
        if point is not None and not os.path.ismount(point):
            return f"nothing is mounted on {point}"
        now = os.path.ismount(self.path)
        if self._was and not now:
            return f"nothing is mounted on {self.path} any more"
        self._was = now
        return ""

    def _fstab(self) -> str:
        try:
            return self.fstab.read_text(errors="replace")
        except OSError:
            return ""
