"""Whether an operator's word may be said without taking the pool below what it is to tolerate.

Judged on the pool as the services have stored it, by the proof that placement makes, too (libs/planning/capacity.py). A pool
that is overcommitted already is not blocked for that, and a person may say the word all the same, with a reason.
"""

from __future__ import annotations

from libs.liveshot import exported
from libs.planning.capacity import Capacity, capacity
from libs.planning.snapshot import Snapshot, SnapshotHostState
from libs.planning.words import in_words
from libs.poolview import PoolView


async def refusal(view: PoolView, host: str, *, removed: bool) -> str:
    """Why this host may not be closed to new VMs, or `removed`; "" where it may. Raises UnavailableError."""
    target = view.settings.placement.failures_to_tolerate
    if not target:
        return ""
    now, _ = await exported(view)
    if host not in {one.name for one in now.hosts} or _proof(now).tolerates < target:
        return ""
    after = without(now, host, removed=removed)
    found = _proof(after)
    if found.tolerates >= target or not found.unplaced:
        return ""  # or nobody would be left down, as in a pool without VMs
    return (
        f"the pool would tolerate the loss of {found.tolerates} hosts, not {target}: {in_words(after, found)}"
    )


def without(snapshot: Snapshot, host: str, *, removed: bool) -> Snapshot:
    """The pool when the host takes no new VMs and runs on with those that it has; or when it is gone with them."""
    if removed:
        hosts = tuple(one for one in snapshot.hosts if one.name != host)
        gone = {vm.name for vm in snapshot.vms if vm.host == host}
        vms = tuple(vm for vm in snapshot.vms if vm.name not in gone)
        groups = tuple(
            group.model_copy(update={"vms": tuple(vm for vm in group.vms if vm not in gone)})
            for group in snapshot.groups
        )
        return snapshot.model_copy(update={"hosts": hosts, "vms": vms, "groups": groups})
    closed = {"state": SnapshotHostState.MAINTENANCE}
    hosts = tuple(one.model_copy(update=closed) if one.name == host else one for one in snapshot.hosts)
    return snapshot.model_copy(update={"hosts": hosts})


def _proof(snapshot: Snapshot) -> Capacity:
    return capacity(snapshot, up_to=max(1, snapshot.policy.failures_to_tolerate))
