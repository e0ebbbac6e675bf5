"""What hosts, their hypervisors and their fence devices promise, held against the lab and against the simulator."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from libs.core.ports import (
    FenceError,
    FencePaths,
    Hypervisors,
    MoveRefusedError,
    Power,
    StartRefusedError,
    UnavailableError,
)
from libs.model import (
    Answer,
    Health,
    Incarnation,
    PowerState,
    ProofMethod,
    StopReason,
    VmDefinition,
    VmNeeds,
    VmReport,
    VmState,
)
from libs.needs import with_needs
from services.heartbeat.act import LocalHypervisor

GUESTS = ("falls_silent", "panics", "is_well")
"""VMs with a guest agent, in a world of their own: each runs on h1, and its QEMU is kept should its guest panic."""
VMS = ("crashed", "down", "killed", "saved", "moved", "refused")
"""Each runs on h1 at first, by a person's hand."""
MEMORY_MIB, VCPUS = 144, 1
LATE_S = 20.0
BROKEN = ("dead", "hang", "refuse", "no_effect")


class Devices(Power, FencePaths, Protocol):
    """Fence devices: what fences by them, and the ways to them."""


class Ground(Protocol):
    """A world with hosts h1 and h2, whose disks a lock manager guards; what a person or fate does there returns when it is done."""

    @property
    def hypervisors(self) -> Hypervisors:
        """As the plane sees them."""

    @property
    def power(self) -> Devices: ...

    def at(self, host: str) -> Incarnation: ...

    def local(self, host: str) -> LocalHypervisor:
        """A new connection from the host itself, to its present boot."""

    def uuid(self, vm: str) -> str: ...

    async def do(self, step: str, vm: str) -> None:
        """crash_vm, shutdown_guest, destroy_vm, save_vm; of a VM with an agent guest_silent, guest_panic."""

    async def refuse_start(self, vm: str, host: str) -> None:
        """The next start there is refused."""

    async def switch(self, host: str, on: bool) -> None: ...

    async def break_device(self, host: str, how: str) -> None: ...

    async def hang_libvirt(self, host: str, on: bool) -> None:
        """Its daemon stands still, or goes on; whatever runs on the host runs on."""

    async def boots(self, vm: str) -> int:
        """How often its guest has come up from its first instruction, once it is up."""


async def _report(ground: Ground, vm: str, host: str = "h1") -> VmReport:
    found = await ground.local(host).report(ground.uuid(vm))
    assert found is not None
    return found


async def _until(ground: Ground, vm: str, state: VmState, host: str = "h1") -> VmReport:
    """libvirt notices the end of a process some milliseconds later."""
    async with asyncio.timeout(LATE_S):
        while (found := await _report(ground, vm, host)).state is not state:
            await asyncio.sleep(0.05)
    return found


async def _definition(ground: Ground, vm: str, host: str = "h1") -> VmDefinition:
    found = await ground.local(host).definitions()
    return next(one for one in found if one.uuid == ground.uuid(vm))


async def what_runs_is_told_with_its_size_and_run(ground: Ground) -> None:
    found = {one.name: one for one in await ground.local("h1").reports()}
    assert set(found) == set(VMS)
    assert {one.state for one in found.values()} == {VmState.RUNNING}
    assert {one.stop_reason for one in found.values()} == {StopReason.NONE}
    assert {(one.health, one.agent) for one in found.values()} == {(Health.UNKNOWN, False)}, (
        "nobody can be asked"
    )
    assert {(one.memory_mib, one.vcpus, one.token) for one in found.values()} == {(MEMORY_MIB, VCPUS, 0)}
    assert {one.datastores for one in found.values()} == {("shared",)}, "all disks lie where all hosts share"
    assert len({one.run for one in found.values()}) == len(VMS), "a run is one VM's"
    assert min(one.run for one in found.values()) > 0
    assert [one.uuid for one in await ground.local("h1").reports()] == sorted(map(ground.uuid, VMS))


async def an_unknown_vm_is_none_and_no_error(ground: Ground) -> None:
    hypervisor = ground.local("h2")
    assert await hypervisor.reports() == []
    assert await hypervisor.report(ground.uuid("moved")) is None
    await hypervisor.destroy(ground.uuid("moved"))


async def a_host_has_memory_and_processors(ground: Ground) -> None:
    memory_mib, cpus = await ground.local("h1").node()
    assert memory_mib > 1000
    assert cpus > 0


async def an_end_has_its_reason_and_keeps_its_run(ground: Ground) -> None:
    hypervisor = ground.local("h1")
    runs = {one.name: one.run for one in await hypervisor.reports()}
    for vm, step, reason in (
        ("crashed", "crash_vm", StopReason.CRASHED),
        ("down", "shutdown_guest", StopReason.ON_PURPOSE),
        ("killed", "destroy_vm", StopReason.ON_PURPOSE),
        ("saved", "save_vm", StopReason.SAVED),
    ):
        await ground.do(step, vm)
        ended = await _until(ground, vm, VmState.STOPPED)
        assert ended.stop_reason is reason, vm
        assert ended.destroyed is (step == "destroy_vm"), vm
        assert ended.health is Health.UNKNOWN, vm
        seen = await hypervisor.report(ground.uuid(vm))
        assert seen is not None
        assert seen.run == runs[vm], "who saw it run knows which run ended"
        assert ended.run in (0, runs[vm]), "who did not may not, but names no other"


async def a_stop_is_on_purpose_and_a_second_one_no_error(ground: Ground) -> None:
    await ground.local("h1").destroy(ground.uuid("moved"))
    stopped = await _report(ground, "moved")
    assert (stopped.stop_reason, stopped.destroyed) == (StopReason.ON_PURPOSE, True)
    await ground.local("h1").destroy(ground.uuid("moved"))


async def a_start_elsewhere_bears_its_token_and_a_second_one_is_refused(ground: Ground) -> None:
    definition = await _definition(ground, "moved")
    target = await ground.hypervisors.at(ground.at("h2"), LATE_S)
    await target.start(definition, 7)
    found = await _report(ground, "moved", "h2")
    assert (found.state, found.token, found.memory_mib) == (VmState.RUNNING, 7, MEMORY_MIB)
    with pytest.raises(StartRefusedError):
        await target.start(definition, 8)
    copy = await _definition(ground, "moved", "h2")
    assert copy.sha256 == definition.sha256, "the token is the run's, not the definition's"


async def a_vm_is_moved_while_it_runs_and_bears_its_token(ground: Ground) -> None:
    """There and back: its run is another on each host, and it is never down."""
    h1, h2 = [await ground.hypervisors.at(ground.at(host), LATE_S) for host in ("h1", "h2")]
    uuid, definition = ground.uuid("moved"), await _definition(ground, "moved", "h2")
    for source, target, of, to in ((h2, h1, "h2", "h1"), (h1, h2, "h1", "h2")):
        await source.migrate(uuid, target, 60.0)
        left, there = await _report(ground, "moved", of), await _report(ground, "moved", to)
        assert (left.state, left.stop_reason) == (VmState.STOPPED, StopReason.MIGRATED)
        assert (there.state, there.token, there.migrated) == (VmState.RUNNING, 7, True)
    copy = await _definition(ground, "moved", "h2")
    assert copy.sha256 == definition.sha256, "it is the same VM"


async def a_vm_that_does_not_run_is_not_moved(ground: Ground) -> None:
    h1, h2 = [await ground.hypervisors.at(ground.at(host), LATE_S) for host in ("h1", "h2")]
    with pytest.raises(MoveRefusedError):
        await h1.migrate(ground.uuid("moved"), h2, 60.0)
    assert (await _report(ground, "moved", "h2")).state is VmState.RUNNING, "it runs on where it was"


async def a_start_that_is_refused_leaves_nothing_running(ground: Ground) -> None:
    definition = await _definition(ground, "refused")
    await ground.refuse_start("refused", "h2")
    target = await ground.hypervisors.at(ground.at("h2"), LATE_S)
    with pytest.raises(StartRefusedError) as refused:
        await target.start(definition, 3)
    assert refused.value.lock == "", "the host refused, and no lock of its disks"
    found = await target.report(definition.uuid)
    assert found is not None
    assert (found.state, found.run, found.token) == (VmState.STOPPED, 0, 3), "defined, and never run"


async def a_start_whose_disks_are_held_elsewhere_is_refused_by_their_lock(ground: Ground) -> None:
    assert (await _report(ground, "refused")).state is VmState.RUNNING
    definition = await _definition(ground, "refused")
    target = await ground.hypervisors.at(ground.at("h2"), LATE_S)
    with pytest.raises(StartRefusedError) as refused:
        await target.start(definition, 4)
    assert refused.value.lock
    found = await target.report(definition.uuid)
    assert found is not None
    assert found.state is VmState.STOPPED
    assert (await _report(ground, "refused")).state is VmState.RUNNING, "where it ran it goes on"


async def what_a_host_offers_and_its_vms_need_is_told(ground: Ground) -> None:
    told = []
    for host in ("h1", "h2"):
        async with asyncio.timeout(LATE_S):
            while (found := await ground.local(host).offers()) is None:
                await asyncio.sleep(0.1)
        told.append(found)
    h1, h2 = told
    assert h1.networks
    assert h1.devices is not None
    assert h1.cpu_models
    assert (h1.arch, h1.cpu) == (h2.arch, h2.cpu) != ("", "")
    local = ground.local("h1")
    known = with_needs(await local.reports(), await local.definitions(), h1)
    assert [one.needs for one in known] == [VmNeeds()] * len(VMS), "they ask for nothing that has a name"


async def a_start_where_a_bridge_is_missing_is_refused_and_its_definition_tells_why(ground: Ground) -> None:
    definition = await _definition(ground, "refused")
    root = ET.fromstring(definition.xml)
    devices = root.find("devices")
    nic = ET.SubElement(ET.SubElement(root, "devices") if devices is None else devices, "interface")
    nic.set("type", "bridge")
    ET.SubElement(nic, "source").set("bridge", "br-nowhere")
    wanting = definition.model_copy(update={"xml": ET.tostring(root, encoding="unicode")})
    target = await ground.hypervisors.at(ground.at("h2"), LATE_S)
    with pytest.raises(StartRefusedError) as refused:
        await target.start(wanting, 5)
    assert refused.value.lock == ""
    offers, report = await ground.local("h2").offers(), await target.report(definition.uuid)
    assert offers is not None
    assert report is not None
    assert report.state is VmState.STOPPED
    [known] = with_needs([report], [wanting], offers)
    assert known.needs == VmNeeds(networks=("br-nowhere",))
    assert "br-nowhere" not in (offers.networks or ())


async def what_guards_the_disks_is_told(ground: Ground) -> None:
    locks = await ground.local("h1").disk_locks()
    assert locks is not None
    assert (locks.manager, locks.automatic) == ("lockd", True)


async def a_start_is_afresh_and_not_from_a_saved_image(ground: Ground) -> None:
    """Its disks may have gone on elsewhere since it was saved."""
    before = await ground.boots("saved")
    definition = await _definition(ground, "saved")
    target = await ground.hypervisors.at(ground.at("h1"), LATE_S)
    await target.start(definition, 4)
    assert (await _report(ground, "saved")).state is VmState.RUNNING
    assert await ground.boots("saved") == before + 1


async def a_guest_that_has_no_agent_cannot_be_asked(ground: Ground) -> None:
    with pytest.raises(UnavailableError):
        await ground.local("h1").ping_guest(ground.uuid("refused"), 1.0)


async def only_the_present_boot_answers_as_itself(ground: Ground) -> None:
    other = Incarnation(host="h2", boot="another-boot")
    for wrong in (other, Incarnation(host="h9", boot="x")):
        with pytest.raises(UnavailableError):
            await ground.hypervisors.at(wrong, 1.0)
    assert (await ground.hypervisors.probe("h2", LATE_S))[0] is Answer.UP
    assert (await ground.hypervisors.probe("h9", 1.0))[0] is Answer.UNKNOWN


async def a_libvirt_that_hangs_is_told_in_its_time_and_is_no_evidence(ground: Ground) -> None:
    hypervisor = ground.local("h2")
    assert await hypervisor.reports()
    await ground.hang_libvirt("h2", on=True)
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: ground.local("h2").reports(),
        lambda: hypervisor.report(ground.uuid("moved")),
        lambda: ground.hypervisors.at(ground.at("h2"), 1.0),
    )
    for call in calls:
        async with asyncio.timeout(LATE_S):
            with pytest.raises(UnavailableError):
                await call()
    async with asyncio.timeout(5.0):
        assert (await ground.hypervisors.probe("h2", 1.0))[0] not in (Answer.UP, Answer.REFUSED)
    assert (await ground.hypervisors.probe("h1", LATE_S))[0] is Answer.UP, "another host's answers"
    await ground.hang_libvirt("h2", on=False)
    assert (await _until(ground, "moved", VmState.RUNNING, "h2")).token == 7, "it ran on"
    assert (await ground.hypervisors.probe("h2", LATE_S))[0] is Answer.UP


async def a_device_reads_what_is_and_a_broken_one_nothing(ground: Ground) -> None:
    assert (await ground.power.status("h2", LATE_S))[0] is PowerState.ON
    for how in BROKEN:
        await ground.break_device("h2", how)
        if how in ("dead", "hang"):
            assert (await ground.power.status("h2", 1.0))[0] is PowerState.UNKNOWN, how
        with pytest.raises(FenceError) as failed:
            await ground.power.fence(ground.at("h2"), lambda: None)
        assert failed.value.missing, how
        assert (await _report(ground, "moved", "h2")).state is VmState.RUNNING, how
    await ground.break_device("h2", "none")


async def a_device_that_lies_says_off_of_what_runs(ground: Ground) -> None:
    """What a proof is worth that rests on it alone: the fencer asks the host, too."""
    await ground.break_device("h2", "lie")
    proof = await ground.power.fence(ground.at("h2"), lambda: None)
    assert proof.method is ProofMethod.POWER_OFF
    assert (await _report(ground, "moved", "h2")).state is VmState.RUNNING
    await ground.break_device("h2", "none")


async def a_fenced_host_is_off_and_says_nothing(ground: Ground) -> None:
    at, read = ground.at("h2"), [0]

    def off_seen() -> None:
        read[0] += 1

    hypervisor = ground.local("h2")
    for _ in range(2):  # the second time it is off already
        proof = await ground.power.fence(at, off_seen)
        assert (proof.of, proof.method) == (at, ProofMethod.POWER_OFF)
    assert read == [2]
    assert (await ground.power.status("h2", LATE_S))[0] is PowerState.OFF
    with pytest.raises(UnavailableError):
        await hypervisor.reports()
    with pytest.raises(UnavailableError):
        await ground.hypervisors.at(at, 1.0)
    assert (await ground.hypervisors.probe("h2", 1.0))[0] is Answer.SILENT


async def a_device_that_shares_the_hosts_power_is_dead_with_it(ground: Ground) -> None:
    await ground.break_device("h2", "shared_power")
    assert (await ground.power.status("h2", 1.0))[0] is PowerState.UNKNOWN
    await ground.break_device("h2", "none")


async def another_boot_is_another_incarnation_and_its_runs_begin_anew(ground: Ground) -> None:
    before = ground.at("h2")
    await ground.switch("h2", on=True)
    now = ground.at("h2")
    assert now.boot != before.boot
    with pytest.raises(UnavailableError):
        await ground.hypervisors.at(before, 1.0)
    target = await ground.hypervisors.at(now, LATE_S)
    found = await target.report(ground.uuid("moved"))
    assert found is not None
    assert (found.state, found.stop_reason, found.run) == (VmState.STOPPED, StopReason.UNKNOWN, 0)
    assert found.token == 8, "the definition keeps the token of the last attempt to start from it"


async def a_test_of_all_levels_switches_a_host_off_and_its_devices_give_the_power_back(
    ground: Ground,
) -> None:
    before = ground.at("h2")
    for level in await ground.power.test("h2", lambda: None):
        assert (level.proven, level.missing) == (True, ())
    assert (await ground.power.status("h2", LATE_S))[0] is PowerState.OFF
    assert await ground.power.switch_on("h2") == (True, "")
    assert {one.state for one in await ground.power.read("h2")} == {PowerState.ON}
    assert ground.at("h2").boot != before.boot


PROMISES: tuple[Callable[[Ground], Awaitable[None]], ...] = (
    what_runs_is_told_with_its_size_and_run,
    an_unknown_vm_is_none_and_no_error,
    a_host_has_memory_and_processors,
    what_a_host_offers_and_its_vms_need_is_told,
    an_end_has_its_reason_and_keeps_its_run,
    a_stop_is_on_purpose_and_a_second_one_no_error,
    a_start_elsewhere_bears_its_token_and_a_second_one_is_refused,
    a_vm_is_moved_while_it_runs_and_bears_its_token,
    a_vm_that_does_not_run_is_not_moved,
    a_start_that_is_refused_leaves_nothing_running,
    a_start_whose_disks_are_held_elsewhere_is_refused_by_their_lock,
    a_start_where_a_bridge_is_missing_is_refused_and_its_definition_tells_why,
    what_guards_the_disks_is_told,
    a_start_is_afresh_and_not_from_a_saved_image,
    a_guest_that_has_no_agent_cannot_be_asked,
    a_libvirt_that_hangs_is_told_in_its_time_and_is_no_evidence,
    only_the_present_boot_answers_as_itself,
    a_device_reads_what_is_and_a_broken_one_nothing,
    a_device_that_lies_says_off_of_what_runs,
    a_fenced_host_is_off_and_says_nothing,
    a_device_that_shares_the_hosts_power_is_dead_with_it,
    another_boot_is_another_incarnation_and_its_runs_begin_anew,
    a_test_of_all_levels_switches_a_host_off_and_its_devices_give_the_power_back,
)
"""In this order: each begins where the one before it ended."""


# -- guests with an agent


async def _once_able(ground: Ground, vm: str) -> VmReport:
    """Its guest is up and has opened its agent's channel."""
    async with asyncio.timeout(120.0):
        while not (found := await _report(ground, vm)).agent:
            await asyncio.sleep(0.1)
    return found


async def a_guest_that_is_well_answers_and_libvirt_says_nothing_of_it(ground: Ground) -> None:
    for vm in GUESTS:
        found = await _once_able(ground, vm)
        assert (found.state, found.health, found.answered) == (VmState.RUNNING, Health.UNKNOWN, False)
        assert await ground.local("h1").ping_guest(ground.uuid(vm), 5.0)


async def a_guest_that_hangs_is_asked_and_does_not_answer_while_libvirt_shows_it_running(
    ground: Ground,
) -> None:
    await ground.do("guest_silent", "falls_silent")
    assert not await ground.local("h1").ping_guest(ground.uuid("falls_silent"), 2.0)
    found = await _report(ground, "falls_silent")
    assert (found.state, found.health, found.agent) == (VmState.RUNNING, Health.UNKNOWN, True)
    assert await ground.local("h1").ping_guest(ground.uuid("is_well"), 5.0), "another one answers"


async def a_guest_that_panicked_is_shown_so_and_its_qemu_is_there(ground: Ground) -> None:
    before = await _report(ground, "panics")
    await ground.do("guest_panic", "panics")
    async with asyncio.timeout(LATE_S):
        while (found := await _report(ground, "panics")).health is not Health.PANICKED:
            await asyncio.sleep(0.05)
    assert found.state.active, "it has a process, which counts"
    assert (found.run, found.stop_reason) == (before.run, StopReason.NONE)
    with pytest.raises(UnavailableError):
        await ground.local("h1").ping_guest(ground.uuid("panics"), 1.0)


async def what_failed_can_be_stopped_and_is_shown_as_stopped_by_command(ground: Ground) -> None:
    for vm in ("panics", "falls_silent"):
        await ground.local("h1").destroy(ground.uuid(vm))
        ended = await _until(ground, vm, VmState.STOPPED)
        assert (ended.stop_reason, ended.destroyed) == (StopReason.ON_PURPOSE, True), vm
        assert (ended.health, ended.agent) == (Health.UNKNOWN, False), vm


GUEST_PROMISES: tuple[Callable[[Ground], Awaitable[None]], ...] = (
    a_guest_that_is_well_answers_and_libvirt_says_nothing_of_it,
    a_guest_that_hangs_is_asked_and_does_not_answer_while_libvirt_shows_it_running,
    a_guest_that_panicked_is_shown_so_and_its_qemu_is_there,
    what_failed_can_be_stopped_and_is_shown_as_stopped_by_command,
)
"""The same of a world with GUESTS."""
