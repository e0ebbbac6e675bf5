"""The rules of run leases, pure: who may take one, how what is found is adopted, what may run where.

The write itself is a compare-and-set in the executor's hands. DESIGN §4 rules 1 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from libs import strays
from libs.events.failovers import PlannedStart
from libs.model import (
    Arrival,
    FenceProof,
    Incarnation,
    Inventory,
    LeaseState,
    Protection,
    RunLease,
    StopReason,
    VmPolicy,
    VmReport,
    VmState,
)

ARRIVALS_MOST = 4
"""Hosts at once to which people's migrations may have brought one VM."""


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
    if not lease.wanted:
        return Ruling(Grant.REFUSE, why_unwanted(lease))
    doubled = [one.at for one in lease.strays if one.at not in fenced]
    if doubled:
        return Ruling(Grant.REFUSE, f"another copy of it may still run on {doubled[0]}")
    if lease.holder in fenced:
        if lease.state is LeaseState.STARTING and start.to.host != lease.holder.host:
            doubt = _under_way(lease.holder, start.proofs)
            if doubt:
                return Ruling(Grant.REFUSE, doubt)
        return Ruling(Grant.TAKE, f"{lease.holder} is proven not to run it")
    if lease.state is LeaseState.FAILED:
        if lease.run and lease.holder == start.origin:  # a person may have started it since
            return Ruling(Grant.ASK_HOLDER, f"it was stopped on {lease.holder}, and does not run there")
        return Ruling(Grant.TAKE, f"{lease.holder} was asked and does not run it")
    if lease.holder == start.origin and start.run and start.evict:
        if lease.state is LeaseState.STARTING:
            return Ruling(Grant.REFUSE, f"{lease.holder} is starting it")
        return Ruling(Grant.EVICT, f"it runs on {lease.holder}")
    if lease.holder == start.origin and start.run:
        return Ruling(Grant.ASK_HOLDER, f"{lease.holder} must say that it is stopped")
    return Ruling(Grant.REFUSE, f"still held by {lease.holder} with token {lease.token}")


def why_unwanted(lease: RunLease) -> str:
    """Why nobody but a person starts it."""
    if lease.state is LeaseState.MIGRATED_OUT:
        return f"it was migrated away from {lease.holder}, and may run outside the pool"
    return "it was stopped on purpose"


def _under_way(holder: Incarnation, proofs: tuple[FenceProof, ...]) -> str:
    """Why a start of ours may yet come through there, though that boot is called over; "" where it cannot. Of a host
    without an agent the new name may be the same boot's: then what is under way in it goes on, and only the host
    itself may start the VM, until the one of that name is over, too."""
    mine = [one for one in proofs if one.of == holder]
    rest = tuple(one for one in proofs if one.of != holder)
    for one in mine:
        later_is_over = one.later is not None and not _under_way(one.later, rest)
        if not one.guessed or later_is_over:
            return ""
    known_as = ", ".join(str(one.later) for one in mine) or "itself"
    return f"a start may be under way on {holder}, which goes on as {known_as} for all that is known"


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
        strays=() if lease is None else lease.strays,
    )


def turned(lease: RunLease, state: LeaseState) -> RunLease:
    """The same holder and token in another state."""
    return lease.model_copy(update={"state": state, "seq": lease.seq + 1})


def moving(lease: RunLease, to: Incarnation | None, found: StopReason = StopReason.NONE) -> RunLease:
    """The lease of a VM that we are about to migrate there, where it was `found` stopped; or of one of which that is over,
    and it runs where it ran."""
    return lease.model_copy(update={"moving_to": to, "moving_found": found, "seq": lease.seq + 1})


def ways(lease: RunLease) -> tuple[tuple[Incarnation, StopReason], ...]:
    """Where migrations may have brought it, ours first, and how it lay there before. In the order in which they were let
    in: where it came from is asked before where it went."""
    ours = () if lease.moving_to is None else ((lease.moving_to, lease.moving_found),)
    return (*ours, *((one.at, one.found) for one in lease.arriving))


def put_down_there(lease: RunLease, report: VmReport, found: StopReason) -> bool:
    """A migration brought it there, and a person has stopped it or taken it elsewhere since. Libvirt keeps the reason of
    an earlier end until the next run begins: what was `found` there is no news."""
    return ended_by_hand(report) and over(lease, report) and report.stop_reason is not found


def put_down_where_moved(lease: RunLease, report: VmReport) -> bool:
    """The same of a migration of ours."""
    return lease.moving_to is not None and put_down_there(lease, report, lease.moving_found)


def let_in(lease: RunLease | None, arrival: Arrival, report: VmReport) -> RunLease | str | None:
    """The lease by which everybody knows that a person's migration may bring it there; None where it says so as it lies;
    or why that may not be. What nobody holds yet is that host's: from there it is started only once that is over."""
    if lease is None:
        return _held(None, arrival.at, report)
    if arrival.at in (lease.holder, lease.moving_to):
        return None
    if lease.moving_to is not None:
        return f"it is being moved to {lease.moving_to}"
    if lease.state is LeaseState.STARTING:
        return f"it is being started on {lease.holder}"
    if lease.strays:
        return f"another copy of it may still run on {lease.strays[0].at}"
    others = tuple(one for one in lease.arriving if one.at != arrival.at)
    if len(others) >= ARRIVALS_MOST:
        return f"{len(others)} hosts have not said yet whether it runs there"
    return lease.model_copy(update={"arriving": (*others, arrival), "seq": lease.seq + 1})


def not_arrived(lease: RunLease, inventory: Inventory) -> RunLease | None:
    """The lease without what this inventory shows not to run there (any more), or not in this boot; None where it says
    nothing of that."""
    at, report = inventory.at, inventory.vm(lease.vm)
    runs = report is not None and report.state is not VmState.STOPPED

    def stays(one: Arrival) -> bool:
        older = one.agent == inventory.agent and inventory.rev < one.rev
        return one.at.host != at.host or (one.at == at and (runs or older))

    left = tuple(one for one in lease.arriving if stays(one))
    return None if left == lease.arriving else _with_arriving(lease, left)


def arrival_over(lease: RunLease, at: Incarnation) -> RunLease | None:
    """The lease without a boot that is proven over; None where it does not name it."""
    left = tuple(one for one in lease.arriving if one.at != at)
    return None if left == lease.arriving else _with_arriving(lease, left)


def _with_arriving(lease: RunLease, left: tuple[Arrival, ...]) -> RunLease:
    return lease.model_copy(update={"arriving": left, "seq": lease.seq + 1})


def moved(lease: RunLease, at: Incarnation) -> RunLease:
    """Its holder says that it runs there no more, and `at` that it runs: the run goes on under a higher token. That in
    its metadata stays what it was started with, so the lease names no start, as after any migration."""
    update = {
        "token": lease.token + 1,
        "holder": at,
        "start_key": "",
        "moving_to": None,
        "moving_found": StopReason.NONE,
        "arriving": tuple(one for one in lease.arriving if one.at != at),
        "seq": lease.seq + 1,
    }
    return lease.model_copy(update={**update, "run": 0, "stopped_before": False})


def evicting(lease: RunLease, run: int) -> RunLease:
    """The lease of a VM whose run is about to be ended by us. Written before that: libvirt will show it as ended on
    purpose, which then is not taken for a person's will."""
    return lease.model_copy(update={"state": LeaseState.EVICTING, "run": run, "seq": lease.seq + 1})


def put_down_by_us(lease: RunLease, run: int) -> RunLease:
    """The lease of a VM whose run we have ended where it is, as its holder says: whoever starts it anew may take it."""
    return lease.model_copy(update={"state": LeaseState.FAILED, "run": run, "seq": lease.seq + 1})


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
        arriving=() if lease is None else tuple(one for one in lease.arriving if one.at != at),
        strays=() if lease is None else lease.strays,
    )


def over(lease: RunLease, report: VmReport) -> bool:
    """Its holder's own word that the run under this lease has ended. What the holder said of an earlier run may
    be heard after a start that took the lease: of a run with another token it says nothing of this one."""
    return report.state is VmState.STOPPED and (not lease.start_key or report.token == lease.token)


def stopped_on_purpose(report: VmReport) -> bool:
    """A person, or the guest itself, meant it to stop."""
    return report.state is VmState.STOPPED and report.stop_reason in (StopReason.ON_PURPOSE, StopReason.SAVED)


def arrives(report: VmReport) -> bool:
    """Its host takes it in by a migration, or is about to: whether it ever runs there is its source's to say."""
    return report.migrated and report.state is VmState.PAUSED


def migrated(report: VmReport) -> bool:
    """A person took it to another host: it runs on there."""
    return report.state is VmState.STOPPED and report.stop_reason is StopReason.MIGRATED


def ended_by_hand(report: VmReport) -> bool:
    """It is down here by what a person did with it: put down, or taken elsewhere."""
    return stopped_on_purpose(report) or migrated(report)


def put_down(lease: RunLease, report: VmReport) -> bool:
    """A start that may have been under way has run, and was stopped on purpose or migrated since. Where the target said
    so already before it, it says nothing: libvirt keeps the last reason until the next run begins."""
    return ended_by_hand(report) and over(lease, report) and not lease.stopped_before


def adopted(
    lease: RunLease | None,
    at: Incarnation,
    report: VmReport,
    holder_report: VmReport | None,
    holder_known: bool,
    former: tuple[str, ...] = (),
) -> RunLease | None:
    """What people did with virsh, put into the lease; None where nothing is to be written.

    `holder_report` is what the present holder's own incarnation says of the VM (None: it does not know it);
    `holder_known` is False where that incarnation has said nothing: then nothing may be concluded. `former` are the
    names that the host without an agent had before: what it runs it runs, by whatever name it began."""
    renamed = lease is not None and lease.holder.host == at.host and lease.holder.boot in former
    if report.state.active:
        if lease is None:
            return _held(None, at, report)
        if strays.condemned(lease, at, report.run):
            return None  # for good: whatever becomes of the other copy, this one is on its way out
        if lease.holder == at:
            if not lease.wanted:
                return _held(lease, at, report)  # a person started it again, or brought it back
            ours = lease.run and lease.state in (LeaseState.EVICTING, LeaseState.FAILED)
            if ours and report.run != lease.run:
                return _held(lease, at, report)  # a person stopped it and started it again
            if lease.state is LeaseState.FAILED:
                # read before we ended this very run, and heard since: taken for a run that goes on, its end would pass
                # for a person's will. Otherwise it came up after all, or by a person's hand
                return None if lease.run else turned(lease, LeaseState.RUNNING)
            if lease.moving_to is not None and report.state is VmState.RUNNING and not report.migrated:
                return moving(lease, None)  # nobody moves it any more
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
        if renamed:
            return _held(lease, at, report)
        gone = holder_known and (holder_report is None or holder_report.state is VmState.STOPPED)
        let_go = holder_report is not None and migrated(holder_report)
        if lease.wanted and arrives(report) and not let_go:
            return None  # or has ended since with its source, as by a crash: what it says next tells
        if not lease.wanted or (gone and lease.state is not LeaseState.STARTING):
            # started elsewhere by a person: of a stopped VM nobody else holds anything; or migrated
            return _held(lease, at, report)
        return None
    if lease is None or lease.holder != at or not stopped_on_purpose(report) or not over(lease, report):
        return None
    by_us = lease.state is LeaseState.EVICTING and report.destroyed
    meant = lease.state in (LeaseState.RUNNING, LeaseState.EVICTING) and not by_us
    return turned(lease, LeaseState.STOPPED) if meant else None


def may_run(lease: RunLease | None, at: Incarnation, policy: VmPolicy, *, boots_known: bool) -> bool:
    """The boot gate's question: may this VM run on this incarnation, by the lease? Where boots are not known
    for certain (an agentless host), only a lease on another host speaks against it. The same boot under another
    name is the same machine, whatever it calls itself. What nobody restarts is that host's own affair, boot after boot."""
    if lease is None or lease.holder == at:
        return True
    if lease.holder.host == at.host and (not boots_known or _left_to_its_host(lease, policy)):
        return True
    return boots_known and lease.holder.boot == at.boot


def _left_to_its_host(lease: RunLease, policy: VmPolicy) -> bool:
    """It is not protected, neither by its definition there nor as it ran last, and nobody was taking it anywhere."""
    free = policy.protection is Protection.NONE and lease.policy.protection is Protection.NONE
    return free and not lease.arriving and lease.moving_to is None and not lease.strays


def held_back(lease: RunLease | None, at: Incarnation, policy: VmPolicy, *, answered: bool, led: bool) -> str:
    """Why this VM may not be started by libvirt itself as this boot begins; "" where it may. Asked before libvirt runs, so
    nothing of this boot can have a lease yet but by a start that waits for it. Where the store did not answer, `lease`
    says nothing: then what is protected waits for the agent, and nothing else, since the management plane may be a VM. The
    same where it knows no lease: where somebody has ever led by it (`led`) it may be an old copy of itself (ADR 6)."""
    if not answered:
        return (
            "" if policy.protection is Protection.NONE else "it is protected, and the store does not answer"
        )
    if lease is None and led and policy.protection is not Protection.NONE:
        return "it is protected, and no lease of it is known: the store may be an old copy"
    if lease is None or may_run(lease, at, policy, boots_known=True):
        return ""
    return f"its lease, token {lease.token}, is held by {lease.holder}"
