"""Fence devices at the command line of a running plane: what the drill shows, and a test of a host whose devices turn out
to belong to another machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_cli import Plane, standing
from tests.integration.test_cli_operator import say
from tests.unit.fenceagents import calls, program

AGENT = """\
#!/bin/sh
cd "$(dirname "$0")"
while read -r line; do case "$line" in action=*) action="${line#action=}";; esac; done
test -e broken && { echo "Connection timed out" >&2; exit 1; }
echo "$action" >> calls
case "$action" in
  status) if [ "$(cat power)" = off ]; then echo "Status: OFF"; exit 2; else echo "Status: ON"; fi;;
  on|off) echo "$action" > power;;
  *) exit 1;;
esac
"""
POOL = """\
pool: p
data_dir: {data}
hosts:
  - name: h1
    uri: "test:///default"
    fencing: [{{agent: {one}, name: bmc}}, {{agent: {two}, name: pdu, level: 2}}]
  - {{name: h2, uri: "qemu+unix:///system?socket=/no/such/socket"}}
vm_defaults: {{protection: restart}}
fencing: {{drill_every_s: 5, next_level_after_s: 1}}
"""


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    for name in ("bmc", "pdu"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "power").write_text("on\n")
        program(tmp_path / name / "fence_test", AGENT)
    config, data = tmp_path / "pool.yaml", tmp_path / "data"
    paths = {"one": tmp_path / "bmc" / "fence_test", "two": tmp_path / "pdu" / "fence_test"}
    config.write_text(POOL.format(data=data, **paths))
    yield from standing(config, data)


def paths(plane: Plane) -> dict[str, dict[str, Any]]:
    rows = {row["host"]: row for row in plane.ask("hosts")["hosts"]}
    assert rows["h2"]["fence_paths"] == []
    return {path["device"]: path for path in rows["h1"]["fence_paths"]}


def test_each_path_is_proven_shown_and_told_of_when_it_breaks_and_is_mended(
    plane: Plane, tmp_path: Path
) -> None:
    plane.wait(lambda: paths(plane).keys() == {"bmc", "pdu"}, "both are read")
    found = paths(plane)
    assert {path["state"] for path in found.values()} == {"proven"}
    assert all(0 <= path["proven_s_ago"] < 60 for path in found.values())
    assert "bmc proven" in " ".join(say(plane, "hosts").stdout.split())
    (tmp_path / "pdu" / "broken").touch()
    plane.wait(lambda: paths(plane)["pdu"]["state"] == "broken", "it is broken")
    assert "Connection timed out" in paths(plane)["pdu"]["detail"]
    assert paths(plane)["bmc"]["state"] == "proven"
    assert plane.ask("status")["fence_paths_broken"] == ["h1: pdu"]
    (tmp_path / "pdu" / "broken").unlink()
    plane.wait(lambda: paths(plane)["pdu"]["state"] == "proven", "it is mended")
    told = [json.loads(line)["data"] for line in say(plane, "events", "--json").stdout.splitlines()]
    about = [(fact["kind"], fact["device"]) for fact in told if fact["kind"].startswith("fence_path.")]
    assert about == [("fence_path.broken", "pdu"), ("fence_path.mended", "pdu")]
    assert set(calls(tmp_path / "bmc")) == {"metadata", "status"}, "a drill changes nothing"


def test_a_host_that_is_tested_by_devices_of_another_machine_passes_nothing(
    plane: Plane, tmp_path: Path
) -> None:
    other = say(plane, "fence-test", "h1", "--yes-i-checked", "h2")
    assert (other.returncode, "it names h2" in other.stderr) == (2, True)
    without = say(plane, "fence-test", "h2", "--yes-i-checked", "h2")
    assert (without.returncode, "never heard" in without.stderr) == (1, True)
    wrong = say(plane, "fence-test", "h1", typed="h2\n")
    assert wrong.returncode == 1
    for words in (
        "REALLY switched off",
        "level 1: bmc",
        "level 2: pdu",
        "test (restart)",
        "nothing was said",
    ):
        assert words in wrong.stderr
    refused = say(plane, "fence-test", "h1", "--json", typed="h1\n")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["said"] is False
    assert "protected VMs run there: test" in refused.stderr
    assert "off" not in calls(tmp_path / "bmc")
    assert plane.ask("status")["hosts_in_maintenance"] == [], "as it was before"

    forced = say(plane, "fence-test", "h1", "--force", "--yes-i-checked", "h1", "--json")
    assert forced.returncode == 1, forced.stderr
    found = json.loads(forced.stdout)
    assert (found["passed"], found["never_off"], found["maintenance"]) == (False, True, False)
    assert [level["proven"] for level in found["levels"]] == [False, False]
    assert all("after its power read off" in level["missing"][0] for level in found["levels"]), found
    assert plane.states()["h1"] == "healthy"
    assert (tmp_path / "bmc" / "power").read_text() == (tmp_path / "pdu" / "power").read_text() == "on\n"
    told = [json.loads(line)["data"] for line in say(plane, "events", "--json").stdout.splitlines()]
    assert [fact["passed"] for fact in told if fact["kind"] == "host.fence_tested"] == [False]
    assert not [fact for fact in told if fact["kind"] == "host.fenced"]
