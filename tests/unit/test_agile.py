"""VMs that only their own host could run are named, with what ties them to it."""

from __future__ import annotations

from typing import Any

import pytest

from libs.planning.agile import REASONS, not_agile
from libs.planning.pool import Pool
from libs.planning.snapshot import Snapshot

pytestmark = pytest.mark.fast


def pool(*vms: dict[str, Any], hosts: int = 3) -> Pool:
    """h1 has what nobody else has, and is twice as large."""
    special = {
        "storage": ["local", "nfs"],
        "networks": ["br0", "br1"],
        "labels": {"rack": "r1"},
        "devices": {"gpu": 1},
        "cpu_models": ["new", "old"],
    }
    plain = {"storage": ["nfs"], "networks": ["br0"], "cpu_models": ["old"]}
    made = [{"name": "h1", "memory_mib": 200, "cpus": 8, **special}]
    made += [{"name": f"h{n}", "memory_mib": 100, "cpus": 8, **plain} for n in range(2, hosts + 1)]
    bodies = [{"name": f"v{n}", "host": "h1", "memory_mib": 10, "vcpus": 1, **vm} for n, vm in enumerate(vms)]
    body = {"schema": "rekindle.snapshot.v1", "hosts": made, "vms": bodies}
    return Pool(Snapshot.model_validate(body))


@pytest.mark.parametrize(
    ("vm", "reason", "detail"),
    [
        ({"storage": ["nfs", "local"]}, "storage", "no storage local"),
        ({"networks": ["br1"]}, "network", "no network br1"),
        ({"requires_labels": {"rack": "r1"}}, "label", "not labelled rack=r1"),
        ({"devices": {"gpu": 1}}, "device", "no 1 gpu"),
        ({"cpu_model": "new"}, "cpu_model", "no CPU model new"),
        ({"memory_mib": 101}, "size", "h2 is the largest that suits, with 100 MiB"),
    ],
)
def test_what_ties_a_vm_to_its_host_has_a_code(vm: dict[str, Any], reason: str, detail: str) -> None:
    [found] = not_agile(pool(vm))
    assert (found.vm, found.host, found.reason, found.detail) == ("v0", "h1", reason, detail)
    assert reason in REASONS


def test_who_can_run_elsewhere_is_agile_whatever_room_there_is_now() -> None:
    others = [{"host": f"h{n}", "memory_mib": 100} for n in (2, 3)]
    assert not list(not_agile(pool({"storage": ["nfs"], "memory_mib": 100}, *others)))


def test_what_nobody_promised_to_restart_is_not_told() -> None:
    assert not list(not_agile(pool({"storage": ["local"], "protection": "none"})))
    assert not list(not_agile(pool({"storage": ["local"], "state": "stopped"})))


def test_the_only_host_of_a_pool_holds_all_its_vms() -> None:
    assert [one.reason for one in not_agile(pool({}, hosts=1))] == ["no_host"]
