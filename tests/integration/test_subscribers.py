"""Outside subscribers: the samples of docs/SUBSCRIBING.md as they stand there, with credentials made by the command,
against the real server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from libs.core.ports import UnavailableError
from libs.events.hosts import HostSuspected
from libs.jetstream.connection import connect
from libs.jetstream.inbound import take_in
from libs.jetstream.schema import Names
from libs.jetstream.server import EmbeddedServer
from libs.jetstream.store import JetStreamStore
from tests.integration.conftest import OpenBus
from tests.unit.made import boot
from tests.waiting import eventually

PAGE = Path(__file__).parents[2] / "docs" / "SUBSCRIBING.md"


def sample(name: str, directory: Path, page: Path = PAGE) -> Path:
    """A sample as it stands in the page."""
    found = re.search(rf"<!-- sample {re.escape(name)} -->\n```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert found is not None
    path = directory / name
    path.write_text(found[1])
    return path


@pytest.fixture
def rekindle(server: EmbeddedServer, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    config = tmp_path / "pool.yaml"
    config.write_text(f"pool: p\ndata_dir: {tmp_path}\nhosts: [{{name: h1, uri: 'test:///default'}}]\n")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.cli", *words, "--config", str(config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


Rekindle = Callable[..., subprocess.CompletedProcess[str]]


async def made(rekindle: Rekindle, name: str, path: Path) -> dict[str, Any]:
    done = await asyncio.to_thread(rekindle, "credentials", "subscriber", name, "--output", str(path))
    assert done.returncode == 0, done.stderr
    body: dict[str, Any] = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    assert body["url"] not in done.stdout
    return body


def told(number: int) -> HostSuspected:
    return HostSuspected(at=boot("h1"), number=number, silent_s=1.5)


async def test_a_durable_subscriber_that_was_away_and_killed_sees_every_event_exactly_once(
    rekindle: Rekindle, open_as: OpenBus, tmp_path: Path
) -> None:
    bus = await open_as("detector")
    await made(rekindle, "erp", tmp_path / "erp.json")
    database = tmp_path / "erp.db"
    command = [sys.executable, str(sample("durable.py", tmp_path)), str(tmp_path / "erp.json"), str(database)]

    def ids() -> list[str]:
        try:
            with sqlite3.connect(database, timeout=10) as store:
                return [row[0] for row in store.execute("SELECT id FROM events")]
        except sqlite3.OperationalError:
            return []

    first = subprocess.Popen(command)
    try:
        for number in range(20):
            await bus.publish(told(number))
        await eventually(lambda: len(ids()) >= 20, "the subscriber hears", within_s=30)
        for number in range(20, 60):
            await bus.publish(told(number))
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    for number in range(60, 120):
        await bus.publish(told(number))  # nobody is there
    second = subprocess.Popen(command)
    try:
        await eventually(lambda: len(ids()) >= 120, "it has caught up", within_s=60)
    finally:
        second.kill()
        second.wait()
    assert sorted(ids()) == sorted(told(number).key for number in range(120))


async def test_a_user_that_may_tell_does_so_in_its_own_name_and_in_no_other(
    rekindle: Rekindle, open_as: OpenBus, tmp_path: Path
) -> None:
    bus = await open_as("alerting")
    heard: list[tuple[str, str, bytes]] = []

    async def take(source: str, what: str, body: bytes) -> dict[str, Any]:
        heard.append((source, what, body))
        return {"taken": True}

    intake = asyncio.create_task(take_in(bus, "p", take))
    path = tmp_path / "awx.json"
    words = ("credentials", "subscriber", "awx", "--may-tell", "--output", str(path))
    done = await asyncio.to_thread(rekindle, *words)
    assert done.returncode == 0, done.stderr
    place = json.loads(path.read_text())
    only_hears = await made(rekindle, "wall", tmp_path / "wall.json")
    refused: list[str] = []

    async def told_off(error: Exception) -> None:
        refused.append(str(error))

    async def user(body: dict[str, Any]) -> Client:
        return await nats.connect(body["url"], inbox_prefix=body["inbox_prefix"].encode(), error_cb=told_off)

    awx, wall = await user(place), await user(only_hears)
    try:
        answer = await awx.request(f"{place['tell']}.scaleout", b'{"id": "1"}', timeout=10)
        assert json.loads(answer.data) == {"taken": True}
        assert heard == [("awx", "scaleout", b'{"id": "1"}')]
        await awx.publish("rekindle.p.in.wall.event", b"forged")
        await wall.publish("rekindle.p.in.wall.event", b"it may not")
        await wall.publish("rekindle.p.in.awx.event", b"nor so")
        await awx.flush()
        await wall.flush()
        await eventually(lambda: len(refused) == 3, "the server refuses all three", within_s=10)
        assert (await awx.request(f"{place['tell']}.event", b"{}", timeout=10)).data == b'{"taken": true}'
        assert [source for source, _, _ in heard] == ["awx", "awx"]
    finally:
        await awx.close()
        await wall.close()
        intake.cancel()


async def test_a_live_subscriber_hears_what_it_asked_for(
    rekindle: Rekindle, open_as: OpenBus, tmp_path: Path
) -> None:
    bus = await open_as("detector")
    await made(rekindle, "wall", tmp_path / "wall.json")
    script = str(sample("live.py", tmp_path))
    command = [sys.executable, script, str(tmp_path / "wall.json"), "rekindle.p.event.host.*.h2"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"listening\n"
        await bus.publish(told(1))
        await bus.publish(HostSuspected(at=boot("h2"), number=2, silent_s=1.5))
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
    finally:
        process.kill()
        await process.wait()
    assert line.split()[1:] == ["rekindle.host.suspected.v1", "h2", "suspicion-h2-h2boot1-2"]


def nats_lines() -> tuple[list[str], list[str]]:
    """The page's two lines for the nats command, as a shell takes them apart."""
    found = re.search(r"## With the nats command\n.*?```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    _url, live, durable = (shlex.split(line) for line in found[1].strip().splitlines())
    return live, durable


def options(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Its plain words, and its options, of which only `--ack` has no value."""
    plain, given, left = [], {}, iter(words[1:])
    for word in left:
        if word.startswith("--"):
            given[word] = "" if word == "--ack" else next(left)
        else:
            plain.append(word)
    return plain, given


async def test_what_the_lines_for_the_nats_command_ask_of_the_server_is_granted(
    rekindle: Rekindle, open_as: OpenBus, tmp_path: Path
) -> None:
    """That program is in no registry of this machine. What it sends for these lines stands in its source
    (nats-io/natscli, cli/consumer_command.go: nextAction, getNextMsgDirect), and is sent here."""
    bus = await open_as("detector")
    place = await made(rekindle, "erp", tmp_path / "erp.json")
    live, durable = nats_lines()
    (_sub, subject), flags = options(live)
    assert set(flags) == {"--server", "--inbox-prefix"}
    (_consumer, _next, stream, name), taken = options(durable)
    assert set(taken) == {"--server", "--inbox-prefix", "--js-api-prefix", "--count", "--ack"}
    stream, subject = stream.replace("rack-a", "p"), subject.replace("rack-a", "p")
    assert (stream, name) == (place["stream"], place["durable"])
    assert subject.startswith(place["subject"].rstrip(">"))
    refused: list[str] = []

    async def told_off(error: Exception) -> None:
        refused.append(str(error))

    inbox = place["inbox_prefix"]
    user = await nats.connect(place["url"], inbox_prefix=inbox.encode(), error_cb=told_off)
    try:
        heard = await user.subscribe(subject.replace("capacity", "host"))
        await user.flush()  # the first may overtake the subscription, as on the page
        await user.flush()
        await bus.publish(told(1))
        assert b"host.suspected" in (await heard.next_msg(timeout=10)).data
        api = place["api_prefix"]
        info = await user.request(f"{api}.CONSUMER.INFO.{stream}.{name}", b"", timeout=10)
        assert json.loads(info.data).get("name") == name, info.data
        answers = await user.subscribe(user.new_inbox())
        ask = json.dumps({"batch": 1, "expires": 5_000_000_000}).encode()
        await user.publish(f"{api}.CONSUMER.MSG.NEXT.{stream}.{name}", ask, answers.subject)
        event = await answers.next_msg(timeout=10)
        assert json.loads(event.data)["id"] == told(1).key
        await user.publish(event.reply, b"+ACK")
        await user.flush()

        async def settled() -> bool:
            said = await user.request(f"{api}.CONSUMER.INFO.{stream}.{name}", b"", timeout=10)
            return bool(json.loads(said.data)["ack_floor"]["consumer_seq"] == 1)

        async with asyncio.timeout(10):
            while not await settled():  # the acknowledgement has no answer of its own
                await asyncio.sleep(0.05)
        assert refused == []
    finally:
        await user.close()


@pytest.mark.skipif(shutil.which("nats") is None, reason="the nats command is not installed")
async def test_the_lines_for_the_nats_command_run_where_it_is_installed(
    rekindle: Rekindle, open_as: OpenBus, tmp_path: Path
) -> None:
    bus = await open_as("detector")
    place = await made(rekindle, "erp", tmp_path / "erp.json")
    for number in range(3):
        await bus.publish(told(number))
    _live, durable = nats_lines()
    (_consumer, _next, _stream, name), _ = options(durable)
    where = ["--inbox-prefix", place["inbox_prefix"], "--js-api-prefix", place["api_prefix"]]
    what = ["consumer", "next", place["stream"], name, "--count", "3", "--ack"]
    taking = ["nats", "--server", place["url"], *where, *what]
    done = await asyncio.to_thread(subprocess.run, taking, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [told(number).key in done.stdout for number in range(3)] == [True] * 3


async def test_a_subscriber_can_only_hear(
    rekindle: Rekindle, server: EmbeddedServer, open_as: OpenBus, tmp_path: Path
) -> None:
    bus = await open_as("detector")
    lost: list[bool] = []
    bus.on_change(lost.append)
    place = await made(rekindle, "erp", tmp_path / "erp.json")
    other = await made(rekindle, "other", tmp_path / "other.json")
    assert lost == [], "nobody else's connection was disturbed"
    for number in range(8):
        await bus.publish(told(number))
    state = JetStreamStore(bus.client, Names("p"), "leases")

    async def closed() -> None:
        return None

    client = await connect([place["url"]], "erp", closed=closed, jetstream=False)
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error).lower())

    client._error_cb = note
    evil = "$KV.rekindle_p_leases.vm1"
    for subject, reply in (
        ("rekindle.p.event.host.failed.h9", ""),
        (evil, ""),
        ("$JS.API.CONSUMER.CREATE.rekindle_p_events.x", ""),
        ("$JS.API.STREAM.DELETE.rekindle_p_events", ""),
        ("rekindle.p.ask.h1", ""),
        (f"$JS.API.CONSUMER.MSG.NEXT.rekindle_p_events.{other['durable']}", evil),
        (f"REKINDLE.API.CONSUMER.MSG.NEXT.rekindle_p_events.{other['durable']}", evil),
        (f"REKINDLE.API.CONSUMER.INFO.rekindle_p_events.{other['durable']}", ""),
    ):
        before = len(refused)
        await client.publish(subject, b"1", reply)
        await client.flush()
        await eventually(lambda was=before: len(refused) > was, f"{subject} is refused")  # type: ignore[misc]
    for subject in ("rekindle.p.heartbeat.>", "$KV.>", "_INBOX_detector.>", ">"):
        before = len(refused)
        await client.subscribe(subject)
        await client.flush()
        await eventually(lambda was=before: len(refused) > was, f"{subject} is refused")  # type: ignore[misc]
    # what it may ask for is not delivered into a bucket, either, with the server's own rights
    await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.rekindle_p_events.{place['durable']}", b"5", evil)
    await client.publish(f"REKINDLE.API.CONSUMER.INFO.rekindle_p_events.{place['durable']}", b"", evil)
    await client.publish(f"REKINDLE.API.CONSUMER.MSG.NEXT.rekindle_p_events.{place['durable']}", b"5", evil)
    await client.publish(f"$JS.ACK.rekindle_p_events.{place['durable']}.1.1.1.1.0", b"", evil)
    await client.flush()
    await asyncio.sleep(1.0)
    assert await state.scan("") == []
    await client.close()


async def test_credentials_can_be_listed_and_revoked(
    rekindle: Rekindle, server: EmbeddedServer, open_as: OpenBus, tmp_path: Path
) -> None:
    bus = await open_as("detector")
    place = await made(rekindle, "erp", tmp_path / "erp.json")
    again = await made(rekindle, "erp", tmp_path / "again.json")
    assert again == place
    listed = await asyncio.to_thread(rekindle, "credentials", "list", "--json")
    assert json.loads(listed.stdout)["subscribers"] == ["erp"]

    async def closed() -> None:
        return None

    client = await connect([place["url"]], "erp", closed=closed, jetstream=False)
    done = await asyncio.to_thread(rekindle, "credentials", "revoke", "erp")
    assert done.returncode == 0, done.stderr
    await eventually(lambda: not client.is_connected, "the revoked user is gone")
    await client.close()
    with pytest.raises(UnavailableError):
        await connect([place["url"]], "erp", closed=closed, jetstream=False, wait_s=1.0)
    assert bus.connected
    missing = await asyncio.to_thread(rekindle, "credentials", "revoke", "erp")
    assert (missing.returncode, "no subscriber is called erp" in missing.stderr) == (2, True)
    named = await asyncio.to_thread(rekindle, "credentials", "subscriber", "a b")
    assert (named.returncode, "is no name" in named.stderr) == (2, True)


async def test_what_a_version_before_kept_in_the_nameless_account_is_taken_over(tmp_path: Path) -> None:
    from libs.core.clock import SystemClock
    from libs.jetstream.bus import open_bus
    from libs.jetstream.schema import ensure

    async def closed() -> None:
        return None

    async def messages(server: EmbeddedServer) -> int:
        bus = await open_bus([server.url], "p", "a", SystemClock(), "a", closed=closed)
        await ensure(bus.client.jetstream(timeout=5), "p")
        await bus.publish(told(1))
        found = (await bus.client.jetstream().stream_info("rekindle_p_events")).state.messages
        await bus.client.close()
        return found

    server = EmbeddedServer(tmp_path / "nats")
    await server.start()
    assert await messages(server) == 1
    await server.stop()
    store = tmp_path / "nats" / "jetstream" / "jetstream"
    assert os.listdir(store) == ["REKINDLE"]
    (store / "REKINDLE").rename(store / "$G")  # as it was
    await server.start()
    try:
        assert await messages(server) == 1
    finally:
        await server.stop()
