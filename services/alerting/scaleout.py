"""Asking for capacity: one request for all that waits for room, from the first VM that does until none does.

The request is an event like any other: it reaches workflow engines through webhooks or NATS. Answers come as events, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from libs.config.scaleout import ScaleOut
from libs.core.decider import Act, Effect, Expired, Input, Publish, Records, Step
from libs.core.evolve import replace
from libs.events.base import Fact
from libs.events.capacity import CapacityOvercommitted, CapacityRestored
from libs.events.failovers import CapacityExhausted, CapacityRelieved, WaitingVm
from libs.events.hosts import HostJoined
from libs.events.scaleout import (
    Needs,
    ScaleOutAnswered,
    ScaleOutClosed,
    ScaleOutEscalated,
    ScaleOutRequested,
    ScaleOutUpdated,
)
from libs.model import Value
from services.alerting.letters import Fetch, Fetched
from services.alerting.notices import Heard

PLACE, OPEN, OVER = "place", "open", "overcommitted"
FETCH_S, FETCH_AGAIN_S = 20.0, 1.0
ANSWERS_MOST = 100
SOON_S = 1.0
KINDS = (
    "capacity.exhausted",
    "capacity.relieved",
    "capacity.overcommitted",
    "capacity.restored",
    "host.joined",
    "scaleout.answered",
)
CALLBACK = "/v1/scale-out/"


class Asked(Value):
    """The request that is open."""

    kind: Literal["asked"] = "asked"
    request: str
    revision: int = 1
    waiting: dict[str, tuple[WaitingVm, ...]] = Field(description="by incident")
    over: Needs | None = Field(
        None, description="of VMs that would stay down after a failure, once that lasts"
    )
    status: str = "requested"
    detail: str = ""
    host: str = ""
    answers: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    escalated: int = Field(0, description="the revision of which people were told that nothing comes")


class Over(Value):
    """An overcommitment that stands, whether or not anything was asked for it yet."""

    kind: Literal["over"] = "over"
    number: int
    needs: Needs
    cause: str


ScaleOutRecord = Annotated[Asked | Heard | Over, Field(discriminator="kind")]
REQUESTS: TypeAdapter[Fetch] = TypeAdapter(Fetch)


@dataclass(frozen=True, slots=True)
class ScaleOutState:
    records: Records
    read: int = -1
    busy: str = ""
    more: bool = True
    turn: int = 0
    fetch_at: float | None = None
    due_at: float | None = None
    """When people are told that nothing came of the request."""
    over_at: float | None = None
    """When the overcommitment that stands has lasted long enough to ask for a host."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Decider of scale-out requests."""

    settings: ScaleOut

    @property
    def record_type(self) -> Any:
        return ScaleOutRecord

    def initial(self, now: float) -> ScaleOutState:
        return ScaleOutState(Records())

    def records(self, state: ScaleOutState) -> Records:
        return state.records

    def wake_at(self, state: ScaleOutState) -> float | None:
        return min(
            (at for at in (state.fetch_at, state.due_at, state.over_at) if at is not None), default=None
        )

    def resume(self, state: ScaleOutState, records: Records, now: float) -> Step[ScaleOutState]:
        """A request that is open has its whole deadline again."""
        heard, asked = records.get(PLACE), records.get(OPEN)
        state = ScaleOutState(records, heard.sequence if heard else -1, turn=state.turn)
        if asked is not None and asked.escalated < asked.revision:
            state = replace(state, due_at=now + self.settings.deadline_s)
        over = records.get(OVER)
        if over is not None and (asked is None or asked.over is None):
            state = self._lasting(state, now)
        effects: list[Effect] = []
        return Step(_on(state, effects), tuple(effects))

    def step(self, state: ScaleOutState, event: Input | None, now: float) -> Step[ScaleOutState]:
        effects: list[Effect] = []
        match event:
            case None:
                if state.fetch_at is not None and state.fetch_at <= now:
                    state = replace(state, fetch_at=None, busy="", more=True)
                if state.due_at is not None and state.due_at <= now:
                    state = self._overdue(replace(state, due_at=None), effects)
                if state.over_at is not None and state.over_at <= now:
                    state = self._lasted(replace(state, over_at=None), effects, now)
            case Fact():
                state = replace(state, more=True)
            case Fetched() if event.key == state.busy:
                more = state.more or bool(event.letters)
                state = replace(state, busy="", more=more, read=event.end)
                for letter in event.letters:
                    state = self._heard(state, letter.sequence, letter.fact, effects, now)
                state = replace(state, records=state.records.insert(PLACE, Heard(sequence=event.end)))
            case Expired(request="fetch") if event.key == state.busy:
                return Step(replace(state, fetch_at=now + FETCH_AGAIN_S))
            case _:
                return Step(state)
        return Step(_on(state, effects), tuple(effects))

    def _heard(
        self, state: ScaleOutState, sequence: int, fact: Fact, effects: list[Effect], now: float
    ) -> ScaleOutState:
        asked: Asked | None = state.records.get(OPEN)
        match fact:
            case CapacityExhausted() if asked is None:
                request = f"scale-out-{sequence}"
                asked = Asked(request=request, waiting={fact.incident: fact.waiting})
                return self._requested(state, asked, fact.key, effects, now)
            case CapacityExhausted() if asked is not None:
                more = {"waiting": {**asked.waiting, fact.incident: fact.waiting}}
                return self._changed(state, asked, more, effects, fact.key, now)
            case CapacityRelieved() if asked is not None and fact.incident in asked.waiting:
                left = {name: vms for name, vms in asked.waiting.items() if name != fact.incident}
                return self._changed(state, asked, {"waiting": left}, effects, fact.key, now)
            case CapacityOvercommitted() if (
                fact.needs is not None and self.settings.overcommitted_s is not None
            ):
                over = Over(number=fact.number, needs=fact.needs, cause=fact.key)
                state = replace(state, records=state.records.insert(OVER, over))
                if asked is not None and asked.over is not None:
                    return self._changed(state, asked, {"over": fact.needs}, effects, fact.key, now)
                return self._lasting(state, now)
            case CapacityRestored():
                state = replace(state, records=state.records.discard(OVER), over_at=None)
                if asked is None or asked.over is None:
                    return state
                return self._changed(state, asked, {"over": None}, effects, fact.key, now)
            case HostJoined() if asked is not None and fact.at.host not in asked.joined:
                joined = asked.model_copy(update={"joined": (*asked.joined, fact.at.host)})
                return self._kept(state, joined, due_at=state.due_at)
            case ScaleOutAnswered() if asked is not None and fact.request == asked.request:
                return self._answered(state, asked, fact, effects, now)
            case _:
                return state

    def _lasting(self, state: ScaleOutState, now: float) -> ScaleOutState:
        """What ends by itself soon is no reason to ask."""
        wait_s = self.settings.overcommitted_s
        return state if wait_s is None else replace(state, over_at=now + max(wait_s, SOON_S))

    def _lasted(self, state: ScaleOutState, effects: list[Effect], now: float) -> ScaleOutState:
        over, asked = state.records.get(OVER), state.records.get(OPEN)
        if not isinstance(over, Over):
            return state
        if asked is not None:
            return self._changed(state, asked, {"over": over.needs}, effects, over.cause, now)
        fresh = Asked(request=f"scale-out-over-{over.number}", waiting={}, over=over.needs)
        return self._requested(state, fresh, over.cause, effects, now)

    def _requested(
        self, state: ScaleOutState, asked: Asked, cause: str, effects: list[Effect], now: float
    ) -> ScaleOutState:
        effects.append(Publish(OPEN, ScaleOutRequested(**self._told(asked), cause=cause)))
        return self._kept(state, asked, due_at=now + self.settings.deadline_s)

    def _changed(
        self,
        state: ScaleOutState,
        asked: Asked,
        change: dict[str, Any],
        effects: list[Effect],
        cause: str,
        now: float,
    ) -> ScaleOutState:
        """Said again where it makes a difference to who brings the host. More that is missing has a deadline of its own.
        It is over where nothing is missing any more."""
        before, asked = needs(asked), asked.model_copy(update=change)
        if not asked.waiting and asked.over is None:
            closed = ScaleOutClosed(
                request=asked.request,
                outcome="met" if asked.joined else "cancelled",
                hosts=asked.joined,
                cause=cause,
                rule="nothing waits for room any more",
            )
            effects.append(Publish(OPEN, closed))
            return replace(state, records=state.records.remove(OPEN), due_at=None)
        if before == needs(asked):
            return self._kept(state, asked, due_at=state.due_at)
        asked = asked.model_copy(update={"revision": asked.revision + 1})
        effects.append(Publish(OPEN, ScaleOutUpdated(**self._told(asked), cause=cause)))
        return self._kept(state, asked, due_at=now + self.settings.deadline_s)

    def _answered(
        self, state: ScaleOutState, asked: Asked, fact: ScaleOutAnswered, effects: list[Effect], now: float
    ) -> ScaleOutState:
        """A sign of life moves the deadline; a refusal goes to people at once. An answer that was heard is no news."""
        if fact.answer in asked.answers:
            return state
        answers = (*asked.answers, fact.answer)[-ANSWERS_MOST:]
        changes = {
            "status": fact.status,
            "detail": fact.detail,
            "host": fact.host or asked.host,
            "answers": answers,
        }
        asked = asked.model_copy(update=changes)
        state = self._kept(state, asked, due_at=now + self.settings.deadline_s)
        if fact.status != "refused":
            return state
        return self._escalated(
            state, asked, f"it was refused: {fact.detail or 'no reason was given'}", effects
        )

    def _overdue(self, state: ScaleOutState, effects: list[Effect]) -> ScaleOutState:
        asked: Asked = state.records[OPEN]
        since = f"for {self.settings.deadline_s:g} s"
        said = (
            f"nothing more was heard {since} after {asked.status}" if asked.answers else f"no answer {since}"
        )
        return self._escalated(state, asked, said, effects)

    def _escalated(
        self, state: ScaleOutState, asked: Asked, reason: str, effects: list[Effect]
    ) -> ScaleOutState:
        """People are told once of each revision."""
        if asked.escalated < asked.revision:
            told = ScaleOutEscalated(request=asked.request, revision=asked.revision, reason=reason)
            effects.append(Publish(OPEN, told))
        return self._kept(state, asked.model_copy(update={"escalated": asked.revision}), due_at=None)

    def _kept(self, state: ScaleOutState, asked: Asked, *, due_at: float | None) -> ScaleOutState:
        return replace(state, records=state.records.insert(OPEN, asked), due_at=due_at)

    def _told(self, asked: Asked) -> dict[str, Any]:
        callbacks = self.settings.callbacks
        return {
            "request": asked.request,
            "revision": asked.revision,
            "needs": needs(asked),
            "why": why(asked),
            "deadline_s": self.settings.deadline_s,
            "callback": "" if callbacks is None else f"{callbacks.url.rstrip('/')}{CALLBACK}{asked.request}",
        }


def why(asked: Asked) -> tuple[str, ...]:
    """What the request is for."""
    return (*(("exhausted",) if asked.waiting else ()), *(("overcommitted",) if asked.over else ()))


def needs(asked: Asked) -> Needs:
    """What all that is missing takes together, and the most that one VM does. A VM of two incidents counts once, and so
    does one that waits and would also stay down after a failure."""
    vms = {one.vm: one for group in asked.waiting.values() for one in group}.values()
    waiting = _of_waiting(list(vms))
    if asked.over is None:
        return waiting
    if not asked.waiting:
        return asked.over
    over = asked.over
    # of those that are in both it is not told by name what they take: then the larger of the two is missing
    both = bool(set(waiting.vms) & set(over.vms))
    total = max if both else sum
    return Needs(
        vms=tuple(sorted({*waiting.vms, *over.vms})),
        memory_mib=total((waiting.memory_mib, over.memory_mib)),
        vcpus=total((waiting.vcpus, over.vcpus)),
        host_memory_mib=max(waiting.host_memory_mib, over.host_memory_mib),
        host_vcpus=max(waiting.host_vcpus, over.host_vcpus),
        storage=tuple(sorted({*waiting.storage, *over.storage})),
        networks=tuple(sorted({*waiting.networks, *over.networks})),
        devices=_summed([waiting.devices, over.devices]),
        labels=tuple(sorted({*waiting.labels, *over.labels})),
    )


def _of_waiting(vms: list[WaitingVm]) -> Needs:
    labels = {part.strip() for one in vms for part in one.requires_labels.split(",")}
    return Needs(
        vms=tuple(sorted(one.name for one in vms)),
        memory_mib=sum(one.memory_mib for one in vms),
        vcpus=sum(one.vcpus for one in vms),
        host_memory_mib=max((one.memory_mib for one in vms), default=0),
        host_vcpus=max((one.vcpus for one in vms), default=0),
        storage=tuple(sorted({name for one in vms for name in one.storage})),
        networks=tuple(sorted({name for one in vms for name in one.networks})),
        devices=_summed([one.devices for one in vms]),
        labels=tuple(sorted(labels - {""})),
    )


def _summed(many: Iterable[dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in many:
        for name, count in one.items():
            found[name] = found.get(name, 0) + count
    return found


def _on(state: ScaleOutState, effects: list[Effect]) -> ScaleOutState:
    if not state.more or state.busy:
        return state
    turn = state.turn + 1
    key = f"fetch/scaleout/{turn}"
    after = None if state.read < 0 else state.read
    effects.append(Act(None, Fetch(key=key, deadline_s=FETCH_S, endpoint="scaleout", after=after)))
    return replace(state, busy=key, more=False, turn=turn)
