"""The formats in which planning answers: `rekindle.plan.v1`, `rekindle.capacity.v1`, `rekindle.admit.v1`. Published as
JSON Schema under docs/schemas/."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from libs.planning.admit import Answer
from libs.planning.agile import REASONS as AGILE
from libs.planning.agile import not_agile
from libs.planning.capacity import Capacity
from libs.planning.plan import Plan
from libs.planning.pool import Pool
from libs.planning.snapshot import Snapshot
from libs.planning.why import REASONS
from libs.planning.words import in_words


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True, serialize_by_alias=True)


class PlannedStartTold(Part):
    """`wave`: 0 first. `start_delay_s` is waited before this start begins."""

    vm: str
    from_host: str | None = Field(alias="from")
    to: str
    wave: int
    start_delay_s: float = 0.0
    after: tuple[str, ...] = Field((), description="VMs of this plan that must be ready first")


class MigrationTold(Part):
    vm: str
    from_host: str = Field(alias="from")
    to: str


class VmAtTold(Part):
    vm: str
    host: str


class Shortfall(Part):
    """What was missing on the host that came closest; nothing where room was not the obstacle."""

    memory_mib: int
    vcpus: int
    devices: dict[str, int] = {}


class UnplacedTold(Part):
    vm: str
    priority: str
    reason: str = Field(description="; ".join(f"{code}: {means}" for code, means in REASONS.items()))
    shortfall: Shortfall
    detail: str


class PlanTold(Part):
    """Migrations come first, in this order; then preemptions; then starts, wave by wave."""

    format: Literal["rekindle.plan.v1"] = Field("rekindle.plan.v1", alias="schema")
    pool: str
    failed: tuple[str, ...]
    starts: tuple[PlannedStartTold, ...]
    migrations: tuple[MigrationTold, ...]
    preemptions: tuple[VmAtTold, ...]
    unplaced: tuple[UnplacedTold, ...]
    elapsed_ms: float


def plan_told(snapshot: Snapshot, failed: frozenset[str], found: Plan, elapsed_ms: float) -> PlanTold:
    """A plan as it is printed."""
    vms = {vm.name: vm for vm in snapshot.vms}
    starting = {start.vm for start in found.starts}
    starts = [
        PlannedStartTold(
            vm=start.vm,
            from_host=start.from_host,
            to=start.to,
            wave=start.wave,
            start_delay_s=vms[start.vm].start_delay_s,
            after=tuple(one.vm for one in vms[start.vm].after if one.vm in starting),
        )
        for start in sorted(found.starts, key=lambda start: (start.wave, start.vm))
    ]
    return PlanTold(
        pool=snapshot.pool,
        failed=tuple(sorted(failed)),
        starts=tuple(starts),
        migrations=tuple(
            MigrationTold(vm=one.vm, from_host=one.from_host, to=one.to) for one in found.migrations
        ),
        preemptions=tuple(VmAtTold(vm=one.vm, host=one.host) for one in found.preemptions),
        unplaced=tuple(
            UnplacedTold(
                vm=one.vm,
                priority=one.priority,
                reason=one.reason,
                shortfall=Shortfall(
                    memory_mib=one.short_memory_mib, vcpus=one.short_vcpus, devices=one.short_devices
                ),
                detail=one.detail,
            )
            for one in found.unplaced
        ),
        elapsed_ms=round(elapsed_ms, 3),
    )


class HostTold(Part):
    """The loss of this host alone: whether every `restart` VM on it is placed, and which are not."""

    host: str
    recoverable: bool
    unplaced: tuple[str, ...]


class Numbers(Part):
    """How many hosts may fail: guaranteed, not disproved, and at most."""

    tolerates: int
    verified: int
    upper_bound: int


class NotAgileTold(Part):
    """A protected VM that no other host could run, even if it were empty."""

    vm: str
    host: str
    reason: str = Field(description="; ".join(f"{code}: {means}" for code, means in AGILE.items()))
    detail: str


class CapacityTold(Numbers):
    """`worst_case` are hosts whose loss leaves something down, [] where none is known; `worst_case_in_turn`: it does if they
    fail one after the other in this order. `in_order` is `tolerates`, which is about any order, and stays for older readers."""

    format: Literal["rekindle.capacity.v1"] = Field("rekindle.capacity.v1", alias="schema")
    pool: str
    in_order: int
    proof: str
    target: int
    overcommitted: bool
    worst_case: tuple[str, ...]
    worst_case_in_turn: bool = False
    unplaced_in_worst_case: tuple[str, ...]
    worst_case_in_words: str
    fit_nowhere: tuple[str, ...]
    without_fit_nowhere: Numbers | None = Field(None, description="counted without those that fit nowhere")
    per_host: tuple[HostTold, ...]
    not_agile: tuple[NotAgileTold, ...] = ()
    elapsed_ms: float


class AdmitTold(Part):
    """`lost`: VMs that would have no place, at once or in the worst case."""

    format: Literal["rekindle.admit.v1"] = Field("rekindle.admit.v1", alias="schema")
    pool: str
    action: Literal["start", "enter_maintenance", "remove_host"]
    subject: str
    allowed: bool
    reason: str
    lost: tuple[str, ...]
    host: str | None = Field(None, description="where the VM would start")
    moved: tuple[VmAtTold, ...] = Field((), description="where what runs on the host would go")
    target: int
    before: Numbers
    after: Numbers | None = Field(None, description="none where it has no place at all")


def numbers_told(found: Capacity) -> Numbers:
    return Numbers(tolerates=found.tolerates, verified=found.verified, upper_bound=found.upper_bound)


def capacity_told(snapshot: Snapshot, found: Capacity, elapsed_ms: float) -> CapacityTold:
    """The capacity proof as it is printed."""
    target = snapshot.policy.failures_to_tolerate
    return CapacityTold(
        pool=snapshot.pool,
        tolerates=found.tolerates,
        verified=found.verified,
        upper_bound=found.upper_bound,
        in_order=found.tolerates,
        worst_case_in_turn=found.in_turn,
        proof=found.proof,
        target=target,
        overcommitted=found.tolerates < target,
        worst_case=found.worst_case,
        unplaced_in_worst_case=found.unplaced,
        worst_case_in_words=in_words(snapshot, found),
        fit_nowhere=found.fit_nowhere,
        without_fit_nowhere=numbers_told(found.without) if found.without else None,
        per_host=tuple(
            HostTold(host=host, recoverable=witness.complete, unplaced=witness.left)
            for host, witness in found.per_host
        ),
        not_agile=tuple(
            NotAgileTold(vm=one.vm, host=one.host, reason=one.reason, detail=one.detail)
            for one in not_agile(Pool(snapshot))
        ),
        elapsed_ms=round(elapsed_ms, 3),
    )


def admit_told(
    snapshot: Snapshot,
    action: Literal["start", "enter_maintenance", "remove_host"],
    subject: str,
    answer: Answer,
) -> AdmitTold:
    """An answer of admission as it is printed."""
    return AdmitTold(
        pool=snapshot.pool,
        action=action,
        subject=subject,
        allowed=answer.allowed,
        reason=answer.reason,
        lost=answer.lost,
        host=answer.host,
        moved=tuple(VmAtTold(vm=vm, host=to) for vm, to in answer.moved),
        target=snapshot.policy.failures_to_tolerate,
        before=numbers_told(answer.before),
        after=numbers_told(answer.after) if answer.after else None,
    )
