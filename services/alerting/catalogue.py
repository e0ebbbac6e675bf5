"""Every alert: what raises it, what clears it, and what a person is to do. Pure.

An alert is a state with a key that stays the same, `name/subject`: raised once, cleared by an event or, where none says
that it is over, after a time. An event of warning or critical severity that no row names is an alert of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from libs.events.base import Fact
from libs.events.facts import KINDS
from libs.events.hosts import HostFailed
from services.alerting.texts import TEXTS, Severity

HOUR_S, DAY_S = 3600.0, 86_400.0
Subject = Callable[[Fact], str]


def host(fact: Fact) -> str:
    """The host that a fact is about."""
    at = getattr(fact, "at", None)
    return str(at.host if at is not None else getattr(fact, "host", fact.about))


def vm(fact: Fact) -> str:
    """The VM, by name."""
    return str(getattr(fact, "name", fact.about))


def incident(fact: Fact) -> str:
    return str(getattr(fact, "incident", fact.about))


def request(fact: Fact) -> str:
    """The scale-out request."""
    return str(getattr(fact, "request", fact.about))


def about(fact: Fact) -> str:
    """What stands at the end of the event's subject: an endpoint, `pool`, and so on."""
    return fact.about


def everywhere(fact: Fact) -> str:
    """A datastore for all hosts: what is of one host alone is another."""
    one = getattr(fact, "host", "")
    return f"{fact.about}/{one}" if one else fact.about


def device(fact: Fact) -> str:
    """One fence device of one host."""
    return f"{host(fact)}/{getattr(fact, 'device', '')}-{getattr(fact, 'level', '')}"


def on_host(fact: Fact) -> str:
    """A datastore on one host."""
    return f"{fact.about}/{host(fact)}"


@dataclass(frozen=True, slots=True)
class AlertKind:
    """One row of the table. Its severity and text are those of the event that raises it."""

    name: str
    raised_by: str
    subject: Subject
    do: str
    cleared_by: tuple[str, ...] = ()
    expires_s: float | None = None
    """It clears by itself after so long without being raised again; None: only by an event."""


HOST_BACK = ("host.joined", "host.removed")
JUDGED = ("host.failed", "host.isolated", "host.recovered")
TABLE: tuple[AlertKind, ...] = (
    AlertKind(
        "host-undecided",
        "host.undecided",
        host,
        "See from the management machine what answers (`rekindle check`); if the host is down, switch its power off.",
        ("host.refuted", *JUDGED, *HOST_BACK),
    ),
    AlertKind(
        "host-unknown",
        "host.unknown",
        host,
        "Nothing is known of the host and nothing is done: start its agent, or make its libvirt reachable.",
        ("host.refuted", "host.suspected", *JUDGED, *HOST_BACK),
    ),
    AlertKind(
        "vms-unknown",
        "host.vms_unknown",
        host,
        "Make the host's libvirt answer: a VM that fails there meanwhile is not noticed.",
        ("host.vms_known", *JUDGED, "host.removed"),
    ),
    AlertKind(
        "agent-down",
        "host.agent_down",
        host,
        "Start the host's agent again and read its log; its VMs run, and are watched over libvirt.",
        ("host.refuted", *JUDGED, *HOST_BACK),
    ),
    AlertKind(
        "host-failed",
        "host.failed",
        host,
        "Its VMs are restarted elsewhere. Find out why it failed, and bring it back or `rekindle remove-host` it.",
        ("host.recovered", *HOST_BACK),
    ),
    AlertKind(
        "host-isolated",
        "host.isolated",
        host,
        "The host lives and nobody reaches it: look at its switch and cables.",
        ("host.recovered", "host.failed", *HOST_BACK),
    ),
    AlertKind(
        "host-unfenced",
        "host.fence_failed",
        host,
        "Its VMs wait. Mend the fence device, or see that the host is off and say `rekindle confirm-failed`.",
        ("host.fenced", "host.recovered", "host.obeyed", *HOST_BACK),
    ),
    AlertKind(
        "fence-device-lies",
        "host.fence_refuted",
        host,
        "Switch the host off by hand, now; then find out which device said off, and mend or replace it.",
        HOST_BACK,
        7 * DAY_S,
    ),
    AlertKind(
        "host-quarantined",
        "host.quarantined",
        host,
        "It failed too often. Find out why; `rekindle readmit` lets it in.",
        ("host.readmitted", "host.removed"),
    ),
    AlertKind(
        "host-grey",
        "host.grey",
        host,
        "All its guests fail: look at its storage, network and memory; `rekindle maintenance enter --drain` moves what is left.",
        ("host.drain_ended", "host.failed", *HOST_BACK),
        DAY_S,
    ),
    AlertKind(
        "host-draining",
        "host.draining",
        host,
        "Look why its guests fail; `rekindle maintenance exit` ends the drain.",
        ("host.drain_ended", "host.maintenance_exited", "host.failed", *HOST_BACK),
    ),
    AlertKind(
        "host-drain-stuck",
        "host.drain_stuck",
        host,
        "What stays runs on. Bring room, mend what its reason names, move it with virsh, or shut it down.",
        ("host.drained", "host.drain_ended", "host.maintenance_exited", "host.failed", *HOST_BACK),
    ),
    AlertKind(
        "datastore-lost",
        "datastore.lost",
        on_host,
        "Look at this host's path to the storage; its VMs there move.",
        ("datastore.recovered",),
    ),
    AlertKind(
        "datastore-failed",
        "datastore.failed",
        everywhere,
        "It is the storage itself: nothing moves until it takes writes again.",
        ("datastore.recovered",),
    ),
    AlertKind(
        "storm",
        "storm.held",
        about,
        "Look at the network and at the management machine first; `rekindle storm release` once you have.",
        ("storm.released",),
    ),
    AlertKind(
        "vm-failed",
        "vm.failed",
        vm,
        "It is being restarted. If this comes again, look into the guest's own logs.",
        ("vm.restarted", "vm.given_up", "vm.health_restored"),
        DAY_S,
    ),
    AlertKind(
        "vm-unhealthy",
        "vm.unhealthy",
        vm,
        "By its policy nothing is done: look into the guest.",
        ("vm.restarted", "vm.health_restored"),
        DAY_S,
    ),
    AlertKind(
        "vm-not-evicted",
        "vm.evict_failed",
        vm,
        "Its QEMU cannot be stopped, so it starts nowhere: look at the process and its storage on that host.",
        ("vm.restarted", "vm.given_up"),
    ),
    AlertKind(
        "vm-still-held",
        "vm.still_held",
        vm,
        "Somebody still holds its disks: find the QEMU that does, or the stale lock. It starts once they are free.",
        ("vm.restarted", "vm.given_up"),
    ),
    AlertKind(
        "vm-restart-failed",
        "vm.restart_failed",
        vm,
        "It is planned elsewhere. The reason names what that host lacked.",
        ("vm.restarted", "vm.given_up"),
        DAY_S,
    ),
    AlertKind(
        "vm-waited-in-vain",
        "vm.waited_in_vain",
        vm,
        "Look at the VMs that are named: do they run, does their guest agent answer? Or is the wait in its policy too short?",
        (),
        DAY_S,
    ),
    AlertKind(
        "vm-preempted",
        "vm.preempted",
        vm,
        "It gave its room to VMs that matter more, as placement.preemption allows. Bring capacity: it starts by itself.",
        ("vm.restarted", "vm.given_up"),
    ),
    AlertKind(
        "vm-start-uncertain",
        "vm.start_uncertain",
        vm,
        "Its target does not answer, so it is started nowhere else until that host is fenced or answers: look at it.",
        ("vm.restarted", "vm.restart_failed"),
    ),
    AlertKind(
        "vm-order-uncertain",
        "vm.order_uncertain",
        vm,
        "Its hosts do not say where it runs, or show it on its way: look at both. It ends once they answer or are fenced.",
        ("vm.moved", "vm.move_failed", "vm.preempted", "vm.preempt_failed"),
    ),
    AlertKind(
        "vm-given-up",
        "vm.given_up",
        vm,
        "It failed too often and stays as it is. Look into it and start it by hand.",
        ("vm.restarted",),
        7 * DAY_S,
    ),
    AlertKind(
        "vm-not-stopped",
        "vm.stop_failed",
        vm,
        "It may not run there and cannot be stopped; it starts nowhere else meanwhile. Stop its QEMU on that host.",
        ("vm.stop_settled",),
    ),
    AlertKind(
        "no-capacity",
        "capacity.exhausted",
        incident,
        "VMs wait for room: bring a host in, end a maintenance, or stop what matters less.",
        ("capacity.relieved",),
    ),
    AlertKind(
        "state-restored",
        "state.restored",
        about,
        "`rekindle status` says which hosts are waited for; `rekindle confirm-absent` those that are off.",
        ("state.reconciled",),
    ),
    AlertKind(
        "fence-path-broken",
        "fence_path.broken",
        device,
        "Mend the fence device or its network now: were the host to fail, its VMs would wait.",
        ("fence_path.mended",),
    ),
    AlertKind(
        "vm-runs-twice",
        "vm.runs_twice",
        vm,
        "The copy without the lease is being stopped: see whether the VM's disk took harm.",
        (),
        DAY_S,
    ),
    AlertKind(
        "vm-unseen",
        "vm.unseen",
        vm,
        "If it runs nowhere, start it by hand: its lease follows. If it runs outside the pool nothing is to be done.",
        ("vm.restarted",),
        DAY_S,
    ),
    AlertKind(
        "overcommitted",
        "capacity.overcommitted",
        about,
        "The pool has no plan for its failures to tolerate: `rekindle capacity` shows which VMs would stay down; bring a host.",
        ("capacity.restored",),
    ),
    AlertKind(
        "watchdog-unarmed",
        "host.watchdog_unarmed",
        host,
        "The host's watchdog cannot be armed, so it is never presumed fenced by it: mend it and start the agent again.",
        ("host.removed",),
        7 * DAY_S,
    ),
    AlertKind(
        "scale-out",
        "scaleout.requested",
        request,
        "The workflow that brings hosts was asked; `rekindle scale-out` shows what it answers.",
        ("scaleout.closed",),
    ),
    AlertKind(
        "scale-out-unmet",
        "scaleout.escalated",
        request,
        "No workflow brings a host: bring one by hand, end a maintenance, or stop what matters less.",
        ("scaleout.closed",),
    ),
    AlertKind(
        "standby-failed",
        "standby.failed",
        host,
        "Look at its power, its fence device and its agent. Another host on standby is tried where there is one.",
        ("standby.switched_off", *HOST_BACK),
        DAY_S,
    ),
    AlertKind(
        "webhook-failing",
        "webhook.failing",
        about,
        "See what its receiver says: `rekindle webhooks test`. What waits is delivered once it answers.",
        ("webhook.recovered", "webhook.disabled"),
    ),
    AlertKind(
        "webhook-disabled",
        "webhook.disabled",
        about,
        "Its receiver says that it is gone: take it out of the pool file, or `rekindle webhooks retry`.",
        ("webhook.retry_ordered",),
    ),
    AlertKind(
        "webhook-dead-letter",
        "webhook.dead_lettered",
        about,
        "Mend the receiver; `rekindle webhooks list` shows what it missed, `retry` sends it again.",
        ("webhook.retry_ordered", "webhook.recovered"),
        DAY_S,
    ),
)


def _all() -> dict[str, AlertKind]:
    rows = {row.raised_by: row for row in TABLE}
    for kind, (severity, _) in TEXTS.items():
        if kind not in rows and severity is not Severity.INFO:
            name = kind.replace(".", "-").replace("_", "-")
            rows[kind] = AlertKind(name, kind, about, "For your notice.", (), HOUR_S)
    return rows


ALERTS = _all()
"""Every alert by the kind of event that raises it."""

_CLEARED_BY = {kind: [row for row in ALERTS.values() if kind in row.cleared_by] for kind in KINDS}
EXPIRES_S = {row.name: row.expires_s for row in ALERTS.values() if row.expires_s is not None}


def raised(fact: Fact) -> tuple[str, AlertKind] | None:
    """Key and row of the alert that an event raises; None where it raises none."""
    if isinstance(fact, HostFailed) and fact.expected:
        return None  # it goes back to standby
    row = ALERTS.get(fact.kind)
    return None if row is None else (f"{row.name}/{row.subject(fact)}", row)


def cleared(fact: Fact) -> Iterator[str]:
    """Keys of the alerts that an event clears, if they are there."""
    for row in _CLEARED_BY.get(fact.kind, ()):
        yield f"{row.name}/{row.subject(fact)}"


def as_table() -> str:
    """The table of docs/ALERTS.md: one heading an alert, to which a link leads."""
    parts = []
    for row in sorted(ALERTS.values(), key=lambda row: row.name):
        severity, text = TEXTS[row.raised_by]
        ends = [f"`{kind}`" for kind in row.cleared_by if kind in KINDS]
        if row.expires_s is not None:
            ends.append(f"{row.expires_s / HOUR_S:g} h without another")
        lines = (f"### {row.name}", "", f"**{severity.value}**, raised by `{row.raised_by}`: {text}.", "")
        parts.append("\n".join((*lines, row.do, "", f"Clears with {', '.join(ends)}.")))
    return "\n\n".join(parts)
