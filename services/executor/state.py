"""What the executor knows: the starts that it owes, the leases, and what each host showed last."""

from __future__ import annotations

from dataclasses import dataclass, field

from rpds import HashTrieMap

from libs.core.decider import Act, Records
from libs.core.evolve import replace
from libs.model import Incarnation, Inventory, RunLease, StopReason, VmState
from services.executor import order, pace, readiness
from services.executor.orders import OverRecord, StartRecord, TakenUp, WriteLease, over_key

LEASE_WRITE_S = 5.0
FRESH_S = 12.0
"""Two inventories of a host that lives have come in this time."""


@dataclass(frozen=True, slots=True)
class Doubled:
    """A run beside the holder's, and when to ask about it if the holder still says that it runs the VM."""

    at: Incarnation
    run: int
    due: float


@dataclass(frozen=True, slots=True)
class Unseen:
    """A VM that its holder says was migrated away, and that nobody shows; since when, and whether that was told."""

    at: Incarnation
    since: float
    told: bool = False


@dataclass(frozen=True, slots=True)
class ExecutorState:
    records: Records
    retry_at: HashTrieMap[str, float]
    leases: HashTrieMap[str, RunLease]
    heard: HashTrieMap[str, Inventory]
    writing: HashTrieMap[str, int]
    """Leases whose write is under way: VM to the seq being written."""
    heard_at: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """When each host's inventory was heard."""
    doubled: HashTrieMap[str, Doubled] = field(default_factory=HashTrieMap)
    """VMs that seem to run twice."""
    waits: order.Waits = field(default_factory=HashTrieMap)
    """By VM the starts that wait for others, or for their delay."""
    probes: readiness.Probes = field(default_factory=HashTrieMap)
    """Guests that are asked whether they are ready, for starts that wait for that."""
    began: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """By VM when a start of it began that is under way."""
    paces: pace.Paces = field(default_factory=HashTrieMap)
    """How many starts at once each host and each datastore takes."""
    over: HashTrieMap[str, Incarnation] = field(default_factory=HashTrieMap)
    """By host the boot that was fenced last: what it still says comes late."""
    unseen: HashTrieMap[str, Unseen] = field(default_factory=HashTrieMap)
    """VMs that were migrated to where nobody shows them."""

    @property
    def signs(self) -> readiness.Signs:
        """All by which it is told whether a VM is ready."""
        return readiness.Signs(self.leases, self.heard, self.probes)

    def starts(self) -> list[tuple[str, StartRecord]]:
        """By VM the starts that are owed."""
        return sorted((vm, one) for vm, one in self.records.items() if isinstance(one, StartRecord))

    def taken_up(self, vm: str) -> TakenUp:
        """The orders for this VM that are no news, that of the start that is owed among them."""
        record = self.records.get(vm)
        if isinstance(record, StartRecord):
            return record.taken_up
        return record if isinstance(record, TakenUp) else TakenUp(plans={})


State = ExecutorState


def sources(
    state: State, vm: str, inventory: Inventory, before: Inventory | None, now: float
) -> list[Inventory]:
    """Whose word on where the VM runs is taken now: that of the host that speaks. Where it had the VM and has it no
    longer, it may have been migrated: then also that of the others, where it is fresh."""
    had = before.vm(vm) if before is not None and before.at == inventory.at else None
    has = inventory.vm(vm)
    left = has is None or has.stop_reason is StopReason.MIGRATED
    if had is None or not had.state.active or not left:
        return [inventory]
    return [inventory, *(one for one in fresh(state, now) if one is not inventory)]


def fresh(state: State, now: float) -> list[Inventory]:
    """What hosts say that were heard a moment ago."""
    return [one for host, one in sorted(state.heard.items()) if now - state.heard_at.get(host, now) < FRESH_S]


def elsewhere(state: State, vm: str, at: Incarnation) -> tuple[Incarnation, ...]:
    """Hosts but this one that have the VM, and do not say that it is stopped there."""
    others = [(one.at, one.vm(vm)) for _, one in sorted(state.heard.items()) if one.at.host != at.host]
    return tuple(who for who, report in others if report is not None and report.state is not VmState.STOPPED)


def busy(state: State, vm: str) -> bool:
    """A start or a move of ours is under way, or a write of its lease: its outcome says how it is."""
    started = isinstance(state.records.get(vm), StartRecord)
    return started or f"room.{vm}" in state.records or vm in state.writing


def write(state: State, lease: RunLease) -> tuple[State, Act]:
    request = WriteLease(key=f"lease/{lease.vm}/{lease.seq}", deadline_s=LEASE_WRITE_S, lease=lease)
    return replace(state, writing=state.writing.insert(lease.vm, lease.seq)), Act(None, request)


def over(state: State, at: Incarnation) -> State:
    """Whatever this incarnation showed last holds no longer."""
    heard = state.heard.get(at.host)
    if heard is None or heard.at != at:
        return state
    over = heard.model_copy(update={"vms": ()})
    return replace(state, heard=state.heard.insert(at.host, over))


def proven_over(state: State, at: Incarnation) -> State:
    """There is a proof of it, which whoever leads next is to know, too."""
    record = OverRecord(over=at)
    records = state.records.insert(over_key(at.host), record)
    return over(replace(state, records=records, over=state.over.insert(at.host, at)), at)


def resumed(state: State) -> State:
    """We lead from now on: what was proven under others holds, whatever we heard while we followed."""
    for record in state.records.values():
        if isinstance(record, OverRecord):
            at = record.over
            state = over(replace(state, over=state.over.insert(at.host, at)), at)
    return state


def drop(state: State, vm: str) -> State:
    """Its start is owed no more: what is left is that its orders were taken up."""
    records = state.records.insert(vm, state.taken_up(vm))
    return replace(state, records=records, retry_at=state.retry_at.discard(vm))


def known(state: State, lease: RunLease) -> State:
    before = state.leases.get(lease.vm)
    if before is not None and before.seq >= lease.seq:
        return state
    return replace(state, leases=state.leases.insert(lease.vm, lease))
