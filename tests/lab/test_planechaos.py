"""Three management nodes over real hosts: a host dies while they are being broken, and while none of them is there."""

from __future__ import annotations

import os

import pytest

from infra.lab import network
from infra.lab.outage import Outage
from infra.lab.planechaos import PlaneChaos
from tests.lab.roots import Roots

pytestmark = [pytest.mark.lab, pytest.mark.long]


@pytest.fixture(autouse=True)
def root_only() -> None:
    if os.getuid() != 0 or not network.works():
        pytest.skip("three management nodes need hosts with a network of their own")


async def test_hosts_fail_while_the_plane_is_broken_and_each_incident_is_one(roots: Roots) -> None:
    """A short form of `rekindle lab planechaos`: docs/BENCH.md has a long one. Of two failovers there is no percentile: the
    bars are for that."""
    result = await PlaneChaos(roots.new(), failovers=2, seed=5, alone=1).play()
    late = [what for what in result.found if "percentile" in what]
    assert [what for what in result.found if what not in late] == []
    assert result.incidents == 3
    assert (result.sightings, result.double_running_s) == (0, 0.0)
    assert sum(result.faults.values()) >= 1
    assert all(row.vms for row in result.rows)


async def test_a_host_that_dies_while_there_is_no_plane_is_recovered_and_no_other_vm_is_touched(
    roots: Roots,
) -> None:
    """A short form of `rekindle lab outage`."""
    result = await Outage(roots.new(), minutes=0.25, quiet_s=5.0).play()
    assert result.found == []
    assert result.right_s > 0
    assert result.recovered_s > 5.0, "nobody was suspected in the quiet time"
