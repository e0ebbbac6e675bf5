"""From evidence to verdict: one table of rules, first match wins. The docs' table is made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from libs.config.settings import Detection
from libs.model import HostState


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one suspect at one moment."""

    silent_s: float
    """Since its last heartbeat, or since we began to listen."""
    quiet_s: float
    """Since the last sign of life on any channel."""
    power_off: bool
    """A fence device reads off, asked after the silence began."""
    lives_elsewhere: bool
    """Some channel brought a sign of life in the latest round."""
    unreachable: bool
    """Our own question to its libvirt went unanswered in the latest round."""
    votes: int
    """Peers that said in the latest round that they cannot reach it. Silence is no vote."""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    verdict: HostState
    proof: bool
    """Stands on its own: also while a storm is held."""
    when: Callable[[Evidence, Detection], bool]
    says: str


RULES: tuple[Rule, ...] = (
    Rule(
        "power-off",
        HostState.FAILED,
        True,
        lambda e, s: e.power_off,
        "its fence device reads off while it is silent: at once",
    ),
    Rule(
        "answers-elsewhere",
        HostState.AGENT_DOWN,
        False,
        lambda e, s: e.lives_elsewhere,
        "its agent is silent and another channel answers: alert, no failover",
    ),
    Rule(
        "witnessed",
        HostState.FAILED,
        False,
        lambda e, s: e.unreachable and e.votes >= s.votes_min and e.quiet_s >= s.confirm_witnessed_s,
        "no channel answers, votes_min peers cannot see it either, for confirm_witnessed_s",
    ),
    Rule(
        "silence-only",
        HostState.FAILED,
        False,
        lambda e, s: e.unreachable and e.quiet_s >= s.confirm_silence_s,
        "no channel answers and too few peers voted, for confirm_silence_s",
    ),
)


def judge(evidence: Evidence, settings: Detection) -> Rule | None:
    """The first rule that matches, or None: still a suspect."""
    return next((rule for rule in RULES if rule.when(evidence, settings)), None)


def storm_limit(hosts: int) -> int:
    """How many suspects at once are believable in a pool of so many hosts (DESIGN §4 rule 7)."""
    if hosts < 3:
        return 1
    return (hosts - 1) // 2 if hosts <= 5 else max(2, hosts // 4)
