"""A host agent as a process of its own, while there is no bus at all: what an earlier life of it armed goes on to be fed."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from infra.lab.dog import Dog
from libs.model import Incarnation
from libs.promisefile import PromiseFile
from libs.promises import Promise
from tests.integration.test_cli import REPOSITORY, environment

TIMEOUT_S = 5.0
HOLDS_S = 8.0


class Guarded:
    """One host: its watchdog, which counts how often it goes off, a datastore, and an agent without a bus."""

    def __init__(self, root: Path) -> None:
        self.resets: list[float] = []
        self.armed = threading.Event()
        self.dog = Dog(lambda: self.resets.append(time.monotonic()))
        answer = self.dog.answer

        def seen(request: dict[str, object]) -> dict[str, object] | None:
            said = answer(request)
            if request["do"] == "arm":
                self.armed.set()
            return said

        self.dog.answer = seen  # type: ignore[method-assign]
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(root / "watchdog.sock"))
        listener.listen()
        threading.Thread(target=self.dog.serve, args=(listener,), daemon=True).start()
        (root / "nfs").mkdir()
        (root / "boot_id").write_text("b00b1e5\n")
        self.slots, self.config = root / "nfs", root / "pool.yaml"
        self.memory = PromiseFile(root / "data" / "promises" / "h1.json")
        self.config.write_text(
            f"pool: p\ndata_dir: {root / 'data'}\nbus: {{url: 'nats://127.0.0.1:1'}}\nhosts:\n"
            f"  - name: h1\n    uri: test:///default\n    local_uri: test:///default\n    agent: true\n"
            f"    boot_id_path: {root / 'boot_id'}\n"
            f"    watchdog: {{device: {root / 'watchdog.sock'}, timeout_s: {TIMEOUT_S:g}}}\n"
            f"datastores: [{{name: nfs, path: {self.slots}}}]\n"
        )

    async def agent(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "service", "heartbeat", "--host", "h1"),
            *("--config", str(self.config)),
            cwd=REPOSITORY,
            env=environment(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )


@pytest.mark.parametrize("remembered", [True, False])
async def test_what_an_earlier_life_armed_is_fed_by_the_slot_alone(tmp_path: Path, remembered: bool) -> None:
    host = Guarded(tmp_path)
    if remembered:
        at = Incarnation(host="h1", boot="b00b1e5")
        promise = Promise(at=at, timeout_s=TIMEOUT_S, lag_s=1.0, datastores=("nfs",))
        await host.memory.remember(at, (promise,))
    agent = await host.agent()
    try:
        if not remembered:  # it may not even open the device: that would keep a host alive that nobody knows
            assert not await asyncio.to_thread(host.armed.wait, HOLDS_S)
            return
        assert await asyncio.to_thread(host.armed.wait, 30.0), "it takes the device over"
        await asyncio.sleep(HOLDS_S)
        assert host.resets == []
        agent.send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        while not host.resets:
            assert time.monotonic() < killed_at + 2 * TIMEOUT_S, "nobody fed it, and nothing happened"
            await asyncio.sleep(0.05)
        assert host.resets[0] - killed_at < TIMEOUT_S + 1.0
    finally:
        if agent.returncode is None:
            agent.kill()
        await agent.wait()
        host.dog.stop()
