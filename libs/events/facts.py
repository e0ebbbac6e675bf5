"""Every fact that is kept on the bus: past tense, frozen, one union discriminated by `kind`.

Each says who it is about, which incident it belongs to, what caused it and by which rule. `key` names the
fact itself: a repeat has the same key and is dropped by the server and by every consumer.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, TypeAdapter

from libs.events.alerts import AlertAcknowledged, AlertSilenced, AlertUnsilenced
from libs.events.base import Fact, PoolFact
from libs.events.capacity import CapacityOvercommitted, CapacityRestored, PolicyContradicted
from libs.events.datastores import DatastoreFailed, DatastoreLost, DatastoreRecovered
from libs.events.drains import HostDrained, HostDrainPlanned, HostDrainStuck
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
    FencePathBroken,
    FencePathMended,
    HostAgentDown,
    HostFailed,
    HostFenced,
    HostFenceFailed,
    HostFenceRefuted,
    HostFenceTested,
    HostIdentityDoubted,
    HostIsolated,
    HostJoined,
    HostObeyed,
    HostQuarantined,
    HostReadmitted,
    HostRecovered,
    HostRefuted,
    HostSuspected,
    HostUndecided,
    HostUnknown,
    HostVmsKnown,
    HostVmsUnknown,
    HostWatchdogUnarmed,
    StormHeld,
    StormReleased,
)
from libs.events.outside import OutsideTold
from libs.events.scaleout import (
    CallbackRefused,
    ScaleOutAnswered,
    ScaleOutClosed,
    ScaleOutEscalated,
    ScaleOutRequested,
    ScaleOutUpdated,
)
from libs.events.standby import StandbyFailed, StandbyLeaving, StandbySwitchedOff, StandbySwitchedOn
from libs.events.state import StateReconciled, StateRestored
from libs.events.vms import (
    VmFailed,
    VmGivenUp,
    VmMoved,
    VmMoveFailed,
    VmOrderUncertain,
    VmPreempted,
    VmPreemptFailed,
    VmRestarted,
    VmRestartFailed,
    VmRunsTwice,
    VmStartUncertain,
    VmStillHeld,
    VmStopFailed,
    VmStoppedByGate,
    VmStopSettled,
    VmUnseen,
    VmWaitedInVain,
)
from libs.events.webhooks import (
    WebhookDeadLettered,
    WebhookDisabled,
    WebhookFailing,
    WebhookRecovered,
    WebhookRetryOrdered,
)
from libs.events.words import (
    HostConfirmedFailed,
    HostFenceTestOrdered,
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


class ServiceOverdue(PoolFact):
    """Nothing has followed from a fact for far longer than its service needs: it may be down for good. Told once."""

    kind: Literal["service.overdue"] = "service.overdue"
    service: str
    of: str = Field(description="key of the fact")
    waited_s: float

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.of}"


AnyFact = Annotated[
    HostJoined
    | HostSuspected
    | HostUndecided
    | HostUnknown
    | HostVmsUnknown
    | HostVmsKnown
    | HostRefuted
    | HostAgentDown
    | HostFailed
    | HostIsolated
    | HostObeyed
    | HostRecovered
    | HostFenced
    | HostFenceFailed
    | HostFenceRefuted
    | HostWatchdogUnarmed
    | HostConfirmedFailed
    | HostFenceTestOrdered
    | HostFenceTested
    | HostMaintenanceEntered
    | HostMaintenanceExited
    | HostRemoved
    | FencePathBroken
    | FencePathMended
    | HostQuarantined
    | HostIdentityDoubted
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
    | HostDrainPlanned
    | HostDrainStuck
    | HostDrained
    | VmFailed
    | VmUnhealthy
    | VmHealthRestored
    | VmEvictFailed
    | VmStillHeld
    | VmMoved
    | VmMoveFailed
    | VmOrderUncertain
    | VmPreempted
    | VmPreemptFailed
    | VmWaitedInVain
    | VmRestarted
    | VmRestartFailed
    | VmStartUncertain
    | VmGivenUp
    | VmRunsTwice
    | VmStoppedByGate
    | VmStopFailed
    | VmStopSettled
    | VmUnseen
    | CapacityExhausted
    | CapacityRelieved
    | ServiceOverdue
    | CapacityOvercommitted
    | CapacityRestored
    | PolicyContradicted
    | StateRestored
    | StateReconciled
    | WebhookFailing
    | WebhookRecovered
    | WebhookDisabled
    | WebhookDeadLettered
    | WebhookRetryOrdered
    | AlertAcknowledged
    | AlertSilenced
    | AlertUnsilenced
    | ScaleOutRequested
    | ScaleOutUpdated
    | ScaleOutAnswered
    | ScaleOutEscalated
    | ScaleOutClosed
    | CallbackRefused
    | OutsideTold
    | StandbySwitchedOn
    | StandbyFailed
    | StandbyLeaving
    | StandbySwitchedOff
    | MessageUnreadable,
    Field(discriminator="kind"),
]
FACT: TypeAdapter[AnyFact] = TypeAdapter(AnyFact)
KINDS: dict[str, type[Fact]] = {
    one.model_fields["kind"].default: one for one in get_args(get_args(AnyFact)[0])
}
"""Every fact by its kind, as `rekindle events` and a scenario's expectations name it."""
