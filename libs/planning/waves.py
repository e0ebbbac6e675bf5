"""In which order starts begin: by importance, and whoever must wait for another after that one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from libs.planning.snapshot import SnapshotVm

Rank = Callable[[SnapshotVm], tuple[int, ...]]


def waves(vms: Sequence[SnapshotVm], rank: Rank) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """By VM the number of its wave, 0 first, and its urgency, the least first. A VM that others wait for is as urgent as the
    most urgent of them; that changes when it starts, and not who gets room. Who is not among `vms` is not waited for."""
    there = {vm.name: vm for vm in vms}
    after = {vm.name: [one.vm for one in vm.after if one.vm in there] for vm in vms}
    urgent = {name: rank(vm) for name, vm in there.items()}
    depth = dict.fromkeys(there, 0)
    ordered = _ordered(after)
    for name in ordered:
        depth[name] = max((depth[one] + 1 for one in after[name]), default=0)
    for name in reversed(ordered):
        for one in after[name]:
            urgent[one] = min(urgent[one], urgent[name])
    key = {name: (urgent[name], depth[name]) for name in there}
    numbers = {one: wave for wave, one in enumerate(sorted(set(key.values())))}
    return {name: numbers[key[name]] for name in there}, urgent


def _ordered(after: dict[str, list[str]]) -> list[str]:
    """Each name behind those that it comes after. What goes in a circle, which no snapshot may, comes last."""
    waits = {name: len(set(before)) for name, before in after.items()}
    for_whom: dict[str, set[str]] = {}
    for name, before in after.items():
        for one in before:
            for_whom.setdefault(one, set()).add(name)
    free = sorted(name for name, count in waits.items() if not count)
    found = []
    while free:
        name = free.pop()
        found.append(name)
        for one in sorted(for_whom.get(name, ())):
            waits[one] -= 1
            if not waits[one]:
                free.append(one)
    return [*found, *sorted(after.keys() - set(found))]
