"""What facts make of a host in the outcome, and what of them two worlds must agree on."""

from __future__ import annotations

from typing import Any

import pytest

from libs.scenario.model import Expectation, StepEntry
from libs.scenario.outcome import HostOutcome, Outcome, TimelineEntry, VmOutcome, host_outcomes, unmet
from libs.scenario.verdicts import verdicts

pytestmark = pytest.mark.fast


def told(*events: str) -> list[TimelineEntry]:
    """One fact a second, as `event subject`."""
    pairs = [event.split() for event in events]
    return [TimelineEntry(at_s=at, event=kind, subject=who) for at, (kind, who) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        (["host.suspected", "host.isolated"], "isolated"),
        (["host.suspected", "host.isolated", "host.obeyed"], "isolated"),
        (["host.suspected", "host.isolated", "host.failed"], "failed"),
        (["host.suspected", "host.isolated", "host.recovered"], "healthy"),
        (["host.suspected", "host.undecided"], "suspect"),
        (["host.suspected", "host.agent_down", "host.undecided"], "agent_down"),
        (["host.grey", "host.draining", "host.quarantined"], "healthy"),
        (["host.failed", "host.fenced"], "fenced"),
        (["host.failed", "host.joined", "host.fenced"], "healthy"),
        ([], "healthy"),
    ],
)
def test_a_host_is_in_the_end_what_the_facts_made_of_it(events: list[str], state: str) -> None:
    found = host_outcomes(told(*(f"{event} h1" for event in events)), ["h1"])
    assert found["h1"].state == state
    assert not unmet([Expectation(host="h1", state=state)], {}, found, [], {}, 9.0)
    assert unmet([Expectation(host="h1", state="removed")], {}, found, [], {}, 9.0)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (("db", "app"), ""),
        (("app", "db"), "VM db was seen to start before app: at 7.5 s, app at 9.0 s"),
        (("db", "never"), "VM never was not seen to start"),
    ],
)
def test_an_order_of_starts_is_that_of_the_first_runs_that_were_seen(
    order: tuple[str, ...], said: str
) -> None:
    vms = {
        name: VmOutcome(state="running", host="h2", starts=2, downtime_s=0, began_s=began)
        for name, began in {"db": (7.5, 12.0), "app": (9.0,), "never": ()}.items()
    }
    found = unmet([Expectation(order=order)], vms, {}, [], {}, 9.0)
    assert [one.detail for one in found] == [said] * bool(said)


def outcome(*events: str) -> Outcome:
    return Outcome(
        scenario="one",
        world="simulator",
        passed=True,
        double_running_s=0,
        violations=(),
        vms={},
        hosts={name: HostOutcome(state="isolated", fenced=False) for name in ("h1", "h2")},
        failovers=(),
        timeline=tuple(told(*events)),
    )


@pytest.mark.parametrize(
    "event",
    [
        "host.isolated",
        "host.obeyed",
        "host.fence_refuted",
        "host.grey",
        "host.draining",
        "host.quarantined",
    ],
)
def test_a_world_in_which_a_host_was_held_something_else_came_to_other_verdicts(event: str) -> None:
    assert verdicts(outcome(f"{event} h1")) != verdicts(outcome())
    assert verdicts(outcome(f"{event} h1")) != verdicts(outcome(f"{event} h2"))
    assert verdicts(outcome(f"{event} h1", f"{event} h2")) == verdicts(outcome(f"{event} h2", f"{event} h1"))


def test_a_host_obeys_after_it_was_found_isolated() -> None:
    right = outcome("host.isolated h1", "host.obeyed h1")
    assert verdicts(right) != verdicts(outcome("host.obeyed h1", "host.isolated h1"))


@pytest.mark.parametrize(
    ("step", "subject"),
    [
        ({"do": "partition", "groups": [["h1", "h2"], ["bus", "h3"]]}, "h1+h2 | bus+h3"),
        ({"do": "partition", "groups": [["h1"], ["bus"]], "how": "one_way"}, "h1 > bus"),
        ({"do": "heal"}, "everywhere"),
        ({"do": "loss", "percent": 20}, "network"),
        ({"do": "loss", "percent": 20, "host": "h1"}, "network of h1"),
        ({"do": "delay", "seconds": 1, "how": "network", "host": "h1"}, "network of h1"),
        ({"do": "delay", "percent": 20, "how": "guests"}, "guests"),
        ({"do": "kill_bus", "node": 1}, "1"),
        ({"do": "kill_service", "service": "fencer"}, "fencer"),
        ({"do": "fail_start", "vm": "a", "host": "h1"}, "a"),
        ({"do": "stall_storage"}, "everywhere"),
    ],
)
def test_the_timeline_says_what_a_step_was_done_to(step: dict[str, Any], subject: str) -> None:
    assert StepEntry.model_validate({"at_s": 1, **step}).subject == subject
