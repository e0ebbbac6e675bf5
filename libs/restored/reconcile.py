"""From an old copy of the state to one that is true, pure: leases by what the hosts tell, and records without what they
owed. Nothing that this makes starts anything."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from libs.model import Incarnation, Inventory, LeaseState, RunLease, VmReport, VmState

FLOOR = 1_000_000
"""Tokens, and numbers of leases' writes, that a generation of the state can use up: those of the next begin above."""
EPOCHS = 1_000
"""Verdicts and suspicions of one host that can have been forgotten: the next are numbered above."""
SERVICES = ("detector", "fencer", "placement", "executor")


@dataclass(frozen=True, slots=True)
class Found:
    """What became of the leases: those to be written, and VMs that are to stay as they are until a person looks."""

    writes: tuple[RunLease, ...]
    down: tuple[str, ...]
    """Names of VMs that should run by the old copy, and run nowhere."""


def reconciled(
    leases: Mapping[str, RunLease],
    inventories: Mapping[str, Inventory],
    generation: int,
) -> Found:
    """`inventories`: by host, told since the copy was found to be old. `generation` of the state that this makes. What
    no host says to run is put down: whether it was wanted since the copy was made, and where it ran, is forgotten. On a
    host that did not tell it may run; its lease is that host's as soon as it says so."""
    told: dict[str, list[tuple[Incarnation, VmReport]]] = {}
    for host in sorted(inventories):
        for report in inventories[host].vms:
            told.setdefault(report.uuid, []).append((inventories[host].at, report))
    writes, down = [], []
    for vm in sorted({*leases, *told}):
        lease, reports = leases.get(vm), told.get(vm, [])
        later, fell = _true(lease, reports, generation * FLOOR)
        if fell and lease is not None:
            down.append(lease.name)
        if later is not None and later != lease:
            writes.append(later)
    return Found(tuple(writes), tuple(sorted(down)))


def _true(
    lease: RunLease | None,
    reports: list[tuple[Incarnation, VmReport]],
    floor: int,
) -> tuple[RunLease | None, bool]:
    """The lease as it should lie (None: there is nothing to hold), and whether it was put down by us."""
    runs = [(at, report) for at, report in reports if _runs(report)]
    holder = lease.holder if lease is not None else None
    runs.sort(key=lambda one: (one[0] != holder, -one[1].token, str(one[0])))
    if runs:
        at, report = runs[0]
        stands = lease is not None and (lease.holder, lease.state) == (at, LeaseState.RUNNING)
        if lease is not None and stands and lease.seq >= floor:
            return lease, False
        return _held(lease, at, report, max(floor, *(one.token + 1 for _, one in reports))), False
    if lease is None or lease.seq >= floor:
        return lease, False
    out = lease.state is LeaseState.MIGRATED_OUT  # that it may run outside the pool is as true as before
    down = {
        "state": lease.state if out else LeaseState.STOPPED,
        "token": max(floor, lease.token),
        "seq": max(floor, lease.seq + 1),
        "strays": (),
    }
    return lease.model_copy(update=down), lease.wanted


def _runs(report: VmReport) -> bool:
    """What a migration is about to bring runs elsewhere still; what cannot be told is held to run."""
    arriving = report.migrated and report.state is VmState.PAUSED
    return report.state is not VmState.STOPPED and not arriving


def _held(lease: RunLease | None, at: Incarnation, report: VmReport, token: int) -> RunLease:
    """By what runs, with a token above all that was ever told or forgotten."""
    return RunLease(
        vm=report.uuid,
        name=report.name,
        token=max(token, 0 if lease is None else lease.token + 1),
        holder=at,
        state=LeaseState.RUNNING,
        seq=max(token, 0 if lease is None else lease.seq + 1),
        memory_mib=report.memory_mib,
        vcpus=report.vcpus,
        policy=report.policy,
    )


def unowed(key: str, value: bytes) -> bytes | None:
    """One stored record without what it owed, and without what can be no more: fences, plans and starts of an old day.
    None: it is to be deleted. Words of operators, quarantines and proofs stay: what they say is of a boot or a host,
    and true still."""
    service, _, name = key.partition(".")
    if service not in SERVICES:
        return value
    document = json.loads(value)
    record = document.get("record")
    if service == "fencer" or record is None:
        return None
    if service == "executor" and "start" in record:
        return None
    if service == "placement" and name.startswith(("incident.", "held.")):
        return None
    if service == "detector" and "." not in name:
        doubted = record.get("state") != "healthy"
        record = {
            **record,
            "epoch": record.get("epoch", 0) + EPOCHS,
            "number": record.get("number", 0) + EPOCHS,
            # nobody asks after a verdict of an old day: a host that is silent now is suspected anew
            "state": "unknown" if doubted else "healthy",
        }
    return json.dumps({**document, "record": record, "owed": []}).encode()


def missing(hosts: Iterable[str], told: Collection[str], confirmed: Collection[str]) -> tuple[str, ...]:
    """Hosts of the pool that are waited for."""
    return tuple(host for host in hosts if host not in told and host not in confirmed)
