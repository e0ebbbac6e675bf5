"""The net under `host.obeyed`: VMs that an order of ours stopped, by their own host's word, and that nobody starts."""

from __future__ import annotations

from libs.leases import over
from libs.model import StopReason
from services.placement import incidents
from services.placement.state import Incident, Item, PlacementState


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
