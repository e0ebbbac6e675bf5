"""The rules that VMs' policies make, laid over a snapshot of the pool: labels, groups, who waits for whom.

A VM goes by its uuid where it is to be placed, and by uuid@host where it runs; in a policy people name VMs by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from libs.events.failovers import AwaitedVm
from libs.model import RunLease, VmPolicy, VmReport
from libs.planning.policies import Ruled, after_of, groups_of, labels_of, without_circles
from libs.planning.snapshot import Snapshot
from services.placement import incidents
from services.placement.state import Item, Phase, PlacementState

State = PlacementState


def with_rules(state: State, shot: Snapshot, wanted: Sequence[Item]) -> tuple[Snapshot, Ruled]:
    """The snapshot with these rules, and which were dropped since they contradict others. Where no policy names any,
    the snapshot is as it was."""
    policies = _policies(state, shot, wanted)
    ruling = {name: policy for name, policy in policies.items() if _rules(policy)}
    if not ruling:
        return shot, Ruled(())
    by_name = {item.name: item.vm for item in wanted}
    vms = []
    for vm in shot.vms:
        policy = ruling.get(vm.name)
        if policy is not None:
            after = [one for one in after_of(policy.after) if one.vm in by_name]
            update = {
                "requires_labels": labels_of(policy.requires_labels),
                "prefers_labels": labels_of(policy.prefers_labels),
                "after": tuple(one.model_copy(update={"vm": by_name[one.vm]}) for one in after),
            }
            vm = vm.model_copy(update=update)
        vms.append(vm)
    vms, circles = without_circles(vms)
    ruled = groups_of(ruling, vms)
    names = {uuid: name for name, uuid in by_name.items()}
    dropped = [*((_named(names, rule), _named(names, why)) for rule, why in circles), *ruled.dropped]
    return shot.model_copy(update={"vms": tuple(vms), "groups": ruled.groups}), Ruled(
        ruled.groups, tuple(dropped)
    )


def awaited(state: State, starting: Collection[str]) -> dict[str, tuple[AwaitedVm, ...]]:
    """By VM that is planned to start now whom it comes after, of all that are to start now or are starting."""
    there = {
        item.name: (incident, item)
        for incident in state.incidents()
        for item in incident.items
        if item.phase is Phase.PLANNED or item.vm in starting
    }
    found = {}
    for _, item in there.values():
        if item.vm not in starting or not item.policy.after:
            continue
        before = []
        for one in after_of(item.policy.after):
            incident, other = there.get(one.vm, (None, None))
            if incident is None or other is None or other.vm == item.vm:
                continue
            if other.vm in starting:
                other = other.model_copy(update={"attempt": other.attempt + 1})
            lease = state.leases.get(other.vm)
            before.append(
                AwaitedVm(
                    vm=other.vm,
                    name=other.name,
                    key=incidents.start_key(incident, other),
                    token=lease.token if lease is not None else 0,
                    ready="agent" if one.ready == "agent" else "running",
                    probe=other.policy.ready,
                    wait_s=one.wait_s,
                )
            )
        found[item.vm] = tuple(before)
    return found


def _named(names: dict[str, str], text: str) -> str:
    for uuid, name in names.items():
        text = text.replace(uuid, name)
    return text


def _rules(policy: VmPolicy) -> bool:
    return bool(
        policy.requires_labels
        or policy.prefers_labels
        or policy.affinity
        or policy.anti_affinity
        or policy.after
    )


def _policies(state: State, shot: Snapshot, wanted: Sequence[Item]) -> dict[str, VmPolicy]:
    """By name in the snapshot: as the VM's item has it, else its host's last report, else its lease."""
    known = Known(state)
    items = {item.vm: item.policy for item in wanted}
    found = {}
    for vm in shot.vms:
        policy = items.get(vm.name) or known.policy(vm.name)
        if policy is not None:
            found[vm.name] = policy
    return found


class Known:
    """What is known of VMs by their names in a snapshot, uuid@host: each host's last word, else the lease."""

    def __init__(self, state: State) -> None:
        self._leases = state.leases
        self._reports = {
            f"{report.uuid}@{host}": report for host, heard in state.heard.items() for report in heard.vms
        }

    def report(self, name: str) -> VmReport | None:
        return self._reports.get(name)

    def either(self, name: str) -> VmReport | RunLease | None:
        return self._reports.get(name) or self._leases.get(name.partition("@")[0])

    def policy(self, name: str) -> VmPolicy | None:
        known = self.either(name)
        return known.policy if known is not None else None
