"""Readiness probes against real guests with a network: their servers begin some seconds after they are up, or never.

What a guest answers is asked for by the test itself, too, over the lab's own network; who runs where and since when is the
observer's word.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.lab import network
from infra.lab.observations import Observations
from infra.lab.run import LabRun
from libs.scenario.outcome import Outcome
from tests.lab.roots import Roots
from tests.lab.test_failover import _as_simulated, _good, _load

pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.skipif(os.getuid() != 0 or not network.works(), reason="networks need root and bridges"),
]
LOOK_S = 0.05


class Asked:
    """A port of a guest, asked again and again."""

    def __init__(self, address: str, port: int) -> None:
        self.where = (address, port)
        self.answered: list[float] = []
        """When it did, by the observer's clock."""

    async def again(self) -> None:
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    _, writer = await asyncio.open_connection(*self.where)
                self.answered.append(time.monotonic())
                writer.close()
            await asyncio.sleep(LOOK_S)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.again())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _began(seen: Observations, vm: str) -> float:
    """Its latest run."""
    return [one.mono for one in seen.vms if one.name == vm and one.active][-1]


def _up(seen: Observations, vm: str) -> float:
    """Its latest boot."""
    return [one.mono for one in seen.guests if one.name == vm][-1]


async def _played(
    name: str, ports: dict[str, int], root: Path
) -> tuple[Outcome, Observations, dict[str, Asked]]:
    """The file in both worlds, with these guests' ports asked meanwhile."""
    scenario = _load(name)
    run = LabRun(scenario, root, bare=True)
    numbers = {vm.name: number for number, vm in enumerate(scenario.vms)}
    async with run.standing(), contextlib.AsyncExitStack() as beside:
        asked = {
            vm: Asked(run.lab.guest_address(numbers[vm]).partition("/")[0], port)
            for vm, port in ports.items()
        }
        for one in asked.values():
            await beside.enter_async_context(one.running())
        await run.play()
        await asyncio.to_thread(run.lab.stop_observer)
        seen, outcome = run.lab.observations(), _good(run.outcome())
    await _as_simulated(scenario, outcome)
    return outcome, seen, asked


async def test_who_comes_after_a_server_begins_once_that_answers_and_not_before(roots: Roots) -> None:
    ports, late_s = {"db": 8080, "mq": 5672}, {"db": 4.0, "mq": 2.0}
    outcome, seen, asked = await _played("ready_by_probe", ports, roots.new())
    for server, waits in (("db", "app"), ("mq", "job")):
        began = _began(seen, server)
        answered = next((at for at in asked[server].answered if at > began), math.inf)
        assert answered - _up(seen, server) > late_s[server] - 0.5, "its server begins after its guest is up"
        assert _began(seen, waits) > answered - LOOK_S
    assert [one for one in outcome.timeline if one.event == "vm.waited_in_vain"] == []


async def test_a_server_that_never_answers_is_waited_for_as_long_as_its_policy_says(roots: Roots) -> None:
    outcome, seen, asked = await _played("never_ready", {"db": 5432}, roots.new())
    assert asked["db"].answered == []
    assert _began(seen, "app") - _began(seen, "db") > 8.0, "ten seconds, from when it was to start"
    assert [one.subject for one in outcome.timeline if one.event == "vm.waited_in_vain"] == ["app"]
