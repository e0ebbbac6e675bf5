"""The observer's own health: a canary flown through the bus, on the way that heartbeats take (DESIGN §4 rule 6).

A connection that is lost is told by the bus, late: a peer that is silently gone is noticed after seconds, and until
then everybody seems silent. So the detector says something to itself, twice a second or oftener. While that is overdue, and
for a heartbeat's time after, nobody new is suspected; after `Pace.deaf_s` the detector is deaf, as without a connection,
until it hears itself again or has another connection.
"""

from __future__ import annotations

import math

from libs.core.decider import Effect, Note, Publish, Send
from libs.core.evolve import replace
from libs.events.hosts import DetectorDegraded
from libs.events.signals import Canary
from services.detector.state import CanaryState, Pace

RECORD = "pool.canary"
"""What the fact is owed by; nothing is kept in it."""


def pace(suspect_after_s: float, interval_s: float) -> Pace:
    """Overdue within less than what suspicion takes by more than a heartbeat's interval, which is how much longer a host may
    have been silent when we became deaf; the rest follows."""
    overdue_s = min(0.8, 0.8 * (suspect_after_s - interval_s))
    return Pace(
        every_s=min(0.5, overdue_s / 1.6),
        overdue_s=overdue_s,
        clear_s=1.2 * interval_s,
        deaf_s=1.5 * overdue_s,
    )


def begun(canary: CanaryState, now: float) -> CanaryState:
    """Fly from now on. Until the first is heard, it is not known that anything can be heard."""
    return replace(canary, send_at=now, heard_at=now, clear_at=math.inf)


def cut(canary: CanaryState) -> CanaryState:
    """The connection is known to be lost: there is nothing to fly through."""
    return replace(canary, send_at=math.inf)


def flown(canary: CanaryState, replica: str, now: float) -> tuple[CanaryState, tuple[Effect, ...]]:
    """Send the next where it is due, and note where none came back for too long."""
    if now > canary.send_at + canary.pace.every_s:
        canary = begun(canary, now)  # held up we sent none, and none could come back
    effects: list[Effect] = []
    late = not math.isinf(canary.send_at) and now - canary.heard_at > canary.pace.deaf_s
    if late and canary.deaf_since is None:
        canary = replace(canary, deaf_since=canary.heard_at, number=canary.number + 1)
        effects.append(Note("does not hear itself on the bus: nobody is suspected"))
    if now >= canary.send_at:
        canary = replace(canary, seq=canary.seq + 1, send_at=now + canary.pace.every_s)
        signal = Canary(
            replica=replica,
            seq=canary.seq,
            sent_at=now,
            deaf=canary.deaf_since is not None,
            round_trip_s=canary.round_trip_s,
        )
        effects.append(Send(f"canary.{replica}", signal))
    return canary, tuple(effects)


def heard(canary: CanaryState, signal: Canary, replica: str, now: float) -> CanaryState:
    """One came back. Any will do: where each is late by the same time, everything is heard."""
    if signal.replica != replica or signal.seq > canary.seq or math.isinf(canary.send_at):
        return canary
    clear_at = (
        now + canary.pace.clear_s
        if now - canary.heard_at > canary.pace.overdue_s
        else min(canary.clear_at, now)
    )
    trip_s = round(now - signal.sent_at, 4)
    return replace(canary, heard_at=now, clear_at=clear_at, round_trip_s=trip_s)


def hearing(canary: CanaryState, replica: str, now: float) -> tuple[CanaryState, tuple[Effect, ...]]:
    """It is deaf no more: that it was is told now, since the bus takes it now."""
    if canary.deaf_since is None:
        return canary, ()
    fact = DetectorDegraded(
        replica=replica,
        number=canary.number,
        deaf_s=round(now - canary.deaf_since, 1),
        rule="did not hear itself on the bus",
    )
    return replace(canary, deaf_since=None), (Publish(RECORD, fact),)


def overdue(canary: CanaryState, now: float) -> bool:
    """What was not heard of late may not have reached us."""
    return now < canary.clear_at or now - canary.heard_at > canary.pace.overdue_s
