"""Short directories for labs: paths of unix sockets end at 108 characters, pytest's own are too long."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Roots:
    made: list[Path] = field(default_factory=list)

    def new(self) -> Path:
        self.made.append(Path(tempfile.mkdtemp(prefix="rkl-")))
        return self.made[-1]

    def remove(self) -> None:
        for root in self.made:
            shutil.rmtree(root, ignore_errors=True)
