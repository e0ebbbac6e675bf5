"""Every fact that is kept on the bus: past tense, frozen, one union discriminated by `kind`.

Each says who it is about, which incident it belongs to, what caused it and by which rule. `key` names the
fact itself: a repeat has the same key and is dropped by the server and by every consumer.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, TypeAdapter

from libs.events.base import Fact, PoolFact
from libs.events.datastores import DatastoreFailed, DatastoreLost, DatastoreRecovered
from libs.events.failovers import (
    CapacityExhausted,
    CapacityRelieved,
    FailoverCompleted,
    FailoverPlanned,
)
from libs.events.guests import (
    HostDrainEnded,
    HostDraining,
    HostGrey,
    VmEvictFailed,
    VmHealthRestored,
    VmUnhealthy,
)
from libs.events.hosts import (
    DetectorDegraded,
    HostAgentDown,
    HostFailed,
    HostFenced,
    HostFenceFailed,
    HostFenceRefuted,
    HostIsolated,
    HostJoined,
    HostObeyed,
    HostQuarantined,
    HostReadmitted,
    HostRecovered,
    HostRefuted,
    HostSuspected,
    HostUndecided,
    StormHeld,
    StormReleased,
)
from libs.events.vms import (
    VmFailed,
    VmGivenUp,
    VmRestarted,
    VmRestartFailed,
    VmStartUncertain,
    VmStopFailed,
    VmStoppedByGate,
    VmStopSettled,
)
from libs.events.words import (
    HostConfirmedFailed,
    HostMaintenanceEntered,
    HostMaintenanceExited,
    HostReadmitOrdered,
    HostRemoved,
    StormReleaseOrdered,
)


class MessageUnreadable(PoolFact):
    """Something lies in the stream that no version of ours can read; it was taken out of the way."""

    kind: Literal["message.unreadable"] = "message.unreadable"
    subject: str
    sequence: int
    reason: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.sequence}"


AnyFact = Annotated[
    HostJoined
    | HostSuspected
    | HostUndecided
    | HostRefuted
    | HostAgentDown
    | HostFailed
    | HostIsolated
    | HostObeyed
    | HostRecovered
    | HostFenced
    | HostFenceFailed
    | HostFenceRefuted
    | HostConfirmedFailed
    | HostMaintenanceEntered
    | HostMaintenanceExited
    | HostRemoved
    | HostQuarantined
    | HostReadmitOrdered
    | HostReadmitted
    | StormHeld
    | StormReleased
    | StormReleaseOrdered
    | DetectorDegraded
    | DatastoreLost
    | DatastoreFailed
    | DatastoreRecovered
    | FailoverPlanned
    | FailoverCompleted
    | HostGrey
    | HostDraining
    | HostDrainEnded
    | VmFailed
    | VmUnhealthy
    | VmHealthRestored
    | VmEvictFailed
    | VmRestarted
    | VmRestartFailed
    | VmStartUncertain
    | VmGivenUp
    | VmStoppedByGate
    | VmStopFailed
    | VmStopSettled
    | CapacityExhausted
    | CapacityRelieved
    | MessageUnreadable,
    Field(discriminator="kind"),
]
FACT: TypeAdapter[AnyFact] = TypeAdapter(AnyFact)
KINDS: dict[str, type[Fact]] = {
    one.model_fields["kind"].default: one for one in get_args(get_args(AnyFact)[0])
}
"""Every fact by its kind, as `rekindle events` and a scenario's expectations name it."""
