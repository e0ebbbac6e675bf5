"""Whose a VM is as a host begins, by its lease."""

from __future__ import annotations

from libs.model import Protection, RunLease
from libs.sim.hosts import Domain, SimHost


def leased_elsewhere(host: SimHost, domain: Domain, lease: RunLease) -> bool:
    """Another host has it, or another boot of this one: that is the same only for what nobody restarts, neither by its policy
    now nor as it ran last, and that was not on its way anywhere."""
    if lease.holder == host.at:
        return False
    policies = (domain.spec.policy, lease.policy)
    free = all(one.protection is Protection.NONE for one in policies)
    taken = lease.arriving or lease.moving_to is not None or lease.strays
    return lease.holder.host != host.name or not free or bool(taken)
