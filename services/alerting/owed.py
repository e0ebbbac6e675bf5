"""What must follow from a fact, and by when: each of these facts waits for another service, which may be down for good. Where
nothing follows, that is told once (`service.overdue`). Who follows it up is not alerting's to decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from libs.events.base import Fact
from libs.events.failovers import FailoverPlanned
from libs.events.hosts import HostSuspected, StormHeld


@dataclass(frozen=True, slots=True)
class Row:
    service: str
    within_s: float
    """Longer than the longest deadline of what the service does about it."""
    answers: tuple[str, ...]
    """Kinds of the facts, on the same subject, any of which shows that it is at work."""


TABLE: dict[str, Row] = {
    "host.suspected": Row(
        "detector",
        180.0,
        (
            "host.refuted",
            "host.failed",
            "host.agent_down",
            "host.isolated",
            "host.recovered",
            "host.undecided",
            "host.vms_unknown",
            "host.removed",
            "host.fenced",
            "host.joined",
        ),
    ),
    "host.failed": Row("fencer", 120.0, ("host.fenced", "host.fence_failed", "host.recovered")),
    "host.fenced": Row("placement", 60.0, ("failover.planned", "failover.completed", "capacity.exhausted")),
    "failover.planned": Row(
        "executor",
        180.0,
        ("vm.restarted", "vm.restart_failed", "vm.start_uncertain", "vm.given_up", "failover.completed"),
    ),
}
OF_HOST = "host.suspected"
OF_INCIDENTS = tuple(kind for kind in TABLE if kind != OF_HOST)
"""An incident's facts may be heard in any order: what was followed already is remembered."""


@dataclass(frozen=True, slots=True)
class Owed:
    """One fact that nothing has followed from yet."""

    of: str
    """Its key."""
    kind: str
    subject: str
    """The incident, or the host where there is none yet."""
    due_at: float

    @property
    def row(self) -> Row:
        return TABLE[self.kind]


def subject(fact: Fact, kind: str) -> str:
    """What a fact is about as row `kind` counts it."""
    if kind == OF_HOST:
        return fact.about
    return str(getattr(fact, "incident", ""))


def mark(kind: str, fact: Fact) -> str:
    """Names what is waited for."""
    return f"{kind}/{subject(fact, kind)}"


def answers(kind: str, fact: Fact) -> bool:
    return fact.kind in TABLE[kind].answers


def opened(fact: Fact, now: float) -> Owed | None:
    """What must follow from this fact."""
    nobody = fact.kind == "failover.planned" and not getattr(fact, "starts", ())
    if fact.kind not in TABLE or nobody:
        return None
    row = TABLE[fact.kind]
    return Owed(fact.key, fact.kind, subject(fact, fact.kind), now + row.within_s + _patience_s(fact))


def _patience_s(fact: Fact) -> float:
    """How long the first start of a plan may wait for others, or for its delay: so long nothing is overdue."""
    if not isinstance(fact, FailoverPlanned):
        return 0.0
    return min(
        max((one.wait_s for one in start.after), default=0.0) + start.policy.start_delay_s
        for start in fact.starts
    )


def followed(one: Owed, fact: Any) -> bool:
    """True where this fact shows that somebody is at work on what is owed."""
    if isinstance(fact, StormHeld):
        return one.kind == OF_HOST and one.subject in fact.suspects
    if isinstance(fact, HostSuspected):
        return one.kind == OF_HOST and one.subject == fact.about and one.of != fact.key
    return answers(one.kind, fact) and subject(fact, one.kind) == one.subject
