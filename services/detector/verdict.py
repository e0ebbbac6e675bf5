"""From evidence to verdict: one table of rules, first match wins. The docs' table is made from it.

Three speeds, by the strength of the evidence: a proof at once, witnesses after a short confirmation, silence alone
after a long one (SCIENCE: confirmation buys accuracy, estimators do not).
"""

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
    """Since anything was heard of it on any channel, its kernel included, or nobody else was heard either."""
    hung_s: float = 0.0
    """The same, but a kernel's answer is no sign of life."""
    power_off: bool = False
    """A fence device reads off, asked after the silence began."""
    last_word: bool = False
    """It said that it is going down, or its crash kernel said that it panicked, and nothing was heard since."""
    lives_elsewhere: bool = False
    """Some channel over a network brought a sign of life in the latest round."""
    lone: bool = False
    """All that brought one is a single peer, whom nobody else confirms."""
    lone_s: float = 0.0
    """For how long nothing else than this peer's word was heard of it."""
    unreachable: bool = False
    """No process answered our own question to its libvirt in the latest round."""
    hangs: bool = False
    """Some channel's latest word is that its kernel takes connections on which nothing answers."""
    votes: int = 0
    """Peers that said in the latest round that they cannot reach it. Silence is no vote, a kernel's answer is none."""
    domains: int = 0
    """Failure domains (DESIGN: racks) in which these peers are."""
    domains_known: int = 2
    """Failure domains in which living peers are at all: of one alone no second can be asked."""
    neighbour: bool = False
    """One of these peers shares the suspect's failure domain, so its uplink works."""
    slot_moves: bool = False
    """A storage slot of this boot moved since the suspicion began."""
    slot_still: bool = False
    """Peers read its storage slots for longer than a host that works lets them rest, and none moved."""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    verdict: HostState
    speed: str
    """proof, witnessed, silence; or none, where no failover follows."""
    when: Callable[[Evidence, Detection], bool]
    says: str
    stands: Callable[[Evidence], bool] = lambda _: False
    """Stands on its own: also while a storm is held (DESIGN §4 rule 7)."""


def _gone(e: Evidence) -> bool:
    """Not even its kernel answers."""
    return e.unreachable and not e.hangs


def _witnessed(e: Evidence, s: Detection) -> bool:
    apart = e.domains >= min(2, max(1, e.domains_known))
    return _gone(e) and e.slot_still and e.votes >= s.votes_min and apart


def _outvoted(e: Evidence, s: Detection) -> bool:
    """One against all: two votes at least, whatever the settings say."""
    return _witnessed(e, s) and e.votes >= 2 and e.lone and e.lone_s >= s.confirm_silence_s


RULES: tuple[Rule, ...] = (
    Rule(
        "power-off",
        HostState.FAILED,
        "proof",
        lambda e, s: e.power_off,
        "its fence device reads off while it is silent: at once",
        lambda _: True,
    ),
    Rule(
        "outvoted",
        HostState.FAILED,
        "silence",
        _outvoted,
        "one peer alone says that it answers; no answer comes to us, two other peers and votes_min of them (from as many "
        "failure domains as below) cannot see it, its storage slot stands still, for confirm_silence_s",
    ),
    Rule(
        "answers-elsewhere",
        HostState.AGENT_DOWN,
        "none",
        lambda e, s: e.lives_elsewhere,
        "its agent is silent on the bus, and its libvirt or its agent answers us or a peer: alert, no failover",
    ),
    Rule(
        "last-word",
        HostState.FAILED,
        "proof",
        lambda e, s: e.last_word and e.unreachable and not e.slot_moves,
        "it said goodbye for good, or that it panicked, and no process answers the first question since: at once",
    ),
    Rule(
        "slot-moves",
        HostState.ISOLATED,
        "none",
        lambda e, s: e.unreachable and e.slot_moves,
        "no process answers on any network and its storage slot moves: alone, alive",
    ),
    Rule(
        "witnessed",
        HostState.FAILED,
        "witnessed",
        lambda e, s: _witnessed(e, s) and e.quiet_s >= s.confirm_witnessed_s,
        "no channel answers, its storage slot stands still, votes_min peers in two failure domains (where peers live in no "
        "second one, in one) cannot see it either, for confirm_witnessed_s",
        lambda e: e.neighbour,
    ),
    Rule(
        "silence-only",
        HostState.FAILED,
        "silence",
        lambda e, s: _gone(e) and e.quiet_s >= s.confirm_silence_s,
        "no channel answers, and too few peers voted or no storage slot could be read, for confirm_silence_s",
    ),
    Rule(
        "hung",
        HostState.FAILED,
        "silence",
        lambda e, s: e.unreachable and e.hangs and e.hung_s >= s.hung_s,
        "its kernel takes connections, no process answers on them, its storage slot does not move, for confirm_hung_s",
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


def as_table() -> str:
    """The rules as a Markdown table, for docs/DETECTION.md."""
    rows = ["| rule | when | verdict | speed | stands on its own in a storm |", "|---|---|---|---|---|"]
    alone, beside = Evidence(9.0, 9.0), Evidence(9.0, 9.0, neighbour=True)
    for rule in RULES:
        stands = "yes" if rule.stands(alone) else ("with a neighbour's vote" if rule.stands(beside) else "")
        rows.append(
            f"| {rule.name} | {rule.says} | {rule.verdict.value} | {rule.speed} | "
            f"{stands if rule.verdict is HostState.FAILED else '-'} |"
        )
    return "\n".join(rows)
