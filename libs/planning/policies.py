"""What the policies of VMs, as they stand in their own metadata, mean for a snapshot: labels, groups, who waits for whom.

A person may write two policies that contradict each other. Nothing is refused for that: the weakest rule is dropped, and
told by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from libs.model import VmPolicy
from libs.planning.consistency import circular, contradictions
from libs.planning.snapshot import WAIT_S, Dependency, GroupRule, SnapshotGroup, SnapshotVm


def labels_of(text: str) -> dict[str, str]:
    """As rack=r1,disk=ssd says."""
    return dict(part.split("=", 1) for part in text.split(",") if part)


def after_of(text: str) -> list[Dependency]:
    """As `db1; cache agent 300` says."""
    found = []
    for part in text.split(";"):
        name, ready, wait = [*part.split(), "", "", ""][:3]
        if name:
            found.append(Dependency(vm=name, ready=ready or "running", wait_s=float(wait or WAIT_S)))
    return found


@dataclass(frozen=True, slots=True)
class Ruled:
    """Groups of a live pool, and the rules that were dropped, each with the reason."""

    groups: tuple[SnapshotGroup, ...]
    dropped: tuple[tuple[str, str], ...] = ()


def groups_of(policies: Mapping[str, VmPolicy], vms: Sequence[SnapshotVm]) -> Ruled:
    """The groups that these VMs name. Of strict ones that contradict each other anti-affinity is kept before affinity, and
    a wide scope before a narrow one: what keeps a service alive through a loss counts more than what brings it closer."""
    members: dict[tuple[GroupRule, str, str], list[str]] = {}
    strict: dict[tuple[GroupRule, str, str], bool] = {}
    for name, policy in sorted(policies.items()):
        for rule, text in (
            (GroupRule.ANTI_AFFINITY, policy.anti_affinity),
            (GroupRule.AFFINITY, policy.affinity),
        ):
            for part in text.split(","):
                if not part:
                    continue
                group, scope, how = [*part.split(":"), "", ""][:3]
                key = (rule, group, scope or "host")
                members.setdefault(key, []).append(name)
                strict[key] = strict.get(key, False) or how != "soft"
    found = [
        SnapshotGroup(
            name=f"{rule.value} {group} over {scope}",
            rule=rule,
            strict=strict[key],
            scope=scope,
            vms=tuple(names),
        )
        for key, names in members.items()
        for rule, group, scope in [key]
    ]
    found.sort(key=lambda one: (one.rule is GroupRule.AFFINITY, one.scope == "host", one.name))
    kept: list[SnapshotGroup] = []
    dropped = []
    for one in found:
        clash = None
        if one.strict and one.rule is GroupRule.AFFINITY:  # those kept so far are at peace with each other
            clash = next(contradictions([group for group in [*kept, one] if group.strict], vms), None)
        if clash:
            dropped.append((one.name, clash[1]))
        else:
            kept.append(one)
    return Ruled(tuple(kept), tuple(dropped))


def without_circles(vms: Sequence[SnapshotVm]) -> tuple[list[SnapshotVm], list[tuple[str, str]]]:
    """VMs that wait for others, but for the last of each circle: it waits for nobody."""
    left, dropped = {vm.name: vm for vm in vms}, []
    while circle := circular(list(left.values())):
        last = max(circle)
        left[last] = left[last].model_copy(update={"after": ()})
        dropped.append((f"after of {last}", f"a circle: {' after '.join([*circle, circle[0]])}"))
    return list(left.values()), dropped
