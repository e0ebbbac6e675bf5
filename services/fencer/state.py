"""What the fencer keeps: one record a host of its latest verdict, and what is asked of the world for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from rpds import HashTrieMap

from libs.config.settings import FencingSettings
from libs.core.decider import Act, Outcome, Publish, Records, Request, Step
from libs.core.evolve import replace
from libs.events.hosts import HostFenced, HostFenceFailed
from libs.events.words import HostConfirmedFailed
from libs.model import FenceProof, Incarnation, ProofMethod, SlotOrder, Value, VmReport


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


def kept(state: FencerState, record: FenceRecord, *effects: Act | Publish) -> Step[FencerState]:
    """The record in its place, and what is to be done and said."""
    records = state.records.insert(record.at.host, record)
    return Step(replace(state, records=records), effects)


def again(
    settings: FencingSettings,
    state: FencerState,
    record: FenceRecord,
    missing: tuple[str, ...],
    cause: str,
    rule: str,
    now: float,
) -> Step[FencerState]:
    """Try once more after a while, for ever; what is missing is said once per distinct reason."""
    doubled = settings.retry_first_s * 2.0 ** min(record.attempt - 1, 16)
    wait_s = min(doubled, settings.retry_max_s)
    said = record.missing == missing
    record = record.model_copy(update={"missing": missing})
    state = replace(state, retry_at=state.retry_at.insert(record.at.host, now + wait_s))
    if said:
        return kept(state, record)
    failed = HostFenceFailed(
        at=record.at,
        incident=record.incident,
        attempt=record.attempt,
        missing=missing,
        cause=cause,
        rule=rule,
    )
    return kept(state, record, Publish(record.at.host, failed))


def fenced(record: FenceRecord, proof: FenceProof, cause: str) -> Publish:
    """What is told of a proof."""
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


def over(record: FenceRecord, later: Incarnation, cause: str) -> Publish:
    """A later boot of the host is known to have been: this one is over."""
    proof = FenceProof(
        of=record.at,
        method=ProofMethod.NEW_BOOT,
        detail=f"boot {later.boot} came after it",
        successor=later.boot,
    )
    return fenced(record, proof, cause)
