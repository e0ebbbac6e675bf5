"""Signs of life of a host that is held failed, for a person who is about to vouch that it is down: what the verdict
rested on, and what the other hosts see of it at this moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from libs.config.settings import Settings
from libs.core.ports import Bus, UnavailableError
from libs.events.envelope import Envelope
from libs.events.hosts import HostFailed
from libs.events.signals import Question, Reply
from libs.model import Answer, Incarnation

PEERS_ASKED = 4
SLACK_S = 0.6
SLOT_SPACING = 1.2
"""Intervals between two readings of a slot: a host that works has written in between."""
LIVES = {
    Answer.UP: "reaches it",
    Answer.REFUSED: "reaches its kernel, which refuses the connection",
    Answer.HANGS: "reaches its kernel, and no process of it answers",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the open verdict rested on."""

    at: str
    """Wall time."""
    rule: str
    silent_s: float | None
    """How long it had not been heard by then."""
    evidence: tuple[str, ...]


async def verdict(events: AsyncIterator[tuple[int, Envelope]], incident: str) -> Verdict | None:
    """From the stream; None where it is older than what that keeps."""
    async for _, envelope in events:
        fact = envelope.data
        if isinstance(fact, HostFailed) and fact.incident == incident:
            ages = [one.age_s for one in fact.evidence if one.channel == "heartbeat"]
            said = tuple(
                f"{one.channel}: {one.said}" + (f" ({one.detail})" if one.detail else "")
                for one in fact.evidence
            )
            return Verdict(
                envelope.time.isoformat(timespec="seconds"), fact.rule, next(iter(ages), None), said
            )
    return None


async def alive(bus: Bus, settings: Settings, at: Incarnation) -> tuple[list[str], int]:
    """By which channels it seems alive right now, each for people, and how many other hosts have answered at all. Takes
    a few seconds. Nothing found is no proof of anything."""
    peers = [host.name for host in settings.hosts if host.agent and host.name != at.host][:PEERS_ASKED]
    within_s = settings.detection.ask_timeout_s + SLACK_S

    async def ask(peer: str, question: Question) -> Reply | None:
        try:
            reply = await bus.ask(f"ask.{peer}", question, within_s)
        except UnavailableError:
            return None
        return reply if isinstance(reply, Reply) and reply.about == at.host else None

    first = await asyncio.gather(*(ask(peer, Question(about=at.host)) for peer in peers))
    replies = [reply for reply in first if reply is not None]
    found = [f"{reply.peer.host} {LIVES[reply.answer]}" for reply in replies if reply.answer in LIVES]
    before = _slots(replies, at)
    if before:
        await asyncio.sleep(SLOT_SPACING * settings.heartbeats.slot_interval_s)
        again = await asyncio.gather(*(ask(peer, Question(about=at.host, slots_only=True)) for peer in peers))
        after = _slots([reply for reply in again if reply is not None], at)
        moved = [name for name, seq in after.items() if seq > before.get(name, seq)]
        found += [f"it writes to its slot on {name}" for name in sorted(moved)]
    return found, len(replies)


def _slots(replies: list[Reply], at: Incarnation) -> dict[str, int]:
    """By datastore its latest write in this boot."""
    found: dict[str, int] = {}
    for reply in replies:
        for seen in reply.slots:
            if seen.beat is not None and seen.beat.boot == at.boot:
                found[seen.datastore] = max(seen.beat.seq, found.get(seen.datastore, 0))
    return found
