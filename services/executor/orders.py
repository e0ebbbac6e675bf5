"""What the executor's hands are asked to do, and what they report."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.core.decider import Outcome, Request
from libs.events.failovers import PlannedMove, PlannedStart, PlannedStop
from libs.events.vms import Stage
from libs.model import Arrival, Incarnation, RunLease, Value, VmReport

PLANS_KEPT = 4
"""Incidents of one VM whose orders are remembered: one is told again within minutes, if ever."""


class StartVm(Request):
    """Take the lease, start the VM, see it running."""

    kind: Literal["start_vm"] = "start_vm"
    start: PlannedStart
    incident: str
    shown: tuple[Incarnation, ...] = ()
    """Of a start that may have been carried out before: other hosts that do not say that they do not run the VM."""


class WriteLease(Request):
    """Put into the lease what was found to be so. `lease.seq` is one more than that of the lease it replaces."""

    kind: Literal["write_lease"] = "write_lease"
    lease: RunLease


class CondemnRun(Request):
    """A VM is said to run on two hosts. Ask both; where it is so, condemn the run that is not the lease's."""

    kind: Literal["condemn_run"] = "condemn_run"
    lease: RunLease
    at: Incarnation
    run: int


class MoveVm(Request):
    """Move a running VM from one host to another, and its lease with it."""

    kind: Literal["move_vm"] = "move_vm"
    move: PlannedMove
    timeout_s: float


class StopVm(Request):
    """Stop a VM where it runs, to make room: it is to be started again."""

    kind: Literal["stop_vm"] = "stop_vm"
    stop: PlannedStop


class ProbeGuest(Request):
    """Ask a guest whether it is ready, by the probe that a policy names. Changes nothing."""

    kind: Literal["probe_guest"] = "probe_guest"
    vm: str
    at: Incarnation
    """Where it runs."""
    probe: str


class NoteArrival(Request):
    """Put into the lease that a person's migration may bring the VM there, before it is let in."""

    kind: Literal["note_arrival"] = "note_arrival"
    ask: str
    arrival: Arrival
    report: VmReport


class Result(StrEnum):
    STARTED = "started"
    NOT_STARTED = "not_started"  # known not to run there by our doing
    UNCERTAIN = "uncertain"


class Attempted(Outcome):
    """How one try at a start ended."""

    start: PlannedStart
    result: Result
    token: int = 0
    called_at: str = ""
    reason: str = ""
    stage: Stage = Stage.START

    @property
    def ended(self) -> str:
        return self.result.value


class LeaseFound(Outcome):
    """How the lease lies now, whether by our write or by another's."""

    lease: RunLease | None


class ArrivalNoted(LeaseFound):
    """Whether the lease says so now; why not."""

    at: Incarnation
    ask: str
    refused: str = ""


class RunCondemned(LeaseFound):
    """How the lease lies now; and whether it condemns that run, by whose doing ever."""

    at: Incarnation
    run: int
    done: bool = False


class RoomMade(Outcome):
    """How an order to make room ended: moved or stopped, known not to be, or nobody can tell."""

    makes: PlannedMove | PlannedStop
    result: Result
    token: int = 0
    reason: str = ""


class Probed(Outcome):
    """Whether it answers, with what came, for people."""

    ready: bool = False
    reason: str = ""


Order = StartVm | WriteLease | CondemnRun | MoveVm | StopVm | ProbeGuest | NoteArrival
REQUESTS: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])


class Phase(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    UNCERTAIN = "uncertain"


class TakenUp(Value):
    """The latest orders for one VM that were taken up, whatever became of them: told again, they are no news. What is
    left of a start that has ended."""

    plans: dict[str, int] = Field(
        description="by incident the latest revision of its plan. No default: what is no record of ours must not pass for one"
    )

    def has(self, incident: str, revision: int) -> bool:
        """True where this order, or a later one of its incident, was taken up before."""
        return self.plans.get(incident, -1) >= revision

    def with_plan(self, incident: str, revision: int) -> TakenUp:
        """With this one as the latest."""
        others = [(one, of) for one, of in self.plans.items() if one != incident]
        return TakenUp(plans=dict([*others, (incident, revision)][-PLANS_KEPT:]))


class OverRecord(Value):
    """The boot of one host that was proven over last. Whoever leads next was not told: by what that boot showed last
    they would ask it for ever. One a host that was ever fenced, under `host.NAME`, which is no VM's name."""

    over: Incarnation


def over_key(host: str) -> str:
    """The name of its record."""
    return f"host.{host}"


class StartRecord(Value):
    """One VM that the executor owes a start."""

    start: PlannedStart
    incident: str
    revision: int = 0
    """Of the plan that ordered it."""
    cause: str
    phase: Phase = Phase.QUEUED
    tries: int = 0
    before: TakenUp = TakenUp(plans={})
    """The orders for it that were taken up before this one."""

    @property
    def taken_up(self) -> TakenUp:
        """With this one."""
        return self.before.with_plan(self.incident, self.revision)


class RoomRecord(Value):
    """One VM that the executor is to move, or to stop, so that others find room."""

    makes: PlannedMove | PlannedStop
    incident: str
    cause: str
    phase: Phase = Phase.QUEUED
    tries: int = 0
    doubted: bool = Field(False, description="it was told that nobody can tell what came of it")

    @property
    def move(self) -> PlannedMove | None:
        """The move, where it is one."""
        return self.makes if isinstance(self.makes, PlannedMove) else None

    @property
    def ends(self) -> tuple[Incarnation, ...]:
        """The boots that have to do with it."""
        return (self.makes.origin, self.makes.to) if isinstance(self.makes, PlannedMove) else (self.makes.at,)

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(at.host for at in self.ends)
