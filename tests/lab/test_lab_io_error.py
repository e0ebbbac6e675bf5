"""A disk that really fails under a guest that writes: the file system below its datastore is full, and its next write needs
room. QEMU pauses it (its default for a write without room), the host's agent tells of it, and it is restarted where it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from infra.lab import network, procs, stores
from infra.lab.lab import Lab
from infra.lab.run import LabRun
from libs.events.guests import VmUnhealthy
from libs.events.vms import VmFailed, VmRestarted
from libs.model import Failure
from libs.scenario.model import Scenario
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab
SIZE = 8 << 20


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Labs that go up have their datastores on small file systems of their own."""
    mounted: list[Path] = []
    up, down = Lab.up, Lab.down

    def up_on_small(lab: Lab, *arguments: Any, **more: Any) -> None:
        for one in lab.spec.datastores:
            place = lab.backing(one.name)
            options = ["-o", f"size={SIZE}", "tmpfs", str(place)]
            subprocess.run(["mount", "-t", "tmpfs", *options], check=True)
            mounted.append(place)
        up(lab, *arguments, **more)

    def down_and_off(lab: Lab, **more: Any) -> None:
        while mounted:
            subprocess.run(["umount", "--lazy", str(mounted.pop())], check=True)
        down(lab, **more)

    monkeypatch.setattr(Lab, "up", up_on_small)
    monkeypatch.setattr(Lab, "down", down_and_off)
    yield mounted
    while mounted:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", "--lazy", str(mounted.pop())], check=True)


def _fill(place: Path) -> None:
    with open(place / "fill", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def _punch(disk: Path) -> None:
    """Give the blocks of the file back: what is written to it next needs new ones, which there are not."""
    size = str(disk.stat().st_size)
    subprocess.run(["fallocate", "--punch-hole", "--offset", "0", "--length", size, str(disk)], check=True)


def _paused(lab: Lab, vm: str) -> bool:
    return bool(lab.vm_state("h1", vm) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR))


async def test_a_guest_whose_disk_fails_is_told_of_and_restarted_where_it_was(
    roots: Roots, small: list[Path]
) -> None:
    if os.getuid() != 0 or not network.works() or stores.why_not() is not None:
        pytest.skip("datastores on file systems of their own need root, bridges and FUSE")
    scenario = Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "a disk fails",
            "datastores": [{"name": "nfs"}],
            "hosts": [{"name": name} for name in ("h1", "h2", "h3")],
            "vms": [{"name": "web", "host": "h1", "datastore": "nfs"}],
        }
    )
    run = LabRun(scenario, roots.new(), bare=False)
    async with run.standing():
        lab, place = run.lab, run.lab.backing("nfs")
        await asyncio.to_thread(
            procs.wait_for, lambda: lab.disk_count("web") > 0, 40, "the guest's first count"
        )
        start = len(run.envelopes)

        def fails() -> None:
            until = time.monotonic() + 30.0
            while not _paused(lab, "web"):
                assert time.monotonic() < until, "QEMU never paused it over the error"
                _punch(place / "web.raw")
                _fill(place)  # what it gave back; the guest may have been faster, then once more
                time.sleep(0.2)
            (place / "fill").unlink()

        await asyncio.to_thread(fails)
        until = time.monotonic() + 40.0
        while not any(isinstance(one.data, VmRestarted) for one in run.envelopes[start:]):
            told = [one.data.kind for one in run.envelopes[start:]]
            assert time.monotonic() < until, f"never restarted: {told}"
            await asyncio.sleep(0.1)
        facts = [one.data for one in run.envelopes[start:]]
        [failed] = [fact for fact in facts if isinstance(fact, VmFailed)]
        assert (failed.why, failed.at.host) == (Failure.IO_ERROR, "h1")
        assert [fact.at.host for fact in facts if isinstance(fact, VmRestarted)] == ["h1"]
        assert not [fact for fact in facts if isinstance(fact, VmUnhealthy)]
        assert not {fact.kind for fact in facts} & {
            "host.suspected",
            "host.failed",
            "host.grey",
            "datastore.failed",
        }
        await asyncio.to_thread(
            procs.wait_for, lambda: lab.disk_count("web") > 0, 40, "the guest to count anew"
        )
        summary = await asyncio.to_thread(lab.stop_observer)
        assert not summary.sightings
