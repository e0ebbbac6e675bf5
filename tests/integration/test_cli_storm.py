"""A storm and a quarantine at a running plane: shown, released and lifted by commands that a person types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.core.clock import SystemClock
from libs.events.signals import Heartbeat
from libs.jetstream.bus import open_bus
from libs.model import Incarnation
from tests.integration.test_cli import Plane, standing
from tests.integration.test_cli_operator import say

AGENTS = ("h2", "h3")
POOL = """\
pool: p
data_dir: {data}
hosts:
  - {{name: h1, uri: "test:///default"}}
  - {{name: h2, uri: "qemu+unix:///system?socket=/no/such/socket", agent: true}}
  - {{name: h3, uri: "qemu+unix:///system?socket=/no/such/socket", agent: true}}
detection: {{quiet_after_start_s: 2, confirm_witnessed_s: 1, confirm_silence_s: 2, failures_max: 1}}
"""


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    config, data = tmp_path / "pool.yaml", tmp_path / "data"
    config.write_text(POOL.format(data=data))
    yield from standing(config, data)


async def beats(plane: Plane, seconds: float) -> None:
    """The agents of h2 and h3, for a while."""

    async def closed() -> None:
        return None

    url = (plane.data / "nats" / "url").read_text()
    bus = await open_bus([url], "p", "heartbeat", SystemClock(), "test", closed=closed)
    for number in range(round(seconds / 0.25)):
        for host in AGENTS:
            at = Incarnation(host=host, boot=f"boot-of-{host}")
            await bus.send(f"heartbeat.{host}", Heartbeat(at=at, agent="life", seq=number + 1))
        await asyncio.sleep(0.25)
    await bus.client.close()


def test_a_storm_is_shown_and_released_and_a_quarantine_is_lifted(plane: Plane) -> None:
    calm = say(plane, "storm", "release")
    assert (calm.returncode, calm.stdout) == (1, "")
    assert "no storm is held" in calm.stderr
    asyncio.run(beats(plane, 3.0))
    held: dict[str, Any] = {}

    def storm() -> bool:
        held.update(plane.ask("status"))
        return held["storm"] is not None

    plane.wait(storm, "a storm is held")
    assert (held["ok"], held["storm"]["suspects"], held["storm"]["released"]) == (False, ["h2", "h3"], [])
    early = say(plane, "storm", "release", "--yes-i-checked", "1", "--json")
    assert (early.returncode, json.loads(early.stdout)["said"]) == (1, False)
    assert "2 hosts are silent, not 1: h2, h3" in early.stderr
    wrong = say(plane, "storm", "release", typed="h2\n")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "  h2, h3\n" in wrong.stderr
    assert "nothing was said" in wrong.stderr
    right = say(plane, "storm", "release", "--json", typed="2\n")
    assert right.returncode == 0, right.stderr
    assert json.loads(right.stdout)["suspects"] == ["h2", "h3"]

    def failed() -> bool:
        states = plane.states()
        return [states[host] for host in AGENTS] == ["failed", "failed"]

    plane.wait(failed, "both are held failed")
    assert say(plane, "readmit", "h2").returncode == 0
    assert plane.ask("status")["hosts_quarantined"] == ["h3"]
    assert "quarantined" in say(plane, "hosts").stdout
    told = [json.loads(line)["data"]["kind"] for line in say(plane, "events", "--json").stdout.splitlines()]
    for kind in ("storm.held", "storm.release_ordered", "host.quarantined", "host.readmitted"):
        assert kind in told
