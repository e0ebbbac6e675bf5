"""S16 with real guests: a host comes back when its VM runs elsewhere, or is about to, and its libvirtd would start that VM
by itself. The gate before libvirtd keeps it back; where there is none, the agent stops it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infra.lab.run import LabRun
from libs.scenario.model import Scenario
from libs.scenario.outcome import Outcome
from tests.lab.roots import Roots
from tests.waiting import eventually

pytestmark = [pytest.mark.lab, pytest.mark.long]
HOSTS = [{"name": "h1"}, {"name": "h2"}, {"name": "h3"}]
STORY: dict[str, Any] = {
    "schema": "rekindle.scenario.v1",
    "name": "back after the recovery, with autostart",
    "duration_s": 25,
    "hosts": HOSTS,
    "vms": [{"name": "db", "host": "h1", "autostart": True}, {"name": "mail", "host": "h2"}],
    "steps": [{"at_s": 1, "do": "power_off", "host": "h1"}, {"at_s": 12, "do": "power_on", "host": "h1"}],
    "expect": [
        {"vm": "db", "state": "running", "host_not": "h1"},
        {"vm": "mail", "state": "running", "host": "h2"},
        {"event": "host.joined", "subject": "h1"},
        {"never": "vm.runs_twice"},
    ],
}
HELD = {"never": "vm.stopped_by_gate"}
WAYS: dict[str, dict[str, Any]] = {
    # longer than a boot takes
    "before": {
        "settings": {"detection": {"suspect_after_s": 15}},
        "steps": [{"at_s": 1, "do": "reboot", "host": "h1"}],
        "expect": [{"vm": "db", "state": "running"}, *STORY["expect"][1:], HELD],
    },
    # it may be switched off once more by the fencing that is under way
    "during": {
        "steps": [
            {"at_s": 1, "do": "power_off", "host": "h1"},
            {"at_s": 2.7, "do": "power_on", "host": "h1"},
            {"at_s": 14, "do": "power_on", "host": "h1"},
        ],
        "expect": [{"vm": "db", "state": "running"}, *STORY["expect"][1:], HELD],
    },
    "after": {"expect": [*STORY["expect"], HELD]},
}
MOST_S = 5.0
"""Nothing locks the lab's disks: what libvirtd starts by itself runs until the agent has come through its gate."""


def told(outcome: Outcome) -> str:
    return "\n".join(f"{e.at_s:8.2f} {e.event} {e.subject} {e.detail}" for e in outcome.timeline)


@pytest.mark.parametrize("way", WAYS)
async def test_s16_what_would_start_by_itself_is_held_back_and_given_back(way: str, roots: Roots) -> None:
    """By the observer's count, back before, during and after the recovery: not for one look twice."""
    run = LabRun(
        Scenario.model_validate({**STORY, **WAYS[way], "name": f"back {way}"}), roots.new(), bare=True
    )

    def starts_by_itself() -> bool:
        with run.lab.connect("h1") as connection:
            return bool(connection.lookupByName("db").autostart())

    async with run.standing():
        assert await asyncio.to_thread(starts_by_itself)
        await run.play()
        await eventually(starts_by_itself, "autostart is on again, as its owner left it", within_s=10.0)
        await asyncio.to_thread(run.lab.stop_observer)
        outcome = await asyncio.to_thread(run.outcome)
        said = run.lab.host("h1").agent_log.read_text()
    assert not outcome.violations, f"{outcome.violations}\n{told(outcome)}\n{said}"
    assert outcome.double_running_s == 0.0
    assert outcome.vms["db"].starts == 2, f"once at first, and once by the plan\n{told(outcome)}"
    assert "db is held back: its lease, token 1, is held by h1/" in said or way != "before", said


async def test_s16_back_after_the_recovery_what_starts_by_itself_is_stopped_at_the_gate(roots: Roots) -> None:
    hosts = [{"name": "h1", "gate": False}, *HOSTS[1:]]
    expect = [*STORY["expect"], {"event": "vm.stopped_by_gate", "subject": "db"}]
    story = Scenario.model_validate({**STORY, "hosts": hosts, "expect": expect})
    outcome = await LabRun(story, roots.new(), bare=True).run()
    broken = [one for one in outcome.violations if not one.detail.startswith("ran twice for")]
    assert not broken, f"{broken}\n{told(outcome)}"
    assert outcome.vms["db"].starts == 3, "once at first, once elsewhere, once by libvirtd"
    assert outcome.double_running_s < MOST_S
    events = [entry.event for entry in outcome.timeline]
    assert events.index("vm.stopped_by_gate") < len(events) - events[::-1].index("host.joined") - 1
