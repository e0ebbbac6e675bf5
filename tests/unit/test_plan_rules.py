"""What a plan obeys beside room, by story; and what it says when it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from libs.planning.plan import Allowed, Migration, Plan, Preemption, plan
from libs.planning.snapshot import Snapshot

pytestmark = pytest.mark.fast
LOST = frozenset({"lost"})
MOVES = Allowed(migrations=True)
STOPS = Allowed(preemption=True)


def host(name: str, memory_mib: int = 100, **more: Any) -> dict[str, Any]:
    return {"name": name, "memory_mib": memory_mib, "cpus": 8, **more}


def vm(name: str, at: str | None = "lost", memory_mib: int = 10, **more: Any) -> dict[str, Any]:
    return {"name": name, "host": at, "memory_mib": memory_mib, "vcpus": 1, **more}


def group(rule: str, *vms: str, strict: bool = True, scope: str = "host") -> dict[str, Any]:
    return {"name": "g", "rule": rule, "strict": strict, "scope": scope, "vms": vms}


def pool(hosts: list[Any], vms: list[Any], *groups: Any, **policy: Any) -> Snapshot:
    hosts = [*hosts, host("lost", 1000)]
    body = {"schema": "rekindle.snapshot.v1", "policy": policy, "hosts": hosts, "vms": vms, "groups": groups}
    return Snapshot.model_validate(body)


def placed(found: Plan) -> dict[str, str]:
    return {start.vm: start.to for start in found.starts}


# -- groups


def test_two_that_must_be_apart_go_to_two_hosts_and_a_third_waits_for_one() -> None:
    found = plan(
        pool(
            [host("h1"), host("h2", 50)],
            [vm("a"), vm("b"), vm("c")],
            group("anti_affinity", "a", "b", "c"),
        ),
        LOST,
    )
    assert sorted(placed(found).values()) == ["h1", "h2"]
    [left] = found.unplaced
    assert (left.reason, left.short_memory_mib) == ("strict_rule", 0)
    assert left.detail == "h1: anti_affinity of g over host; h2: anti_affinity of g over host"


def test_apart_by_rack_counts_who_runs_in_the_rack_already() -> None:
    racks = [host("h1", 200, labels={"rack": "r1"}), host("h2", 150, labels={"rack": "r1"})]
    shot = pool(
        [*racks, host("h3", 50, labels={"rack": "r2"})],
        [vm("a"), vm("b", "h2")],
        group("anti_affinity", "a", "b", scope="rack"),
    )
    assert placed(plan(shot, LOST)) == {"a": "h3"}


def test_those_that_must_be_together_go_where_all_have_room() -> None:
    # h1 has the most room left for one; only h2 has vCPUs for both
    shot = pool(
        [host("h1", 100, cpus=1), host("h2", 60)],
        [vm("a", memory_mib=30, vcpus=3), vm("b", memory_mib=30, vcpus=3)],
        group("affinity", "a", "b"),
    )
    assert placed(plan(shot, LOST)) == {"a": "h2", "b": "h2"}


def test_one_joins_those_of_its_group_that_run() -> None:
    shot = pool([host("h1", 500), host("h2", 60)], [vm("a"), vm("b", "h2")], group("affinity", "a", "b"))
    assert placed(plan(shot, LOST)) == {"a": "h2"}


def test_a_soft_rule_yields_only_to_room() -> None:
    soft = group("anti_affinity", "a", "b", strict=False)
    two = pool([host("h1"), host("h2", 30)], [vm("a"), vm("b")], soft)
    assert sorted(placed(plan(two, LOST)).values()) == ["h1", "h2"]
    one = pool([host("h1")], [vm("a"), vm("b")], soft)
    assert placed(plan(one, LOST)) == {"a": "h1", "b": "h1"}


def test_labels_are_preferred_where_there_is_room() -> None:
    hosts = [host("h1"), host("h2", 30, labels={"disk": "ssd"})]
    vms = [vm("a", memory_mib=20, prefers_labels={"disk": "ssd"}), vm("b", prefers_labels={"disk": "ssd"})]
    assert placed(plan(pool(hosts, vms), LOST)) == {"a": "h2", "b": "h2"}
    vms.append(vm("c", memory_mib=5, prefers_labels={"disk": "ssd"}))
    assert sorted(placed(plan(pool(hosts, vms), LOST)).values()) == ["h1", "h2", "h2"]


def test_cpu_models_are_obeyed() -> None:
    hosts = [host("h1", 500, cpu_models=["Haswell"]), host("h2", cpu_models=["Haswell", "Icelake"])]
    assert placed(plan(pool(hosts, [vm("a", cpu_model="Icelake")]), LOST)) == {"a": "h2"}
    [left] = plan(pool(hosts[:1], [vm("a", cpu_model="Icelake")]), LOST).unplaced
    assert (left.reason, left.detail) == ("no_host_suits", "h1: no CPU model Icelake")


def test_what_is_missing_of_devices_is_said() -> None:
    shot = pool(
        [host("h1", devices={"gpu": 2})],
        [vm("a", devices={"gpu": 2}), vm("b", "h1", devices={"gpu": 1})],
    )
    [left] = plan(shot, LOST).unplaced
    assert (left.reason, left.short_devices) == ("no_room", {"gpu": 1})
    assert left.detail.endswith("no 1 more gpu")


# -- the order of start


def test_whoever_waits_for_another_starts_in_a_later_wave_and_makes_it_urgent() -> None:
    shot = pool(
        [host("h1", 500)],
        [
            vm("app", priority="highest", after=["db", "elsewhere"]),
            vm("db", priority="low", after=[{"vm": "store", "ready": "tcp://10.0.0.1:80", "wait_s": 60}]),
            vm("store", priority="low"),
            vm("other", priority="medium"),
            vm("elsewhere", "h1"),
        ],
    )
    starts = plan(shot, LOST).starts
    assert {start.vm: start.wave for start in starts} == {"store": 0, "db": 1, "app": 2, "other": 3}
    urgency = {start.vm: start.urgency for start in starts}
    assert urgency["store"] == urgency["db"] == urgency["app"] < urgency["other"]


# -- making room


def test_a_healthy_vm_is_moved_to_open_a_hole_where_policy_allows() -> None:
    shot = pool(
        [host("h1"), host("h2")],
        [vm("big", memory_mib=80), vm("x", "h1", 30), vm("y", "h2", 30)],
    )
    assert [one.reason for one in plan(shot, LOST).unplaced] == ["no_room"]
    found = plan(shot, LOST, allowed=MOVES)
    assert found.migrations == (Migration("x", "h1", "h2"),)
    assert placed(found) == {"big": "h1"}


def test_a_move_that_needs_another_comes_after_it() -> None:
    shot = pool(
        [host("h1"), host("h2", 60), host("h3", 45)],
        [
            vm("big", memory_mib=90),
            vm("x", "h1", 50),
            vm("y", "h2", 40),
        ],
    )
    found = plan(shot, LOST, allowed=MOVES)
    assert found.migrations == (Migration("y", "h2", "h3"), Migration("x", "h1", "h2"))
    assert placed(found) == {"big": "h1"}


def test_what_holds_a_device_is_not_moved() -> None:
    shot = pool(
        [host("h1", devices={"gpu": 1}), host("h2", devices={"gpu": 1})],
        [vm("big", memory_mib=80), vm("x", "h1", 30, devices={"gpu": 1}), vm("y", "h2", 30)],
    )
    assert plan(shot, LOST, allowed=MOVES).migrations == (Migration("y", "h2", "h1"),)


def test_nothing_is_moved_where_nothing_is_left_out() -> None:
    shot = pool([host("h1"), host("h2")], [vm("a", memory_mib=60), vm("x", "h1", 30)])
    assert plan(shot, LOST, allowed=Allowed(True, True)) == plan(shot, LOST)


def test_the_least_important_are_stopped_and_no_more_than_needed() -> None:
    shot = pool(
        [host("h1"), host("h2")],
        [
            vm("vital", memory_mib=40, priority="high"),
            vm("a", "h1", 50, priority="low"),
            vm("b", "h1", 40, protection="best_effort", priority="highest"),
            vm("c", "h2", 90, priority="highest"),
        ],
    )
    assert plan(shot, LOST, allowed=MOVES).unplaced
    found = plan(shot, LOST, allowed=STOPS)
    assert found.preemptions == (Preemption("b", "h1"),)
    assert placed(found) == {"vital": "h1"}


@pytest.mark.parametrize(
    "victim",
    [
        {"priority": "medium"},
        {"priority": "high"},
        {"protection": "none", "priority": "lowest"},
    ],
)
def test_none_is_stopped_for_an_equal_nor_without_a_promise_to_break(victim: dict[str, Any]) -> None:
    shot = pool([host("h1")], [vm("a", memory_mib=50), vm("x", "h1", 60, **victim)])
    assert [one.vm for one in plan(shot, LOST, allowed=STOPS).unplaced] == ["a"]


def test_a_best_effort_vm_stops_nobody() -> None:
    shot = pool(
        [host("h1")],
        [
            vm("a", memory_mib=50, protection="best_effort", priority="highest"),
            vm("x", "h1", 60, protection="best_effort", priority="low"),
        ],
    )
    assert [one.vm for one in plan(shot, LOST, allowed=STOPS).unplaced] == ["a"]
