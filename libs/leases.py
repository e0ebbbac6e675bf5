"""The rules of run leases, pure: who may take one, how what is found is adopted, what may run where.

The write itself is a compare-and-set in the executor's hands. DESIGN §4 rules 1 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from libs.events.failovers import PlannedStart
from libs.model import Incarnation, LeaseState, RunLease, StopReason, VmReport, VmState


class Grant(StrEnum):
    """What a start may do about the lease as it lies."""

    TAKE = "take"
    OURS = "ours"  # this very start has taken it already
    DONE = "done"  # this very start has been carried out
    EVICT = "evict"  # the holder lives and runs it: it must be stopped there, and be seen to be
    ASK_HOLDER = "ask_holder"  # the holder lives: only its own word that the VM is stopped will do
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Ruling:
    grant: Grant
    reason: str = ""


def rule(lease: RunLease | None, start: PlannedStart) -> Ruling:
    """May this start have the lease? The order of the questions is the order of their strength."""
    vm = start.vm
    fenced = [proof.of for proof in start.proofs if proof.covers(vm)]
    if lease is None:
        if start.evict and start.origin not in fenced:
            return Ruling(Grant.REFUSE, f"it runs on {start.origin}, and nobody holds it yet")
        return Ruling(Grant.TAKE, "nobody holds it")
    if lease.start_key == start.key:
        if lease.state is LeaseState.STARTING:
            return Ruling(Grant.OURS)
        if lease.state is LeaseState.FAILED:
            return Ruling(Grant.REFUSE, "this start has failed already")
        return Ruling(Grant.DONE)
    if lease.state is LeaseState.STOPPED:
        return Ruling(Grant.REFUSE, "it was stopped on purpose")
    if lease.holder in fenced:
        return Ruling(Grant.TAKE, f"{lease.holder} is proven not to run it")
    if lease.state is LeaseState.FAILED:
        return Ruling(Grant.TAKE, f"{lease.holder} was asked and does not run it")
    if lease.holder == start.origin and start.run and start.evict:
        if lease.state is LeaseState.STARTING:
            return Ruling(Grant.REFUSE, f"{lease.holder} is starting it")
        return Ruling(Grant.EVICT, f"it runs on {lease.holder}")
    if lease.holder == start.origin and start.run:
        return Ruling(Grant.ASK_HOLDER, f"{lease.holder} must say that it is stopped")
    return Ruling(Grant.REFUSE, f"still held by {lease.holder} with token {lease.token}")


def taken(lease: RunLease | None, start: PlannedStart) -> RunLease:
    """The lease after this start took it."""
    return RunLease(
        vm=start.vm,
        name=start.name,
        token=1 if lease is None else lease.token + 1,
        holder=start.to,
        state=LeaseState.STARTING,
        start_key=start.key,
        seq=1 if lease is None else lease.seq + 1,
        memory_mib=start.memory_mib,
        vcpus=start.vcpus,
        policy=start.policy,
    )


def turned(lease: RunLease, state: LeaseState) -> RunLease:
    """The same holder and token in another state."""
    return lease.model_copy(update={"state": state, "seq": lease.seq + 1})


def evicting(lease: RunLease, run: int) -> RunLease:
    """The lease of a VM whose run is about to be ended by us. Written before that: libvirt will show it as ended on
    purpose, which then is not taken for a person's will."""
    return lease.model_copy(update={"state": LeaseState.EVICTING, "run": run, "seq": lease.seq + 1})


def _held(lease: RunLease | None, at: Incarnation, report: VmReport) -> RunLease:
    return RunLease(
        vm=report.uuid,
        name=report.name,
        token=1 if lease is None else lease.token + 1,
        holder=at,
        state=LeaseState.RUNNING,
        seq=1 if lease is None else lease.seq + 1,
        memory_mib=report.memory_mib,
        vcpus=report.vcpus,
        policy=report.policy,
    )


def over(lease: RunLease, report: VmReport) -> bool:
    """Its holder's own word that the run under this lease has ended. What the holder said of an earlier run may
    be heard after a start that took the lease: of a run with another token it says nothing of this one."""
    return report.state is VmState.STOPPED and (not lease.start_key or report.token == lease.token)


def stopped_on_purpose(report: VmReport) -> bool:
    """A person, or the guest itself, meant it to stop."""
    return report.state is VmState.STOPPED and report.stop_reason in (StopReason.ON_PURPOSE, StopReason.SAVED)


def put_down(lease: RunLease, report: VmReport) -> bool:
    """A start that may have been under way has run, and was stopped on purpose since. Where the target said so
    already before it, it says nothing: libvirt keeps the last reason until the next run begins."""
    return stopped_on_purpose(report) and over(lease, report) and not lease.stopped_before


def adopted(
    lease: RunLease | None,
    at: Incarnation,
    report: VmReport,
    holder_report: VmReport | None,
    holder_known: bool,
) -> RunLease | None:
    """What people did with virsh, put into the lease; None where nothing is to be written.

    `holder_report` is what the present holder's own incarnation says of the VM (None: it does not know it);
    `holder_known` is False where that incarnation has said nothing: then nothing may be concluded."""
    if report.state.active:
        if lease is None:
            return _held(None, at, report)
        if lease.holder == at:
            if lease.state is LeaseState.STOPPED:
                return _held(lease, at, report)  # a person started it again
            if lease.state is LeaseState.FAILED:
                return turned(lease, LeaseState.RUNNING)  # it came up after all, or by a person's hand
            if lease.state is LeaseState.EVICTING and report.run != lease.run:
                return _held(lease, at, report)  # a person stopped it and started it again
            grown = (report.memory_mib, report.vcpus, report.policy)
            if grown != (lease.memory_mib, lease.vcpus, lease.policy) and lease.state is LeaseState.RUNNING:
                changes = {
                    "memory_mib": grown[0],
                    "vcpus": grown[1],
                    "policy": grown[2],
                    "seq": lease.seq + 1,
                }
                return lease.model_copy(update=changes)
            return None
        gone = holder_known and (holder_report is None or not holder_report.state.active)
        if lease.state is LeaseState.STOPPED or (gone and lease.state is not LeaseState.STARTING):
            # started elsewhere by a person: of a stopped VM nobody else holds anything; or migrated
            return _held(lease, at, report)
        return None
    if lease is None or lease.holder != at or not stopped_on_purpose(report) or not over(lease, report):
        return None
    by_us = lease.state is LeaseState.EVICTING and report.destroyed
    meant = lease.state in (LeaseState.RUNNING, LeaseState.EVICTING) and not by_us
    return turned(lease, LeaseState.STOPPED) if meant else None


def may_run(lease: RunLease | None, at: Incarnation, *, boots_known: bool) -> bool:
    """The boot gate's question: may this VM run on this incarnation, by the lease? Where boots are not known
    for certain (an agentless host), only a lease on another host speaks against it."""
    return lease is None or lease.holder == at or (not boots_known and lease.holder.host == at.host)
