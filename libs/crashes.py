"""Which VMs failed, by their own host's word, and whether it is the host: told by the detector, looked at again by
placement."""

from __future__ import annotations

from collections.abc import Callable

from libs.events.guests import VmUnhealthy
from libs.events.vms import VmFailed
from libs.model import (
    Failure,
    GuestFailure,
    Health,
    Inventory,
    Protection,
    StopReason,
    VmReport,
    VmState,
)

RULES = {
    Failure.CRASHED: "its own hypervisor says crashed",
    Failure.PANICKED: "its kernel panicked, its QEMU is kept",
    Failure.SILENT: "its guest agent answered in this run, and does so no more",
    Failure.WATCHDOG: "its own watchdog fired",
    Failure.IO_ERROR: "QEMU paused it over a disk that failed",
}


def failure_of(report: VmReport) -> Failure | None:
    """What is wrong with a VM, None where nothing is known to be. Unknown health is never bad."""
    if report.state is VmState.STOPPED and report.stop_reason is StopReason.CRASHED:
        return Failure.CRASHED
    return Failure(report.health.value) if report.state.active and report.health.bad else None


def crashes(inventory: Inventory, before: Inventory | None) -> list[VmFailed]:
    """VMs that failed and are to be restarted, where that was not so of the same boot `before`: once a run and
    cause."""
    known = before if before is not None and before.at == inventory.at else None
    return [
        VmFailed(
            vm=report.uuid,
            name=report.name,
            at=inventory.at,
            run=report.run,
            reason=report.stop_reason,
            why=why,
            report=report,
            agent=inventory.agent,
            rev=inventory.rev,
            look=inventory.look,
            rule=RULES[why],
        )
        for report in inventory.vms
        if (why := to_restart(report)) is not None
        and (known is None or _mark(known.vm(report.uuid), to_restart) != _mark(report, to_restart))
    ]


def unhealthy(inventory: Inventory, before: Inventory | None) -> list[VmUnhealthy]:
    """Guests that failed and of which it is only to be told."""
    known = before if before is not None and before.at == inventory.at else None
    return [
        VmUnhealthy(
            vm=report.uuid, name=report.name, at=inventory.at, run=report.run, why=why, rule=RULES[why]
        )
        for report in inventory.vms
        if (why := _to_tell(report)) is not None
        and (known is None or _mark(known.vm(report.uuid), _to_tell) != _mark(report, _to_tell))
    ]


def to_restart(report: VmReport) -> Failure | None:
    """What is wrong with a VM that by its policy is to be restarted for it."""
    why = failure_of(report)
    left = why is not Failure.CRASHED and report.policy.on_guest_failure is GuestFailure.ALERT
    return None if left or report.policy.protection is Protection.NONE else why


def _to_tell(report: VmReport) -> Failure | None:
    why = failure_of(report)
    only = why is not Failure.CRASHED and report.policy.on_guest_failure is GuestFailure.ALERT
    return why if only and report.policy.protection is not Protection.NONE else None


def _mark(report: VmReport | None, of: Callable[[VmReport], Failure | None]) -> tuple[object, ...]:
    return () if report is None else (report.run, report.token, of(report))


def grey(inventory: Inventory, least: int) -> tuple[VmReport, ...]:
    """The guests of a grey host: all whose health is known fail at once, and they are no fewer than `least`."""
    known = [one for one in inventory.vms if one.state.active and one.health is not Health.UNKNOWN]
    return tuple(known) if len(known) >= max(2, least) and all(one.health.bad for one in known) else ()


def well(inventory: Inventory) -> bool:
    """True where the health of some guest is known, and none fails."""
    active = [one for one in inventory.vms if one.state.active]
    return any(one.health is Health.OK for one in active) and not any(one.health.bad for one in active)
