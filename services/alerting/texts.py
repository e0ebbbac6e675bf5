"""What people are told of each kind of fact: severity and one sentence."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from libs.events.drains import HostDrainStuck
from libs.events.facts import AnyFact
from libs.events.hosts import HostFailed
from libs.events.scaleout import Needs


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
    "host.unknown": (
        Severity.WARNING,
        "host {host} has not been heard for {unheard_s} s, since the detector began to listen ({rule}): nothing is known of it, and nothing is done",
    ),
    "host.vms_unknown": (
        Severity.WARNING,
        "nobody has been able to read the VMs of host {host} for {unread_s} s ({rule}): what they do is unknown, one that fails is not noticed",
    ),
    "host.vms_known": (Severity.INFO, "the VMs of host {host} are read again ({rule})"),
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
    "host.watchdog_unarmed": (
        Severity.WARNING,
        "the watchdog of host {host} is not armed, so nobody counts on it: {reason}",
    ),
    "fence_path.broken": (
        Severity.CRITICAL,
        (
            "fence device {device} (level {level}) of host {host} cannot be read: were the host to fail now, it would "
            "prove nothing: {reason}"
        ),
    ),
    "fence_path.mended": (
        Severity.INFO,
        "fence device {device} (level {level}) of host {host} is read again",
    ),
    "host.confirmed_failed": (Severity.WARNING, "{by} vouches that host {host} is down: it counts as fenced"),
    "host.fence_test_ordered": (
        Severity.WARNING,
        "{by} has host {host} fenced for a test: it will be held failed and come back",
    ),
    "host.fence_tested": (
        Severity.INFO,
        "the fence test of host {host} is over (passed: {passed}), {levels} levels were tried {refused}{detail}",
    ),
    "host.maintenance_entered": (Severity.INFO, "host {host} is in maintenance and takes no new VMs ({by})"),
    "host.maintenance_exited": (Severity.INFO, "host {host} takes VMs again ({by})"),
    "host.removed": (Severity.INFO, "host {host} is out of the pool ({by})"),
    "host.quarantined": (
        Severity.WARNING,
        "host {host} failed {failed_ago_s} s ago: it gets no new VMs until `rekindle readmit {host}`, or {quiet_s} s without a failure",
    ),
    "host.identity_doubted": (
        Severity.CRITICAL,
        (
            "{at} and {known} say that they are one ({rule}): the first is not listened to, nothing is stopped or started for it, and "
            "{known} gets no new VMs until `rekindle readmit`"
        ),
    ),
    "host.readmit_ordered": (Severity.INFO, "{by} lets host {host} out of its quarantine"),
    "host.readmitted": (Severity.INFO, "host {host} gets new VMs again ({rule})"),
    "host.grey": (
        Severity.CRITICAL,
        "all guests of host {host} fail at once while it looks healthy: {guests}; none is restarted there",
    ),
    "host.draining": (
        Severity.WARNING,
        "host {host} takes no new VMs, its failing guests are restarted elsewhere, all others move: {reason}",
    ),
    "host.drain_planned": (Severity.INFO, "{moves} VMs move away from host {host}, which is drained"),
    "host.drain_stuck": (
        Severity.WARNING,
        "host {host} is drained as far as may be; what stays there and runs on: {stays}",
    ),
    "host.drained": (Severity.INFO, "host {host} is empty: nothing runs there"),
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
    "vm.still_held": (
        Severity.CRITICAL,
        "VM {name} cannot start on {host}, the lock of its disks refuses: {reason}; it starts once they are free",
    ),
    "vm.waited_in_vain": (
        Severity.WARNING,
        "VM {name} starts on {host} though {awaited}, which it comes after, are not ready: it has waited {waited_s} s",
    ),
    "vm.moved": (Severity.INFO, "VM {name} was moved to {host} while it ran"),
    "vm.move_failed": (
        Severity.WARNING,
        "VM {name} could not be moved to {host} while it ran: {reason}",
    ),
    "vm.order_uncertain": (
        Severity.WARNING,
        "nobody can tell whether VM {name} was moved to {host}, or stopped there, as ordered: {reason}",
    ),
    "vm.preempted": (
        Severity.WARNING,
        "VM {name} was stopped on {host}: {makes_room_for} matter more and needed its room; it starts when there is room",
    ),
    "vm.preempt_failed": (
        Severity.WARNING,
        "VM {name} was to be stopped on {host} to make room, and was not: {reason}",
    ),
    "vm.restarted": (Severity.INFO, "VM {name} runs on {host}"),
    "vm.restart_failed": (Severity.WARNING, "VM {name} did not start on {host}: {reason}"),
    "vm.start_uncertain": (Severity.WARNING, "the start of VM {name} on {host} is uncertain: {reason}"),
    "vm.given_up": (
        Severity.CRITICAL,
        "VM {name} failed {failures} times and is given up: it stays as it is",
    ),
    "vm.runs_twice": (
        Severity.CRITICAL,
        (
            "VM {name} runs on {host} and, with the lease, on {holder}: the copy on {host} is being stopped; "
            "see whether its disk took harm"
        ),
    ),
    "vm.unseen": (
        Severity.CRITICAL,
        (
            "VM {name} was migrated away from {host}, and no host of the pool shows it: it may run outside the pool, so it "
            "is started nowhere"
        ),
    ),
    "vm.stopped_by_gate": (Severity.WARNING, "VM {name} was stopped on {host}: its lease is elsewhere"),
    "vm.stop_failed": (
        Severity.CRITICAL,
        "VM {name} may not run on {host} and cannot be stopped there: {reason}; it is started nowhere else meanwhile",
    ),
    "vm.stop_settled": (Severity.INFO, "VM {name} is no longer where it may not run, on {host}"),
    "capacity.exhausted": (Severity.CRITICAL, "{incident}: no room for {waiting} VMs"),
    "capacity.relieved": (Severity.INFO, "{incident}: nothing waits for room any more"),
    "service.overdue": (
        Severity.CRITICAL,
        "nothing has followed from {of} for {waited_s} s: does the {service} run, and does its bus work (`rekindle status`)?",
    ),
    "capacity.overcommitted": (
        Severity.CRITICAL,
        "the pool tolerates the loss of {tolerates} hosts, {target} are wanted: {worst_case_in_words}{past_us}",
    ),
    "capacity.restored": (Severity.INFO, "the pool tolerates the loss of {tolerates} hosts again"),
    "policy.contradicted": (
        Severity.WARNING,
        "policies of VMs contradict each other, {dropped} is not obeyed: {reason}",
    ),
    "state.restored": (
        Severity.CRITICAL,
        (
            "the stored state is an old copy of itself: nothing is judged, fenced or started until every host has told "
            "what it runs; `rekindle status` says who is waited for, `rekindle confirm-absent HOST` that it is off"
        ),
    ),
    "state.reconciled": (
        Severity.WARNING,
        (
            "the stored state is in line with what the hosts run, and the plane goes on; VMs that run nowhere and stay "
            "down until a person starts them: {down}; hosts that were not heard: {unheard}"
        ),
    ),
    "webhook.failing": (
        Severity.WARNING,
        "webhook {endpoint} takes no events ({reason}): it is tried for a day, what follows waits",
    ),
    "webhook.recovered": (Severity.INFO, "webhook {endpoint} takes events again"),
    "webhook.disabled": (
        Severity.WARNING,
        "webhook {endpoint} says that it is gone ({reason}): it is told nothing until `rekindle webhooks retry {endpoint}`",
    ),
    "webhook.dead_lettered": (
        Severity.WARNING,
        "webhook {endpoint} did not take {undelivered} in {tries} tries ({reason}): `rekindle webhooks retry {endpoint}` sends it again",
    ),
    "webhook.retry_ordered": (Severity.INFO, "{by} has webhook {endpoint} tried again"),
    "alert.acknowledged": (Severity.INFO, "{by} minds {alert}"),
    "alert.silenced": (Severity.INFO, "{by} has {pattern} silenced for {for_s} s"),
    "alert.unsilenced": (Severity.INFO, "{by} ended silence {silence}"),
    "standby.switched_on": (
        Severity.INFO,
        "the pool is short: host {host}, on standby, was switched on and is to join within {boot_s} s",
    ),
    "standby.failed": (
        Severity.CRITICAL,
        "host {host} on standby cannot be had, or not be switched off ({stage}): {reason}",
    ),
    "standby.leaving": (Severity.INFO, "host {host} is idle and goes back to standby ({rule})"),
    "standby.switched_off": (Severity.INFO, "host {host} is off, fenced, and on standby again"),
    "scaleout.requested": (Severity.WARNING, "{request}: a host is asked for, {needs}"),
    "scaleout.updated": (Severity.INFO, "{request}: what is asked for has changed: {needs}"),
    "scaleout.answered": (Severity.INFO, "{request}: {status} {host} {detail}"),
    "scaleout.escalated": (
        Severity.CRITICAL,
        "{request}: no host comes, {reason}: somebody must bring one or stop what matters less",
    ),
    "scaleout.closed": (Severity.INFO, "{request} is over ({outcome}), hosts that joined: {hosts}"),
    "outside.told": (
        Severity.INFO,
        "{source} tells of {host} {name} ({state} {severity}): {text} -> {action}",
    ),
    "callback.refused": (Severity.WARNING, "what {peer} sent was refused: {reason}"),
    "message.unreadable": (Severity.WARNING, "an unreadable message was set aside: {subject}"),
}

SWITCHED_OFF = "host {host} is off, as it was to be ({rule})"
"""Of a host that goes back to standby: what is told of a failure would be a false alarm."""


def tell(fact: AnyFact) -> tuple[Severity, str]:
    """Severity and sentence for a fact; lists of VMs are given as their number."""
    severity, text = TEXTS[fact.kind]
    if isinstance(fact, HostFailed) and fact.expected:
        severity, text = Severity.INFO, SWITCHED_OFF
    fields: dict[str, Any] = {}
    for name, value in fact:
        if isinstance(value, tuple):
            words = all(isinstance(part, str | float) for part in value)
            counted = name in ("vms", "starts", "waiting", "restarted")
            fields[name] = ", ".join(str(part) for part in value) if words and not counted else len(value)
        elif isinstance(value, Needs):
            fields[name] = f"for {len(value.vms)} VMs of {value.memory_mib} MiB and {value.vcpus} vCPUs"
        else:
            fields[name] = value
    if isinstance(fact, HostDrainStuck):
        fields["stays"] = "; ".join(f"{one.name} ({one.detail})" for one in fact.stays)
    if fact.kind == "capacity.overcommitted":
        fields["past_us"] = f"; started past Rekindle since: {fields['started']}" if fact.started else ""
    at = getattr(fact, "at", None)
    fields.setdefault("host", at.host if at is not None else "")
    return severity, text.format(**fields)
