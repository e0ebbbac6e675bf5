"""Admission: what a start, a protection, a maintenance or a removal would cost, told before it is done.

An action is refused where it takes the pool below its failures to tolerate, or where VMs would have no place. A pool
that is overcommitted already is never blocked for that.
"""

from __future__ import annotations

from dataclasses import dataclass

from libs.planning.capacity import Capacity, capacity
from libs.planning.pack import Packer
from libs.planning.plan import classes, packed
from libs.planning.pool import Pool, Rooms
from libs.planning.snapshot import Snapshot, SnapshotHost, SnapshotHostState, SnapshotVm
from libs.planning.why import why
from libs.planning.words import in_words


@dataclass(frozen=True, slots=True)
class Answer:
    """`lost`: VMs that would have no place, at once or in the worst case; `host` where a VM would start; `moved` by VM
    where what runs on a host would go."""

    allowed: bool
    reason: str
    lost: tuple[str, ...]
    before: Capacity
    after: Capacity | None
    host: str | None = None
    moved: tuple[tuple[str, str], ...] = ()


def admit_vm(snapshot: Snapshot, vm: SnapshotVm) -> Answer:
    """May this VM run, as it is described? One of the same name is replaced: so a protection is asked about, too. Where
    it names no host, the roomiest that suits is taken."""
    before = _capacity(snapshot)
    others = tuple(one for one in snapshot.vms if one.name != vm.name)
    bare = snapshot.model_copy(update={"vms": (*others, vm.model_copy(update={"host": None}))})
    pool = Pool(bare)
    rooms, packer = Rooms(pool), Packer([[vm]], {})
    if vm.host is None:
        at = packer.choose(rooms, vm, "worst")
        if at is None:
            return Answer(
                False, f"it has no place: {why(vm, rooms, frozenset()).detail}", (vm.name,), before, None
            )
    else:
        at = pool.place[vm.host]
        lacking = _lacking(rooms, vm, at)
        if lacking:
            return Answer(False, f"{vm.host}: {lacking}", (vm.name,), before, None)
    host = pool.hosts[at].name
    running = vm.model_copy(update={"host": host, "state": "running"})
    after = snapshot.model_copy(update={"vms": (*others, running)})
    return _judged(before, after, host=host)


def admit_without(snapshot: Snapshot, name: str, removed: bool) -> Answer:
    """May this host be emptied, and go into maintenance, or out of the pool?"""
    before = _capacity(snapshot)
    pool = Pool(snapshot)
    at = pool.place[name]
    vms = pool.on[at]
    packer = Packer(classes(vms), {})
    rooms = packed(packer, Rooms(pool, [at]))
    moved = tuple((vm, pool.hosts[to].name) for vm, to in sorted(rooms.at.items()))
    left = packer.left(rooms)
    if left:
        told = why(left[0], rooms, frozenset())
        reason = f"{left[0].name} has no place elsewhere: {told.detail}"
        return Answer(False, reason, tuple(sorted(vm.name for vm in left)), before, None, moved=moved)
    to = dict(moved)
    after = snapshot.model_copy(
        update={
            "hosts": tuple(_without(snapshot, name, removed)),
            "vms": tuple(
                vm.model_copy(update={"host": to.get(vm.name)}) if vm.host == name else vm
                for vm in snapshot.vms
            ),
        }
    )
    return _judged(before, after, moved=moved)


def _without(snapshot: Snapshot, name: str, removed: bool) -> list[SnapshotHost]:
    """The hosts, without this one or with it in maintenance."""
    kept = [host for host in snapshot.hosts if host.name != name]
    if removed:
        return kept
    host = next(host for host in snapshot.hosts if host.name == name)
    return [*kept, host.model_copy(update={"state": SnapshotHostState.MAINTENANCE})]


def _capacity(snapshot: Snapshot) -> Capacity:
    return capacity(snapshot, up_to=max(1, snapshot.policy.failures_to_tolerate))


def _lacking(rooms: Rooms, vm: SnapshotVm, at: int) -> str:
    if not rooms.open(at):
        return f"it is {rooms.pool.hosts[at].state.value}"
    if obstacle := rooms.pool.obstacle(at, vm):
        return obstacle
    broken = rooms.broken(vm, at)
    if broken is not None:
        return f"{broken.rule.value} of {broken.name} over {broken.scope}"
    if rooms.holds(vm, at):
        return ""
    memory, cpus = rooms.free(at)
    return f"{max(0, round(vm.memory_mib - memory))} MiB and {max(0, round(vm.vcpus - cpus))} vCPUs short"


def _judged(
    before: Capacity, snapshot: Snapshot, host: str | None = None, moved: tuple[tuple[str, str], ...] = ()
) -> Answer:
    after, target = _capacity(snapshot), snapshot.policy.failures_to_tolerate
    if after.tolerates >= target:
        return Answer(True, f"the pool still tolerates {target}", (), before, after, host, moved)
    told = in_words(snapshot, after)
    if before.tolerates < target:
        reason = f"the pool tolerates only {before.tolerates} of {target} already, so this is not what it is refused for"
        return Answer(True, f"{reason}: {told}", after.unplaced, before, after, host, moved)
    return Answer(False, told, after.unplaced, before, after, host, moved)
