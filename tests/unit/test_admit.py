"""Admission: what an action would cost is told before it is done, and a pool in need is not blocked."""

from __future__ import annotations

from typing import Any

import pytest

from libs.planning.admit import admit_vm, admit_without
from libs.planning.snapshot import Snapshot, SnapshotVm

pytestmark = pytest.mark.fast


def pool(hosts: dict[str, int], vms: dict[str, tuple[str, int]], **more: Any) -> Snapshot:
    body = {
        "schema": "rekindle.snapshot.v1",
        "hosts": [{"name": name, "memory_mib": memory, "cpus": 8} for name, memory in hosts.items()],
        "vms": [
            {"name": name, "host": at, "memory_mib": memory, "vcpus": 1} for name, (at, memory) in vms.items()
        ],
        **more,
    }
    return Snapshot.model_validate(body)


def new(memory_mib: int, **more: Any) -> SnapshotVm:
    return SnapshotVm(name="new", memory_mib=memory_mib, vcpus=1, **more)


THREE = {"h1": 4096, "h2": 4096, "h3": 4096}
FULL = {"a": ("h1", 2048), "b": ("h2", 2048), "c": ("h3", 1024)}


def test_a_vm_that_leaves_the_promise_intact_may_start_on_the_roomiest_host() -> None:
    answer = admit_vm(pool(THREE, FULL), new(1024))
    assert (answer.allowed, answer.host) == (True, "h3")


def test_a_vm_that_would_break_the_promise_may_not_and_the_worst_case_is_told() -> None:
    answer = admit_vm(pool(THREE, FULL), new(3072))
    assert not answer.allowed
    assert answer.reason == "if h3 fails, new (3 GiB) cannot start: 1 GiB short on every host"
    assert answer.lost == ("new",)
    assert answer.after is not None
    assert (answer.before.tolerates, answer.after.tolerates) == (1, 0)


def test_the_same_vm_may_start_unprotected() -> None:
    assert admit_vm(pool(THREE, FULL), new(3072, protection="none")).allowed


def test_a_vm_without_a_place_may_not_start_whatever_the_pool_tolerates() -> None:
    answer = admit_vm(pool(THREE, FULL), new(9000))
    assert (answer.allowed, answer.lost) == (False, ("new",))
    assert answer.reason.startswith("it has no place: ")
    on_a_host = admit_vm(pool(THREE, FULL), new(3000, host="h1"))
    assert (on_a_host.allowed, on_a_host.reason) == (False, "h1: 952 MiB and 0 vCPUs short")


def test_protecting_a_vm_that_runs_asks_for_its_capacity() -> None:
    shot = pool(THREE, FULL)
    bare = shot.vms[0].model_copy(update={"protection": "none"})
    unprotected = shot.model_copy(update={"vms": (bare, *shot.vms[1:])})
    assert admit_vm(unprotected, shot.vms[0]).allowed


def test_maintenance_tells_where_what_runs_there_goes() -> None:
    answer = admit_without(pool(THREE, FULL), "h3", removed=False)
    assert not answer.allowed  # two full hosts are left: neither could take the other's
    assert answer.moved == (("c", "h2"),)
    assert answer.reason.startswith("if h")
    small = {"a": ("h1", 1024), "b": ("h2", 512), "c": ("h3", 1024)}
    for removed in (False, True):
        answer = admit_without(pool(THREE, small), "h3", removed=removed)
        assert (answer.allowed, answer.reason) == (True, "the pool still tolerates 1")


def test_a_host_whose_vms_have_no_place_is_not_emptied() -> None:
    answer = admit_without(pool({"h1": 4096, "h2": 1024}, {"a": ("h1", 2048)}), "h1", removed=True)
    assert (answer.allowed, answer.lost) == (False, ("a",))
    assert answer.reason == "a has no place elsewhere: 1024 MiB and 0 vCPUs short on h2, the roomiest of 1"


def test_a_pool_that_is_overcommitted_already_is_not_blocked() -> None:
    crowded = pool({"h1": 4096, "h2": 4096}, {"a": ("h1", 4000), "b": ("h2", 3000)})
    answer = admit_vm(crowded, new(500))
    assert (answer.allowed, answer.host, answer.before.tolerates) == (True, "h2", 0)
    assert answer.reason.startswith("the pool tolerates only 0 of 1 already")
