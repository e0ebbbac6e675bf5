"""The fencer: from a verdict to a proof, tried for ever, under one record a host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from rpds import HashTrieMap

from libs.config.settings import FencingSettings
from libs.core.decider import Act, Expired, Input, Outcome, Publish, Records, Request, Step
from libs.core.evolve import replace
from libs.events.facts import (
    AnyFact,
    HostFailed,
    HostFenced,
    HostFenceFailed,
    HostIsolated,
    HostJoined,
    HostObeyed,
    HostRecovered,
)
from libs.events.words import HostConfirmedFailed
from libs.model import (
    FenceProof,
    Incarnation,
    Isolation,
    ProofMethod,
    Protection,
    SlotOrder,
    Value,
    VmReport,
)


class Phase(StrEnum):
    FENCING = "fencing"
    WAITING = "waiting"  # for the next attempt
    FENCED = "fenced"
    STOOD_DOWN = "stood_down"  # the host spoke again before any proof
    ORDERING = "ordering"  # an isolated host is being told through its slots to stop VMs
    ORDER_WAITS = "order_waits"  # to be told again
    OBEYED = "obeyed"
    EXPECTED = "expected"  # an operator spoke of a verdict that has yet to reach us


OPEN = (Phase.FENCING, Phase.WAITING)
ORDERS = (Phase.ORDERING, Phase.ORDER_WAITS)
ORDER_S = 45.0
"""For a host to read an order, to stop its VMs (10 s of grace for a guest), and to say so in its slot."""


class FenceRecord(Value):
    """The latest verdict on one host and what came of it."""

    at: Incarnation
    incident: str
    epoch: int
    phase: Phase
    attempt: int = 1
    missing: tuple[str, ...] = ()
    vms: tuple[VmReport, ...] = ()
    recovered: bool = False
    """It spoke again while an attempt was under way: that one is the last."""
    word: HostConfirmedFailed | None = None
    """An operator's, on a later verdict than this one: facts may come in any order."""


class Fence(Request):
    """Make the host harmless by all configured levels."""

    kind: Literal["fence"] = "fence"
    at: Incarnation
    incident: str


class Fenced(Outcome):
    """The proof that was had; `heard_after` where the incarnation spoke after its power read off."""

    incident: str
    proof: FenceProof | None = None
    missing: tuple[str, ...] = ()


class OrderStop(Request):
    """Tell an isolated host, through its slots on shared datastores, to stop these VMs, and see that it has."""

    kind: Literal["order_stop"] = "order_stop"
    at: Incarnation
    incident: str
    order: SlotOrder
    again: bool = False
    """An earlier attempt may have written it."""


class Ordered(Outcome):
    """What came of it: the host's own word in its slot that all of them are stopped, or what is missing."""

    incident: str
    stopped: bool
    written: bool = True
    """False where it is known that no slot holds the order: then it will not be obeyed later either."""
    missing: tuple[str, ...] = ()


REQUESTS: TypeAdapter[Fence | OrderStop] = TypeAdapter(
    Annotated[Fence | OrderStop, Field(discriminator="kind")]
)


@dataclass(frozen=True, slots=True)
class FencerState:
    records: Records
    retry_at: HashTrieMap[str, float]


@dataclass(frozen=True, slots=True)
class Fencer:
    """Decider of the fencer. `deadline_s` bounds one attempt over all levels of the host's devices."""

    settings: FencingSettings
    deadline_s: dict[str, float]

    @property
    def record_type(self) -> type[FenceRecord]:
        return FenceRecord

    def initial(self, now: float) -> FencerState:
        return FencerState(HashTrieMap(), HashTrieMap())

    def resume(self, state: FencerState, records: Records, now: float) -> Step[FencerState]:
        waits = (Phase.WAITING, Phase.ORDER_WAITS)
        waiting = {host: now for host, record in records.items() if record.phase in waits}
        return Step(FencerState(records, HashTrieMap(waiting)))

    def records(self, state: FencerState) -> Records:
        return state.records

    def wake_at(self, state: FencerState) -> float | None:
        return min(state.retry_at.values(), default=None)

    def step(self, state: FencerState, event: Input | None, now: float) -> Step[FencerState]:
        match event:
            case None:
                return self._retry(state, now)
            case HostFailed():
                return self._failed(state, event)
            case HostIsolated():
                return self._isolated(state, event)
            case Ordered():
                return self._ordered(state, event, now)
            case Fenced():
                return self._outcome(state, event, now)
            case Expired(request="order_stop", key=key, reason=reason):
                incident = key.split("/")[1]
                failed_order = Ordered(key=key, incident=incident, stopped=False, missing=(reason,))
                return self._ordered(state, failed_order, now)
            case Expired(key=key, reason=reason):
                for record in state.records.values():
                    if key == _act(record, self.deadline_s).key:
                        missing = (f"no end of the attempt: {reason}",)
                        failed = Fenced(key=key, incident=record.incident, missing=missing)
                        return self._outcome(state, failed, now)
                return Step(state)
            case HostJoined(at=at):
                return self._new_boot(state, at)
            case HostRecovered(at=at, incident=incident):
                return self._stand_down(state, at, incident)
            case HostConfirmedFailed():
                return self._confirmed(state, event)
            case _:
                return Step(state)

    def _failed(self, state: FencerState, fact: HostFailed) -> Step[FencerState]:
        host = fact.at.host
        known = state.records.get(host)
        record = FenceRecord(
            at=fact.at, incident=fact.incident, epoch=fact.epoch, phase=Phase.FENCING, vms=fact.vms
        )
        if known is not None and known.epoch >= fact.epoch:
            if known.epoch == fact.epoch or known.at == fact.at:
                return Step(state)  # the same failure, told again
            return Step(
                state, (_over(record, known.at, fact.key),)
            )  # told late: a later boot has failed since
        before: tuple[Publish, ...] = ()
        if known is not None and known.phase in OPEN and known.at != fact.at:
            before = (_over(known, fact.at, fact.key),)
        word = known.word if known is not None else None
        if word is not None and word.epoch > fact.epoch:
            record = record.model_copy(update={"word": word})
        if fact.proof is not None:
            step = self._proven(state, record, fact.proof, fact.key)
        elif word is not None and _means(word, record):
            step = self._proven(state, record, _vouched(word), word.key)
        else:
            state = replace(state, retry_at=state.retry_at.discard(host))
            step = self._with(state, record, _act(record, self.deadline_s))
        return Step(step.state, (*before, *step.effects))

    def _outcome(self, state: FencerState, outcome: Fenced, now: float) -> Step[FencerState]:
        record = next((r for r in state.records.values() if r.incident == outcome.incident), None)
        if record is None or record.phase is Phase.FENCED:
            return Step(state)
        if outcome.proof is not None:
            return self._proven(state, record, outcome.proof, f"host.failed/{record.incident}")
        if record.phase is Phase.STOOD_DOWN:
            return Step(state)
        if record.recovered:
            return self._with(state, record.model_copy(update={"phase": Phase.STOOD_DOWN}))
        cause = f"host.failed/{record.incident}"
        waiting = record.model_copy(update={"phase": Phase.WAITING})
        return self._again(state, waiting, outcome.missing, cause, "no proof from any level", now)

    def _again(
        self,
        state: FencerState,
        record: FenceRecord,
        missing: tuple[str, ...],
        cause: str,
        rule: str,
        now: float,
    ) -> Step[FencerState]:
        """Try once more after a while, for ever; what is missing is said once per distinct reason."""
        doubled = self.settings.retry_first_s * 2.0 ** min(record.attempt - 1, 16)
        wait_s = min(doubled, self.settings.retry_max_s)
        said = record.missing == missing
        record = record.model_copy(update={"missing": missing})
        state = replace(state, retry_at=state.retry_at.insert(record.at.host, now + wait_s))
        if said:
            return self._with(state, record)
        failed = HostFenceFailed(
            at=record.at,
            incident=record.incident,
            attempt=record.attempt,
            missing=missing,
            cause=cause,
            rule=rule,
        )
        return self._with(state, record, Publish(record.at.host, failed))

    # -- isolated hosts

    def _isolated(self, state: FencerState, fact: HostIsolated) -> Step[FencerState]:
        """Its VMs whose policy says so are to be stopped there; whoever else runs there is left alone."""
        known = state.records.get(fact.at.host)
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
            else (_over(known, fact.at, fact.key),)
        )
        state = replace(state, retry_at=state.retry_at.discard(fact.at.host))
        step = self._with(state, record, _order(record))
        return Step(step.state, (*before, *step.effects))

    def _ordered(self, state: FencerState, outcome: Ordered, now: float) -> Step[FencerState]:
        record = next((r for r in state.records.values() if r.incident == outcome.incident), None)
        if record is None or record.phase is not Phase.ORDERING:
            return Step(state)
        if not outcome.stopped:
            if record.recovered and not outcome.written:
                return self._with(state, record.model_copy(update={"phase": Phase.STOOD_DOWN}))
            cause = f"host.isolated/{record.incident}"
            waiting = record.model_copy(update={"phase": Phase.ORDER_WAITS})
            return self._again(state, waiting, outcome.missing, cause, "its order was not obeyed", now)
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
        return self._with(state, done, Publish(record.at.host, fact))

    def _retry(self, state: FencerState, now: float) -> Step[FencerState]:
        effects: list[Act] = []
        for host, due in sorted(state.retry_at.items()):
            if due > now:
                continue
            record = state.records[host]
            attempt = min(record.attempt + 1, 1_000_000)
            ordering = record.phase is Phase.ORDER_WAITS
            phase = Phase.ORDERING if ordering else Phase.FENCING
            record = record.model_copy(update={"phase": phase, "attempt": attempt})
            state = replace(
                state, records=state.records.insert(host, record), retry_at=state.retry_at.remove(host)
            )
            effects.append(_order(record) if ordering else _act(record, self.deadline_s))
        return Step(state, tuple(effects))

    def _new_boot(self, state: FencerState, at: Incarnation) -> Step[FencerState]:
        """The host speaks from another boot: the one that failed is over."""
        record = state.records.get(at.host)
        if record is None or record.at == at or record.phase not in OPEN:
            return Step(state)
        proof = FenceProof(
            of=record.at, method=ProofMethod.NEW_BOOT, detail=f"heard from boot {at.boot}", successor=at.boot
        )
        return self._proven(state, record, proof, f"host.joined/{at.host}/{at.boot}/{record.epoch}")

    def _stand_down(self, state: FencerState, at: Incarnation, incident: str) -> Step[FencerState]:
        record = state.records.get(at.host)
        if record is not None and record.word is not None and record.word.incident == incident:
            # it speaks, so it is not down: the word on a verdict that has yet to reach us is void
            return self._with(state, record.model_copy(update={"word": None}))
        if record is None or record.incident != incident or record.phase not in (*OPEN, *ORDERS):
            return Step(state)
        if record.phase is Phase.FENCING or record.phase in ORDERS:
            # the attempt under way may yet succeed: then it is fenced, whatever it says. An order that lies in a
            # slot will be obeyed, and the VMs that it stops must start elsewhere
            return self._with(state, record.model_copy(update={"recovered": True}))
        return self._with(
            replace(state, retry_at=state.retry_at.discard(at.host)),
            record.model_copy(update={"phase": Phase.STOOD_DOWN}),
        )

    def _confirmed(self, state: FencerState, word: HostConfirmedFailed) -> Step[FencerState]:
        """An operator's explicit word is a proof, of the one incarnation that it names and while that one's
        verdict is open. A host that has spoken since is not down, whoever says so."""
        known = state.records.get(word.at.host)
        if known is None:
            expected = FenceRecord(
                at=word.at, incident=word.incident, epoch=0, phase=Phase.EXPECTED, word=word
            )
            return self._with(state, expected)
        if known.epoch < word.epoch:
            later = known.word is not None and known.word.epoch >= word.epoch
            return Step(state) if later else self._with(state, known.model_copy(update={"word": word}))
        if known.phase not in OPEN or known.recovered or not _means(word, known):
            return Step(state)
        return self._proven(state, known, _vouched(word), word.key)

    def _proven(
        self, state: FencerState, record: FenceRecord, proof: FenceProof, cause: str
    ) -> Step[FencerState]:
        fact: AnyFact = HostFenced(
            at=record.at,
            incident=record.incident,
            epoch=record.epoch,
            proof=proof,
            vms=record.vms,
            cause=cause,
            rule=proof.method.value,
        )
        record = record.model_copy(update={"phase": Phase.FENCED, "vms": ()})
        host = record.at.host
        return self._with(replace(state, retry_at=state.retry_at.discard(host)), record, Publish(host, fact))

    def _with(self, state: FencerState, record: FenceRecord, *effects: Act | Publish) -> Step[FencerState]:
        records = state.records.insert(record.at.host, record)
        return Step(replace(state, records=records), effects)


def _means(word: HostConfirmedFailed, record: FenceRecord) -> bool:
    return (word.at, word.incident, word.epoch) == (record.at, record.incident, record.epoch)


def _vouched(word: HostConfirmedFailed) -> FenceProof:
    return FenceProof(of=word.at, method=ProofMethod.OPERATOR, detail=f"{word.by} at {word.said_at}")


def _order(record: FenceRecord) -> Act:
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


def _over(record: FenceRecord, later: Incarnation, cause: str) -> Publish:
    """A later boot of the host is known to have been: this one is over."""
    proof = FenceProof(
        of=record.at,
        method=ProofMethod.NEW_BOOT,
        detail=f"boot {later.boot} came after it",
        successor=later.boot,
    )
    fact = HostFenced(
        at=record.at,
        incident=record.incident,
        epoch=record.epoch,
        proof=proof,
        vms=record.vms,
        cause=cause,
        rule=proof.method.value,
    )
    return Publish(record.at.host, fact)


def _act(record: FenceRecord, deadlines_s: dict[str, float]) -> Act:
    host = record.at.host
    request = Fence(
        key=f"fence/{record.incident}/{record.attempt}",
        deadline_s=deadlines_s.get(host, 60.0),
        at=record.at,
        incident=record.incident,
    )
    return Act(host, request)
