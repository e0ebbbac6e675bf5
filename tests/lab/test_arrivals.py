"""A person migrates a VM between real libvirtds: before the target takes it in, whoever may start it knows of it. ADR 11."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import libvirt
import pytest

from infra.lab import network
from infra.lab.cuts import BUS
from infra.lab.run import LabRun
from libs.readmodel import reader
from libs.scenario.model import Scenario
from libs.virt.moves import FLAGS
from tests.lab.roots import Roots
from tests.waiting import eventually

pytestmark = pytest.mark.lab
STORY: dict[str, Any] = {
    "schema": "rekindle.scenario.v1",
    "name": "a person migrates a VM",
    "duration_s": 60,
    # of a host that is cut off nothing is to be concluded here
    "settings": {"detection": {"suspect_after_s": 60}},
    "hosts": [{"name": "h1"}, {"name": "h2"}],
    "vms": [{"name": "db", "host": "h1"}],
    "steps": [],
}


def _migrated(run: LabRun, source: str, target: str) -> str:
    """As `virsh migrate --live --persistent`, by a person who reaches both libvirtds; what libvirt says against it."""
    uri = next(one.migrate_uri for one in run.plane.settings().hosts if one.name == target)
    with run.lab.connect(source) as here, run.lab.connect(target) as there:
        try:
            parameters = {libvirt.VIR_MIGRATE_PARAM_URI: uri}
            here.lookupByName("db").migrate3(there, parameters, FLAGS | libvirt.VIR_MIGRATE_UNSAFE)
        except libvirt.libvirtError as error:
            return str(error)
    return ""


async def _lease(run: LabRun) -> tuple[str, int]:
    """Who holds it, and how many hosts it may be arriving at."""
    async with reader(run.plane.settings()) as look:
        [lease] = await look.leases()
    return lease.holder.host, len(lease.arriving)


async def test_a_host_takes_a_vm_in_only_where_somebody_hears_of_it_or_a_person_says_so(roots: Roots) -> None:
    if os.getuid() != 0 or not network.works():
        pytest.skip("hooks and cut links need root and bridges")
    run = LabRun(Scenario.model_validate(STORY), roots.new(), bare=True)
    async with run.standing():
        async with reader(run.plane.settings()) as look:
            assert [one.asks for one in (await look.inventories()).values()] == [True, True]
        # heard: it comes in, and its lease follows
        assert await asyncio.to_thread(_migrated, run, "h1", "h2") == ""
        assert await asyncio.to_thread(run.lab.placement) == {"db": ["h2"]}

        async def followed() -> bool:
            return await _lease(run) == ("h2", 0)

        await eventually(followed, "its lease follows it", within_s=10.0, every_s=0.2)

        # cut off: libvirt refuses, in our words, and it runs on where it was
        await asyncio.to_thread(run.lab.cut, [("h1", BUS), (BUS, "h1")])
        said = await asyncio.to_thread(_migrated, run, "h2", "h1")
        assert "Rekindle does not let db in: the management plane has not answered" in said, said
        override = run.lab.host("h1").arrivals_socket.parent / "arrivals-allowed"
        assert f"touch {override}" in said, said
        assert await asyncio.to_thread(run.lab.placement) == {"db": ["h2"]}
        assert await _lease(run) == ("h2", 0)

        # a person's word
        override.touch()
        assert await asyncio.to_thread(_migrated, run, "h2", "h1") == ""
        assert await asyncio.to_thread(run.lab.placement) == {"db": ["h1"]}
        override.unlink()
        await asyncio.to_thread(run.lab.cut, [])

        async def back() -> bool:
            return await _lease(run) == ("h1", 0)

        await eventually(back, "its lease follows once both are heard", within_s=20.0, every_s=0.2)

        # nobody to ask
        await asyncio.to_thread(run.lab.kill_agent, "h2")
        said = await asyncio.to_thread(_migrated, run, "h1", "h2")
        assert "Rekindle does not let db in: the Rekindle agent of this host does not answer" in said, said
        assert await asyncio.to_thread(run.lab.placement) == {"db": ["h1"]}
