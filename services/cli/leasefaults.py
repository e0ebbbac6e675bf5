"""Deliberate faults about run leases, starts and what became of them. See mutations.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from libs import crashes as crashes_told
from libs import leases
from libs.core.ports import UnavailableError
from libs.leases import Grant, Ruling
from libs.model import LeaseState, StopReason
from services.detector import guests as detector_guests
from services.executor import act as executor_act
from services.executor.decide import Executor
from services.placement import decide as placement_decide
from services.placement.state import PlacementState

Patch = tuple[Any, str, Any]
_CRASHES = crashes_told.crashes


def lease_not_checked() -> list[Patch]:
    def rule(lease: Any, start: Any) -> Ruling:
        return Ruling(Grant.TAKE, "nobody asked")

    return [(executor_act, "rule", rule)]


def token_stays() -> list[Patch]:
    taken = leases.taken

    def same(lease: Any, start: Any) -> Any:
        mine = taken(lease, start)
        return mine if lease is None else mine.model_copy(update={"token": lease.token})

    return [(executor_act, "taken", same)]


def proof_of_any_boot() -> list[Patch]:
    """A proof is taken for the host, whichever boot it names."""

    def rule(lease: Any, start: Any) -> Ruling:
        found = leases.rule(lease, start)
        named = lease is not None and lease.holder.host in [proof.of.host for proof in start.proofs]
        return Ruling(Grant.TAKE) if found.grant is Grant.REFUSE and named else found

    def proof_of(self: PlacementState, at: Any) -> Any:
        record = self.records.get(f"fenced.{at.host}")
        return None if record is None else record.proof

    true_proof = PlacementState.proof_of

    def is_over(self: PlacementState, at: Any) -> bool:
        return true_proof(self, at) is not None  # which hosts take VMs is not what is wrong here

    return [
        (executor_act, "rule", rule),
        (PlacementState, "proof_of", proof_of),
        (PlacementState, "is_over", is_over),
    ]


def unknown_is_stopped() -> list[Patch]:
    seen = executor_act.Hands._seen

    async def mutated(self: executor_act.Hands, target: Any, start: Any) -> Any:
        try:
            return await seen(self, target, start)
        except UnavailableError:
            return None

    return [(executor_act.Hands, "_seen", mutated)]


def uncertain_is_failed() -> list[Patch]:
    def uncertain(self: Executor, state: Any, record: Any, reason: str, now: float) -> Any:
        from services.executor.orders import Attempted, Result

        outcome = Attempted(key="uncertain", start=record.start, result=Result.NOT_STARTED, reason=reason)
        return self._attempted(state, outcome, now)

    def rule(lease: Any, start: Any) -> Ruling:
        found = leases.rule(lease, start)
        starting = lease is not None and lease.state is LeaseState.STARTING
        return Ruling(Grant.TAKE) if found.grant is Grant.REFUSE and starting else found

    return [(Executor, "_uncertain", uncertain), (executor_act, "rule", rule)]


def uncertain_forgotten() -> list[Patch]:
    """A start whose outcome is unknown is never asked after."""

    true_retry = Executor._retry

    def retry(self: Executor, state: Any, now: float) -> Any:
        return true_retry(self, replace(state, retry_at=type(state.retry_at)()), now)

    return [(Executor, "_retry", retry)]


def on_purpose_ignored() -> list[Patch]:
    """What was shut down on purpose is held to have crashed."""
    adopted = leases.adopted

    def never(
        lease: Any, at: Any, report: Any, holder_report: Any, holder_known: bool, former: Any = ()
    ) -> Any:
        change = adopted(lease, at, report, holder_report, holder_known, former)
        return None if change is not None and change.state is LeaseState.STOPPED else change

    def crashes(inventory: Any, before: Any) -> Any:
        told = inventory.model_copy(
            update={
                "vms": tuple(
                    vm.model_copy(update={"stop_reason": StopReason.CRASHED})
                    if vm.stop_reason is StopReason.ON_PURPOSE
                    else vm
                    for vm in inventory.vms
                )
            }
        )
        return _CRASHES(told, before)

    return [
        (leases, "adopted", never),
        (detector_guests, "crashes", crashes),
        (placement_decide, "crashes", crashes),
    ]
