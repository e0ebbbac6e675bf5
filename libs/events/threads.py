"""What belongs together: the incident of a fact, which facts begin and end one, and the trace that it is told in.

An outside reader follows one incident by the CloudEvents extension `incident`, or by the trace of `traceparent`
(W3C Trace Context, level 1). Both are functions of the fact alone, so that a repeat has the same.
"""

from __future__ import annotations

import hashlib

from libs.events.alerts import AlertSilenced, AlertUnsilenced
from libs.events.base import Fact, SuspicionFact, VmFact
from libs.events.capacity import CapacityOvercommitted, CapacityRestored
from libs.events.datastores import DatastoreFact
from libs.events.guests import HostDrainEnded, HostDraining, HostGrey, VmUnhealthy
from libs.events.hosts import (
    HostJoined,
    HostQuarantined,
    HostReadmitted,
    HostUnknown,
    HostVmsKnown,
    HostVmsUnknown,
    StormHeld,
    StormReleased,
)
from libs.events.scaleout import ScaleOutFact
from libs.events.standby import StandbyLeaving, StandbySwitchedOff
from libs.events.vms import VmStopFailed, VmStopSettled
from libs.events.webhooks import WebhookFact
from libs.events.words import (
    HostMaintenanceEntered,
    HostMaintenanceExited,
    HostReadmitOrdered,
    StormReleaseOrdered,
)

PAIRS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("host.suspected", ("host.refuted",)),
    ("host.failed", ("host.fenced", "host.recovered", "failover.completed")),
    ("host.isolated", ("host.obeyed", "host.recovered", "host.fenced", "failover.completed")),
    ("host.fence_failed", ("host.fenced", "host.recovered", "host.obeyed")),
    ("host.maintenance_entered", ("host.maintenance_exited",)),
    ("host.unknown", ("host.joined",)),
    ("host.vms_unknown", ("host.vms_known",)),
    ("host.quarantined", ("host.readmitted",)),
    ("host.grey", ("host.drain_ended",)),
    ("host.draining", ("host.drain_ended",)),
    ("host.drain_stuck", ("host.drain_ended", "host.maintenance_exited")),
    ("storm.held", ("storm.released",)),
    ("datastore.lost", ("datastore.recovered",)),
    ("datastore.failed", ("datastore.recovered",)),
    ("failover.planned", ("failover.completed", "vm.health_restored")),
    ("capacity.overcommitted", ("capacity.restored",)),
    ("capacity.exhausted", ("capacity.relieved",)),
    ("scaleout.requested", ("scaleout.closed",)),
    ("standby.leaving", ("standby.switched_off",)),
    ("vm.failed", ("failover.completed", "vm.health_restored", "vm.given_up")),
    ("vm.still_held", ("failover.completed", "vm.given_up")),
    ("vm.evict_failed", ("failover.completed", "vm.given_up")),
    ("vm.stop_failed", ("vm.stop_settled",)),
    ("alert.silenced", ("alert.unsilenced",)),
    ("webhook.failing", ("webhook.recovered", "webhook.disabled")),
)
"""What begins, and what ends it under the same incident: the first of these that comes."""


def incident_of(fact: Fact) -> str:
    """The id that everything told of one incident shares, an end with its beginning. A fact that belongs to no
    incident is one by itself."""
    match fact:
        case DatastoreFact():
            return f"store-{fact.datastore}-{fact.number}"
        case SuspicionFact():
            return f"suspicion-{fact.at.host}-{fact.at.boot}-{fact.number}"
        case HostGrey() | HostDraining() | HostDrainEnded():
            return f"grey-{fact.at.host}-{fact.at.boot}-{fact.mark}"
        case HostQuarantined() | HostReadmitted() | HostReadmitOrdered():
            return f"quarantine-{fact.host}-{fact.number}"
        case HostUnknown():
            return f"unknown-{fact.host}-{fact.number}"
        case HostJoined() if fact.unknown:
            return f"unknown-{fact.at.host}-{fact.unknown}"
        case HostVmsUnknown() | HostVmsKnown():
            return f"unread-{fact.host}-{fact.number}"
        case HostMaintenanceEntered():
            return f"maintenance-{fact.host}-{fact.number}"
        case HostMaintenanceExited():
            return f"maintenance-{fact.host}-{fact.number - 1}"  # words of one host are numbered one by one
        case StormHeld() | StormReleased() | StormReleaseOrdered():
            return f"storm-{fact.number}"
        case VmStopFailed() | VmStopSettled():
            return f"stop-{fact.vm}-{fact.at.boot}"
        case AlertSilenced():
            return f"silence-{fact.order}"
        case AlertUnsilenced():
            return f"silence-{fact.silence}"
        case StandbyLeaving() | StandbySwitchedOff():
            return f"leaving-{fact.at.host}-{fact.at.boot}"
        case ScaleOutFact():
            return fact.request
        case WebhookFact():
            return f"webhook-{fact.endpoint}-{fact.sequence}"
        case CapacityOvercommitted() | CapacityRestored():
            return f"overcommitted-{fact.number}"
        case VmUnhealthy():
            return f"vm-{fact.vm}-{fact.at.boot[:8]}-{fact.run}-{fact.why.value}"
        case VmFact():
            return str(getattr(fact, "incident", f"vm-{fact.vm}"))
        case _:
            return str(getattr(fact, "incident", fact.key.replace("/", "-")))


def traceparent(pool: str, fact: Fact) -> str:
    """W3C `traceparent`: one trace an incident of a pool, one span a fact; sampled."""
    trace = hashlib.sha256(f"{pool}/{incident_of(fact)}".encode()).hexdigest()[:32]
    span = hashlib.sha256(f"{pool}/{fact.key}".encode()).hexdigest()[:16]
    return f"00-{trace}-{span}-01"
