"""Pools for the benchmark: hosts filled with VMs of real sizes, the same for the same seed."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from libs.planning.snapshot import Snapshot, SnapshotHost, SnapshotVm

SIZES = Path(__file__).resolve().parents[1] / "data" / "vm_sizes_azure_v1.csv"
HOSTS, LOST = 24, 2
MEMORY_MIB, CPUS = 128 * 1024, 32


def sizes() -> tuple[list[tuple[int, int]], list[int]]:
    """vCPUs and MiB, and how often each occurs."""
    with SIZES.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return (
        [(int(row["vcpus"]), round(1024 * float(row["memory_gib"]))) for row in rows],
        [int(row["count"]) for row in rows],
    )


def real(fill: float, seed: int) -> Snapshot:
    """24 hosts which would be filled so far after the loss of two. Each VM arrives on some host that has room for it."""
    chance = random.Random(f"{fill}/{seed}")
    kinds, weights = sizes()
    hosts = [SnapshotHost(name=f"h{at:02}", memory_mib=MEMORY_MIB, cpus=CPUS) for at in range(HOSTS)]
    free = {host.name: [float(MEMORY_MIB), 4.0 * CPUS] for host in hosts}
    wanted = fill * (HOSTS - LOST) * MEMORY_MIB
    vms: list[SnapshotVm] = []
    while wanted > 0:
        [(vcpus, memory)] = chance.choices(kinds, weights)
        fitting = [name for name, (mib, cpus) in free.items() if mib >= memory and cpus >= vcpus]
        if not fitting:
            continue
        name = chance.choice(fitting)
        free[name][0] -= memory
        free[name][1] -= vcpus
        wanted -= memory
        vms.append(SnapshotVm(name=f"v{len(vms):05}", host=name, memory_mib=memory, vcpus=vcpus))
    return Snapshot(schema="rekindle.snapshot.v1", hosts=tuple(hosts), vms=tuple(vms))


def large(hosts: int, vms: int, fill: float = 0.7) -> Snapshot:
    """A pool of any size: ten racks' labels, three datastores, VMs of any size and priority."""
    chance = random.Random(f"{hosts}/{vms}")
    stores = (("a", "b"), ("b", "c"), ("a", "b", "c"))
    mean = fill * MEMORY_MIB * hosts / vms
    return Snapshot(
        schema="rekindle.snapshot.v1",
        hosts=tuple(
            SnapshotHost(
                name=f"h{at:05}",
                memory_mib=MEMORY_MIB,
                cpus=CPUS,
                labels={"rack": f"r{at % 10}"},
                storage=stores[at % 3],
            )
            for at in range(hosts)
        ),
        vms=tuple(
            SnapshotVm(
                name=f"v{at:06}",
                host=f"h{at % hosts:05}",
                memory_mib=round(mean * chance.choice((0.25, 0.5, 1, 1, 2.25))),
                vcpus=chance.choice((1, 2, 4, 8)),
                storage=(chance.choice(stores[at % hosts % 3]),),
            )
            for at in range(vms)
        ),
    )
