"""Whole failovers on real libvirtd, QEMU guests, NATS and processes that are really killed.

What is asserted is the observer's and the hypervisors' own word; our records are looked at only for timing.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from infra.lab import network, stores
from infra.lab.run import LabRun
from infra.lab.steps import load
from libs.events.envelope import Envelope
from libs.events.failovers import FailoverPlanned
from libs.readmodel import reader
from libs.scenario.model import Scenario
from libs.scenario.outcome import Outcome
from libs.scenario.verdicts import verdicts
from libs.sim.run import run as simulate
from services.cli.simplane import PLANE
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab
SCENARIOS = Path(__file__).parent.parent / "scenarios"
FULL = "full_house"
FILES = sorted(path.stem for path in SCENARIOS.glob("*.yaml"))
ELSEWHERE = ("room_is_made", "ready_by_probe", "never_ready")
"""Played by tests of their own, which look at more: test_lab_room.py and test_lab_probes.py."""
LINUX = ("power_loss", "host_back", "shut_down_then_power_loss", "vm_crash")
"""Their VMs run Linux. The others' have no operating system: who runs where, and how often, asks nothing of one, and
under TCG its boot is two thirds of what a run costs. Guests with an agent run Linux everywhere."""


def _load(name: str) -> Scenario:
    return load(SCENARIOS / f"{name}.yaml")


async def _run(run: LabRun) -> Outcome:
    return _good(await run.run())


def _good(outcome: Outcome) -> Outcome:
    told = "\n".join(f"{e.at_s:8.2f} {e.event} {e.subject} {e.detail}" for e in outcome.timeline)
    assert outcome.passed, f"{outcome.violations}\n{told}"
    assert outcome.double_running_s == 0
    assert outcome.observer["lowest_hz"] >= 10, "the observer looked too seldom to be believed"
    return outcome


def test_at_least_fourteen_files_are_played_in_both_worlds() -> None:
    assert len(FILES) >= 14


def _as_root_only(name: str) -> bool:
    text = (SCENARIOS / f"{name}.yaml").read_text()
    steps = ("partition", "fail_start", "loss", "delay")
    parts = ("datastores:", "networks:")
    return any(part in text for part in parts) or any(f"do: {step}" in text for step in steps)


def _case(name: str) -> Any:
    """What must never be is looked for until the time is over."""
    scenario = _load(name)
    late = any(step.at_s > 10 or step.do == "hang" for step in scenario.steps)
    long = late or any(one.never for one in scenario.expect)
    return pytest.param(name, marks=[pytest.mark.long] if long else [])


@pytest.mark.parametrize("name", [_case(name) for name in FILES if name not in (FULL, *ELSEWHERE)])
async def test_both_worlds_come_to_the_same_verdicts(name: str, roots: Roots) -> None:
    if _as_root_only(name) and (os.getuid() != 0 or not network.works() or stores.why_not() is not None):
        pytest.skip("cut links, refused starts, datastores and networks need root, bridges and FUSE")
    scenario = _load(name)
    outcome = await _run(LabRun(scenario, roots.new(), bare=name not in LINUX))
    await _as_simulated(scenario, outcome)
    if name == "scale_out":
        asked = [entry.at_s for entry in outcome.timeline if entry.event == "workflow.requested"]
        planned = next(entry.at_s for entry in outcome.timeline if entry.event == "failover.planned")
        assert len(asked) == 1, "once a shortage"
        assert asked[0] - planned < 2.0
        assert [e.event for e in outcome.timeline if e.event == "scaleout.answered"] != [], "it is answered"
    if name == "power_loss":
        one = outcome.failovers[0]
        assert one.first_start_s is not None
        assert one.occurred_s is not None
        assert one.first_start_s - one.occurred_s < 6.0


async def _as_simulated(scenario: Scenario, outcome: Outcome) -> None:
    simulated = (
        await asyncio.to_thread(simulate, scenario, scenario.seed, PLANE, stop_at_first=False)
    ).outcome
    assert simulated.passed, simulated.violations
    assert verdicts(outcome) == verdicts(simulated)


@pytest.mark.long
async def test_of_six_hosts_one_is_lost_and_starts_are_seen_in_the_order_of_the_plans(roots: Roots) -> None:
    """The queue is drained by freed memory, by a host that leaves maintenance and by one that joins."""
    scenario = _load(FULL)
    run = LabRun(scenario, roots.new(), bare=True)
    looking: list[asyncio.Task[list[dict[str, Any]]]] = []

    async def queue() -> list[dict[str, Any]]:
        async with reader(run.plane.settings()) as look:
            return [row for row in await look.vms() if row["state"] == "waiting"]

    def look_at(envelope: Envelope) -> None:
        if envelope.data.kind == "failover.completed" and not looking:
            looking.append(asyncio.create_task(queue()))

    run.heard = look_at
    async with run.standing():
        await run.play()
        await asyncio.to_thread(run.lab.stop_observer)
        seen, outcome = run.lab.observations(), _good(run.outcome())
    waited = {row["vm"]: row["detail"] for row in await looking[0]}
    assert waited.keys() == {"batch1", "batch2", "spare"}
    assert all("no_room: " in why and "MiB" in why for why in waited.values()), waited

    began = {name: vm.began_s[0] for name, vm in outcome.vms.items() if vm.began_s}
    plans = [one.data for one in run.envelopes if isinstance(one.data, FailoverPlanned) and one.data.starts]
    assert [len(one.starts) for one in plans] == [4, 1, 1, 1]
    planned = [start for one in plans for start in one.starts if not start.after]
    assert [start.name for start in planned] == sorted(
        (start.name for start in planned), key=began.__getitem__
    )
    waves = {start.name: start.wave for start in plans[0].starts}
    assert sorted(waves, key=waves.__getitem__) == ["db", "app", "web", "mail"]
    ready = min(begins.mono for begins in seen.agents if begins.name == "db" and begins.count > 1)
    app = [one.mono for one in seen.vms if one.name == "app" and one.active]
    assert ready < app[1], "app began before the guest that it comes after could answer"
    await _as_simulated(scenario, outcome)


async def test_hosts_without_agents_are_watched_over_libvirt(roots: Roots) -> None:
    outcome = await _run(LabRun(_load("power_loss"), roots.new(), agents=False, bare=True))
    assert outcome.vms["a"].host != "h1"


@pytest.mark.parametrize(
    ("service", "at"),
    [
        ("detector", "host.suspected"),
        ("fencer", "host.failed"),
        ("placement", "host.fenced"),
        ("executor", "failover.planned"),
        ("alerting", "host.failed"),
    ],
)
async def test_s05_service_killed_in_the_middle_of_a_failover(service: str, at: str, roots: Roots) -> None:
    # this plane is seconds old: without this the quiet minute after a start would hold a new detector back
    young = {"detection": {"quiet_after_start_s": 5}}
    run = LabRun(_load("power_loss").model_copy(update={"settings": young}), roots.new(), bare=True)
    killed: list[str] = []

    def kill(envelope: Envelope) -> None:
        ours = envelope.subject.startswith("h1")
        if envelope.data.kind == at and ours and not killed:
            killed.append(service)
            run.plane.kill_service(service)

    run.heard = kill
    outcome = await _run(run)
    assert killed == [service]
    # each orphan became active twice: once at first, once elsewhere; nothing was started more often
    assert {name: vm.starts for name, vm in outcome.vms.items()} == {"a": 2, "b": 2, "c": 1}
    started = [entry.subject for entry in outcome.timeline if entry.event == "vm.restarted"]
    assert sorted(started) == ["a", "b"]
