"""`rekindle plan`, `capacity`, `admit` as a person runs them: what they print, and with which exit status."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_cli import Plane, rekindle, standing


def host(name: str, memory_mib: int) -> dict[str, Any]:
    return {"name": name, "memory_mib": memory_mib, "cpus": 8}


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """Two hosts as large as each other, and room for one of the two VMs of h1 on h2."""
    path = tmp_path / "snap.json"
    body = {
        "schema": "rekindle.snapshot.v1",
        "pool": "p",
        "hosts": [host("h1", 4096), host("h2", 4096)],
        "vms": [
            {"name": "db", "host": "h1", "memory_mib": 2048, "vcpus": 1, "priority": "high"},
            {"name": "web", "host": "h1", "memory_mib": 1536, "vcpus": 1, "after": ["db"]},
            {"name": "other", "host": "h2", "memory_mib": 1024, "vcpus": 1},
        ],
    }
    path.write_text(json.dumps(body))
    return path


def test_a_plan_says_who_starts_where_and_what_is_missing(snapshot: Path) -> None:
    done = rekindle("plan", "--snapshot", str(snapshot), "--fail", "h1", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["schema"], told["failed"]) == (1, "rekindle.plan.v1", ["h1"])
    assert [(one["vm"], one["from"], one["to"], one["wave"]) for one in told["starts"]] == [
        ("db", "h1", "h2", 0)
    ]
    [left] = told["unplaced"]
    assert (left["vm"], left["priority"], left["reason"]) == ("web", "medium", "no_room")
    assert left["shortfall"] == {"memory_mib": 512, "vcpus": 0, "devices": {}}
    assert (told["migrations"], told["preemptions"]) == ([], [])
    assert told["elapsed_ms"] < 1000
    table = rekindle("plan", "--snapshot", str(snapshot), "--fail", "h2")
    assert table.returncode == 1
    assert "other" in table.stdout


def test_a_capacity_is_three_numbers_and_the_worst_case_in_words(snapshot: Path) -> None:
    done = rekindle("capacity", "--snapshot", str(snapshot), "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["schema"]) == (1, "rekindle.capacity.v1")
    assert (told["tolerates"], told["verified"], told["upper_bound"], told["target"]) == (0, 0, 0, 1)
    assert told["overcommitted"]
    assert told["worst_case"] == ["h1"]
    assert told["worst_case_in_words"].startswith("if h1 fails, web (1.5 GiB) cannot start: 512 MiB short")
    assert [one["recoverable"] for one in told["per_host"]] == [False, False]
    body = json.loads(snapshot.read_text())
    body["vms"][0]["storage"], body["hosts"][1]["storage"] = ["local"], ["nfs"]
    snapshot.write_text(json.dumps(body))
    table = rekindle("capacity", "--snapshot", str(snapshot))
    assert "OVERCOMMITTED" in table.stdout
    assert "not agile: db on h1 (storage: no storage local)" in table.stdout


def test_admission_is_answered_by_the_exit_status_too(snapshot: Path, tmp_path: Path) -> None:
    entry = tmp_path / "vm.json"
    entry.write_text(json.dumps({"name": "new", "memory_mib": 512, "vcpus": 1}))
    done = rekindle("admit", "--snapshot", str(snapshot), "--vm", str(entry), "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["schema"], told["allowed"], told["host"]) == (
        0,
        "rekindle.admit.v1",
        True,
        "h2",
    )
    refused = rekindle("admit", "--snapshot", str(snapshot), "--remove-host", "h1")
    assert refused.returncode == 1
    assert refused.stdout.startswith("refused: web has no place elsewhere")
    assert rekindle("admit", "--snapshot", str(snapshot), "--enter-maintenance", "h2").returncode == 1


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (["plan", "--fail", "h1,h9"], ["--fail", "there is no host h9"]),
        (["plan", "--fail", ","], ["--fail", "name a host"]),
        (["admit"], ["give one of --vm"]),
        (["admit", "--remove-host", "x"], ["--remove-host", "there is no host x"]),
    ],
)
def test_what_is_asked_about_must_be_there(command: list[str], parts: list[str], snapshot: Path) -> None:
    done = rekindle(*command, "--snapshot", str(snapshot))
    assert (done.returncode, done.stdout) == (2, "")
    for part in parts:
        assert part in done.stderr


def _negative(body: dict[str, Any]) -> None:
    body["vms"][0]["memory_mib"] = -5


def _elsewhere(body: dict[str, Any]) -> None:
    body["vms"][0]["host"] = "h9"


def _in_a_circle(body: dict[str, Any]) -> None:
    names = [vm["name"] for vm in body["vms"][:2]]
    for vm, other in zip(body["vms"], reversed(names), strict=False):
        vm["after"] = [other]


def _contradicting(body: dict[str, Any]) -> None:
    names = [vm["name"] for vm in body["vms"][:2]]
    body["groups"] = [
        {"name": f"g-{rule}", "rule": rule, "vms": names} for rule in ("affinity", "anti_affinity")
    ]


@pytest.mark.parametrize(
    ("spoil", "command", "said"),
    [
        (_negative, ["plan", "--fail", "h1"], "vms.0 (db).memory_mib: "),
        (_elsewhere, ["capacity"], "vms.db.host: there is no host h9"),
        (_in_a_circle, ["admit", "--remove-host", "h1"], "vms.db.after: a circle: db after web after db"),
        (_contradicting, ["capacity"], "groups.g-anti_affinity: "),
    ],
)
def test_a_bad_snapshot_is_told_with_file_field_and_reason(
    spoil: Callable[[dict[str, Any]], None], command: list[str], said: str, snapshot: Path
) -> None:
    body = json.loads(snapshot.read_text())
    spoil(body)
    snapshot.write_text(json.dumps(body))
    done = rekindle(*command, "--snapshot", str(snapshot), "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{snapshot}: {said}" in done.stderr


# -- the live pool

POOL = """\
pool: p
data_dir: {data}
hosts:
  - {{name: h1, uri: "test:///default", labels: {{rack: r1}}}}
"""


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    config, data = tmp_path / "pool.yaml", tmp_path / "data"
    config.write_text(POOL.format(data=data))
    yield from standing(config, data)


def test_the_live_pool_is_asked_as_its_export_is_and_says_itself_what_it_cannot_take(
    plane: Plane, tmp_path: Path
) -> None:
    config = ["--config", str(plane.config)]
    exported = rekindle("snapshot", *config)
    assert (exported.returncode, exported.stderr) == (0, "")
    told = json.loads(exported.stdout)
    [host], [vm] = told["hosts"], told["vms"]
    assert (told["pool"], host["name"], host["state"], host["labels"]) == (
        "p",
        "h1",
        "online",
        {"rack": "r1"},
    )
    assert (vm["name"], vm["host"], vm["state"], vm["protection"]) == ("test", "h1", "running", "restart")
    path = tmp_path / "live.json"
    path.write_text(exported.stdout)
    answers = []
    for where in (config, ["--snapshot", str(path)]):
        planned = rekindle("plan", "--fail", "h1", "--json", *where)
        counted = rekindle("capacity", "--json", *where)
        assert (planned.returncode, counted.returncode) == (1, 1)
        answers.append([json.loads(one.stdout) | {"elapsed_ms": 0} for one in (planned, counted)])
    assert answers[0] == answers[1]
    assert [one["reason"] for one in answers[0][0]["unplaced"]] == ["no_host"]

    def said() -> list[dict[str, object]]:
        lines = rekindle("events", "--json", *config).stdout.splitlines()
        facts = [json.loads(line)["data"] for line in lines]
        return [fact for fact in facts if fact["kind"].startswith("capacity.")]

    plane.wait(lambda: bool(said()), "it is told to be overcommitted")
    [fact] = said()
    assert (fact["kind"], fact["worst_case"], fact["unplaced"]) == (
        "capacity.overcommitted",
        ["h1"],
        ["test"],
    )
