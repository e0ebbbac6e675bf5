"""What is told of VMs beside what libvirt shows, pure: those stopped by order, and those that it knows no more."""

from __future__ import annotations

from rpds import HashTrieMap

from libs.model import Health, StopReason, VmReport, VmState

TOMBSTONE_READS = 120  # a transient VM that is gone is still told of for so many readings


def with_ordered(ordered: frozenset[str], reports: tuple[VmReport, ...]) -> tuple[VmReport, ...]:
    """libvirt shows what was stopped by order as stopped on purpose: nobody wants it to stay down."""
    if not ordered:
        return reports
    return tuple(
        report.model_copy(update={"stop_reason": StopReason.ORDERED})
        if report.uuid in ordered and report.stop_reason is StopReason.ON_PURPOSE
        else report
        for report in reports
    )


def still_departed(
    departed: HashTrieMap[str, int], reports: tuple[VmReport, ...], reads: int
) -> HashTrieMap[str, int]:
    """Without those that are back, and those that left long ago. One that is active in the very reading that was under way
    as it left is not back."""
    active = {report.uuid for report in reports if report.state.active}
    return HashTrieMap(
        {
            vm: at
            for vm, at in departed.items()
            if reads - at < TOMBSTONE_READS and (vm not in active or reads <= at)
        }
    )


def with_vanished(
    buried: HashTrieMap[str, int],
    departed: HashTrieMap[str, int],
    before: tuple[VmReport, ...],
    reports: tuple[VmReport, ...],
    reads: int,
) -> tuple[HashTrieMap[str, int], tuple[VmReport, ...]]:
    """A VM that was active and is no longer known ended and left no definition: say so for a while. Nobody can say why it
    ended, so its reason is unknown, but for one that libvirt said was migrated away. `buried`: at which reading each of
    them vanished."""
    present = {report.uuid for report in reports}
    buried = HashTrieMap(
        {vm: at for vm, at in buried.items() if vm not in present and reads - at < TOMBSTONE_READS}
    )
    vanished = []
    for report in before:
        if report.uuid in present:
            continue
        if report.state.active:
            buried = buried.insert(report.uuid, reads)
        if report.uuid in buried:
            update = {
                "state": VmState.STOPPED,
                "stop_reason": StopReason.MIGRATED if report.uuid in departed else StopReason.UNKNOWN,
                "health": Health.UNKNOWN,
                "agent": False,
                "answered": False,
                "migrated": False,
            }
            vanished.append(report.model_copy(update=update))
    return buried, tuple(sorted((*reports, *vanished), key=lambda report: report.uuid))
