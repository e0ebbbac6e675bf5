"""What people are told of each kind of fact: severity and one sentence."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from libs.events.facts import AnyFact


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


TEXTS: dict[str, tuple[Severity, str]] = {
    "host.joined": (Severity.INFO, "host {host} is in the pool"),
    "host.suspected": (Severity.INFO, "host {host} has been silent for {silent_s} s: asking all channels"),
    "host.undecided": (
        Severity.CRITICAL,
        (
            "host {host} has been silent for {silent_s} s and no other host is heard either: it may be the management "
            "plane that is cut off, so nothing is done; see what answers from there (`rekindle check`), and if {host} "
            "is really down switch its power off: what its fence device reads as off is held failed at once"
        ),
    ),
    "host.refuted": (Severity.INFO, "host {host} is heard again"),
    "host.agent_down": (Severity.WARNING, "the agent of host {host} is silent, the host itself answers"),
    "host.failed": (Severity.CRITICAL, "host {host} has failed ({rule}), {vms} VMs ran there"),
    "host.isolated": (
        Severity.CRITICAL,
        "host {host} is cut off from every network and lives (its storage slot moves), {vms} VMs run there",
    ),
    "host.obeyed": (
        Severity.WARNING,
        "host {host}, cut off, has stopped {vms} VMs as it was ordered through its slot",
    ),
    "host.recovered": (Severity.WARNING, "host {host} is reached again before it was fenced"),
    "host.fenced": (Severity.INFO, "host {host} is fenced ({rule})"),
    "host.fence_failed": (
        Severity.CRITICAL,
        "host {host} cannot be fenced, its VMs are not started elsewhere; missing: {missing}",
    ),
    "host.confirmed_failed": (Severity.WARNING, "{by} vouches that host {host} is down: it counts as fenced"),
    "host.maintenance_entered": (Severity.INFO, "host {host} is in maintenance and takes no new VMs ({by})"),
    "host.maintenance_exited": (Severity.INFO, "host {host} takes VMs again ({by})"),
    "host.removed": (Severity.INFO, "host {host} is out of the pool ({by})"),
    "host.quarantined": (
        Severity.WARNING,
        "host {host} failed {failed_ago_s} s ago: it gets no new VMs until `rekindle readmit {host}`, or {quiet_s} s without a failure",
    ),
    "host.readmit_ordered": (Severity.INFO, "{by} lets host {host} out of its quarantine"),
    "host.readmitted": (Severity.INFO, "host {host} gets new VMs again ({rule})"),
    "host.grey": (
        Severity.CRITICAL,
        "all guests of host {host} fail at once while it looks healthy: {guests}; none is restarted there",
    ),
    "host.draining": (
        Severity.WARNING,
        "host {host} takes no new VMs, its failing guests are restarted elsewhere: {reason}",
    ),
    "host.drain_ended": (Severity.INFO, "the guests of host {host} are well: it takes VMs again"),
    "host.fence_refuted": (
        Severity.CRITICAL,
        "host {host} speaks although it is fenced: its fence device lies, its VMs may run twice; switch it off",
    ),
    "detector.degraded": (
        Severity.WARNING,
        "the detector did not hear itself on the bus for {deaf_s} s: nobody was judged meanwhile",
    ),
    "datastore.lost": (
        Severity.CRITICAL,
        "host {host} has lost datastore {datastore}, {well} of {asked} hosts are well with it: its {vms} VMs there move",
    ),
    "datastore.failed": (
        Severity.CRITICAL,
        "datastore {datastore} takes no writes on {hosts} ({asked} hosts are heard): it is the storage, nothing moves",
    ),
    "datastore.recovered": (Severity.INFO, "datastore {datastore} is back: {rule} {host}"),
    "storm.held": (
        Severity.CRITICAL,
        "{suspects} are silent at once (believable: {limit}): nobody is fenced without proof",
    ),
    "storm.release_ordered": (
        Severity.WARNING,
        "{by} looked after {suspects}: they may be held failed although so many are silent at once",
    ),
    "storm.released": (Severity.INFO, "the number of silent hosts is believable again"),
    "failover.planned": (Severity.INFO, "{incident}: {starts} VMs to start, {waiting} wait"),
    "failover.completed": (Severity.INFO, "{incident}: {restarted} VMs restarted, {waiting} wait"),
    "vm.failed": (Severity.WARNING, "VM {name} failed on {host}: {why}"),
    "vm.unhealthy": (
        Severity.WARNING,
        "the guest of VM {name} failed on {host} ({why}); by its policy it is left as it is",
    ),
    "vm.health_restored": (Severity.INFO, "the guest of VM {name} is well again on {host}: nothing was done"),
    "vm.evict_failed": (
        Severity.CRITICAL,
        "VM {name} is to run anew and cannot be stopped on {host}: {reason}; it is started nowhere meanwhile",
    ),
    "vm.restarted": (Severity.INFO, "VM {name} runs on {host}"),
    "vm.restart_failed": (Severity.WARNING, "VM {name} did not start on {host}: {reason}"),
    "vm.start_uncertain": (Severity.WARNING, "the start of VM {name} on {host} is uncertain: {reason}"),
    "vm.given_up": (
        Severity.CRITICAL,
        "VM {name} failed {failures} times and is given up: it stays as it is",
    ),
    "vm.stopped_by_gate": (Severity.WARNING, "VM {name} was stopped on {host}: its lease is elsewhere"),
    "vm.stop_failed": (
        Severity.CRITICAL,
        "VM {name} may not run on {host} and cannot be stopped there: {reason}; it is started nowhere else meanwhile",
    ),
    "vm.stop_settled": (Severity.INFO, "VM {name} is no longer where it may not run, on {host}"),
    "capacity.exhausted": (Severity.CRITICAL, "{incident}: no room for {waiting} VMs"),
    "capacity.relieved": (Severity.INFO, "{incident}: nothing waits for room any more"),
    "message.unreadable": (Severity.WARNING, "an unreadable message was set aside: {subject}"),
}


def tell(fact: AnyFact) -> tuple[Severity, str]:
    """Severity and sentence for a fact; lists of VMs are given as their number."""
    severity, text = TEXTS[fact.kind]
    fields: dict[str, Any] = {}
    for name, value in fact:
        if isinstance(value, tuple):
            words = all(isinstance(part, str | float) for part in value)
            counted = name in ("vms", "starts", "waiting", "restarted")
            fields[name] = ", ".join(str(part) for part in value) if words and not counted else len(value)
        else:
            fields[name] = value
    at = getattr(fact, "at", None)
    fields.setdefault("host", at.host if at is not None else "")
    return severity, text.format(**fields)
