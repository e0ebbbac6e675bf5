"""Hosts of the lab that reset themselves (DESIGN §4 rule 4): real agents, guests and NATS, a watchdog that outlives the agent.

S07: the BMC is dead, like its host. S20: a host that nobody hears or sees ends itself before its VMs start elsewhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.lab import network, procs, stores
from infra.lab.hostinit import FORKED_AGENT
from infra.lab.run import LabRun
from infra.lab.steps import load
from libs.readmodel import reader
from libs.scenario.model import Scenario
from libs.scenario.outcome import Outcome
from services.fencer.watchful import ANEW
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab
SCENARIOS = Path(__file__).parent.parent / "scenarios"
TIMEOUT_S, LAG_S, MARGIN_S = 10.0, 1.0, 2.0
BOUND_S = (TIMEOUT_S + LAG_S) * 1.01 + MARGIN_S
START_S = 6.0
"""For plan, start and boot of a Linux guest under TCG, on a machine that is busy."""


def _told(outcome: Outcome) -> str:
    return "\n".join(f"{e.at_s:8.2f} {e.event} {e.subject} {e.detail}" for e in outcome.timeline)


def _resets(run: LabRun, host: str) -> list[datetime]:
    """When the watchdog of a host went off."""
    lines = [
        json.loads(line)
        for line in run.lab.host(host).power_log.read_text().splitlines()
        if '"watchdog"' in line
    ]
    return [datetime.fromisoformat(line["at"]) for line in lines if "error" not in line]


def _at(outcome: Outcome, event: str, subject: str) -> float:
    return next(one.at_s for one in outcome.timeline if (one.event, one.subject) == (event, subject))


async def test_s07_power_lost_with_a_dead_bmc_is_proven_by_the_watchdogs_bound(
    roots: Roots, capsys: pytest.CaptureFixture[str]
) -> None:
    run = LabRun(load(SCENARIOS / "power_loss_watchdog.yaml"), roots.new())
    async with run.standing():
        await run.play()
        await asyncio.to_thread(run.lab.stop_observer)
        outcome = await asyncio.to_thread(run.outcome)
        counted_anew = ANEW in (run.lab.root / "logs" / "fencer.log").read_text()
    assert outcome.passed, f"{outcome.violations}\n{_told(outcome)}"
    assert outcome.double_running_s == 0
    (one,) = outcome.failovers
    assert one.occurred_s is not None
    assert one.fenced_s is not None
    assert one.all_running_s is not None
    assert one.guests_up_s is not None
    proof_s, running_s = one.fenced_s - one.occurred_s, one.all_running_s - one.occurred_s
    up_s = one.guests_up_s - one.occurred_s
    with capsys.disabled():
        print(  # noqa: T201  the figure that the docs name
            f"\nwatchdog of {TIMEOUT_S:g} s, dead BMC: proof {proof_s:.1f} s after the power was cut, all VMs running "
            f"after {running_s:.1f} s, their guests up after {up_s:.1f} s"
        )
    assert one.confirmed_s is not None
    verdict_s = one.confirmed_s - one.occurred_s
    # by its last word; where its very last write went out without the heartbeat that announces it, by the first reading
    # of its slot after the verdict. A fencer that stood still says so, and counts anew
    late_s = 2.0 * BOUND_S if counted_anew else verdict_s + 1.5 + BOUND_S + 1.0
    assert TIMEOUT_S < proof_s < late_s
    assert running_s < proof_s + START_S, "how long a guest's Linux boots is the machine's, and is printed"
    assert (
        next(e.detail for e in outcome.timeline if (e.event, e.subject) == ("host.fenced", "h1"))
        == "watchdog"
    )


async def test_s20_a_host_that_nobody_hears_or_sees_ends_itself_before_its_vms_start_elsewhere(
    roots: Roots,
) -> None:
    if os.getuid() != 0 or not network.works() or stores.why_not() is not None:
        pytest.skip("cut links and datastores that stall need root, bridges and FUSE")
    run = LabRun(load(SCENARIOS / "isolated_watchdog.yaml"), roots.new(), bare=True)
    ended: list[datetime] = []
    async with run.standing():
        await run.play()
        await asyncio.to_thread(run.lab.stop_observer)
        ended = _resets(run, "h1")
        outcome = await asyncio.to_thread(run.outcome)
    assert outcome.passed, f"{outcome.violations}\n{_told(outcome)}"
    assert outcome.double_running_s == 0, "the observer's word"
    assert outcome.observer["lowest_hz"] >= 10
    reset_s = (ended[0] - run.zero).total_seconds()
    cut_s = next(one.at_s for one in outcome.timeline if one.event == "step.partition")
    assert reset_s - cut_s <= (TIMEOUT_S + LAG_S) * 1.01, "within what it has promised"
    assert reset_s < _at(outcome, "host.fenced", "h1") < _at(outcome, "vm.restarted", "a")


def _pool() -> Scenario:
    levels = [{"method": "power"}, {"method": "watchdog", "timeout_s": TIMEOUT_S, "level": 2}]
    return Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "agents that die",
            "settings": {"detection": {"quiet_after_start_s": 5}},
            "hosts": [{"name": name, "fencing": levels} for name in ("h1", "h2", "h3")],
            "vms": [{"name": "a", "host": "h1"}, {"name": "b", "host": "h2"}],
        }
    )


async def _promised(run: LabRun) -> dict[str, float | None]:
    async with reader(run.plane.settings()) as look:
        return {row["host"]: row["watchdog_s"] for row in await look.hosts()}


async def _until_promised(run: LabRun, wanted: set[str], within_s: float = 30.0) -> None:
    until = time.monotonic() + within_s
    while wanted - {host for host, timeout_s in (await _promised(run)).items() if timeout_s == TIMEOUT_S}:
        assert time.monotonic() < until, await _promised(run)
        await asyncio.sleep(0.2)


def _agent(run: LabRun, host: str) -> int:
    """Its process: a fork of the power device at first, a program of its own later."""

    def is_agent(pid: int) -> bool:
        return procs.name(pid) == FORKED_AGENT or "heartbeat" in (procs.cmdline(pid) or [])

    (pid,) = [pid for pid in run.lab.pids(host) if is_agent(pid)]
    return pid


async def test_an_agent_that_dies_leaves_the_watchdog_armed_and_the_next_takes_it_over(roots: Roots) -> None:
    run = LabRun(_pool(), roots.new(), bare=True)
    async with run.standing():
        await _until_promised(run, {"h1", "h2", "h3"})
        os.kill(_agent(run, "h1"), signal.SIGKILL)  # its service manager starts it again
        os.kill(
            _agent(run, "h3"), signal.SIGTERM
        )  # a clean stop: it takes its promise back, and then disarms
        await asyncio.to_thread(run.lab.kill_agent, "h2")  # for good
        began = datetime.now(UTC)
        while not _resets(run, "h2"):
            assert (datetime.now(UTC) - began).total_seconds() < 20, "nobody fed it, and nothing happened"
            await asyncio.sleep(0.1)
        ended_s = (_resets(run, "h2")[0] - began).total_seconds()
        assert 8 < ended_s < TIMEOUT_S + LAG_S
        await _until_promised(run, {"h1", "h2", "h3"})  # h2 has booted anew, and promises for that boot
        assert _resets(run, "h1") == []
        assert _resets(run, "h3") == []
        log = run.lab.host("h3").agent_log.read_text()
        assert "the watchdog goes on" not in log
        summary = await asyncio.to_thread(run.lab.stop_observer)
        assert not summary.sightings
