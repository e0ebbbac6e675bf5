"""`rekindle.outcome.v1`: what a run of a scenario showed, and whether it was what the scenario expects."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from libs.events.envelope import Envelope
from libs.report import FailoverStory
from libs.scenario.model import Expectation


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Violation(Part):
    """A rule of the design that was broken (by number), or `expect` for an expectation that was not met."""

    rule: str
    at_s: float
    detail: str


class VmOutcome(Part):
    state: str
    host: str | None
    starts: int = Field(description="how often it became active, the first time included")
    downtime_s: float = Field(description="from when it was gone until its guest was up again, summed")
    began_s: tuple[float, ...] = Field(
        (),
        description="when each of its runs since the scenario began was seen on a hypervisor for the first time",
    )


class HostOutcome(Part):
    state: str
    fenced: bool


class FailoverOutcome(Part):
    """Times of one host's failure, in seconds since the scenario began."""

    host: str
    occurred_s: float | None = None
    suspected_s: float | None = None
    confirmed_s: float | None = None
    fenced_s: float | None = None
    planned_s: float | None = None
    first_start_s: float | None = None
    all_running_s: float | None = None
    guests_up_s: float | None = None


class TimelineEntry(Part):
    at_s: float
    event: str
    subject: str
    detail: str = ""


class Outcome(Part):
    format: Literal["rekindle.outcome.v1"] = Field("rekindle.outcome.v1", alias="schema")
    scenario: str
    world: Literal["lab", "simulator"]
    passed: bool
    double_running_s: float
    violations: tuple[Violation, ...]
    vms: dict[str, VmOutcome]
    hosts: dict[str, HostOutcome]
    failovers: tuple[FailoverOutcome, ...]
    timeline: tuple[TimelineEntry, ...]
    observer: dict[str, float] = {}


def seconds(zero: datetime, at: datetime | None) -> float | None:
    """Seconds since the scenario began, to the millisecond."""
    return None if at is None else round((at - zero).total_seconds(), 3)


def failover_outcomes(stories: Iterable[FailoverStory], zero: datetime) -> list[FailoverOutcome]:
    """The failovers of hosts; a VM restarted in place is no failover of a host."""
    return [
        FailoverOutcome(
            host=story.host,
            suspected_s=seconds(zero, story.suspected),
            confirmed_s=seconds(zero, story.confirmed),
            fenced_s=seconds(zero, story.fenced),
            planned_s=seconds(zero, story.planned),
            first_start_s=seconds(zero, story.first_start),
            all_running_s=seconds(zero, story.all_running),
        )
        for story in stories
        if story.fenced is not None or not story.incident.startswith("vm-")
    ]


def timeline(envelopes: Iterable[Envelope], zero: datetime, names: dict[str, str]) -> list[TimelineEntry]:
    """The facts as they were published; VMs by name."""
    entries = []
    for envelope in envelopes:
        at_s = seconds(zero, envelope.time)
        assert at_s is not None
        subject = names.get(envelope.subject, envelope.subject)
        entries.append(
            TimelineEntry(at_s=at_s, event=envelope.data.kind, subject=subject, detail=envelope.data.rule)
        )
    return entries


HOST_STATES = {
    "host.joined": "healthy",
    "host.refuted": "healthy",
    "host.recovered": "healthy",
    "host.suspected": "suspect",
    "host.agent_down": "agent_down",
    "host.isolated": "isolated",
    "host.failed": "failed",
    "host.fenced": "fenced",
    "host.removed": "removed",
    "host.unknown": "unknown",
}
"""What each fact makes of a host. All others leave it as it is: `host.undecided` a suspect, `host.obeyed` isolated."""


def host_outcomes(told: Iterable[TimelineEntry], hosts: Iterable[str]) -> dict[str, HostOutcome]:
    """What the facts made of each host in the end, and whether it was fenced at any time."""
    entries, found = list(told), {}
    for host in hosts:
        mine = [entry.event for entry in entries if entry.subject == host]
        said = [HOST_STATES[event] for event in mine if event in HOST_STATES]
        # the proof that an old boot is over may be told after the new boot joined
        state = "healthy" if said[-2:] == ["healthy", "fenced"] else (said[-1] if said else "healthy")
        found[host] = HostOutcome(state=state, fenced="host.fenced" in mine)
    return found


def unmet(
    expect: Iterable[Expectation],
    vms: dict[str, VmOutcome],
    hosts: dict[str, HostOutcome],
    events: Iterable[TimelineEntry],
    running_since: dict[str, float],
    end_s: float,
) -> list[Violation]:
    """Expectations that are not met. `running_since` says when each VM's present run was seen."""
    told = list(events)
    broken = []
    for one in expect:
        reason = ""
        if one.never is not None:
            reason = _never(one, told)
        elif one.event is not None:
            reason = _event(one, told)
        elif one.order is not None:
            reason = _order(one.order, vms)
        elif one.vm is not None:
            reason = _vm(one, vms[one.vm], running_since.get(one.vm))
        elif one.host is not None:
            found = hosts[one.host]
            if one.state is not None and found.state != one.state:
                reason = f"host {one.host} is {found.state}, expected {one.state}"
            elif one.fenced is not None and found.fenced is not one.fenced:
                reason = f"host {one.host} was {'' if found.fenced else 'not '}fenced"
        if reason:
            broken.append(Violation(rule="expect", at_s=end_s, detail=reason))
    return broken


def _matches(entry: TimelineEntry, event: str, subject: str | None) -> bool:
    return entry.event == event and (subject is None or entry.subject == subject)


def _never(one: Expectation, told: list[TimelineEntry]) -> str:
    assert one.never is not None
    found = next((entry for entry in told if _matches(entry, one.never, one.subject)), None)
    return f"{one.never} on {found.subject} at {found.at_s} s must never be" if found else ""


def _event(one: Expectation, told: list[TimelineEntry]) -> str:
    assert one.event is not None
    found = next((entry for entry in told if _matches(entry, one.event, one.subject)), None)
    about = f" on {one.subject}" if one.subject else ""
    if found is None:
        return f"{one.event}{about} never came"
    late = one.by_s is not None and found.at_s > one.by_s
    return f"{one.event}{about} came at {found.at_s} s, expected by {one.by_s} s" if late else ""


def _order(order: tuple[str, ...], vms: dict[str, VmOutcome]) -> str:
    """By what the hypervisors showed, not by what we told of it."""
    for name in order:
        if not vms[name].began_s:
            return f"VM {name} was not seen to start"
    for first, then in pairwise(order):
        if vms[first].began_s[0] > vms[then].began_s[0]:
            at = f"at {vms[then].began_s[0]} s, {first} at {vms[first].began_s[0]} s"
            return f"VM {then} was seen to start before {first}: {at}"
    return ""


def _vm(one: Expectation, found: VmOutcome, since: float | None) -> str:
    if one.state is not None and found.state != one.state:
        return f"VM {one.vm} is {found.state}, expected {one.state}"
    if one.host is not None and found.host != one.host:
        return f"VM {one.vm} is on {found.host}, expected on {one.host}"
    if one.host_not is not None and found.host == one.host_not:
        return f"VM {one.vm} is on {found.host}"
    if one.by_s is not None and one.state == "running" and since is not None and since > one.by_s:
        return f"VM {one.vm} runs since {since:.1f} s, expected by {one.by_s} s"
    return ""
