"""The net under `host.obeyed`: VMs that an order of ours stopped, by their own host's word, and that nobody starts."""

from __future__ import annotations

from libs.events.hosts import HostObeyed
from libs.leases import over
from libs.model import StopReason, VmReport
from services.placement import incidents
from services.placement.state import Incident, Item, PlacementState


def meant(state: PlacementState, fact: HostObeyed) -> tuple[str, ...]:
    """Of the VMs that were stopped by order those of which that still says where they do not run.

    What a slot says of an order stays true of the runs that were stopped, however late it is told. One that was started
    since, there or elsewhere, is another run, and that its forerunner was stopped proves nothing of it."""
    told = {report.uuid: report for report in fact.vms}
    return tuple(vm for vm in fact.proof.vms if vm not in told or not _begun_since(state, fact, told[vm]))


def _begun_since(state: PlacementState, fact: HostObeyed, report: VmReport) -> bool:
    lease, heard = state.leases.get(report.uuid), state.heard.get(fact.at.host)
    if lease is not None and lease.start_key and lease.token > report.token:
        return True
    now = heard.vm(report.uuid) if heard is not None and heard.at == fact.at else None
    return now is not None and now.state.active and now.run > report.run > 0


def left(state: PlacementState) -> list[tuple[Incident, Item]]:
    """What is stopped by order under a lease that is wanted, and that no incident deals with.

    An order that lies in a slot is obeyed whatever becomes of whoever gave it: where a later verdict on the same boot
    took its place, or the host came back while it obeyed, nobody waits for its word any more. The host that speaks is
    asked itself, so no proof is needed."""
    open_ = state.open_vms()
    found = []
    for _, heard in sorted(state.heard.items()):
        for report in heard.vms:
            lease = state.leases.get(report.uuid)
            if (
                report.stop_reason is not StopReason.ORDERED
                or report.uuid in open_
                or state.is_over(heard.at)
            ):
                continue
            if lease is None or lease.holder != heard.at or not lease.wanted or not over(lease, report):
                continue
            run = max(1, report.run)
            # the order may lie there still, and stop it once more
            update = {"run": run, "avoid": (heard.at.host,)}
            item = incidents.item_of(report, heard.at).model_copy(update=update)
            which = f"ordered-{report.uuid}-{heard.at.boot[:8]}-{run}-{report.token}"
            found.append((Incident(id=which, cause="stopped by an order to its host"), item))
    return found
