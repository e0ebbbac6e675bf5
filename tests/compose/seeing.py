"""Looking at containers and into them, from outside of the tests' Docker Engine."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

from tests.compose import onlookers
from tests.compose.engine import Engine


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Seconds until it holds. Fails naming what does not."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, f"{what}: not after {timeout_s:g} s"
        time.sleep(0.3)
    return time.monotonic() - began


def asked(engine: Engine, container: str, *words: str) -> str:
    """What a command in a container prints; "" where it fails."""
    command = ["docker", "exec", container, *words]
    done = subprocess.run(
        command, env=engine.environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout if done.returncode == 0 else ""


def inside(engine: Engine, container: str, script: str, *words: str) -> str:
    """What a script prints in a container that has our code. Fails with what it said."""
    python = ("env", "PYTHONPATH=/opt/rekindle", "/opt/rekindle/venv/bin/python", "-c", script)
    return engine.docker("exec", container, *python, *words, timeout=120)


def of_server(engine: Engine, container: str, what: str) -> str:
    """What a server of the bus tells of itself."""
    return asked(engine, container, "python3", "-c", onlookers.TOLD, what)


def inspect(engine: Engine, container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engine.docker("inspect", container))[0]
    return found


def healthy(engine: Engine, container: str) -> bool:
    state = inspect(engine, container)["State"]
    return bool(state["Running"]) and state["Health"]["Status"] == "healthy"


def said(engine: Engine, container: str, *words: str) -> str:
    """A container's log, both streams."""
    done = subprocess.run(
        ["docker", "logs", *words, container],
        env=engine.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def logs(engine: Engine) -> str:
    """The end of every container's log, for a failure."""
    names = engine.docker("ps", "-a", "--format", "{{.Names}}").split()
    return "\n".join(f"== {name}\n{said(engine, name, '--tail', '15')}" for name in names)
