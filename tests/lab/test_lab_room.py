"""Room that is made on real hosts: a healthy VM migrates while it runs, and such as matter less are stopped."""

from __future__ import annotations

import asyncio

import pytest

from infra.lab.observations import Observations
from infra.lab.run import LabRun
from tests.lab.roots import Roots
from tests.lab.test_failover import _as_simulated, _good, _load

pytestmark = pytest.mark.lab


def _began(seen: Observations, vm: str, host: str) -> float:
    """When it was first seen to run there."""
    return next(one.mono for one in seen.vms if (one.name, one.host, one.active) == (vm, host, True))


def _ended(seen: Observations, vm: str, host: str) -> float:
    """When it was first seen to run there no more."""
    return next(one.mono for one in seen.vms if (one.name, one.host, one.active) == (vm, host, False))


@pytest.mark.long
async def test_a_healthy_vm_moves_and_lesser_ones_stop_for_those_that_are_down(roots: Roots) -> None:
    scenario = _load("room_is_made")
    run = LabRun(scenario, roots.new(), bare=True)
    async with run.standing():
        await run.play()
        await asyncio.to_thread(run.lab.stop_observer)
        boots = {vm.name: run.lab.guest_up_count(vm.name) for vm in scenario.vms}
        seen, outcome = run.lab.observations(), _good(run.outcome())
    # its guest went on: one that had been started anew would have come up twice
    assert boots == {"web": 1, "mail": 1, "peer": 1, "app": 2, "db": 2, "old": 2, "batch": 2}
    assert _ended(seen, "web", "h2") <= _began(seen, "db", "h2")
    for stopped in ("old", "batch"):
        assert _ended(seen, stopped, "h4") <= _began(seen, "app", "h4")
    await _as_simulated(scenario, outcome)
