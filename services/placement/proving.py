"""Whether the pool could take the loss of as many hosts as it is to tolerate: looked at every few seconds, told once a
transition. Witness plans are kept from look to look, so that one costs what changed.

What holds for a moment only, while hosts join or a failover is under way, is not told."""

from __future__ import annotations

from collections.abc import Mapping

from libs.core.decider import Publish, Step
from libs.core.evolve import replace
from libs.events.capacity import CapacityOvercommitted, CapacityRestored, PolicyContradicted
from libs.events.facts import AnyFact
from libs.events.scaleout import Needs
from libs.planning.capacity import Capacity, capacity
from libs.planning.policies import Ruled
from libs.planning.pool import Pool
from libs.planning.snapshot import PoolPolicy, Snapshot, SnapshotVm
from libs.planning.witness import Witnesses
from libs.planning.words import in_words
from services.placement import pool, ready, rules, stores
from services.placement.state import Basis, CapacityWords, Phase, PlacementRecord, PlacementState, Proved

State = PlacementState
RECORD = "pool.capacity"
SETTLE_S = 10.0
DROPPED_KEPT = 64


def looked(
    state: State,
    policy: PoolPolicy,
    labels: dict[str, dict[str, str]],
    has: Mapping[str, tuple[str, ...]],
    now: float,
) -> Step[State]:
    """One look at the pool as it is now; none where no failure is to be tolerated, and none while starts are under way:
    in a large pool it takes its time, and a failover must not wait for it."""
    starting = any(item.phase is Phase.PLANNED for incident in state.incidents() for item in incident.items)
    if not policy.failures_to_tolerate or starting:
        return Step(state)
    usable = {host: state.heard[host] for host in pool.usable(state, now)}
    basis, before = Basis(usable, state.leases, state.records, state.offers), state.proved
    if before is not None and before.basis.same(basis):
        proved = before
    else:
        shot, ruled = _snapshot(state, policy, labels, has, now)
        as_it_is = Pool(shot)
        kept = before.witnesses.refreshed(as_it_is) if before is not None else Witnesses(as_it_is)
        found = capacity(shot, kept, up_to=max(1, policy.failures_to_tolerate))
        short = found.tolerates < policy.failures_to_tolerate
        since = before.since if before is not None and before.short == short else now
        state = ready.shown(ready.kept(state, usable, kept.of))
        well = before.well if before is not None and short else frozenset(vm.name for vm in shot.vms)
        proved = Proved(replace(basis, records=state.records), shot, ruled, kept, found, short, since, well)
    state = replace(state, proved=proved)
    words = _words(state)
    told: list[AnyFact] = _dropped(words, proved.ruled)
    words = words.model_copy(
        update={
            "dropped": (
                *words.dropped,
                *(one.dropped for one in told if isinstance(one, PolicyContradicted)),
            )[-DROPPED_KEPT:],
            "rules": words.rules + len(told),
        }
    )
    if proved.short != words.overcommitted and now - proved.since >= SETTLE_S:
        number = words.number + 1 if proved.short else words.number
        told.append(
            _overcommitted(state, proved, policy, number)
            if proved.short
            else _restored(proved, policy, number)
        )
        words = words.model_copy(update={"number": number, "overcommitted": proved.short})
    if not told:
        return Step(state)
    state = replace(state, records=state.records.insert(RECORD, PlacementRecord(capacity=words)))
    return Step(state, tuple(Publish(RECORD, fact) for fact in told))


def _words(state: State) -> CapacityWords:
    record = state.records.get(RECORD)
    words = record.capacity if isinstance(record, PlacementRecord) else None
    return words if words is not None else CapacityWords()


def _dropped(words: CapacityWords, ruled: Ruled) -> list[AnyFact]:
    new = [one for one in ruled.dropped if one[0] not in words.dropped]
    return [
        PolicyContradicted(
            number=words.rules + at,
            dropped=rule,
            reason=why,
            rule="of rules that contradict each other the weakest is dropped",
        )
        for at, (rule, why) in enumerate(new, 1)
    ]


def _past_us(state: State, proved: Proved) -> tuple[str, ...]:
    """VMs that run since the pool could still take it, by no start of ours: by a person's, with virsh."""
    by_us = {lease.name for lease in state.leases.values() if lease.start_key}
    return tuple(sorted({vm.name for vm in proved.snapshot.vms if vm.host} - proved.well - by_us))


def _overcommitted(state: State, proved: Proved, policy: PoolPolicy, number: int) -> CapacityOvercommitted:
    found, shot = proved.found, proved.snapshot
    return CapacityOvercommitted(
        number=number,
        target=policy.failures_to_tolerate,
        tolerates=found.tolerates,
        verified=found.verified,
        upper_bound=found.upper_bound,
        worst_case=found.worst_case,
        unplaced=found.unplaced,
        fit_nowhere=found.fit_nowhere,
        worst_case_in_words=in_words(shot, found),
        needs=needs_of([vm for vm in shot.vms if vm.name in {*found.unplaced, *found.fit_nowhere}]),
        started=_past_us(state, proved),
        rule=found.proof,
    )


def needs_of(vms: list[SnapshotVm]) -> Needs:
    """What these VMs take together, and the most that one of them does."""
    devices: dict[str, int] = {}
    for vm in vms:
        for device, count in vm.devices.items():
            devices[device] = devices.get(device, 0) + count
    return Needs(
        vms=tuple(sorted(vm.name for vm in vms)),
        memory_mib=sum(vm.memory_mib for vm in vms),
        vcpus=sum(vm.vcpus for vm in vms),
        host_memory_mib=max((vm.memory_mib for vm in vms), default=0),
        host_vcpus=max((vm.vcpus for vm in vms), default=0),
        storage=tuple(sorted({name for vm in vms for name in vm.storage or ()})),
        networks=tuple(sorted({name for vm in vms for name in vm.networks or ()})),
        devices=devices,
        labels=tuple(sorted({f"{name}={value}" for vm in vms for name, value in vm.requires_labels.items()})),
    )


def _restored(proved: Proved, policy: PoolPolicy, number: int) -> CapacityRestored:
    found: Capacity = proved.found
    return CapacityRestored(
        number=number, target=policy.failures_to_tolerate, tolerates=found.tolerates, rule=found.proof
    )


def _snapshot(
    state: State,
    policy: PoolPolicy,
    labels: dict[str, dict[str, str]],
    has: Mapping[str, tuple[str, ...]],
    now: float,
) -> tuple[Snapshot, Ruled]:
    """The pool as it runs, VMs under the names that people know. One that is known on two hosts keeps its longer one."""
    shot = stores.with_reach(state, pool.snapshot(state, policy, labels, [], now), has, [])
    shot, ruled = rules.with_rules(state, shot, [])
    known = rules.Known(state)
    names: dict[str, str] = {}
    taken: set[str] = set()
    vms = []
    for vm in shot.vms:
        named = known.either(vm.name)
        name = named.name if named is not None else vm.name
        names[vm.name] = vm.name if name in taken else name
        taken.add(name)
        vms.append(_as_promised(known, vm, names[vm.name], any(has.values())))
    groups = tuple(
        group.model_copy(update={"vms": tuple(names[one] for one in group.vms)}) for group in shot.groups
    )
    return shot.model_copy(update={"vms": tuple(vms), "groups": groups}), ruled


def _as_promised(known: rules.Known, vm: SnapshotVm, name: str, stored: bool) -> SnapshotVm:
    """Under this name, with its protection and importance, which do not count for what only takes up room."""
    policy, report = known.policy(vm.name), known.report(vm.name)
    update: dict[str, object] = {"name": name}
    if policy is not None:
        update |= {"protection": policy.protection, "priority": policy.priority, "order": policy.order}
    if stored and report is not None and report.datastores:
        update["storage"] = report.datastores
    return vm.model_copy(update=update)
