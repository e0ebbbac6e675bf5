"""Snapshot files: what DESIGN §6 shows is read, and what is wrong is told with file, field and reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libs.config.yamlfile import BadInputError
from libs.planning.files import load_snapshot, load_vm
from libs.planning.snapshot import Snapshot

pytestmark = pytest.mark.fast

DESIGN = {
    "schema": "rekindle.snapshot.v1",
    "pool": "rack-a",
    "policy": {"failures_to_tolerate": 1, "cpu_overcommit": 4.0, "memory_overcommit": 1.0},
    "hosts": [
        {
            "name": "h1",
            "state": "online",
            "memory_mib": 65536,
            "memory_reserved_mib": 2048,
            "cpus": 32,
            "labels": {"rack": "r1"},
            "storage": ["nfs-a"],
            "networks": ["br0"],
            "devices": {"gpu": 2},
        },
        {"name": "h2", "memory_mib": 65536, "cpus": 32},
    ],
    "vms": [
        {
            "name": "db1",
            "host": "h1",
            "state": "running",
            "memory_mib": 8192,
            "vcpus": 4,
            "protection": "restart",
            "priority": "high",
            "order": 0,
            "start_delay_s": 0,
            "storage": ["nfs-a"],
            "networks": ["br0"],
            "devices": {},
            "requires_labels": {},
            "prefers_labels": {},
            "after": [],
        },
        {"name": "db2", "memory_mib": 8192, "vcpus": 4},
        {"name": "db3", "memory_mib": 8192, "vcpus": 4},
    ],
    "groups": [
        {"name": "db", "rule": "anti_affinity", "strict": True, "scope": "host", "vms": ["db1", "db2"]}
    ],
}
Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(document: Any) -> Path:
        path = tmp_path / "snap.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return written


def test_the_design_s_own_snapshot_is_read_and_written_as_it_was(write: Write) -> None:
    read = load_snapshot(write(DESIGN))
    again = Snapshot.model_validate_json(read.model_dump_json(by_alias=True))
    assert again == read
    told = json.loads(read.model_dump_json(by_alias=True))
    assert DESIGN["vms"][0].items() <= told["vms"][0].items()  # type: ignore[index]
    assert DESIGN["hosts"][0].items() <= told["hosts"][0].items()  # type: ignore[index]


def _with(where: list[Any], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(DESIGN)
    part: Any = document
    for step in where[:-1]:
        part = part[step]
    part[where[-1]] = value
    return document


def _groups(*groups: tuple[str, str, str, list[str]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "rule": rule, "strict": True, "scope": scope, "vms": vms}
        for name, rule, scope, vms in groups
    ]


AFFINE, APART = "affinity", "anti_affinity"
BAD: dict[str, tuple[Any, list[str]]] = {
    "negative memory": (
        _with(["vms", 0, "memory_mib"], -1),
        ["vms.0 (db1).memory_mib", "greater than 0", "-1"],
    ),
    "a VM on an unknown host": (_with(["vms", 0, "host"], "h9"), ["vms.db1.host", "there is no host h9"]),
    "an unknown field": (_with(["hosts", 1, "memory"], 1), ["hosts.1 (h2).memory", "unknown field"]),
    "a misspelled field": (_with(["vms", 0, "vcpu"], 1), ["vms.0 (db1).vcpu", "did you mean vcpus?"]),
    "a VM given twice": (_with(["vms", 1, "name"], "db1"), ["vms: db1 is given twice"]),
    "an after that is not there": (_with(["vms", 1, "after"], ["db9"]), ["vms.db2.after", "no VM db9"]),
    "an after of itself": (_with(["vms", 1, "after"], ["db2"]), ["vms.db2.after: a circle: db2 after db2"]),
    "a readiness that is none": (
        _with(["vms", 1, "after"], [{"vm": "db1", "ready": "soon"}]),
        ["vms.1 (db2).after.0.ready"],
    ),
    "a group of an unknown VM": (
        _with(["groups", 0, "vms"], ["db1", "x"]),
        ["groups.db.vms: there is no VM x"],
    ),
    "a rule that is none": (_with(["groups", 0, "rule"], "near"), ["groups.0 (db).rule", "near"]),
    "groups that contradict each other": (
        _with(
            ["groups"], _groups(("a", AFFINE, "host", ["db1", "db2"]), ("b", APART, "host", ["db2", "db1"]))
        ),
        ["groups.b: db1 and db2 must be apart, and strict affinity keeps them together"],
    ),
    "groups that contradict each other by way of a third VM": (
        _with(
            ["groups"],
            _groups(
                ("a", AFFINE, "host", ["db1", "db2"]),
                ("b", AFFINE, "rack", ["db2", "db3"]),
                ("c", APART, "rack", ["db1", "db3"]),
            ),
        ),
        ["groups.c: db1 and db3 must be apart"],
    ),
    "infinite overcommit": (
        '{"hosts": [], "policy": {"cpu_overcommit": Infinity}}',
        ["policy.cpu_overcommit"],
    ),
    "a field given twice": ('{"hosts": [], "hosts": []}', ["hosts: is given twice"]),
    "no JSON": ('{"hosts": ]', ["line 1", "is no JSON"]),
    "another format": (_with(["schema"], "rekindle.snapshot.v2"), ["schema", "rekindle.snapshot.v1"]),
    "no object": ("[]", ["must be one JSON object"]),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_is_wrong_is_told_with_file_field_and_reason(case: str, write: Write) -> None:
    document, parts = BAD[case]
    path = write(document)
    with pytest.raises(BadInputError) as told:
        load_snapshot(path)
    for part in [str(path), *parts]:
        assert part in str(told.value)


def test_a_circle_of_three_is_named_in_full(write: Write) -> None:
    document = copy.deepcopy(DESIGN)
    for at, after in enumerate(["db2", "db3", "db1"]):
        document["vms"][at]["after"] = [after]  # type: ignore[index]
    with pytest.raises(BadInputError, match="a circle: db1 after db2 after db3 after db1"):
        load_snapshot(write(document))


def test_labels_that_members_of_one_place_require_must_agree(write: Write) -> None:
    document = _with(["groups"], _groups(("a", AFFINE, "rack", ["db1", "db2"])))
    document["vms"][0]["requires_labels"] = {"rack": "r1"}
    document["vms"][1]["requires_labels"] = {"rack": "r2"}
    with pytest.raises(BadInputError, match=r"groups\.a: db1 requires rack=r1 and db2 rack=r2"):
        load_snapshot(write(document))


def test_soft_groups_may_contradict_each_other_and_apart_by_host_may_be_together_by_rack(
    write: Write,
) -> None:
    soft = _groups(("a", AFFINE, "host", ["db1", "db2"]), ("b", APART, "host", ["db1", "db2"]))
    soft[1]["strict"] = False
    assert len(load_snapshot(write(_with(["groups"], soft))).groups) == 2
    both = _groups(("a", AFFINE, "rack", ["db1", "db2"]), ("b", APART, "host", ["db1", "db2"]))
    assert len(load_snapshot(write(_with(["groups"], both))).groups) == 2


def test_one_vm_is_read_alike(write: Write) -> None:
    assert load_vm(write({"name": "a", "memory_mib": 5, "vcpus": 1})).name == "a"
    with pytest.raises(BadInputError, match=r"snap\.json: vcpus: "):
        load_vm(write({"name": "a", "memory_mib": 5, "vcpus": 0}))
    with pytest.raises(BadInputError, match="cannot be read"):
        load_vm(Path("/nowhere/vm.json"))
