"""What hosts, their hypervisors and their fence devices promise, held against the lab and against the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from libs.core.ports import FenceError, Hypervisors, Power, StartRefusedError, UnavailableError
from libs.model import (
    Answer,
    Health,
    Incarnation,
    PowerState,
    ProofMethod,
    StopReason,
    VmDefinition,
    VmReport,
    VmState,
)
from services.heartbeat.act import LocalHypervisor

VMS = ("crashed", "down", "killed", "saved", "moved", "refused")
"""Each runs on h1 at first, by a person's hand."""
MEMORY_MIB, VCPUS = 144, 1
LATE_S = 20.0
BROKEN = ("dead", "hang", "refuse", "no_effect")


class Ground(Protocol):
    """A world with hosts h1 and h2; what a person or fate does there returns when it is done."""

    @property
    def hypervisors(self) -> Hypervisors:
        """As the plane sees them."""

    @property
    def power(self) -> Power: ...

    def at(self, host: str) -> Incarnation: ...

    def local(self, host: str) -> LocalHypervisor:
        """A new connection from the host itself, to its present boot."""

    def uuid(self, vm: str) -> str: ...

    async def do(self, step: str, vm: str) -> None:
        """crash_vm, shutdown_guest, destroy_vm, save_vm."""

    async def refuse_start(self, vm: str, host: str) -> None:
        """The next start there is refused."""

    async def switch(self, host: str, on: bool) -> None: ...

    async def break_device(self, host: str, how: str) -> None: ...

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


async def a_start_that_is_refused_leaves_nothing_running(ground: Ground) -> None:
    definition = await _definition(ground, "refused")
    await ground.refuse_start("refused", "h2")
    target = await ground.hypervisors.at(ground.at("h2"), LATE_S)
    with pytest.raises(StartRefusedError):
        await target.start(definition, 3)
    found = await target.report(definition.uuid)
    assert found is not None
    assert (found.state, found.run, found.token) == (VmState.STOPPED, 0, 3), "defined, and never run"


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


PROMISES: tuple[Callable[[Ground], Awaitable[None]], ...] = (
    what_runs_is_told_with_its_size_and_run,
    an_unknown_vm_is_none_and_no_error,
    a_host_has_memory_and_processors,
    an_end_has_its_reason_and_keeps_its_run,
    a_stop_is_on_purpose_and_a_second_one_no_error,
    a_start_elsewhere_bears_its_token_and_a_second_one_is_refused,
    a_start_that_is_refused_leaves_nothing_running,
    a_start_is_afresh_and_not_from_a_saved_image,
    a_guest_that_has_no_agent_cannot_be_asked,
    only_the_present_boot_answers_as_itself,
    a_device_reads_what_is_and_a_broken_one_nothing,
    a_device_that_lies_says_off_of_what_runs,
    a_fenced_host_is_off_and_says_nothing,
    a_device_that_shares_the_hosts_power_is_dead_with_it,
    another_boot_is_another_incarnation_and_its_runs_begin_anew,
)
"""In this order: each begins where the one before it ended."""
