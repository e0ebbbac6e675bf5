"""The disk's own lock as the last line: a second start is refused by it, with our own lease check out of the way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.lab import network, procs
from infra.lab.lab import Lab, LabHost, LabVm
from infra.lab.labvms import lab_vm
from infra.lab.libvirtconf import SANLOCK_IO_S
from infra.lab.needs import MissingProgramError, lock_daemon
from infra.lab.run import LabRun
from infra.lab.steps import load
from libs.core.ports import StartRefusedError, UnavailableError
from libs.doctor.findings import diagnose
from libs.events.vms import Stage, VmRestarted, VmRestartFailed
from libs.model import DiskLocks, VmDefinition, VmPolicy, VmState
from libs.scenario.model import Scenario
from libs.virt.definition import definition_of
from libs.virt.host import LibvirtHost
from services.cli.doctor import look_at
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab
STOOD_S = 5.0
NAMED = {"lockd": "virtlockd", "sanlock": "sanlock"}
DEAD_S = 8 * SANLOCK_IO_S + 60.0
"""What sanlock lets pass after the last sign of life of a host before it gives its locks away."""
SANLOCK_MORE_S = DEAD_S + 15.0
BOTH = pytest.mark.parametrize("manager", ["lockd", "sanlock"])
STORY = Path(__file__).parent.parent / "golden" / "device_lies_and_the_disk_tells.yaml"


def _need(manager: str) -> None:
    """Skips where the machine does not have it."""
    try:
        lock_daemon(manager)
    except MissingProgramError as error:
        pytest.skip(f"{error}{'; `make sanlock` has it' if manager == 'sanlock' else ''}")


def _lab(roots: Roots, lock_manager: str) -> Iterator[Lab]:
    if lock_manager:
        _need(lock_manager)
    lab = Lab.create([LabHost("h1"), LabHost("h2")], roots.new(), lock_manager=lock_manager)
    lab.up()
    try:
        yield lab
    finally:
        lab.down()
    assert procs.of_lab(lab.root) == []


@pytest.fixture
def locked(roots: Roots) -> Iterator[Lab]:
    """Two hosts, each with a virtlockd."""
    yield from _lab(roots, "lockd")


@pytest.fixture
def leased(roots: Roots) -> Iterator[Lab]:
    """Two hosts, each with a sanlock."""
    yield from _lab(roots, "sanlock")


@pytest.fixture
def guarded(roots: Roots, manager: str) -> Iterator[Lab]:
    yield from _lab(roots, manager)


@pytest.fixture
def unlocked(roots: Roots) -> Iterator[Lab]:
    yield from _lab(roots, "")


def _host(lab: Lab, name: str) -> LibvirtHost:
    conf = lab.host(name).etc / "qemu.conf"
    return LibvirtHost(name, lab.uri(name), VmPolicy(), time.monotonic, qemu_conf=conf)


def _runs_on_h1(lab: Lab, vm: LabVm) -> VmDefinition:
    lab.define_vm(vm, "h1")
    lab.wait_guest_up(vm.name)
    return definition_of(vm.uuid, vm.name, lab.xml(vm), None)


async def _started(lab: Lab, definition: VmDefinition) -> str:
    """By the adapter itself, on h2, as an executor would that believes h1 to be dead: the lock that refused it; "" where it
    runs there."""
    h2, lock = _host(lab, "h2"), ""
    try:
        await h2.start(definition, 2)
    except StartRefusedError as error:
        lock = error.lock or f"no lock: {error}"
    report = await h2.report(definition.uuid)
    assert report is not None
    assert report.state is (VmState.STOPPED if lock else VmState.RUNNING)
    return lock


def _stood_only(lab: Lab, vm: LabVm) -> None:
    """libvirt asks its lock manager once QEMU is there, its processors not yet begun (`-S`), and ends it where that refuses. The
    observer counts a QEMU from its first moment: it saw one on h2 for the calls, and for no longer."""
    on_h2 = [change for change in lab.observations().vms if change.vm == vm.uuid and change.host == "h2"]
    assert on_h2
    for begun, ended in zip(on_h2[::2], on_h2[1::2], strict=True):
        assert (begun.active, ended.active) == (True, False)
        assert ended.mono - begun.mono < STOOD_S
    log = (lab.host("h2").dir / "log" / "qemu" / f"{vm.name}.log").read_text()
    assert log.count("\n-S \\\n") == log.count("shutting down, reason=failed") == 3, (
        "no processor of it ever ran"
    )


async def test_virtlockd_refuses_a_second_start_and_lets_it_pass_once_the_first_host_has_no_power(
    locked: Lab,
) -> None:
    plain, lun = LabVm("plain", bare=True), LabVm("lun", bare=True, image_lock=False)
    definitions = {vm.name: await asyncio.to_thread(_runs_on_h1, locked, vm) for vm in (plain, lun)}
    # QEMU's own lock refuses first, where it works between hosts; on a LUN only virtlockd knows of the other host
    assert await _started(locked, definitions["plain"]) == "QEMU's lock of the image"
    for _ in range(3):
        assert await _started(locked, definitions["lun"]) == "virtlockd"
    assert locked.placement() == {"plain": ["h1"], "lun": ["h1"]}
    _stood_only(locked, lun)
    assert [locked.guest_up_count(name) for name in definitions] == [1, 1]
    locked.power_off("h1")
    for name, definition in definitions.items():
        assert await _started(locked, definition) == ""
        await asyncio.to_thread(locked.wait_guest_up, name, 2)
    assert await _host(locked, "h2").disk_locks() == DiskLocks(
        manager="lockd", automatic=True, space=str(locked.paths.lockspace)
    )


async def test_sanlock_refuses_a_second_start_and_lets_it_pass_once_the_first_host_is_surely_dead(
    leased: Lab,
) -> None:
    plain, lun = LabVm("plain", bare=True), LabVm("lun", bare=True, image_lock=False)
    definitions = {vm.name: await asyncio.to_thread(_runs_on_h1, leased, vm) for vm in (plain, lun)}
    assert await _started(leased, definitions["plain"]) == "QEMU's lock of the image"
    for _ in range(3):
        assert await _started(leased, definitions["lun"]) == "sanlock"
    assert leased.placement() == {"plain": ["h1"], "lun": ["h1"]}
    _stood_only(leased, lun)
    assert await _host(leased, "h2").disk_locks() == DiskLocks(
        manager="sanlock", automatic=True, space=str(leased.paths.lockspace)
    )
    leased.power_off("h1")
    off, silent_s = time.monotonic(), await _waited(leased, definitions["lun"])
    assert time.monotonic() - off > DEAD_S - 3 * SANLOCK_IO_S, "it may have lived until then"
    assert silent_s > DEAD_S / 2, "libvirt waits for it, and tells nobody of any VM meanwhile"
    assert leased.placement()["lun"] == ["h2"]
    await asyncio.to_thread(leased.wait_guest_up, "lun", 2)
    assert await _started(leased, definitions["plain"]) == "", (
        "of a host that is held dead nothing is waited for"
    )


async def _waited(lab: Lab, definition: VmDefinition) -> float:
    """Until it runs on h2, by tries as an executor makes them. For how long, at most, h2 did not say what runs there."""
    longest, asked = 0.0, time.monotonic()
    h2, other = _host(lab, "h2"), _host(lab, "h2")
    async with asyncio.timeout(SANLOCK_MORE_S):
        while True:
            with contextlib.suppress(UnavailableError):
                report = await other.report(definition.uuid)
                await other.reports()
                longest, asked = max(longest, time.monotonic() - asked), time.monotonic()
                if report is not None and report.state is VmState.RUNNING:
                    return longest
                if report is not None and report.state is VmState.UNKNOWN:
                    continue  # the start is under way still
                try:
                    await h2.start(definition, 3)
                except StartRefusedError as error:
                    if error.lock != "sanlock":
                        raise
                    await asyncio.sleep(0.5)


@BOTH
async def test_a_qemu_that_only_stands_until_the_lock_refuses_it_never_passes_for_a_running_vm(
    guarded: Lab,
) -> None:
    """Taken for active it was, and so for restarted: a failover was complete, and its VM ran nowhere."""
    definition = await asyncio.to_thread(_runs_on_h1, guarded, LabVm("lun", bare=True, image_lock=False))
    h2, seen = _host(guarded, "h2"), set[VmState]()
    async with asyncio.timeout(60.0):
        while VmState.UNKNOWN not in seen:
            trying = asyncio.create_task(_started(guarded, definition))
            while not trying.done():
                report = await h2.report(definition.uuid)
                seen |= {report.state} if report is not None else set()
            assert await trying
            assert not any(state.active for state in seen), "it never ran"


async def test_without_a_lock_manager_only_qemus_lock_of_the_image_is_left_and_on_a_lun_nothing(
    unlocked: Lab,
) -> None:
    plain = LabVm("plain", bare=True, shareable=False)
    lun = LabVm("lun", bare=True, shareable=False, image_lock=False)
    definitions = {vm.name: await asyncio.to_thread(_runs_on_h1, unlocked, vm) for vm in (plain, lun)}
    assert await _started(unlocked, definitions["plain"]) == "QEMU's lock of the image"
    assert await _started(unlocked, definitions["lun"]) == ""
    await asyncio.to_thread(unlocked.wait_guest_up, "lun", 2)
    assert unlocked.placement() == {"plain": ["h1"], "lun": ["h1", "h2"]}
    summary = unlocked.stop_observer()
    assert summary.vms[lun.uuid]["domains_s"] > 0, "the observer sees that it runs twice"
    assert await _host(unlocked, "h2").disk_locks() == DiskLocks()


@BOTH
async def test_what_a_lying_fence_device_would_run_twice_waits_for_the_lock_and_is_told(
    roots: Roots, manager: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story that the simulator plays as well, with all of Rekindle over it. h1 is cut off and lives; its device says off."""
    if os.getuid() != 0 or not network.works():
        pytest.skip("cut links need root and bridges")
    _need(manager)
    more_s = SANLOCK_MORE_S if manager == "sanlock" else 0.0
    told = logging.getLogger(__name__).warning  # where it stands is seen where it fails
    story = load(STORY).model_copy(update={"duration_s": 45.0 + more_s, "lock_manager": manager})
    # as on a LUN: between hosts of one machine QEMU's lock of a file would refuse before the lock manager is asked
    monkeypatch.setattr(
        "infra.lab.run.lab_vm", lambda *vm, **how: replace(lab_vm(*vm, **how), image_lock=False)
    )
    run = LabRun(
        story, roots.new(), bare=True, say=told, heard=lambda one: told(f"{one.data.kind} {one.subject}")
    )
    async with run.standing():
        await _doctor_knows(run, manager)
        playing = asyncio.create_task(run.play())
        await _told(run, "vm.restarted", 60.0 + more_s)
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing
        facts = [one.data for one in run.envelopes]
        refused = [one for one in facts if isinstance(one, VmRestartFailed)]
        assert len(refused) >= 2, "it is tried again"
        assert len({one.at for one in refused}) == 1, "and not over all hosts"
        assert all(one.stage is Stage.LOCK for one in refused)
        assert "it ran last on h1/" in refused[0].reason
        assert all(f"({NAMED[manager]}: " in one.reason for one in refused)
        assert [one.kind for one in facts].count("vm.still_held") == 1
        assert (
            "the lock of its disks refuses: still held by" in (run.root / "logs" / "alerting.log").read_text()
        )
        off = next(one for one in run.performed if one.event == "step.power_off").at_s
        started = next(one for one in run.envelopes if one.data.kind == "vm.restarted")
        assert (started.time - run.zero).total_seconds() > off, "only once h1 is really off"
        async with asyncio.timeout(30.0):
            assert len((await asyncio.to_thread(run.lab.placement))["web"]) == 1


async def test_all_vms_of_a_dead_host_run_once_sanlock_holds_it_dead_and_none_is_taken_for_restarted_before(
    roots: Roots,
) -> None:
    if os.getuid() != 0 or not network.works():
        pytest.skip("a plane that hosts reach needs root and bridges")
    _need("sanlock")
    names = [f"web{number}" for number in range(4)]
    story = Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "a host whose disks sanlock guards dies",
            "duration_s": 60.0 + SANLOCK_MORE_S,
            "seed": 1,
            "settings": {"datastores": []},
            "hosts": [{"name": name} for name in ("h1", "h2", "h3")],
            "vms": [{"name": name, "host": "h1"} for name in names],
            "steps": [{"at_s": 4, "do": "power_off", "host": "h1"}],
        }
    ).model_copy(update={"lock_manager": "sanlock"})
    run = LabRun(story, roots.new(), bare=True, say=logging.getLogger(__name__).warning)
    async with run.standing():
        playing = asyncio.create_task(run.play())
        async with asyncio.timeout(60.0 + SANLOCK_MORE_S):
            while len(_restarted(run)) < len(names):
                await asyncio.sleep(0.1)
        playing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing
        facts = [one.data for one in run.envelopes]
        assert any(one.kind == "vm.still_held" for one in facts), "it is told why they wait"
        placed = await asyncio.to_thread(run.lab.placement)
        assert all(len(placed[name]) == 1 for name in names), placed
        off = next(one for one in run.performed if one.event == "step.power_off").at_s
        first = next(one for one in run.envelopes if one.data.kind == "vm.restarted")
        assert (first.time - run.zero).total_seconds() > off + DEAD_S - 3 * SANLOCK_IO_S


def _restarted(run: LabRun) -> set[str]:
    return {one.data.name for one in run.envelopes if isinstance(one.data, VmRestarted)}


async def _told(run: LabRun, kind: str, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not any(one.data.kind == kind for one in run.envelopes):
            await asyncio.sleep(0.1)


async def _doctor_knows(run: LabRun, manager: str) -> None:
    """What agents tell over the real bus: what guards the disks of each host, and what time it is there."""
    settings = run.plane.settings()
    seen = await look_at(settings)
    for host in seen.hosts:
        locks, clock = seen.locks(host), seen.clock(host)
        assert locks is not None
        assert (locks.manager, locks.automatic) == (manager, True)
        assert clock is not None
        assert abs(clock.ahead_s) <= clock.within_s + 0.001, "the hosts of one machine share its clock"
    codes = {finding.code for finding in diagnose(settings, seen).findings}
    assert not {code for code in codes if code.startswith(("lock-", "clock-", "disk-unlocked"))}
