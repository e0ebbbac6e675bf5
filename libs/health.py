"""How a service's process is: what counts as a lag of its event loop, and for which reasons it is not well.

A loop that is blocked cannot say so: meanwhile nothing is answered at all, and afterwards it is told for a window's
length. So whoever asks seldom learns of it, too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from libs.config.settings import HealthSettings


class BusState(StrEnum):
    """The connection of this process to the bus."""

    WAITING = "waiting"  # there has been none yet
    CONNECTED = "connected"
    LOST = "lost"


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
    """What is known of a service's process at one moment."""

    loop_lag_s: float
    bus: BusState
    leading: bool | None
    """None where its role is not one that a single process holds. A standby is as well as a leader."""

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
        return found


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
