"""The planner: never over capacity, blind to the order of its input, and the important first."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.model import Priority, Protection
from libs.planning.plan import Plan, plan
from libs.planning.snapshot import PoolPolicy, Snapshot, SnapshotHost, SnapshotHostState, SnapshotVm

pytestmark = pytest.mark.fast
LOST = frozenset({"lost"})


def host(name: str, memory_mib: int = 1000, cpus: int = 8, **more: Any) -> SnapshotHost:
    return SnapshotHost(name=name, memory_mib=memory_mib, cpus=cpus, **more)


def orphan(name: str, memory_mib: int = 100, **more: Any) -> SnapshotVm:
    return SnapshotVm(**{"name": name, "host": "lost", "memory_mib": memory_mib, "vcpus": 1, **more})


def pool(hosts: list[SnapshotHost], vms: list[SnapshotVm], **policy: Any) -> Snapshot:
    return Snapshot(
        schema="rekindle.snapshot.v1",
        policy=PoolPolicy(**policy),
        hosts=(*hosts, host("lost", 100_000, 1000)),
        vms=tuple(vms),
    )


def placed(found: Plan) -> dict[str, str]:
    return {start.vm: start.to for start in found.starts}


def reasons(found: Plan) -> dict[str, str]:
    return {one.vm: one.reason for one in found.unplaced}


def test_vms_spread_to_where_most_room_is() -> None:
    shot = pool([host("h1", 1000), host("h2", 900), host("h3", 500)], [orphan(f"v{n}") for n in range(4)])
    assert placed(plan(shot, LOST)) == {"v0": "h1", "v1": "h2", "v2": "h1", "v3": "h2"}


def test_waves_go_by_protection_then_priority_then_start_order() -> None:
    vms = [
        orphan("a", priority="low"),
        orphan("b", priority="highest", order=2),
        orphan("c", priority="highest", order=1),
        orphan("d", priority="highest", protection="best_effort"),
        orphan("e", priority="low"),
    ]
    found = plan(pool([host("h1")], vms), LOST)
    assert [(start.vm, start.wave) for start in found.starts] == [
        ("c", 0),
        ("b", 1),
        ("a", 2),
        ("e", 2),
        ("d", 3),
    ]


@pytest.mark.parametrize(
    "vm",
    [
        orphan("a", protection="none"),
        orphan("a", state="stopped"),
        orphan("a", host="h1"),
        orphan("a", host=None),
    ],
)
def test_what_is_not_an_orphan_is_left(vm: SnapshotVm) -> None:
    assert plan(pool([host("h1")], [vm]), LOST) == Plan((), ())


@pytest.mark.parametrize(
    ("candidate", "vm", "detail"),
    [
        (host("h1", storage=["a"]), orphan("v", storage=["b"]), "no storage b"),
        (host("h1", networks=[]), orphan("v", networks=["br0"]), "no network br0"),
        (host("h1"), orphan("v", requires_labels={"rack": "r1"}), "not labelled rack=r1"),
        (host("h1", devices={"gpu": 1}), orphan("v", devices={"gpu": 2}), "no 2 gpu"),
    ],
)
def test_a_host_that_does_not_suit_is_named_with_the_obstacle(
    candidate: SnapshotHost, vm: SnapshotVm, detail: str
) -> None:
    found = plan(pool([candidate], [vm]), LOST)
    assert reasons(found) == {"v": "no_host_suits"}
    assert found.unplaced[0].detail == f"h1: {detail}"


def test_constraints_that_nobody_gave_constrain_nothing() -> None:
    suits = [host("h1"), host("h1", storage=["b", "a"]), host("h1", devices={"gpu": 2})]
    for candidate in suits:
        for vm in (orphan("v"), orphan("v", storage=["a"]), orphan("v", networks=[])):
            assert placed(plan(pool([candidate], [vm]), LOST)) == {"v": "h1"}


def test_devices_are_used_up() -> None:
    vms = [orphan(f"v{n}", devices={"gpu": 1}) for n in range(3)]
    found = plan(pool([host("h1", devices={"gpu": 2})], vms), LOST)
    assert (len(found.starts), reasons(found)) == (2, {"v2": "no_room"})


def test_what_is_short_is_said() -> None:
    shot = pool([host("h1", 300, memory_reserved_mib=50, cpus=1)], [orphan("v", 400, vcpus=6)])
    short = plan(shot, LOST).unplaced[0]
    assert (short.reason, short.short_memory_mib, short.short_vcpus) == ("no_room", 150, 2)
    assert "h1" in short.detail


@pytest.mark.parametrize("state", [s for s in SnapshotHostState if s is not SnapshotHostState.ONLINE])
def test_only_hosts_online_take_vms(state: SnapshotHostState) -> None:
    assert reasons(plan(pool([host("h1", state=state)], [orphan("v")]), LOST)) == {"v": "no_host"}


def test_where_a_start_just_failed_is_avoided() -> None:
    shot = pool([host("h1"), host("h2", 500)], [orphan("v"), orphan("w")])
    found = plan(shot, LOST, {"v": frozenset({"h1"})})
    assert placed(found)["v"] == "h2"
    assert reasons(plan(shot, LOST, {"v": frozenset({"h1", "h2"})})) == {"v": "failed_everywhere"}


# -- any pool at all

hosts = st.lists(
    st.builds(
        lambda memory, cpus, reserved: (memory, cpus, min(reserved, memory - 1)),
        st.integers(50, 800),
        st.integers(1, 4),
        st.integers(0, 200),
    ),
    max_size=4,
)
vms = st.lists(
    st.tuples(
        st.integers(20, 400),
        st.integers(1, 6),
        st.sampled_from(list(Priority)),
        st.integers(0, 2),
        st.sampled_from([Protection.RESTART, Protection.BEST_EFFORT]),
        st.sampled_from(["lost", "lost", "lost", "h0"]),
    ),
    max_size=12,
)
overcommit = st.sampled_from([(1.0, 4.0), (1.5, 1.0), (1.0, 1.0)])


def drawn(host_list: list[Any], vm_list: list[Any], policy: tuple[float, float]) -> Snapshot:
    made = [
        host(f"h{n}", memory, cpus, memory_reserved_mib=reserved)
        for n, (memory, cpus, reserved) in enumerate(host_list)
    ]
    there = {one.name for one in made} | {"lost"}
    found = [
        orphan(f"v{n:02}", memory, vcpus=vcpus, priority=priority, order=order, protection=prot, host=at)
        for n, (memory, vcpus, priority, order, prot, at) in enumerate(vm_list)
        if at in there
    ]
    return pool(made, found, memory_overcommit=policy[0], cpu_overcommit=policy[1])


def rank(vm: SnapshotVm) -> tuple[bool, int, int]:
    return (vm.protection is not Protection.RESTART, vm.priority.rank, vm.order)


@settings(max_examples=150, deadline=None)
@given(hosts, vms, overcommit, st.randoms(use_true_random=False))
def test_no_host_is_filled_beyond_its_capacity_and_order_of_input_does_not_matter(
    host_list: list[Any], vm_list: list[Any], policy: tuple[float, float], chance: random.Random
) -> None:
    shot = drawn(host_list, vm_list, policy)
    found = plan(shot, LOST)
    orphans = {vm.name: vm for vm in shot.vms if vm.host == "lost"}
    assert set(placed(found)) | set(reasons(found)) == set(orphans)
    assert not set(placed(found)) & set(reasons(found))
    for one in shot.hosts:
        taken = [orphans[name] for name, to in placed(found).items() if to == one.name]
        if not taken:
            continue
        there = [vm for vm in shot.vms if vm.host == one.name]
        assert sum(vm.memory_mib for vm in (*there, *taken)) <= policy[0] * (
            one.memory_mib - one.memory_reserved_mib
        )
        assert sum(vm.vcpus for vm in (*there, *taken)) <= policy[1] * one.cpus
    mixed_hosts, mixed_vms = list(shot.hosts), list(shot.vms)
    chance.shuffle(mixed_hosts)
    chance.shuffle(mixed_vms)
    mixed = shot.model_copy(update={"hosts": tuple(mixed_hosts), "vms": tuple(mixed_vms)})
    assert plan(mixed, LOST) == found


@settings(max_examples=150, deadline=None)
@given(hosts, vms, overcommit)
def test_nobody_waits_for_the_sake_of_somebody_less_important(
    host_list: list[Any], vm_list: list[Any], policy: tuple[float, float]
) -> None:
    shot = drawn(host_list, vm_list, policy)
    found = plan(shot, LOST)
    orphans = {vm.name: vm for vm in shot.vms if vm.host == "lost"}
    for name in reasons(found):
        # take away everyone less important: it would still find no room
        ahead = [vm for vm in shot.vms if vm.host != "lost" or rank(vm) < rank(orphans[name])]
        same = [vm for vm in orphans.values() if rank(vm) == rank(orphans[name])]
        alone = shot.model_copy(update={"vms": (*ahead, *same)})
        assert name in reasons(plan(alone, LOST))


@settings(max_examples=100, deadline=None)
@given(hosts, vms, overcommit)
def test_one_more_host_never_costs_an_important_vm_its_place(
    host_list: list[Any], vm_list: list[Any], policy: tuple[float, float]
) -> None:
    uniform = [(size, 1, *rest) for size, _, *rest in vm_list]
    before = plan(drawn(host_list, uniform, policy), LOST)
    after = plan(drawn([*host_list, (5000, 64, 0)], uniform, policy), LOST)
    assert set(placed(before)) <= set(placed(after))
