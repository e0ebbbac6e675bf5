"""Facts about incidents: what is planned for one, what became of it, and what waits for room."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import RevisedFact
from libs.model import FenceProof, Incarnation, Value, VmPolicy, VmReport


class AwaitedVm(Value):
    """A VM of the same or another failover that must be ready before a start begins, and for how long that is waited
    for. It is ready by the start `key`, or by a later run than that of `token`."""

    vm: str
    name: str
    key: str
    token: int
    ready: Literal["running", "agent"] = "running"
    probe: str = Field(
        "", description="beside that: by its policy this must answer, as tcp:5432 or http:8080/health"
    )
    wait_s: float = Field(gt=0)


class PlannedStart(Value):
    """One VM that is to start. `key` is the same for every delivery of this order, another for each attempt."""

    key: str
    vm: str
    name: str
    origin: Incarnation
    to: Incarnation
    wave: int = Field(description="0 first: by priority, then start order")
    priority_rank: int
    urgency: tuple[int, ...] = Field(
        (),
        description="restart before best_effort, priority, start order: its own, or that of the most urgent VM that "
        "waits for it; the least starts first",
    )
    memory_mib: int
    vcpus: int
    policy: VmPolicy = VmPolicy()
    after: tuple[AwaitedVm, ...] = ()
    datastores: tuple[str, ...] = Field(
        (), description="of the pool's, on which its disks lie; none: not known"
    )
    proofs: tuple[FenceProof, ...] = Field((), description="why former holders are harmless")
    run: int = Field(0, description="of a living origin: the run that ended, or is to end")
    evict: bool = Field(
        False, description="its QEMU is still there at the origin and must be proven stopped first"
    )


class PlannedMove(Value):
    """A healthy VM that is moved while it runs, so that others find room where it leaves it, or since its host is drained."""

    key: str
    vm: str
    name: str
    origin: Incarnation
    to: Incarnation
    run: int = Field(description="at the origin")
    memory_mib: int
    vcpus: int
    makes_room_for: tuple[str, ...] = Field((), description="VMs by name; none where its host is drained")


class PlannedStop(Value):
    """A VM that is stopped, since one that matters more needs its room; it is started again when there is room."""

    key: str
    vm: str
    name: str
    at: Incarnation
    run: int
    report: VmReport
    makes_room_for: tuple[str, ...] = Field((), description="VMs by name")


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
    storage: tuple[str, ...] = Field((), description="datastores that its host must reach")
    networks: tuple[str, ...] = Field((), description="networks that its host must have, as far as is known")
    devices: dict[str, int] = Field(
        {}, description="devices that its host must have free, as far as is known"
    )
    requires_labels: str = Field("", description="labels that its host must have, as in its policy")


class FailoverPlanned(RevisedFact):
    """Who starts where. A later revision of the same incident adds or replaces starts that failed."""

    kind: Literal["failover.planned"] = "failover.planned"
    starts: tuple[PlannedStart, ...] = ()
    waiting: tuple[WaitingVm, ...] = ()
    moves: tuple[PlannedMove, ...] = Field((), description="before others find room; what needs it waits")
    stops: tuple[PlannedStop, ...] = ()
    ready: bool = Field(
        False,
        description="it was kept ready before the failure, and held; else it was sought when it was wanted",
    )


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
