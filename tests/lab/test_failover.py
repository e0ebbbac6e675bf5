"""Whole failovers on real libvirtd, QEMU guests, NATS and processes that are really killed.

What is asserted is the observer's and the hypervisors' own word; our records are looked at only for timing.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from infra.lab import network, stores
from infra.lab.run import LabRun
from infra.lab.steps import load
from libs.events.envelope import Envelope
from libs.scenario.model import Scenario
from libs.scenario.outcome import Outcome
from libs.scenario.verdicts import verdicts
from libs.sim.run import run as simulate
from services.cli.simplane import PLANE
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab
SCENARIOS = Path(__file__).parent.parent / "scenarios"
FILES = sorted(path.stem for path in SCENARIOS.glob("*.yaml"))
LINUX = ("power_loss", "host_back", "shut_down_then_power_loss", "vm_crash")
"""Their VMs run Linux. The others' have no operating system: who runs where, and how often, asks nothing of one, and
under TCG its boot is two thirds of what a run costs. Guests with an agent run Linux everywhere."""


def _load(name: str) -> Scenario:
    return load(SCENARIOS / f"{name}.yaml")


async def _run(run: LabRun) -> Outcome:
    outcome = await run.run()
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
    return "datastores:" in text or any(f"do: {step}" in text for step in steps)


@pytest.mark.parametrize("name", FILES)
async def test_both_worlds_come_to_the_same_verdicts(name: str, roots: Roots) -> None:
    if _as_root_only(name) and (os.getuid() != 0 or not network.works() or stores.why_not() is not None):
        pytest.skip("cut links, refused starts and datastores need root, bridges and FUSE")
    scenario = _load(name)
    outcome = await _run(LabRun(scenario, roots.new(), bare=name not in LINUX))
    simulated = (
        await asyncio.to_thread(simulate, scenario, scenario.seed, PLANE, stop_at_first=False)
    ).outcome
    assert simulated.passed, simulated.violations
    assert verdicts(outcome) == verdicts(simulated)
    if name == "power_loss":
        one = outcome.failovers[0]
        assert one.first_start_s is not None
        assert one.occurred_s is not None
        assert one.first_start_s - one.occurred_s < 6.0


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
