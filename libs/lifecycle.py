"""THE table: in which states a host can be, what leads from one to another, and who may say so.

The detector's records move only along these rows; a test walks it against them. The docs' diagram is
generated from the table (`python -m libs.lifecycle`).
"""

from __future__ import annotations

from dataclasses import dataclass

from libs.model import HostState

S = HostState


@dataclass(frozen=True, slots=True)
class Row:
    before: HostState
    after: HostState
    why: str
    fact: str
    """Kind of the fact that announces it."""
    speaker: str


TABLE: tuple[Row, ...] = (
    Row(S.UNKNOWN, S.HEALTHY, "heard", "host.joined", "detector"),
    Row(
        S.UNKNOWN,
        S.SUSPECT,
        "known from before, still silent after the quiet time",
        "host.suspected",
        "detector",
    ),
    Row(S.HEALTHY, S.SUSPECT, "silent for suspect_after_s", "host.suspected", "detector"),
    Row(S.HEALTHY, S.UNKNOWN, "not heard since this observer began to listen", "host.unknown", "detector"),
    Row(S.SUSPECT, S.HEALTHY, "heard in time", "host.refuted", "detector"),
    Row(S.SUSPECT, S.AGENT_DOWN, "answers on another channel", "host.agent_down", "detector"),
    Row(S.SUSPECT, S.FAILED, "independent evidence agrees", "host.failed", "detector"),
    Row(S.SUSPECT, S.ISOLATED, "only its storage slot moves", "host.isolated", "detector"),
    Row(S.AGENT_DOWN, S.ISOLATED, "only its storage slot moves any more", "host.isolated", "detector"),
    Row(S.ISOLATED, S.AGENT_DOWN, "answers on a network again", "host.agent_down", "detector"),
    Row(S.ISOLATED, S.HEALTHY, "heard again", "host.recovered", "detector"),
    Row(S.ISOLATED, S.FAILED, "its slot stands still, too", "host.failed", "detector"),
    Row(S.ISOLATED, S.FENCED, "was held failed before, and is proven harmless", "host.fenced", "fencer"),
    Row(S.AGENT_DOWN, S.HEALTHY, "heard again", "host.refuted", "detector"),
    Row(S.AGENT_DOWN, S.FAILED, "no channel answers any more", "host.failed", "detector"),
    Row(S.FAILED, S.FENCED, "proven harmless", "host.fenced", "fencer"),
    Row(S.HEALTHY, S.FENCED, "spoke after the verdict, and is proven harmless", "host.fenced", "fencer"),
    Row(S.UNKNOWN, S.FENCED, "spoke after the verdict, and is proven harmless", "host.fenced", "fencer"),
    Row(S.SUSPECT, S.FENCED, "spoke after the verdict, and is proven harmless", "host.fenced", "fencer"),
    Row(S.AGENT_DOWN, S.FENCED, "spoke after the verdict, and is proven harmless", "host.fenced", "fencer"),
    Row(S.FAILED, S.HEALTHY, "heard before any proof, same incarnation", "host.recovered", "detector"),
    Row(S.FENCED, S.HEALTHY, "heard with a new incarnation", "host.joined", "detector"),
    Row(S.HEALTHY, S.UNKNOWN, "out of the pool", "host.removed", "operator"),
    Row(S.SUSPECT, S.UNKNOWN, "out of the pool", "host.removed", "operator"),
    Row(S.AGENT_DOWN, S.UNKNOWN, "out of the pool", "host.removed", "operator"),
    Row(S.FENCED, S.UNKNOWN, "out of the pool", "host.removed", "operator"),
)


def allowed(before: HostState, after: HostState) -> bool:
    """True where the table has such a row, or nothing changes."""
    return before is after or any(row.before is before and row.after is after for row in TABLE)


def as_mermaid() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    for row in TABLE:
        said = f" ({row.fact}, {row.speaker})" if row.fact else ""
        lines.append(f"    {row.before.value} --> {row.after.value}: {row.why}{said}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_mermaid())  # noqa: T201
