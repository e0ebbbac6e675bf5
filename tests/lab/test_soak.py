"""`rekindle lab soak` as a person uses it: as a process, with Ctrl-C.

The whole soak is an hour, `rekindle lab soak`; here it lasts REKINDLE_SOAK_MINUTES, 1 where that is not set, 10 in `make
test`. There REKINDLE_LOADED says that simulated worlds are played beside it: they are the load, the busy loops take only
what they leave. In either case it is measured how busy the processors were.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.lab import procs, weather
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab
REKINDLE = [sys.executable, "-m", "services.cli"]
MINUTES = float(os.environ.get("REKINDLE_SOAK_MINUTES", "1"))
BURNERS = ["--burners-yield"] if os.environ.get("REKINDLE_LOADED") else []
IDLE_MOST_PERCENT = 5
AROUND_S = 240
"""To bring the lab up, to see the verdict in the end, and to take it down, on a machine that is busy otherwise, too."""


def _possible() -> None:
    if weather.why_not() is not None:
        pytest.skip(f"a soak loses packets: it {weather.why_not()}")


def _burners() -> set[int]:
    return {pid for pid in procs.every_pid() if any("parent = os.getppid()" in a for a in procs.cmdline(pid))}


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.timeout(60 * MINUTES + AROUND_S)
def test_no_suspicion_becomes_a_verdict_under_load_loss_and_changes_of_leader(roots: Roots) -> None:
    _possible()
    root = roots.new()
    done = subprocess.run(
        [
            *REKINDLE,
            "lab",
            "soak",
            "--minutes",
            str(MINUTES),
            *BURNERS,
            "--bare",
            "--json",
            "--root",
            str(root),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert done.returncode == 0, f"{told}\n{done.stderr}"
    assert told["schema"] == "rekindle.soak.v1"
    assert told["found"] == []
    assert told["lasted_s"] >= 60 * MINUTES
    assert len(told["changes"]) >= MINUTES - 1
    assert {change["how"] for change in told["changes"]} <= {"kill", "step_down"}
    assert told["idle_percent"] <= IDLE_MOST_PERCENT, "the processors were not busy"
    assert "was held failed after" in told["proof"]
    assert told["observer_lowest_hz"] >= 10, "the observer looked too seldom to be believed"
    assert procs.of_lab(root) == []
    assert not root.exists()


def test_ctrl_c_ends_a_soak_and_leaves_nothing(roots: Roots) -> None:
    """Also its busy loops. What a Ctrl-C does while a lab is built is tested with the demo."""
    _possible()
    root = roots.new()
    with subprocess.Popen(
        [*REKINDLE, "lab", "soak", "--bare", "--root", str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
    ) as process:
        assert process.stdout is not None
        assert any("soaking for 60 min" in line for line in process.stdout)
        # other tests may keep the processors busy beside us, and end theirs when they will
        ours = {pid for pid in _burners() if _parent(pid) == process.pid}
        assert len(ours) == os.cpu_count()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) == 130
    assert procs.of_lab(root) == []
    assert not root.exists()
    assert not ours & _burners()
