"""A bus of three NATS servers for a lab, in place of the one that `rekindle up` embeds: one may lead, and be killed.

All listen on the machine's side of the lab's network, each in a directory of its own; a killed one stays away until
it is started. They carry the lab's mark in their environment, so that `Lab.down` ends whatever is left of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors

from infra.lab import procs
from infra.lab.paths import MARKER
from infra.lab.spec import LabError
from libs.core.ports import UnavailableError
from libs.jetstream.connection import BusRefusedError, SafeClient, connect
from libs.jetstream.schema import BUCKETS, Names
from libs.jetstream.server import USER, binary, free_port

NODES = 3
READY_S = 30.0
ELECTED_S = 30.0
HANDED_OVER_S = 6.0
"""For an asked leader to be another one; it mostly takes a tenth of a second."""
UNAVAILABLE = 503
"""JetStream's code for: there is no leader, for now."""
LOOK_S = 0.05
CONFIG = """\
listen: "{listen}:{port}"
server_name: "{name}"
ping_interval: "1s"
ping_max: 2
cluster {{ name: lab, listen: "127.0.0.1:{cluster_port}", no_advertise: true, routes: [ {routes} ] }}
authorization {{ timeout: 10, users: [ {{ user: "{user}", password: "{token}" }} ] }}
accounts {{ SYS {{ users: [ {{ user: "{user}-system", password: "{system}" }} ] }} }}
system_account: SYS
jetstream {{ store_dir: "{store}", sync_interval: always, max_mem: 256MB, max_file: 8GB }}
"""


@dataclass(slots=True)
class BusCluster:
    """The three servers of the lab at `root`, and what is done to them."""

    root: Path
    listen: str
    pool: str
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """By this process, which has to reap them."""

    @property
    def folder(self) -> Path:
        return self.root / "bus"

    @property
    def url_file(self) -> Path:
        """What the pool file's `bus.url_file` names."""
        return self.folder / "url"

    @property
    def system_url_file(self) -> Path:
        return self.folder / "system_url"

    @property
    def settings(self) -> dict[str, Any]:
        """The pool file's section `bus`."""
        return {
            "url_file": str(self.url_file),
            "system_url_file": str(self.system_url_file),
            "replicas": NODES,
        }

    def name(self, node: int) -> str:
        return f"bus{node}"

    # -- processes

    def start(self) -> None:
        """Start the nodes that do not run and wait until JetStream answers. Raises TimeoutError, LabError."""
        if not self.url_file.exists():
            self._write()
        for node in range(NODES):
            self.start_node(node)
        asyncio.run(self._ready())

    def _write(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        token, system = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        ports = [free_port(self.listen) for _ in range(NODES)]
        cluster_ports = [free_port() for _ in range(NODES)]
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in cluster_ports)
        for node in range(NODES):
            text = CONFIG.format(
                listen=self.listen,
                port=ports[node],
                name=self.name(node),
                cluster_port=cluster_ports[node],
                routes=routes,
                user=USER,
                token=token,
                system=system,
                store=self.folder / self.name(node),
            )
            self._secret(self.folder / f"{self.name(node)}.conf", text)
        for path, user, password in (
            (self.url_file, USER, token),
            (self.system_url_file, f"{USER}-system", system),
        ):
            self._secret(path, ",".join(f"nats://{user}:{password}@{self.listen}:{port}" for port in ports))

    @staticmethod
    def _secret(path: Path, text: str) -> None:
        path.touch(mode=0o600)
        path.write_text(text)

    def start_node(self, node: int) -> None:
        """Start a node unless it runs; returns at once."""
        if self._process(node) is not None:
            return
        name = self.name(node)
        process = subprocess.Popen(
            [binary(), "-c", str(self.folder / f"{name}.conf"), "-l", str(self.folder / f"{name}.log")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, MARKER: str(self.root)},
        )
        found = procs.find(process.pid)
        if found is None:
            raise LabError(f"{name} ended at once, see {self.folder / name}.log")
        procs.write_pid_file(self.folder / f"{name}.pid", found)
        self._started.append(process)

    def kill_node(self, node: int) -> None:
        """SIGKILL a node; nobody starts it again. Raises LabError where it does not run."""
        process = self._process(node)
        if process is None:
            raise LabError(f"{self.name(node)} does not run")
        procs.kill(process)

    def signal_node(self, node: int, number: signal.Signals) -> None:
        """To a server, if it runs."""
        process = self._process(node)
        if process is not None:
            procs.send(process, number)

    def stop(self) -> None:
        """End all nodes."""
        for node in range(NODES):
            process = self._process(node)
            if process is not None:
                procs.kill(process)
        for started in self._started:
            started.wait()

    def _process(self, node: int) -> procs.Proc | None:
        return procs.read_pid_file(self.folder / f"{self.name(node)}.pid")

    # -- leaders

    @property
    def streams(self) -> list[str]:
        """All streams of the pool, that of the facts first."""
        names = Names(self.pool)
        return [names.events, *(f"KV_{names.bucket(bucket)}" for bucket in BUCKETS)]

    async def _ready(self) -> None:
        async with self._client(system=False) as client:
            await _until(lambda: self._answers(client), READY_S, "JetStream of the lab's three NATS servers")

    @staticmethod
    async def _answers(client: SafeClient) -> bool:
        try:
            await client.jetstream(timeout=2).account_info()
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError):
            return False
        return True

    @contextlib.asynccontextmanager
    async def _client(self, *, system: bool) -> AsyncIterator[SafeClient]:
        async def closed() -> None:
            return None

        path = self.system_url_file if system else self.url_file
        until = time.monotonic() + READY_S
        while True:
            try:
                client = await connect(path.read_text().split(","), "lab-bus", closed=closed, jetstream=False)
                break
            except (UnavailableError, BusRefusedError) as error:
                if time.monotonic() > until:
                    raise LabError(f"the lab's bus: {error}") from error
                await asyncio.sleep(LOOK_S)
        try:
            yield client
        finally:
            with contextlib.suppress(OSError):
                await client.close()

    async def leaders(self) -> dict[str, str]:
        """The node that leads each stream; those without a leader are left out."""
        async with self._client(system=False) as client:
            return await self._leaders(client)

    async def _leaders(self, client: SafeClient) -> dict[str, str]:
        found = {}
        for stream in self.streams:
            with contextlib.suppress(nats.errors.Error, nats.js.errors.Error, TimeoutError):
                cluster = (await client.jetstream(timeout=1).stream_info(stream)).cluster
                if cluster is not None and cluster.leader:
                    found[stream] = cluster.leader
        return found

    async def step_down(self) -> float:
        """The leader of each stream, and of the cluster, hands over in good order. Seconds until all streams have
        another one. Raises TimeoutError."""
        async with self._client(system=True) as client:
            await _request(client, "$JS.API.META.LEADER.STEPDOWN")
        async with self._client(system=False) as client:
            before, began = await self._leaders(client), time.monotonic()
            await self._hand_over(client, before)
            return time.monotonic() - began

    async def _hand_over(self, client: SafeClient, before: dict[str, str]) -> None:
        """Ask the leader of each stream to step down, and once more where it leads still after a while. A request whose
        answer was lost may have been heard: asked blindly again, the new leader would hand back to the former."""
        until = time.monotonic() + ELECTED_S
        while True:
            for stream in before:
                await _hand_over_once(client, f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", until)
            within_s = min(HANDED_OVER_S, until - time.monotonic())
            try:
                return await self._led_by_others(client, before, within_s)
            except TimeoutError:
                now = await self._leaders(client)
                before = {stream: name for stream, name in before.items() if now.get(stream, name) == name}
                if time.monotonic() > until:
                    raise

    async def kill_leader(self) -> tuple[int, float]:
        """SIGKILL the node that leads the stream of facts, and wait until others lead all that it led; start it again.
        (Which node, seconds until then.) Raises TimeoutError, LabError."""
        before = await self.leaders()
        leader = before.get(self.streams[0], self.name(0))
        node = next(node for node in range(NODES) if self.name(node) == leader)
        began = time.monotonic()
        await asyncio.to_thread(self.kill_node, node)
        try:
            async with self._client(system=False) as client:
                mine = {stream: name for stream, name in before.items() if name == leader}
                await self._led_by_others(client, mine)
            return node, time.monotonic() - began
        finally:
            self.start_node(node)

    async def _led_by_others(
        self, client: SafeClient, before: dict[str, str], within_s: float = ELECTED_S
    ) -> None:
        async def changed() -> bool:
            now = await self._leaders(client)
            return all(stream in now and now[stream] != name for stream, name in before.items())

        await _until(changed, within_s, "other leaders of the bus's streams")


async def _hand_over_once(client: SafeClient, subject: str, until: float) -> None:
    """Ask again only where the answer says that there is no leader, for now: without one it may have been heard."""
    while time.monotonic() < until:
        try:
            answer = json.loads((await client.request(subject, b"", timeout=5)).data)
        except (nats.errors.Error, TimeoutError):
            return
        if answer.get("error", {}).get("code") != UNAVAILABLE:
            return
        await asyncio.sleep(LOOK_S)


async def _request(client: SafeClient, subject: str) -> None:
    """Ask the server for something, again and again while it has no leader that could do it, or does not answer. Raises
    LabError where it says no, or still nothing after a while."""
    until = time.monotonic() + ELECTED_S
    while True:
        refused, later = "", True
        try:
            answer = json.loads((await client.request(subject, b"", timeout=5)).data)
        except (nats.errors.Error, TimeoutError) as error:
            refused = repr(error)
        else:
            if "error" not in answer:
                return
            refused, later = str(answer["error"]), answer["error"].get("code") == UNAVAILABLE
        if not later or time.monotonic() > until:
            raise LabError(f"{subject}: {refused}")
        await asyncio.sleep(LOOK_S)


async def _until(condition: Callable[[], Awaitable[bool]], within_s: float, what: str) -> None:
    until = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not after {within_s:g} s")
        await asyncio.sleep(LOOK_S)
