"""Whole failovers on real libvirtd, QEMU guests, NATS and processes that are really killed.

What is asserted is the observer's and the hypervisors' own word; our records are looked at only for timing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from infra.lab.run import POSSIBLE, LabRun
from libs.events.envelope import Envelope
from libs.scenario.model import Scenario, load_scenario
from libs.scenario.outcome import Outcome
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab
SCENARIOS = Path(__file__).parent.parent / "scenarios"
FILES = sorted(path.stem for path in SCENARIOS.glob("*.yaml"))
Play = Callable[..., Awaitable[Outcome]]


def _load(name: str) -> Scenario:
    return load_scenario(SCENARIOS / f"{name}.yaml", POSSIBLE)


async def _run(run: LabRun) -> Outcome:
    outcome = await run.run()
    told = "\n".join(f"{e.at_s:8.2f} {e.event} {e.subject} {e.detail}" for e in outcome.timeline)
    assert outcome.passed, f"{outcome.violations}\n{told}"
    assert outcome.double_running_s == 0
    assert outcome.observer["lowest_hz"] >= 10, "the observer looked too seldom to be believed"
    return outcome


@pytest.mark.parametrize("name", FILES)
async def test_scenario_goes_as_its_file_expects(name: str, roots: Roots) -> None:
    await _run(LabRun(_load(name), roots.new()))


async def test_power_loss_to_first_start_takes_under_six_seconds(roots: Roots) -> None:
    outcome = await _run(LabRun(_load("power_loss"), roots.new()))
    one = outcome.failovers[0]
    assert one.first_start_s is not None
    assert one.occurred_s is not None
    assert one.first_start_s - one.occurred_s < 6.0


async def test_hosts_without_agents_are_watched_over_libvirt(roots: Roots) -> None:
    outcome = await _run(LabRun(_load("power_loss"), roots.new(), agents=False))
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
    run = LabRun(_load("power_loss").model_copy(update={"settings": young}), roots.new())
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
