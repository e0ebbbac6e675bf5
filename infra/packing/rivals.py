"""What others do with the VMs of lost hosts, and the exact optimum where OR-tools is installed. No code of the planner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from libs.planning.snapshot import Snapshot, SnapshotVm

Host = list[float]
"""Memory and vCPUs left, how many VMs, and the place in the order of names."""
SOLVER_S = 20.0


def _hosts(snapshot: Snapshot, lost: frozenset[str]) -> dict[str, Host]:
    policy = snapshot.policy
    left = {
        host.name: [
            host.memory_mib * policy.memory_overcommit,
            host.cpus * policy.cpu_overcommit,
            0.0,
            float(at),
        ]
        for at, host in enumerate(snapshot.hosts)
        if host.name not in lost
    }
    for vm in snapshot.vms:
        if vm.host in left:
            _put(left[vm.host], vm)
    return left


def _put(host: Host, vm: SnapshotVm) -> None:
    host[0] -= vm.memory_mib
    host[1] -= vm.vcpus
    host[2] += 1


def _greedy(
    snapshot: Snapshot, lost: frozenset[str], large_first: bool, key: Callable[[Host], tuple[float, ...]]
) -> int:
    """How many VMs stay down."""
    hosts, down = _hosts(snapshot, lost), 0
    orphans = [vm for vm in snapshot.vms if vm.host in lost]
    if large_first:
        orphans.sort(key=lambda vm: (-vm.memory_mib, -vm.vcpus, vm.name))
    for vm in orphans:
        fitting = [host for host in hosts.values() if host[0] >= vm.memory_mib and host[1] >= vm.vcpus]
        if fitting:
            _put(min(fitting, key=key), vm)
        else:
            down += 1
    return down


RIVALS: dict[str, Callable[[Snapshot, frozenset[str]], int]] = {
    "first-fit": lambda shot, lost: _greedy(shot, lost, False, lambda host: (host[3],)),
    "best-fit-decreasing": lambda shot, lost: _greedy(shot, lost, True, lambda host: (*host[:2], host[3])),
    "fewest VMs": lambda shot, lost: _greedy(shot, lost, False, lambda host: (host[2], host[3])),
    "emptiest host": lambda shot, lost: _greedy(
        shot, lost, True, lambda host: (-host[0], -host[1], -host[3])
    ),
}


def optimum(snapshot: Snapshot, lost: frozenset[str], moves: bool) -> int | None:
    """How many VMs must stay down, at least; with moves of everything that runs, or of nothing. None without OR-tools, or
    where it was not proved in time."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return None
    model: Any = cp_model.CpModel()
    hosts = _hosts(snapshot if not moves else snapshot.model_copy(update={"vms": ()}), lost)
    orphans = Counter((vm.memory_mib, vm.vcpus) for vm in snapshot.vms if vm.host in lost)
    stay = Counter((vm.memory_mib, vm.vcpus) for vm in snapshot.vms if vm.host not in lost and moves)
    put: dict[tuple[tuple[int, int], str], Any] = {}
    for size in orphans | stay:
        here = [model.new_int_var(0, orphans[size] + stay[size], "") for _ in hosts]
        put |= {(size, host): var for host, var in zip(hosts, here, strict=True)}
        model.add(sum(here) <= orphans[size] + stay[size])
        model.add(sum(here) >= stay[size])
    for name, host in hosts.items():
        for dimension in range(2):
            used = sum(size[dimension] * var for (size, at), var in put.items() if at == name)
            model.add(used <= int(host[dimension]))
    model.maximize(sum(put.values()))
    solver: Any = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = SOLVER_S
    solver.parameters.num_workers = 1
    if solver.solve(model) != cp_model.OPTIMAL:
        return None
    placed: int = round(solver.objective_value)
    return sum(orphans.values()) + sum(stay.values()) - placed
