"""The pool is full: a workflow is asked, answers, and the request closes. The workflow is the one of docs/SCALE_OUT.md."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from libs.events.failovers import CapacityExhausted, CapacityRelieved, WaitingVm
from libs.events.hosts import HostJoined
from libs.jetstream.server import EmbeddedServer, free_port
from tests.integration import test_alerts, test_subscribers
from tests.integration.conftest import OpenBus
from tests.unit.made import boot
from tests.waiting import eventually

PAGE = Path(__file__).parents[2] / "docs" / "SCALE_OUT.md"
VM = WaitingVm(vm="u1", name="db", priority="high", reason="no_room", memory_mib=4096, vcpus=2)


async def test_a_workflow_is_asked_within_two_seconds_answers_and_the_request_closes(
    server: EmbeddedServer, open_as: OpenBus, tmp_path: Path
) -> None:
    keys = []
    for number, name in enumerate(("hook.key", "callback.key")):
        (tmp_path / name).write_text("whsec_" + base64.b64encode(bytes([number + 1]) * 32).decode())
        keys.append(str(tmp_path / name))
    hook, callback = free_port(), free_port()
    alerts = {
        "webhooks": [
            {
                "name": "capacity",
                "url": f"http://127.0.0.1:{hook}/hook",
                "secrets": [{"file": keys[0]}],
                "events": ["scaleout.*"],
            }
        ],
        "scale_out": {
            "callbacks": {
                "listen": f"127.0.0.1:{callback}",
                "url": f"http://127.0.0.1:{callback}",
                "secrets": [{"file": keys[1]}],
            }
        },
    }
    config = tmp_path / "pool.yaml"
    config.write_text(
        f"pool: p\ndata_dir: {tmp_path}\nbus: {{url_file: {server.directory / 'url'}}}\n"
        f"hosts: [{{name: h1, uri: 'test:///default'}}]\nalerts: {json.dumps(alerts)}\n"
    )
    bus = await open_as("placement")
    script = test_subscribers.sample("workflow.py", tmp_path, PAGE)
    told = tmp_path / "workflow.log"
    with told.open("wb") as log:
        workflow = subprocess.Popen([sys.executable, str(script), str(hook), *keys], stdout=log, stderr=log)
    process = test_alerts.start(config)

    async def requests() -> list[dict[str, Any]]:
        done = await test_alerts.run(config, "scale-out", "--json")
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)["requests"]
        return found

    async def state(wanted: str) -> bool:
        return [one["state"] for one in await requests()] == [wanted]

    try:
        await test_alerts.placed(bus, "scaleout.place", "webhooks.place.capacity")
        began = time.monotonic()
        await bus.publish(CapacityExhausted(incident="h1-1", revision=1, waiting=(VM,)))
        await eventually(
            lambda: "scaleout.requested" in told.read_text(), "the workflow is asked", within_s=20
        )
        print(f"asked after {time.monotonic() - began:.2f} s")  # noqa: T201
        await eventually(lambda: state("progress"), "its answers are there", within_s=30, every_s=0.3)
        assert "a host of 4096 MiB" in str((await requests())[0]["told"])
        await bus.publish(HostJoined(at=boot("h9"), epoch=0))
        await bus.publish(CapacityRelieved(incident="h1-1", revision=2))
        await eventually(lambda: state("met"), "it is met", within_s=30, every_s=0.3)
        await eventually(lambda: "scaleout.closed" in told.read_text(), "the workflow hears it", within_s=20)
    finally:
        process.terminate()
        workflow.terminate()
        await asyncio.to_thread(process.wait, 15)
        workflow.wait()
    lines = told.read_text().splitlines()
    assert len([one for one in lines if one.startswith("rekindle.scaleout.requested.v1")]) == 1, (
        "once a shortage"
    )
