"""An operator's commands against a running plane: what is refused, what is said, and what comes of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.core.clock import SystemClock
from libs.events.signals import Heartbeat
from libs.jetstream.bus import open_bus
from libs.jetstream.schema import Names
from libs.jetstream.store import JetStreamStore
from libs.model import Incarnation, Inventory
from tests.integration.test_cli import REPOSITORY, Plane, environment, standing
from tests.unit.made import vm

H2 = Incarnation(host="h2", boot="boot1-of-h2")
POOL = """\
pool: p
data_dir: {data}
hosts:
  - {{name: h1, uri: "test:///default"}}
  - {{name: h2, uri: "qemu+unix:///system?socket=/no/such/socket", agent: true}}
vm_defaults: {{protection: {protection}}}
detection: {{quiet_after_start_s: 2, confirm_witnessed_s: 1, confirm_silence_s: 2}}
placement: {{failures_to_tolerate: 0}}
"""


def say(plane: Plane, *arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments, "--config", str(plane.config)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        input=typed,
        stdin=None if typed is not None else subprocess.DEVNULL,
    )


@pytest.fixture(params=["restart"])
def plane(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Plane]:
    config, data = tmp_path / "pool.yaml", tmp_path / "data"
    config.write_text(POOL.format(data=data, protection=request.param))
    yield from standing(config, data)


async def beats(plane: Plane, seconds: float) -> None:
    """An agent on h2 that runs one VM, for a while."""

    async def closed() -> None:
        return None

    url = (plane.data / "nats" / "url").read_text()
    bus = await open_bus([url], "p", "heartbeat-h2", SystemClock(), "test", closed=closed)
    told = Inventory(at=H2, agent="life", rev=1, memory_mib=1024, cpus=2, vms=(vm("a"),))
    store = JetStreamStore(bus.client, Names("p"), "inventory")
    await store.put("h2", told.model_dump_json().encode(), None)
    for number in range(round(seconds / 0.25)):
        await bus.send("heartbeat.h2", Heartbeat(at=H2, agent="life", seq=number + 1))
        await asyncio.sleep(0.25)
    await bus.client.close()


def test_an_operators_word_fences_a_host_that_no_device_can(plane: Plane) -> None:
    early = say(plane, "confirm-failed", "h1", "--yes-i-checked", "h1", "--json")
    assert early.returncode == 1
    assert "h1 is held to be healthy, not failed" in early.stderr
    assert json.loads(early.stdout)["said"] is False
    asyncio.run(beats(plane, 3.0))
    plane.wait(lambda: plane.states().get("h2") == "failed", "h2 is held failed")

    other = say(plane, "confirm-failed", "h2", "--yes-i-checked", "h1")
    assert (other.returncode, other.stdout) == (2, "")
    assert "--yes-i-checked: it names h1" in other.stderr
    wrong = say(plane, "confirm-failed", "h2", typed="h1\n")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "will run TWICE" in wrong.stderr
    assert "  A\n" in wrong.stderr, "the VM that is at risk, by name"
    assert "nothing was said" in wrong.stderr
    assert plane.states()["h2"] == "failed"

    right = say(plane, "confirm-failed", "h2", "--json", typed="h2\n")
    assert right.returncode == 0, right.stderr
    said = json.loads(right.stdout)
    assert (said["said"], said["host"], said["boot"], said["vms"]) == (True, "h2", H2.boot, ["A"])
    assert plane.states()["h2"] == "fenced"
    again = say(plane, "confirm-failed", "h2", "--yes-i-checked", "h2")
    assert again.returncode == 1
    assert "held to be fenced" in again.stderr

    told = [json.loads(line)["data"] for line in say(plane, "events", "--json").stdout.splitlines()]
    word = next(fact for fact in told if fact["kind"] == "host.confirmed_failed")
    proof = next(fact for fact in told if fact["kind"] == "host.fenced")["proof"]
    assert word["by"] in proof["detail"]
    assert (proof["method"], proof["of"]["boot"]) == ("operator", H2.boot)


def test_maintenance_is_entered_shown_and_left(plane: Plane) -> None:
    assert say(plane, "maintenance", "enter", "h1").returncode == 0
    assert {host["host"]: host["maintenance"] for host in plane.ask("hosts")["hosts"]} == {
        "h1": True,
        "h2": False,
    }
    assert plane.ask("status")["hosts_in_maintenance"] == ["h1"]
    again = say(plane, "maintenance", "enter", "h1", "--json")
    assert (again.returncode, json.loads(again.stdout)["reason"]) == (1, "h1 is already in maintenance")
    left = say(plane, "maintenance", "exit", "h1", "--json")
    assert json.loads(left.stdout) == {
        "schema": "rekindle.word.v1", "said": True, "word": "maintenance", "host": "h1", "maintenance": False,
    }  # fmt: skip
    for arguments, status, words in (
        (("maintenance", "enter", "h9"), 2, "no host is called h9"),
        (("maintenance", "exit", "h1", "--drain"), 2, "a host is drained as it enters maintenance"),
        (("maintenance", "enter", "h2"), 1, "h2 was never heard"),
        (("remove-host", "h1"), 1, "protected VMs run on h1: test"),
    ):
        refused = say(plane, *arguments)
        assert (refused.returncode, refused.stdout) == (status, "")
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
    assert plane.ask("status")["hosts_in_maintenance"] == []


@pytest.mark.parametrize("plane", ["none"], indirect=True)
def test_a_host_without_protected_vms_is_removed_and_not_heard_of_again(plane: Plane) -> None:
    done = say(plane, "remove-host", "h1")
    assert done.returncode == 0, done.stderr
    assert "h1 is out of the pool" in done.stdout
    assert plane.states() == {"h2": "unknown"}, "it still speaks, and is not listened to"
    assert plane.ask("vms")["vms"] == []
    told = [json.loads(line)["data"]["kind"] for line in say(plane, "events", "--json").stdout.splitlines()]
    assert told == ["host.joined", "host.maintenance_entered", "host.removed"]
