"""A VM that runs twice: which of two runs is one too many, and how its lease says so. Pure. ADR 5.

A run is condemned in the lease, by compare-and-set, and never acquitted: a reading of the lease that shows it is true
however old it is. So its host's agent may stop it on that word alone, and stops nothing on any other.
"""

from __future__ import annotations

from libs.model import Incarnation, Inventory, LeaseState, RunLease, StrayRun, VmReport, VmState

KEPT = 4
"""Runs of one VM that are condemned at once; each goes when it is seen to be over."""


def condemned(lease: RunLease | None, at: Incarnation, run: int) -> bool:
    """True where this very run may not go on."""
    return lease is not None and StrayRun(at=at, run=run) in lease.strays


def looks_stray(lease: RunLease | None, at: Incarnation, report: VmReport, holder: Inventory | None) -> bool:
    """Two hosts each say that they run it, and the lease is the other's. That is no proof: what one of them said may be
    older than a migration. It is worth asking both of them."""
    if lease is None or lease.state is not LeaseState.RUNNING or not report.run:
        return False
    if lease.holder.host == at.host or lease.holder.boot == at.boot or condemned(lease, at, report.run):
        return False
    there = holder.vm(lease.vm) if holder is not None and holder.at == lease.holder else None
    return report.state is VmState.RUNNING and there is not None and there.state is VmState.RUNNING


def condemn(lease: RunLease, at: Incarnation, run: int) -> RunLease:
    """The lease that says so."""
    strays = (*lease.strays, StrayRun(at=at, run=run))[-KEPT:]
    return lease.model_copy(update={"strays": strays, "seq": lease.seq + 1})


def ended(lease: RunLease, inventory: Inventory) -> RunLease | None:
    """The lease without the runs that this inventory shows to be over; None where it shows none. A run that is gone
    from one reading is gone for good, and so is what ran in another boot."""
    at, report = inventory.at, inventory.vm(lease.vm)
    left = tuple(
        one
        for one in lease.strays
        if one.at.host != at.host
        or (
            one.at == at
            and report is not None
            and report.run == one.run
            and report.state is not VmState.STOPPED
        )
    )
    return None if left == lease.strays else without(lease, left)


def fenced(lease: RunLease, at: Incarnation) -> RunLease | None:
    """The lease without the runs of a boot that is proven over; None where there are none."""
    left = tuple(one for one in lease.strays if one.at != at)
    return None if left == lease.strays else without(lease, left)


def without(lease: RunLease, left: tuple[StrayRun, ...]) -> RunLease:
    return lease.model_copy(update={"strays": left, "seq": lease.seq + 1})
