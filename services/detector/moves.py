"""How a host's record moves from one state to another, and what is told of a verdict."""

from __future__ import annotations

from libs.core.decider import Publish, Step
from libs.core.evolve import replace
from libs.events.facts import AnyFact
from libs.events.hosts import HostFailed
from libs.lifecycle import allowed
from libs.model import FenceProof, HostState, VmReport
from services.detector import evidence as gather
from services.detector.leaving import expected
from services.detector.state import DetectorState, HostRecord

State = DetectorState


def judged(record: HostRecord, verdict: HostState) -> HostRecord:
    """The record under a new verdict, with an epoch and an incident of its own."""
    assert record.at is not None
    epoch = record.epoch + 1
    incident = f"{record.host}-{record.at.boot[:8]}-{epoch}"
    return record.model_copy(update={"state": verdict, "epoch": epoch, "incident": incident})


def running(state: State, record: HostRecord) -> tuple[VmReport, ...]:
    """What ran there by the host's own latest word."""
    inventory = state.view(record.host).inventory
    known = inventory is not None and inventory.at == record.at
    return tuple(vm for vm in inventory.vms if vm.state.active) if inventory and known else ()


def failed_fact(
    state: State, record: HostRecord, rule: str, kept: gather.Kept, proof: FenceProof | None
) -> HostFailed:
    """What is told of a verdict. `proof`: the host itself has shown that this boot is over."""
    assert record.at is not None
    return HostFailed(
        at=record.at,
        incident=record.incident,
        epoch=record.epoch,
        evidence=kept,
        proof=proof,
        vms=running(state, record),
        expected=expected(record, rule),
        rule=rule,
        cause=f"host.suspected/{record.at.host}/{record.at.boot}/{record.number}" if proof is None else "",
    )


def move(state: State, record: HostRecord, fact: AnyFact | None) -> Step[State]:
    """The one place where a host's state changes."""
    before = state.record(record.host).state
    assert allowed(before, record.state), f"{record.host}: {before} to {record.state} is not in the table"
    state = replace(state, records=state.records.insert(record.host, record))
    return Step(state, () if fact is None else (Publish(record.host, fact),))
