"""The worst case, as a sentence for an operator."""

from __future__ import annotations

from collections.abc import Sequence

from libs.model import Protection
from libs.planning.capacity import Capacity
from libs.planning.plan import plan_in
from libs.planning.pool import Pool
from libs.planning.snapshot import Snapshot, SnapshotVm
from libs.planning.why import Unplaced


def in_words(snapshot: Snapshot, found: Capacity) -> str:
    """As "if h3 and h7 fail, db2 (8 GiB) cannot start: 1.5 GiB short on every host with nfs-a"; "" where nothing is
    known to break the pool."""
    if not found.worst_case:
        return ""
    hosts = f"if {listed(found.worst_case)} fail{'s' if len(found.worst_case) == 1 else ''}"
    if found.in_turn:
        hosts = f"if {found.worst_case[0]} fails and then {' and then '.join(found.worst_case[1:])}"
        snapshot = _placed_so_far(snapshot, found)
    pool = Pool(snapshot)
    lost = plan_in(pool, frozenset(found.worst_case))
    left = [one for one in lost.unplaced if pool.vms[one.vm].protection is Protection.RESTART]
    if not left:  # the planner, asked about this alone, finds a way that was not among the witnesses
        return f"{hosts}, {listed(found.unplaced)} cannot start, or only by a plan that is not kept"
    first = left[0]
    more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
    vm = pool.vms[first.vm]
    return f"{hosts}, {vm.name} ({size(vm.memory_mib)}){more} cannot start: {_short(first, vm)}"


def _placed_so_far(snapshot: Snapshot, found: Capacity) -> Snapshot:
    """The pool when the last of the worst case fails: what the others ran is where it was put, the first's by its witness."""
    gone: set[str] = set()
    for name in found.worst_case[:-1]:
        gone.add(name)
        pool = Pool(snapshot)
        witness = dict(found.per_host).get(name) if len(gone) == 1 else None
        started = {one.vm: one.to for one in plan_in(pool, frozenset(gone)).starts}
        to = {
            vm: at
            for vm, at in (witness.placed if witness is not None else started).items()
            if pool.vms[vm].protection is Protection.RESTART
        }
        vms = tuple(
            vm.model_copy(update={"host": to.get(vm.name)}) if vm.host in gone else vm for vm in snapshot.vms
        )
        snapshot = snapshot.model_copy(update={"vms": vms})
    return snapshot


def _short(one: Unplaced, vm: SnapshotVm) -> str:
    if one.reason != "no_room":
        return one.detail
    missing = []
    if one.short_memory_mib:
        missing.append(size(one.short_memory_mib))
    if one.short_vcpus:
        missing.append(f"{one.short_vcpus} vCPU{'' if one.short_vcpus == 1 else 's'}")
    missing += [f"{count} {device}" for device, count in one.short_devices.items()]
    wants = [*(vm.storage or ()), *(vm.networks or ())]
    wants += [f"{label}={value}" for label, value in sorted(vm.requires_labels.items())]
    wants += [*vm.devices, *([vm.cpu_model] if vm.cpu_model else [])]
    suits = f" with {listed(wants)}" if wants else ""
    return f"{listed(missing) or 'nothing'} short on every host{suits}"


def size(memory_mib: float) -> str:
    """In GiB, or MiB below one of them."""
    if memory_mib < 1024:
        return f"{memory_mib:.0f} MiB"
    return f"{memory_mib / 1024:.1f}".removesuffix(".0") + " GiB"


def listed(names: Sequence[str]) -> str:
    """As a and b, or a, b and c."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
