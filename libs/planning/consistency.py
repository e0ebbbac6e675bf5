"""What a snapshot is refused for though each of its fields is right: names, `after` in a circle, groups that
contradict each other. Which of two rules is the weaker one is told here too, for a live pool that drops it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from libs.planning.snapshot import GroupRule, Snapshot, SnapshotGroup, SnapshotVm


def refusal(snapshot: Snapshot) -> str:
    """The first mistake as "field: reason"; "" where there is none."""
    for kind, names in (
        ("hosts", [host.name for host in snapshot.hosts]),
        ("vms", [vm.name for vm in snapshot.vms]),
        ("groups", [group.name for group in snapshot.groups]),
    ):
        if len(set(names)) < len(names):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            return f"{kind}: {twice[0]} is given twice"
    hosts = {host.name for host in snapshot.hosts}
    vms = {vm.name for vm in snapshot.vms}
    for vm in snapshot.vms:
        if vm.host is not None and vm.host not in hosts:
            return f"vms.{vm.name}.host: there is no host {vm.host}"
        for one in vm.after:
            if one.vm not in vms:
                return f"vms.{vm.name}.after: there is no VM {one.vm}"
    circle = circular(snapshot.vms)
    if circle:
        return f"vms.{circle[0]}.after: a circle: {' after '.join([*circle, circle[0]])}"
    return _wrong_group(snapshot, vms)


def _wrong_group(snapshot: Snapshot, vms: set[str]) -> str:
    for group in snapshot.groups:
        for name, count in sorted(Counter(group.vms).items()):
            if name not in vms:
                return f"groups.{group.name}.vms: there is no VM {name}"
            if count > 1:
                return f"groups.{group.name}.vms: {name} is given twice"
    strict = [group for group in snapshot.groups if group.strict]
    clash = next(contradictions(strict, snapshot.vms), None)
    return f"groups.{clash[0].name}: {clash[1]}" if clash else ""


def circular(vms: Sequence[SnapshotVm]) -> list[str]:
    """VMs that wait for each other in a circle, each after the next; [] where none do."""
    after = {vm.name: sorted({one.vm for one in vm.after}) for vm in vms if vm.after}
    done: set[str] = set()
    for root in sorted(after):
        path: list[str] = []
        todo: list[tuple[str, int]] = [(root, 0)]
        while todo:
            name, at = todo.pop()
            if at == 0:
                if name in path:
                    return path[path.index(name) :]
                if name in done:
                    continue
                path.append(name)
            following = after.get(name, [])
            if at < len(following):
                todo += [(name, at + 1), (following[at], 0)]
            else:
                path.pop()
                done.add(name)
    return []


class _Sets:
    """Union-find: which VMs strict affinity holds together."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def of(self, name: str) -> str:
        while (above := self.parent.get(name, name)) != name:
            name = above
        return name

    def join(self, one: str, other: str) -> None:
        one, other = self.of(one), self.of(other)
        if one != other:
            self.parent[max(one, other)] = min(one, other)


def contradictions(
    strict: Sequence[SnapshotGroup], vms: Sequence[SnapshotVm]
) -> Iterator[tuple[SnapshotGroup, str]]:
    """Strict groups that no placement can obey beside those before them, with the reason. VMs that must share a
    host share the value of every label, too."""
    apart = [group for group in strict if group.rule is GroupRule.ANTI_AFFINITY]
    together = [group for group in strict if group.rule is GroupRule.AFFINITY]
    for scope in sorted({group.scope for group in strict}):
        sets = _Sets()
        for group in together:
            if group.scope in (scope, "host"):
                for name in group.vms[1:]:
                    sets.join(group.vms[0], name)
        for group in apart:
            if group.scope != scope:
                continue
            first: dict[str, str] = {}
            for name in sorted(group.vms):
                other = first.setdefault(sets.of(name), name)
                if other != name:
                    yield group, f"{other} and {name} must be apart, and strict affinity keeps them together"
                    break
        yield from _other_labels(scope, together, sets, vms)


def _other_labels(
    scope: str, together: list[SnapshotGroup], sets: _Sets, vms: Sequence[SnapshotVm]
) -> Iterator[tuple[SnapshotGroup, str]]:
    """Members of an affinity group that require different values of its label."""
    if scope == "host" or not together:
        return
    wanted = {vm.name: vm.requires_labels[scope] for vm in vms if scope in vm.requires_labels}
    for group in together:
        if group.scope not in (scope, "host"):
            continue
        asking = sorted(name for name in group.vms if name in wanted)
        for name in asking[1:]:
            if wanted[name] != wanted[asking[0]]:
                told = f"{asking[0]} requires {scope}={wanted[asking[0]]} and {name} {scope}={wanted[name]}"
                yield group, f"{told}, and they must be together"
                break
