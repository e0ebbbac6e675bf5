"""What measurements of the lab share: bars, the machine they were made on, and the price of a profile."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
BENCH, DETECTION = DOCS / "BENCH.md", DOCS / "DETECTION.md"


@dataclass(frozen=True, slots=True)
class Bar:
    """What a row of a measurement must stay below."""

    of: str
    median_s: float | None = None
    worst_s: float | None = None

    def held_against(self, row: Mapping[str, Any]) -> list[tuple[str, float, bool]]:
        """(figure, bar, met) for each bar that there is."""
        bars = (("median_s", self.median_s), ("worst_s", self.worst_s))
        return [(figure, bar, row[figure] < bar) for figure, bar in bars if bar is not None]


def machine() -> str:
    """Processor, cores, kernel, load and date, in one line."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), Linux {platform.release()}, "
        f"load average {load:.1f} before, {datetime.now(UTC):%Y-%m-%d}"
    )


def false_verdicts(profile: str) -> str:
    """A host-year of normal weather, as docs/DETECTION.md has them by simulation. Raises ValueError without them."""
    pattern = rf"^### Profile `{re.escape(profile)}`$.*?^\| [^|]*: Rekindle \|([^\n]*)"
    row = re.search(pattern, DETECTION.read_text(), re.MULTILINE | re.DOTALL)
    if row is None:
        raise ValueError(f"{DETECTION}: no row of Rekindle for the profile {profile}")
    return row[1].split("|")[3].strip()  # p50, p99, calm, normal
