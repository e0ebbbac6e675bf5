"""`rekindle demo` and `rekindle lab …` as a person uses them: as processes, with Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.lab import procs
from infra.lab.lab import Lab
from tests.lab.roots import Roots, plain_user

pytestmark = pytest.mark.lab
REKINDLE = [sys.executable, "-m", "services.cli"]


def _run(*arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REKINDLE, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def _json(*arguments: str) -> dict[str, Any]:
    done = _run(*arguments)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def _nothing_left(root: Path) -> None:
    assert procs.of_lab(root) == []
    assert str(root) not in Path("/proc/self/mountinfo").read_text()
    assert not root.exists() or not any(root.iterdir())


def _until(condition: Any, within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.1)  # a poll up to a deadline


def test_demo_prints_its_outcome_alone_and_leaves_nothing(roots: Roots) -> None:
    root = roots.new()
    done = _run("demo", "--json", "--root", str(root))
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["schema"] == "rekindle.outcome.v1"
    assert outcome["passed"]
    assert outcome["double_running_s"] == 0
    assert {vm["state"] for vm in outcome["vms"].values()} == {"running"}
    assert len(outcome["vms"]) == 6
    (failover,) = outcome["failovers"]
    assert failover["first_start_s"] - failover["occurred_s"] < 6.0
    _nothing_left(root)


def test_a_plain_user_runs_the_demo_too() -> None:
    with tempfile.TemporaryDirectory(prefix="rkh-", dir="/tmp") as home:
        become, environment = plain_user(Path(home))
        done = subprocess.run(
            [*become, *REKINDLE, "demo", "--bare", "--json", "--root", f"{home}/l"],
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outcome = json.loads(done.stdout)
        assert outcome["passed"]
        assert outcome["double_running_s"] == 0


@pytest.mark.parametrize("after", ["host h1 is up", "starting VM vm2", "waiting until all hosts"])
def test_ctrl_c_at_any_moment_leaves_nothing(after: str, roots: Roots) -> None:
    root = roots.new()
    with subprocess.Popen(
        [*REKINDLE, "demo", "--bare", "--root", str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert any(after in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # an impatient person's second one must not cut the cleaning short
        process.stdout.read()
        assert process.wait(60) == 130
    _nothing_left(root)


@pytest.fixture
def pool(roots: Roots) -> Iterator[Path]:
    root = roots.new()
    done = _run("lab", "up", "--root", str(root), "--vms", "3", "--bare")
    assert done.returncode == 0, done.stderr
    yield root
    _run("lab", "down", "--root", str(root))


def test_lab_up_break_look_and_take_down(pool: Path) -> None:
    config = ["-c", str(pool / "pool.yaml")]
    assert {host["state"] for host in _json("hosts", "--json", *config)["hosts"]} == {"healthy"}
    assert _json("status", "--json", *config)["ok"]
    assert _run("lab", "do", "power_off", "h2", "--root", str(pool)).returncode == 0
    lab = Lab.open(pool)
    _until(lambda: set(lab.placement()) == {"vm1", "vm2", "vm3"}, 20, "all three VMs run")
    assert lab.placement()["vm2"] != ["h2"]
    stories: list[dict[str, Any]] = []

    def told() -> bool:
        stories[:] = _json("failovers", "--json", *config)["failovers"]
        return bool(stories and stories[0]["completed"])

    _until(told, 20, "the failover is told as completed")
    shown = _json("failovers", "show", stories[0]["incident"], "--json", *config)
    assert shown["proof"] == "power_off"
    assert [vm["state"] for vm in shown["vms"].values()] == ["running"]
    rows = {vm["vm"]: vm for vm in _json("vms", "--json", *config)["vms"]}
    assert rows["vm2"]["token"] == 2
    assert rows["vm1"]["token"] == 1
    assert _run("status", "--json", *config).returncode == 1
    lines = [json.loads(line) for line in _run("events", "--json", *config).stdout.splitlines()]
    assert [line["sequence"] for line in lines] == sorted(line["sequence"] for line in lines)
    assert {"host.failed", "host.fenced", "vm.restarted"} <= {line["data"]["kind"] for line in lines}
    before, plane = lab.placement(), int((pool / "up.pid").read_text())
    os.kill(plane, signal.SIGINT)
    _until(lambda: not Path(f"/proc/{plane}").exists(), 20, "rekindle up ends after Ctrl-C")
    assert "no VM was touched" in (pool / "up.log").read_text()
    assert lab.placement() == before
    assert _run("status", *config).returncode == 1
    assert _run("lab", "down", "--root", str(pool)).returncode == 0
    _nothing_left(pool)


def test_a_step_that_is_not_possible_is_refused_by_name_before_anything_starts(
    tmp_path: Path, roots: Roots
) -> None:
    root = roots.new()
    file = tmp_path / "cut.yaml"
    file.write_text(
        "schema: rekindle.scenario.v1\nname: clock\nhosts: [{name: h1}, {name: h2}]\n"
        "steps:\n  - {at_s: 1, do: step_clock, host: h1, seconds: 1}\n"
    )
    done = _run("lab", "run", str(file), "--root", str(root))
    assert done.returncode == 2
    assert f"{file}: line 5: steps.0.do: step_clock is not possible here" in done.stderr
    _nothing_left(root)
