"""How a service's process is: what counts as a lag of its event loop, for which reasons it is not well, and for which it
could not do its work if it were to do it now: then it is degraded.

A loop that is blocked cannot say so: meanwhile nothing is answered at all, and afterwards it is told for a window's
length. So whoever asks seldom learns of it, too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from libs.config.health import HealthSettings


class BusState(StrEnum):
    """The connection of this process to the bus."""

    WAITING = "waiting"  # there has been none yet
    CONNECTED = "connected"
    LOST = "lost"


HEARERS = frozenset(["detector", "placement", "executor"])
"""Services that hear every host of the pool."""


@dataclass(slots=True)
class LoopLag:
    """The worst lag of an event loop within the last `window_s`, by how late a timer runs. Times in seconds, of one
    monotonic clock."""

    window_s: float
    due_at: float
    """When the timer is to run next."""
    _late: deque[tuple[float, float]] = field(default_factory=deque)
    """When it ran, and how late; only such as no later run was as late as."""

    def ran(self, now: float, next_at: float) -> None:
        """The timer runs now, and is to run again at `next_at`."""
        late_s = now - self.due_at
        while self._late and self._late[-1][1] <= late_s:
            self._late.pop()
        self._late.append((now, late_s))
        self._forget(now)
        self.due_at = next_at

    def worst_s(self, now: float) -> float:
        """What is overdue at this moment included: after a pause a question may be read before the timer runs."""
        self._forget(now)
        return max(0.0, now - self.due_at, self._late[0][1] if self._late else 0.0)

    def _forget(self, now: float) -> None:
        while self._late and now - self._late[0][0] > self.window_s:
            self._late.popleft()


@dataclass(frozen=True, slots=True)
class Condition:
    """What is known of a service's process at one moment. `store`: why its buckets cannot be read; "" where they can."""

    loop_lag_s: float
    bus: BusState
    leading: bool | None
    """None where its role is not one that a single process holds. A standby is as well as a leader."""
    store: str = ""

    def reasons(self, settings: HealthSettings) -> list[str]:
        """Why it is not well; empty where it is."""
        found = []
        if self.loop_lag_s > settings.lag_max_s:
            found.append(
                f"loop: it lagged by {self.loop_lag_s:.3f} s within the last {settings.lag_window_s:g} s, "
                f"more than health.lag_max_s ({settings.lag_max_s:g} s)"
            )
        if self.bus is BusState.WAITING:
            found.append("bus: it is waited for since the start")
        elif self.bus is BusState.LOST:
            found.append("bus: the connection is lost")
        elif self.store:
            found.append(f"store: {self.store}")
        return found


@dataclass(frozen=True, slots=True)
class Readiness:
    """What must be so for a process to do its work now, or for a standby to see that another does. Times in seconds."""

    condition: Condition
    round_trip_s: float | None
    """To the server and back just now; None where no answer came."""
    leader_seen_s: float | None
    """Since it saw its role being led, 0 where it leads itself; None where no role is held."""
    evidence_age_s: float | None
    """Since a word of any host; None where there was none since it began."""
    trusted: bool = True
    """The stored state is known to be the latest."""

    def reasons(self, service: str, settings: HealthSettings) -> list[str]:
        """Why it is degraded; empty where it is ready. On the minority's side of a cut bus it always is: nobody's claim
        can be renewed there, and it sees none."""
        found = self.condition.reasons(settings)
        if self.condition.bus is not BusState.CONNECTED:
            return found
        most_s = settings.round_trip_max_s
        if self.round_trip_s is None or self.round_trip_s > most_s:
            what = "no answer" if self.round_trip_s is None else f"{self.round_trip_s:.3f} s"
            found.append(f"round trip: {what}, more than health.round_trip_max_s ({most_s:g} s)")
        unled_s = self.leader_seen_s
        if unled_s is not None and unled_s > settings.leaderless_max_s:
            found.append(f"leadership: nobody is seen to lead for {unled_s:.1f} s: no quorum, or no replica")
        if not self.trusted:
            found.append("state: read-only until it is known that what is stored is the latest")
        if service in HEARERS:
            age_s = self.evidence_age_s
            if age_s is None or age_s > settings.evidence_max_s:
                what = "yet" if age_s is None else f"for {age_s:.1f} s"
                found.append(f"evidence: no host was heard {what}")
        return found


def readiness(service: str, pid: int, ready: Readiness, reasons: list[str]) -> dict[str, Any]:
    """What /readyz answers."""

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {
        "status": "degraded" if reasons else "ready",
        "service": service,
        "pid": pid,
        "loop_lag_s": round(ready.condition.loop_lag_s, 3),
        "bus": ready.condition.bus.value,
        "round_trip_s": rounded(ready.round_trip_s),
        "leading": ready.condition.leading,
        "leader_seen_s": rounded(ready.leader_seen_s),
        "evidence_age_s": rounded(ready.evidence_age_s),
        "state_trusted": ready.trusted,
        **({"reasons": reasons} if reasons else {}),
    }


def document(service: str, pid: int, condition: Condition, reasons: list[str]) -> dict[str, Any]:
    """What /healthz answers."""
    found: dict[str, Any] = {
        "status": "failing" if reasons else "ok",
        "service": service,
        "pid": pid,
        "loop_lag_s": round(condition.loop_lag_s, 3),
        "bus": condition.bus.value,
        "leading": condition.leading,
    }
    return {**found, "reasons": reasons} if reasons else found
