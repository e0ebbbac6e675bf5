"""What the executor's hands are asked to do, and what they report."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.core.decider import Outcome, Request
from libs.events.failovers import PlannedStart
from libs.events.vms import Stage
from libs.model import RunLease, Value

PLANS_KEPT = 4
"""Incidents of one VM whose orders are remembered: one is told again within minutes, if ever."""


class StartVm(Request):
    """Take the lease, start the VM, see it running."""

    kind: Literal["start_vm"] = "start_vm"
    start: PlannedStart
    incident: str


class WriteLease(Request):
    """Put into the lease what was found to be so. `lease.seq` is one more than that of the lease it replaces."""

    kind: Literal["write_lease"] = "write_lease"
    lease: RunLease


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


class LeaseFound(Outcome):
    """How the lease lies now, whether by our write or by another's."""

    lease: RunLease | None


REQUESTS: TypeAdapter[StartVm | WriteLease] = TypeAdapter(
    Annotated[StartVm | WriteLease, Field(discriminator="kind")]
)


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
