"""The bench of detection as a person uses it: as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.lab


def test_the_bench_of_detection_tells_its_figures() -> None:
    """That they are right is for a quiet machine: `python -m infra.lab.detectbench`."""
    command = [sys.executable, "-m", "infra.lab.detectbench", "--runs", "1", "--kind", "fast"]
    command += [
        "--burners",
        "1",
        "--json",
    ]  # what is measured under a whole test run is noise, however many they are
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": "/tmp"}
    )
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert done.returncode == (0 if all(bar["met"] for bar in told["kinds"][0]["bars"]) else 1)
    rows = told["kinds"][0]["rows"]
    order = ["host.suspected", "host.failed", "host.fenced", "first start call"]
    assert list(rows) == order
    times = [rows[name]["median_s"] for name in order]
    assert times == sorted(times)
    assert times[0] > 0
    assert float(told["kinds"][0]["false_verdicts_host_year"]) > 0
