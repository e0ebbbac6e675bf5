"""What the fencer keeps: one record a host of its latest verdict, and what is asked of the world for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter
from rpds import HashTrieMap

from libs.config.settings import FencingSettings
from libs.core.decider import Act, Outcome, Publish, Records, Request, Step
from libs.core.evolve import replace
from libs.events.hosts import HostFenced, HostFenceFailed, LevelTested
from libs.events.words import HostConfirmedFailed, HostFenceTestOrdered
from libs.model import FenceProof, Incarnation, ProofMethod, Value, VmReport
from libs.promises import SlotOrder
from services.fencer.reserve import Dismiss, LayDown, LookIdle, ReserveState, Rouse
from services.fencer.watches import AskUnseen, ClaimPromise, PresumeState, ReadPromise


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


class PathSeen(Value):
    """One fence device of a host, as its power status was read last."""

    name: str
    level: int
    proven_at: str | None = Field(None, description="wall time, ISO 8601; None: never. For people only")
    failures: int = Field(0, description="readings since that failed, two at most")
    broken: bool = False
    detail: str = ""


class PathRecord(Value):
    """The fence paths of one host. Written once a round of its drill: bounded by the pool's hosts and that time."""

    PREFIX: ClassVar[str] = "path."

    host: str
    paths: tuple[PathSeen, ...]
    number: int = Field(0, description="grows with every path that breaks or is mended")


class ReadPaths(Request):
    """Read each fence device of one host, once. Changes nothing."""

    kind: Literal["read_paths"] = "read_paths"
    host: str


class PathReading(Value):
    """What one device brought: a proof that its path works, or why it does not."""

    name: str
    level: int
    works: bool
    detail: str


class PathsRead(Outcome):
    host: str
    at: str = Field(description="wall time, ISO 8601")
    readings: tuple[PathReading, ...] = ()


class Stage(StrEnum):
    LOOKING = "looking"  # whether it may be done at all
    TESTING = "testing"
    OFF = "off"  # until the host counts as fenced: switched on before, it would be shot once more
    SWITCHING_ON = "switching_on"
    DONE = "done"


class FenceTest(Value):
    """The latest fence test of one host."""

    PREFIX: ClassVar[str] = "test."

    order: HostFenceTestOrdered
    stage: Stage
    levels: tuple[LevelTested, ...] = ()
    refused: str = ""
    switched_on: bool = False
    detail: str = ""

    @property
    def name(self) -> str:
        return self.PREFIX + self.order.host


class LookFirst(Request):
    """See whether the host of a fence test is in maintenance, well, and runs nothing that may not die."""

    kind: Literal["look_first"] = "look_first"
    order: HostFenceTestOrdered


class Looked(Outcome):
    host: str
    refused: str = Field("", description="why there is no test; empty: there is")


class ProveLevels(Request):
    """Fence a host through each of its levels."""

    kind: Literal["prove_levels"] = "prove_levels"
    at: Incarnation


class ProvedLevels(Outcome):
    host: str
    levels: tuple[LevelTested, ...] = ()


class SwitchOn(Request):
    """Give a host its power back."""

    kind: Literal["switch_on"] = "switch_on"
    host: str


class SwitchedOn(Outcome):
    host: str
    done: bool
    detail: str = ""


class Explain(Request):
    """Tell at once what stands in the way of an attempt that is under way."""

    kind: Literal["explain"] = "explain"
    host: str
    incident: str


class Explained(Outcome):
    incident: str
    missing: tuple[str, ...]


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

    @property
    def ended(self) -> str:
        return "unproven" if self.proof is None else "proven"


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


Asked = (
    Fence
    | OrderStop
    | ReadPromise
    | AskUnseen
    | ClaimPromise
    | ReadPaths
    | Explain
    | LookFirst
    | ProveLevels
    | SwitchOn
    | Rouse
    | LookIdle
    | LayDown
    | Dismiss
)
REQUESTS: TypeAdapter[Asked] = TypeAdapter(Annotated[Asked, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class FencerState:
    records: Records
    """By host its FenceRecord; by other names what drill.py keeps."""
    retry_at: HashTrieMap[str, float]
    presume: PresumeState = field(default_factory=PresumeState)
    """What is known of hosts with a watchdog."""
    alert_at: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """By host: when people are told what is missing, should the attempt still be under way."""
    drill_at: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """By host: when its fence paths are read next."""
    drilling: HashTrieMap[str, int] = field(default_factory=HashTrieMap)
    """By host whose paths are being read the number of its round."""
    round: int = 0
    test_at: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """By host that a fence test has switched off: how long it is waited for to count as fenced."""
    reserve: ReserveState = field(default_factory=ReserveState)
    """What is known of hosts on standby, beside their records."""

    def fence(self, host: str) -> FenceRecord | None:
        """The latest verdict on a host, and what came of it."""
        found = self.records.get(host)
        return found if isinstance(found, FenceRecord) else None

    def switched(self, host: str) -> bool:
        """It is being fenced, or tested: an attempt shows more of its devices than a reading would."""
        fence, test = self.fence(host), self.records.get(FenceTest.PREFIX + host)
        tested = isinstance(test, FenceTest) and test.stage is not Stage.DONE
        return tested or (fence is not None and fence.phase in OPEN)

    def incident(self, name: str) -> FenceRecord | None:
        """The record of this incident, if it is the latest of its host."""
        found = (one for one in self.records.values() if isinstance(one, FenceRecord))
        return next((one for one in found if one.incident == name), None)


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
    host = record.at.host
    state = replace(
        state, retry_at=state.retry_at.insert(host, now + wait_s), alert_at=state.alert_at.discard(host)
    )
    return kept(state, record) if said else kept(state, record, failing(record, cause, rule))


def failing(record: FenceRecord, cause: str, rule: str, *, under_way: bool = False) -> Publish:
    """What is told where there is no proof."""
    fact = HostFenceFailed(
        at=record.at,
        incident=record.incident,
        attempt=record.attempt,
        missing=record.missing,
        under_way=under_way,
        cause=cause,
        rule=rule,
    )
    return Publish(record.at.host, fact)


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
