"""What the executor's hands are asked to do, and what they report."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.core.decider import Outcome, Request
from libs.events.facts import PlannedStart, Stage
from libs.model import RunLease, Value


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


class StartRecord(Value):
    """One VM that the executor owes a start."""

    start: PlannedStart
    incident: str
    revision: int = 0
    """Of the plan that ordered it: within one incident the later order counts."""
    cause: str
    phase: Phase = Phase.QUEUED
    tries: int = 0
