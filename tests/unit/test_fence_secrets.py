"""Where a fence device's secret goes: to its agent's standard input, and nowhere else that anybody can look."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from libs.config.settings import Settings, load_settings
from libs.core.clock import SystemClock
from libs.core.ports import Hypervisor
from libs.model import Answer, Incarnation
from libs.power.devices import FenceDevices, agent_devices
from libs.restored.guard import Guard
from services.fencer.wiring import shell
from tests.unit.fenceagents import program
from tests.unit.made import failed, vm
from tests.unit.world import Held, Process, World
from tests.waiting import eventually

pytestmark = pytest.mark.fast

SECRET = "hunter2-of-the-rack"

# Takes its time, and complains as agents do: by repeating the line that it was given.
TALKATIVE = """\
#!/bin/sh
cd "$(dirname "$0")"
while read -r line; do case "$line" in *hunter2*) given="$line";; esac; done
echo $$ >> pids
sleep 0.4
echo "Failed: unable to login with $given" >&2
exit 1
"""

POOL = """\
hosts:
  - name: h1
    uri: test:///default
    fencing:
      - {{agent: {agent}, options: {{ip: 10.0.0.1}}, secrets: {{password: {{file: {secret}}}}}}}
"""


class Libvirts:
    async def at(self, at: Incarnation, timeout_s: float) -> Hypervisor:
        raise AssertionError("a fencer only probes")

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        return Answer.SILENT, "silent"


class Sure(Guard):
    """There is no other copy of what this test stores."""

    ok = True


@dataclass
class Ports:
    """A fencer's, over a bus and a store in memory."""

    settings: Settings
    bus: Process
    service: str = "fencer"
    me: str = "me"
    clock: SystemClock = field(default_factory=SystemClock)
    meter: None = None

    def store(self, bucket: str) -> Process:
        return self.bus

    def lease(self) -> Held:
        return Held(1)

    def guard(self) -> Guard:
        return Sure(self.bus, self.bus, self.clock)

    def beside(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        raise AssertionError("a fencer has none")


def command_lines() -> str:
    """Of all processes of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


async def test_no_command_line_no_log_line_and_no_fact_of_a_failed_fencing_shows_the_secret(
    tmp_path: Path,
) -> None:
    agent = program(tmp_path / "fence_test", TALKATIVE)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    config = tmp_path / "pool.yaml"
    config.write_text(POOL.format(agent=agent, secret=tmp_path / "secret"))
    settings = load_settings(config)
    world = World()
    power = FenceDevices(agent_devices(settings.hosts, settings.fencing), settings.fencing)
    looked = 0
    with structlog.testing.capture_logs() as lines:
        running = asyncio.create_task(shell(Ports(settings, Process(world)), power, Libvirts()).run())
        world.put_fact(failed(Incarnation(host="h1", boot="b1"), vm("a")))

        def told() -> bool:
            nonlocal looked
            shown = command_lines()
            assert SECRET not in shown
            looked += str(agent) in shown
            return any(fact.kind == "host.fence_failed" for fact in world.stream)

        try:
            await eventually(told, "the attempt has failed", within_s=20.0)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    facts = [fact.model_dump_json() for fact in world.stream]
    assert looked, "the agent was seen while it ran"
    assert "unable to login with password=(secret)" in "".join(facts)
    for text in (*facts, json.dumps(lines, default=str), *(str(row) for row in world.rows.values())):
        assert SECRET not in text
