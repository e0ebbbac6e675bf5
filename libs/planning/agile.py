"""VMs that are not agile: no host but their own could run them, even if it were empty.

No capacity helps them: what ties them to their host is told by a code, one of `REASONS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from libs.model import Protection
from libs.planning.pool import Pool, Wants, wants_of
from libs.planning.snapshot import SnapshotVm

REASONS = {
    "storage": "no other host has all its datastores",
    "network": "no other host has all its networks",
    "label": "no other host has the labels that it requires",
    "device": "no other host has its devices",
    "cpu_model": "no other host has its CPU model",
    "size": "each other host that suits is too small, even if it were empty",
    "several": "one thing is missing here, another there",
    "no_host": "there is no other usable host",
}
_WORDS = {
    "no storage": "storage",
    "no network": "network",
    "not labelled": "label",
    "no CPU model": "cpu_model",
}


@dataclass(frozen=True, slots=True)
class NotAgile:
    """`detail`: what is missing on most of the other hosts."""

    vm: str
    host: str
    reason: str
    detail: str


def not_agile(pool: Pool) -> Iterator[NotAgile]:
    """Protected VMs that run, by name. Hosts that are not online count for nothing."""
    suits: dict[Wants | None, list[int]] = {}
    usable = [at for at, usable in enumerate(pool.usable) if usable]
    for vm in (pool.vms[name] for name in sorted(pool.vms)):
        if vm.host is None or vm.state != "running" or vm.protection is Protection.NONE:
            continue
        home, wants = pool.place[vm.host], wants_of(vm)
        if wants not in suits:
            found = (at for at in usable if not pool.obstacle(at, vm))
            suits[wants] = sorted(found, key=lambda at: pool.size[at], reverse=True)
        fitting = [at for at in suits[wants][:2] if at != home]
        if fitting and _holds(pool, fitting[0], vm):
            continue
        others = [at for at in suits[wants] if at != home]
        if not any(_holds(pool, at, vm) for at in others):
            yield _why(pool, vm, others, [at for at in usable if at != home])


def _holds(pool: Pool, at: int, vm: SnapshotVm) -> bool:
    memory, cpus = pool.size[at]
    return memory >= vm.memory_mib and cpus >= vm.vcpus


def _why(pool: Pool, vm: SnapshotVm, suiting: Sequence[int], others: Sequence[int]) -> NotAgile:
    obstacles = [pool.obstacle(at, vm) for at in others]
    codes = {_code(text) for text in obstacles if text}
    if suiting:
        codes = {"size"}
        largest = max(suiting, key=lambda at: pool.size[at])
        detail = f"{pool.hosts[largest].name} is the largest that suits, with {pool.size[largest][0]:.0f} MiB"
    elif not obstacles:
        codes, detail = {"no_host"}, REASONS["no_host"]
    else:
        [(detail, _)] = Counter(sorted(obstacles)).most_common(1)
    assert vm.host is not None
    return NotAgile(vm.name, vm.host, codes.pop() if len(codes) == 1 else "several", detail)


def _code(obstacle: str) -> str:
    return next((code for words, code in _WORDS.items() if obstacle.startswith(words)), "device")
