"""Which VMs crashed, by their own hypervisor's word: told by the detector, looked at again by placement."""

from __future__ import annotations

from libs.events.facts import VmFailed
from libs.model import Inventory, Protection, StopReason, VmState


def crashes(inventory: Inventory, before: Inventory | None) -> list[VmFailed]:
    """VMs that their hypervisor says crashed, where it did not say so of the same boot `before`."""
    known = before if before is not None and before.at == inventory.at else None
    return [
        VmFailed(
            vm=report.uuid,
            name=report.name,
            at=inventory.at,
            run=report.run,
            reason=report.stop_reason,
            report=report,
            rule="its own hypervisor says crashed",
        )
        for report in inventory.vms
        if report.state is VmState.STOPPED
        and report.stop_reason is StopReason.CRASHED
        and report.policy.protection is not Protection.NONE
        and (known is None or known.vm(report.uuid) != report)
    ]
