"""Isolated hosts: the VMs whose policy says so are stopped there by an order in the host's slots."""

from __future__ import annotations

from libs.config.settings import FencingSettings
from libs.core.decider import Act, Publish, Step
from libs.core.evolve import replace
from libs.events.hosts import HostIsolated, HostObeyed
from libs.model import FenceProof, Isolation, ProofMethod, Protection
from libs.promises import SlotOrder
from services.fencer.state import OPEN, FenceRecord, FencerState, Ordered, OrderStop, Phase, again, kept, over

ORDER_S = 45.0
"""For a host to read an order, to stop its VMs (10 s of grace for a guest), and to say so in its slot."""


def isolated(state: FencerState, fact: HostIsolated) -> Step[FencerState]:
    """Its VMs whose policy says so are to be stopped there; whoever else runs there is left alone."""
    known = state.fence(fact.at.host)
    vms = tuple(
        vm
        for vm in fact.vms
        if vm.policy.isolation is Isolation.SHUTDOWN and vm.policy.protection is not Protection.NONE
    )
    if not vms or (known is not None and known.epoch >= fact.epoch):
        return Step(state)
    word = known.word if known is not None else None
    record = FenceRecord(
        at=fact.at, incident=fact.incident, epoch=fact.epoch, phase=Phase.ORDERING, vms=vms, word=word
    )
    before = (
        ()
        if known is None or known.phase not in OPEN or known.at == fact.at
        else (over(known, fact.at, fact.key),)
    )
    state = replace(state, retry_at=state.retry_at.discard(fact.at.host))
    step = kept(state, record, order(record))
    return Step(step.state, (*before, *step.effects))


def ordered(settings: FencingSettings, state: FencerState, outcome: Ordered, now: float) -> Step[FencerState]:
    """What its host did with an order: the VMs that its slot says are stopped are proven to be so."""
    record = state.incident(outcome.incident)
    if record is None or record.phase is not Phase.ORDERING:
        return Step(state)
    if not outcome.stopped:
        if record.recovered and not outcome.written:
            return kept(state, record.model_copy(update={"phase": Phase.STOOD_DOWN}))
        cause = f"host.isolated/{record.incident}"
        waiting = record.model_copy(update={"phase": Phase.ORDER_WAITS})
        return again(settings, state, waiting, outcome.missing, cause, "its order was not obeyed", now)
    vms = tuple(vm.uuid for vm in record.vms)
    proof = FenceProof(
        of=record.at, method=ProofMethod.OBEYED, detail="its slot says that they are stopped", vms=vms
    )
    fact = HostObeyed(
        at=record.at,
        incident=record.incident,
        epoch=record.epoch,
        proof=proof,
        vms=record.vms,
        cause=f"host.isolated/{record.incident}",
        rule=proof.method.value,
    )
    done = record.model_copy(update={"phase": Phase.OBEYED, "vms": ()})
    return kept(state, done, Publish(record.at.host, fact))


def order(record: FenceRecord) -> Act:
    """One attempt to have them stopped."""
    vms = tuple(vm.uuid for vm in record.vms)
    request = OrderStop(
        key=f"order/{record.incident}/{record.attempt}",
        deadline_s=ORDER_S + 5.0,
        at=record.at,
        incident=record.incident,
        order=SlotOrder(boot=record.at.boot, number=record.epoch, vms=vms),
        again=record.attempt > 1,
    )
    return Act(record.at.host, request)
