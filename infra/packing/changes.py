"""What may happen to a pool between two looks at it: each sort of change that costs a proof something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from libs.planning.snapshot import Snapshot, SnapshotHost, SnapshotHostState, SnapshotVm
from libs.planning.witness import Witnesses


def changes(shot: Snapshot, kept: Witnesses) -> Iterator[tuple[str, Snapshot]]:
    """By name the pool after one change. `busiest` is the host that most witnesses use: to touch it costs most."""
    counted = Counter(to for witness in kept.of.values() for to in witness.placed.values())
    [(busiest, _)] = counted.most_common(1)
    one, last = shot.vms[0], shot.hosts[-1]
    new = one.model_copy(update={"name": "new", "host": last.name})
    huge = new.model_copy(update={"memory_mib": last.memory_mib * 2, "storage": None})
    yield "a VM is started", _vms(shot, (*shot.vms, new))
    yield "a VM is gone", _vms(shot, shot.vms[1:])
    yield "a VM grows", _vms(shot, (one.model_copy(update={"memory_mib": one.memory_mib * 2}), *shot.vms[1:]))
    yield "a VM is moved", _vms(shot, (one.model_copy(update={"host": busiest}), *shot.vms[1:]))
    yield "a VM that fits nowhere", _vms(shot, (*shot.vms, huge))
    yield "a host is lost", _host(shot, busiest, state=SnapshotHostState.FAILED)
    yield "a host is in maintenance", _host(shot, busiest, state=SnapshotHostState.MAINTENANCE)
    yield "a host has less memory", _host(shot, busiest, memory_mib=last.memory_mib * 3 // 4)
    yield (
        "a host joins",
        shot.model_copy(update={"hosts": (*shot.hosts, last.model_copy(update={"name": "joined"}))}),
    )


def _vms(shot: Snapshot, vms: tuple[SnapshotVm, ...]) -> Snapshot:
    return shot.model_copy(update={"vms": vms})


def _host(shot: Snapshot, name: str, **update: object) -> Snapshot:
    hosts: tuple[SnapshotHost, ...] = tuple(
        one.model_copy(update=update) if one.name == name else one for one in shot.hosts
    )
    return shot.model_copy(update={"hosts": hosts})
