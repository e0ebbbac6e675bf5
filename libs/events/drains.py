"""Facts about a host that is emptied: what of it moves, what stays there and why, and that nothing runs there any more."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import HostFact
from libs.events.failovers import PlannedMove
from libs.model import Value


class StayingVm(Value):
    """A VM that runs on a host which is drained, and is not moved away."""

    vm: str
    name: str
    protection: str
    priority: str
    reason: str = Field(
        description="a code: of the planner's (`no_room`, `no_host`, `no_host_suits`, `strict_rule`), or `down_first`, "
        "`move_failed`, `migrations_off`, `agentless`, `guest_fails`, `not_running`, `not_held`, `held`"
    )
    detail: str = Field(description="the same for people")


class DrainFact(HostFact):
    """Of one drain of one boot of a host. `mark` says which: that of `host.draining`, or `maintenance-N` by the number
    of the word."""

    incident: str = Field(description="that of the word, or of the failure, which began it")
    mark: str
    revision: int = Field(ge=1, description="grows with all that is told of this drain")

    @property
    def key(self) -> str:
        return f"{super().key}/{self.mark}/{self.revision}"


class HostDrainPlanned(DrainFact):
    """VMs of the host that move to others while they run: so many as may move at a time. Others follow."""

    kind: Literal["host.drain_planned"] = "host.drain_planned"
    moves: tuple[PlannedMove, ...]


class HostDrainStuck(DrainFact):
    """All that can be moved away was. These VMs run on where they are, each for a reason; they are looked at again
    every few seconds."""

    kind: Literal["host.drain_stuck"] = "host.drain_stuck"
    stays: tuple[StayingVm, ...]


class HostDrained(DrainFact):
    """Nothing runs on the host any more, by its own word."""

    kind: Literal["host.drained"] = "host.drained"
