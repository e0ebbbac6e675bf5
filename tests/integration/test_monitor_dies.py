"""S12: the detector's process lives, and what it does is dead: its loop is blocked, its code raises, its store is gone. Two
real detectors beside a real NATS, each with its /healthz.

What a *period* is: of a detector its own heartbeat, the renewal of its lease once a second (`RENEW_S`). After three that do
not come another replica leads. Of an alarm the hosts' heartbeat, half a second by default: after three of these whoever
asks /healthz hears no more that it is well.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from libs.config.settings import Heartbeats
from libs.events.signals import Heartbeat
from libs.jetstream.lease import LOOK_S, RENEW_S, TERM_S
from libs.jetstream.server import EmbeddedServer
from libs.model import Incarnation
from tests.integration.conftest import OpenBus
from tests.integration.test_cli import REPOSITORY, environment
from tests.integration.test_takeover import NAMES, Pool, pool_of
from tests.waiting import eventually

PERIODS = 3
LOAD_S = 1.0
"""What a busy machine may add to either."""
TAKEN_OVER_S = PERIODS * RENEW_S + LOOK_S + LOAD_S
ALARM_S = PERIODS * Heartbeats().interval_s + LOAD_S


def test_a_leader_that_misses_three_of_its_own_heartbeats_leads_no_more() -> None:
    assert TERM_S <= PERIODS * RENEW_S


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Replica:
    config: Path
    name: str
    port: int = field(default_factory=_free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self, fault: str = "") -> None:
        program = ["tests.integration.faulty", fault] if fault else ["services.cli"]
        environ = {"REKINDLE_HOLDER": self.name, "REKINDLE_HEALTH__PORTS__DETECTOR": str(self.port)}
        with self.config.with_suffix(f".{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *program, "service", "detector", "--config", str(self.config)],
                cwd=REPOSITORY,
                env={**environment(), **environ},
                stdout=log,
                stderr=log,
            )

    async def health(self, within_s: float = ALARM_S) -> tuple[int, list[str]]:
        """Status and reasons; 0 where nobody answers."""

        def ask() -> tuple[int, list[str]]:
            address = f"http://127.0.0.1:{self.port}/healthz"
            try:
                with urllib.request.urlopen(address, timeout=within_s) as answer:
                    return answer.status, []
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.load(error)["reasons"]
            except OSError:
                return 0, []

        return await asyncio.to_thread(ask)

    async def well(self) -> bool:
        return (await self.health())[0] == 200


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[tuple[Replica, Replica]]:
    config = tmp_path / "pool.yaml"
    uri = "qemu+unix:///system?socket=/no/such/socket"
    lines = [f'  - {{name: h{number}, uri: "{uri}", agent: true}}' for number in (1, 2, 3)]
    config.write_text("\n".join([f"pool: p\ndata_dir: {tmp_path}\nhosts:", *lines, ""]))
    found = Replica(config, "one"), Replica(config, "two")
    yield found
    for one in found:
        if one.process is not None:
            one.process.kill()
            one.process.wait()


async def _both_run(pool: Pool, replicas: tuple[Replica, Replica], fault: str = "") -> None:
    one, two = replicas
    one.start(fault)
    await eventually(pool.joined, "all have joined", within_s=40.0, every_s=0.2)
    two.start()
    await eventually(two.well, "the standby runs", within_s=40.0, every_s=0.2)
    assert await pool.leader() == "one"
    assert await one.well()


@pytest.mark.parametrize("fault", ["blocks", "decider-raises", "callback-raises"])
async def test_s12_a_detector_that_is_dead_inside_is_followed_by_another_and_is_not_well(
    replicas: tuple[Replica, Replica], server: EmbeddedServer, open_as: OpenBus, fault: str
) -> None:
    one, two = replicas
    async with pool_of(3, open_as) as pool:
        await _both_run(pool, replicas, fault)
        poison: Any = Heartbeat(at=Incarnation(host="h1", boot="boot-of-h1"), agent=fault, seq=1)
        await pool.onlooker.send("heartbeat.h1", poison)
        began = asyncio.get_running_loop().time()

        async def taken_over() -> bool:
            return await pool.leader() == "two"

        await asyncio.sleep(PERIODS * Heartbeats().interval_s)
        assert (await one.health(LOAD_S))[0] != 200, "whoever asks hears that it is not well"
        await eventually(taken_over, "the other leads", within_s=TAKEN_OVER_S, every_s=0.05)
        took_s = asyncio.get_running_loop().time() - began
        assert took_s <= TAKEN_OVER_S
        assert await two.well()
        if fault != "blocks":  # it has ended, and said so; its lease was given back
            assert one.process is not None
            assert await asyncio.to_thread(one.process.wait, 5) != 0
        await asyncio.sleep(2.0)
        assert await pool.suspected() == [], "and nobody was suspected for it"


@pytest.mark.parametrize("bucket", ["state", "leaders"])
async def test_s12_a_detector_whose_store_is_dropped_is_not_well(
    replicas: tuple[Replica, Replica], server: EmbeddedServer, open_as: OpenBus, bucket: str
) -> None:
    one, two = replicas
    async with pool_of(3, open_as) as pool:
        await _both_run(pool, replicas)
        await pool.onlooker.client.jetstream().delete_stream(f"KV_{NAMES.bucket(bucket)}")
        for replica in (one, two):
            status, reasons = await replica.health()
            assert status == 503, "at the first question, within the time of three heartbeats"
            assert reasons[0].startswith("store: "), reasons
        await asyncio.sleep(2.0)
        assert await pool.suspected() == [], "and nobody is judged without it"
