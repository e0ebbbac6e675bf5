"""Facts about incidents: what is planned for one, what became of it, and what waits for room."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import RevisedFact
from libs.model import FenceProof, Incarnation, Value, VmPolicy


class PlannedStart(Value):
    """One VM that is to start. `key` is the same for every delivery of this order, another for each attempt."""

    key: str
    vm: str
    name: str
    origin: Incarnation
    to: Incarnation
    wave: int = Field(description="0 first: by priority, then start order")
    priority_rank: int
    memory_mib: int
    vcpus: int
    policy: VmPolicy = VmPolicy()
    proofs: tuple[FenceProof, ...] = Field((), description="why former holders are harmless")
    run: int = Field(0, description="of a living origin: the run that ended, or is to end")
    evict: bool = Field(
        False, description="its QEMU is still there at the origin and must be proven stopped first"
    )


class WaitingVm(Value):
    """A VM that found no room, and what would have to be there for it."""

    vm: str
    name: str
    priority: str
    reason: str
    memory_mib: int
    vcpus: int
    short_memory_mib: int = 0
    short_vcpus: int = 0


class FailoverPlanned(RevisedFact):
    """Who starts where. A later revision of the same incident adds or replaces starts that failed."""

    kind: Literal["failover.planned"] = "failover.planned"
    starts: tuple[PlannedStart, ...] = ()
    waiting: tuple[WaitingVm, ...] = ()


class FailoverCompleted(RevisedFact):
    """Every VM of the incident was seen running with our token, or waits with a stated reason."""

    kind: Literal["failover.completed"] = "failover.completed"
    restarted: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    given_up: tuple[str, ...] = ()


class CapacityExhausted(RevisedFact):
    """VMs wait because no host has room: what is missing."""

    kind: Literal["capacity.exhausted"] = "capacity.exhausted"
    waiting: tuple[WaitingVm, ...]


class CapacityRelieved(RevisedFact):
    """Nothing of this incident waits for room any more."""

    kind: Literal["capacity.relieved"] = "capacity.relieved"
