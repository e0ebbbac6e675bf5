"""An oracle of placement that shares no code with the planner: it tries everything. For pools of a few VMs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

from hypothesis import strategies as st

from libs.model import Protection
from libs.planning.plan import Plan
from libs.planning.snapshot import Snapshot, SnapshotHost, SnapshotVm

Where = dict[str, str]
"""By VM the host that it runs on."""


def running(snapshot: Snapshot, failed: frozenset[str]) -> Where:
    """What goes on running though these hosts are lost."""
    return {
        vm.name: vm.host
        for vm in snapshot.vms
        if vm.host is not None and vm.host not in failed and vm.state == "running"
    }


def orphans(snapshot: Snapshot, failed: frozenset[str]) -> list[SnapshotVm]:
    return [
        vm
        for vm in snapshot.vms
        if vm.host in failed and vm.state == "running" and vm.protection is not Protection.NONE
    ]


def wrong(snapshot: Snapshot, where: Where, moved: set[str]) -> str:
    """What is wrong with where VMs run, as far as `moved` VMs are concerned; "" where nothing is."""
    hosts = {host.name: host for host in snapshot.hosts}
    vms = {vm.name: vm for vm in snapshot.vms}
    for name in {where[vm] for vm in moved}:
        there = [vms[vm] for vm, at in where.items() if at == name]
        wanted = {device for vm in moved if where[vm] == name for device in vms[vm].devices}
        if not _holds(snapshot, hosts[name], there, wanted):
            return f"{name} is over its capacity"
    for vm in moved:
        host, one = hosts[where[vm]], vms[vm]
        if host.state != "online":
            return f"{vm} is on {host.name}, which is {host.state}"
        if not _suits(host, one):
            return f"{vm} does not suit {host.name}"
    for group in snapshot.groups:
        places = {vm: _value(hosts[where[vm]], group.scope) for vm in group.vms if vm in where}
        settled = {place for other, place in places.items() if other not in moved}
        for vm in sorted(set(group.vms) & moved if group.strict else ()):
            others = {place for other, place in places.items() if other != vm}
            if group.rule == "anti_affinity":
                broken = places[vm] in others
            else:
                broken = places[vm] not in settled if settled else len({*others, places[vm]}) > 1
            if broken:
                return f"{vm} breaks {group.name}"
    return ""


def _holds(snapshot: Snapshot, host: SnapshotHost, there: list[SnapshotVm], wanted: set[str]) -> bool:
    policy, devices = snapshot.policy, Counter[str]()
    for vm in there:
        devices.update(vm.devices)
    memory = (host.memory_mib - host.memory_reserved_mib) * policy.memory_overcommit
    return (
        sum(vm.memory_mib for vm in there) <= memory
        and sum(vm.vcpus for vm in there) <= host.cpus * policy.cpu_overcommit
        and all(host.devices.get(device, 0) >= count for device, count in devices.items() if device in wanted)
    )


def _suits(host: SnapshotHost, vm: SnapshotVm) -> bool:
    for have, need in ((host.storage, vm.storage), (host.networks, vm.networks)):
        if have is not None and need is not None and not set(need) <= set(have):
            return False
    if vm.cpu_model is not None and host.cpu_models is not None and vm.cpu_model not in host.cpu_models:
        return False
    return all(host.labels.get(label) == value for label, value in vm.requires_labels.items())


def _value(host: SnapshotHost, scope: str) -> tuple[str, str]:
    if scope != "host" and scope in host.labels:
        return ("value", host.labels[scope])
    return ("host", host.name)


def every_placement(snapshot: Snapshot, failed: frozenset[str]) -> Iterator[Where]:
    """Each way to place some of the orphans that breaks nothing. Nothing that runs is moved."""
    before, wanted = running(snapshot, failed), orphans(snapshot, failed)
    usable = [host.name for host in snapshot.hosts if host.name not in failed and host.state == "online"]
    for choice in product([None, *usable], repeat=len(wanted)):
        placed = {vm.name: at for vm, at in zip(wanted, choice, strict=True) if at is not None}
        if not wrong(snapshot, {**before, **placed}, set(placed)):
            yield placed


def rank(vm: SnapshotVm) -> tuple[bool, int, int]:
    return (vm.protection is not Protection.RESTART, vm.priority.rank, vm.order)


def worth(snapshot: Snapshot, failed: frozenset[str], placed: Where) -> list[tuple[int, int, int]]:
    """By class how many are placed, and, of as many, how little they take."""
    wanted = orphans(snapshot, failed)
    told = []
    for one in sorted({rank(vm) for vm in wanted}):
        mine = [vm for vm in wanted if rank(vm) == one and vm.name in placed]
        told.append((len(mine), -sum(vm.memory_mib for vm in mine), -sum(vm.vcpus for vm in mine)))
    return told


def carried_out(snapshot: Snapshot, failed: frozenset[str], plan: Plan) -> str:
    """What goes wrong when the plan is carried out step by step; "" where nothing does."""
    where = running(snapshot, failed)
    for move in plan.migrations:
        if where.get(move.vm) != move.from_host:
            return f"{move.vm} does not run on {move.from_host}"
        where[move.vm] = move.to
        if found := wrong(snapshot, where, {move.vm}):
            return f"moving {move.vm} to {move.to}: {found}"
    for stop in plan.preemptions:
        if where.pop(stop.vm) != stop.host:
            return f"{stop.vm} does not run on {stop.host}"
    placed = {start.vm: start.to for start in plan.starts}
    return wrong(snapshot, {**where, **placed}, set(placed))


def tolerates(snapshot: Snapshot) -> int:
    """How many hosts may fail, whichever and in any order, so that every `restart` VM is placed after each failure, though
    nothing that runs is moved: by trying every plan against every series of failures."""
    running_now = running(snapshot, frozenset())
    living = [host.name for host in snapshot.hosts if host.state in ("online", "maintenance")]
    known: dict[tuple[object, ...], bool] = {}

    def survives(where: Where, lost: frozenset[str], more: int) -> bool:
        key = (frozenset(where.items()), lost, more)
        if key not in known:
            known[key] = more == 0 or all(
                any(survives(after, lost | {one}, more - 1) for after in _answers(snapshot, where, lost, one))
                for one in living
                if one not in lost
            )
        return known[key]

    return next((n for n in range(len(living)) if not survives(running_now, frozenset(), n + 1)), len(living))


def _answers(snapshot: Snapshot, where: Where, lost: frozenset[str], failed: str) -> Iterator[Where]:
    """Each way to place all `restart` VMs of a host that fails."""
    vms = {vm.name: vm for vm in snapshot.vms}
    stay = {name: at for name, at in where.items() if at != failed}
    again = [
        name for name, at in where.items() if at == failed and vms[name].protection is Protection.RESTART
    ]
    usable = [one.name for one in snapshot.hosts if one.name not in lost | {failed} and one.state == "online"]
    for choice in product(usable, repeat=len(again)):
        placed = dict(zip(again, choice, strict=True))
        if not wrong(snapshot, {**stay, **placed}, set(placed)):
            yield {**stay, **placed}


def tolerates_at_once(snapshot: Snapshot) -> int:
    """The same for hosts that are lost together."""
    living = [host.name for host in snapshot.hosts if host.state in ("online", "maintenance")]
    for count in range(1, len(living) + 1):
        for chosen in combinations(living, count):
            lost = frozenset(chosen)
            bare = snapshot.model_copy(
                update={
                    "vms": tuple(
                        vm
                        if vm.protection is Protection.RESTART
                        else vm.model_copy(update={"protection": Protection.NONE})
                        for vm in snapshot.vms
                    )
                }
            )
            wanted = len(orphans(bare, lost))
            if not any(len(placed) == wanted for placed in every_placement(bare, lost)):
                return count - 1
    return len(living)


# -- any pool at all

labels = st.fixed_dictionaries({}, optional={"rack": st.sampled_from(["r1", "r2"])})
stores = st.sampled_from([None, None, ("a",), ("a", "b"), ("b",)])


@st.composite
def pools(draw: Any, hosts_max: int = 4, vms_max: int = 6, lost: bool = True) -> Snapshot:
    """A few hosts and VMs, tight, with every constraint. With `lost`, most VMs are on a host that will be lost."""
    names = [f"h{n}" for n in range(draw(st.integers(1, hosts_max)))]
    hosts = [
        {
            "name": name,
            "memory_mib": draw(st.integers(20, 100)),
            "cpus": draw(st.integers(1, 4)),
            "state": draw(st.sampled_from(["online", "online", "online", "online", "maintenance"])),
            "labels": draw(labels),
            "storage": draw(stores),
            "devices": draw(st.sampled_from([{}, {}, {"gpu": 1}])),
            "cpu_models": draw(st.sampled_from([None, None, ("old",), ("old", "new")])),
        }
        for name in names
    ]
    if lost:
        hosts.append({"name": "lost", "memory_mib": 1000, "cpus": 50, "devices": {"gpu": 9}})
    homes = ["lost"] * 4 + names if lost else names
    vms = [
        {
            "name": f"v{n}",
            "host": draw(st.sampled_from(homes)),
            "memory_mib": draw(st.integers(5, 50)),
            "vcpus": draw(st.integers(1, 3)),
            "protection": draw(st.sampled_from(["restart", "restart", "best_effort"])),
            "priority": draw(st.sampled_from(["high", "medium"])),
            "order": draw(st.sampled_from([0, 0, 1])),
            "storage": draw(st.sampled_from([None, None, ("a",)])),
            "devices": draw(st.sampled_from([{}, {}, {}, {"gpu": 1}])),
            "cpu_model": draw(st.sampled_from([None, None, "new"])),
            "requires_labels": draw(st.sampled_from([{}, {}, {}, {"rack": "r1"}])),
        }
        for n in range(draw(st.integers(0, vms_max)))
    ]
    groups = []
    if len(vms) > 1 and draw(st.booleans()):
        members = draw(st.lists(st.sampled_from([vm["name"] for vm in vms]), min_size=2, unique=True))
        groups.append(
            {
                "name": "g",
                "rule": draw(st.sampled_from(["affinity", "anti_affinity"])),
                "scope": draw(st.sampled_from(["host", "rack"])),
                "strict": draw(st.sampled_from([True, True, False])),
                "vms": members,
            }
        )
    policy = {"cpu_overcommit": draw(st.sampled_from([1.0, 2.0])), "memory_overcommit": 1.0}
    body = {"schema": "rekindle.snapshot.v1", "policy": policy, "hosts": hosts, "vms": vms, "groups": groups}
    return Snapshot.model_validate(body)
