"""A fence test: an operator has a host really fenced, through each of its levels, and switched on again.

The host that was switched off is held failed, and fenced, like any other: it is switched on only then, for the fencing of
its incident would find it on and shoot it once more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from libs.core.decider import Act, Expired, Publish, Step
from libs.core.evolve import replace
from libs.events.hosts import HostFenceTested
from libs.events.words import HostFenceTestOrdered
from services.fencer.state import (
    OPEN,
    FencerState,
    FenceTest,
    Looked,
    LookFirst,
    Phase,
    ProvedLevels,
    ProveLevels,
    Stage,
    SwitchedOn,
    SwitchOn,
)

LOOK_S = 10.0
FENCED_S = 120.0
"""For a host whose power is off to be held failed and fenced: a verdict takes seconds, but in a storm it is held."""
ABOUT = ("look_first", "prove_levels", "switch_on")
"""The requests of a test."""


@dataclass(frozen=True, slots=True)
class Times:
    """By host with fence devices how long a test of all its levels, and switching it on, may take; seconds."""

    test_s: dict[str, float] = field(default_factory=dict)
    on_s: dict[str, float] = field(default_factory=dict)


def ordered(state: FencerState, order: HostFenceTestOrdered) -> Step[FencerState]:
    """A word that comes late or again is none: each has a number."""
    known = test_of(state, order.host)
    if known is not None and (known.order.number >= order.number or known.stage is not Stage.DONE):
        return Step(state)
    record = FenceTest(order=order, stage=Stage.LOOKING)
    request = LookFirst(key=f"look_first/{order.host}/{order.number}", deadline_s=LOOK_S, order=order)
    return _kept(state, record, Act(record.name, request))


def looked(state: FencerState, outcome: Looked, times: Times) -> Step[FencerState]:
    """Whether it may be done."""
    record = _at(state, outcome.host, Stage.LOOKING)
    if record is None:
        return Step(state)
    fence = state.fence(outcome.host)
    refused = outcome.refused
    if not refused and fence is not None and fence.phase in OPEN:
        refused = f"{outcome.host} is being fenced ({fence.incident})"
    if not refused and outcome.host not in times.test_s:
        refused = f"{outcome.host} has no fence device"
    if refused:
        return _done(state, record.model_copy(update={"refused": refused}))
    request = ProveLevels(
        key=f"prove_levels/{outcome.host}/{record.order.number}",
        deadline_s=times.test_s[outcome.host],
        at=record.order.at,
    )
    return _kept(state, record.model_copy(update={"stage": Stage.TESTING}), Act(record.name, request))


def tested(state: FencerState, outcome: ProvedLevels, times: Times, now: float) -> Step[FencerState]:
    """What each level showed. A host of which nothing is proven may be off all the same, or half of it."""
    record = _at(state, outcome.host, Stage.TESTING)
    if record is None:
        return Step(state)
    record = record.model_copy(update={"levels": outcome.levels, "stage": Stage.OFF})
    state = replace(state, test_at=state.test_at.insert(outcome.host, now + FENCED_S))
    step = _kept(state, record)
    return step if any(level.proven for level in outcome.levels) else _on(step.state, record, times)


def follow(state: FencerState, times: Times, now: float) -> Step[FencerState]:
    """Go on with hosts that count as fenced by now, or are waited for no longer."""
    effects: list[Act | Publish] = []
    for host, until in sorted(state.test_at.items()):
        record, fence = _at(state, host, Stage.OFF), state.fence(host)
        if record is None:
            state = replace(state, test_at=state.test_at.remove(host))
            continue
        fenced = fence is not None and fence.at == record.order.at and fence.phase is Phase.FENCED
        if fenced or until <= now:
            step = _on(state, record, times)
            state = step.state
            effects += [one for one in step.effects if isinstance(one, Act | Publish)]
    return Step(state, tuple(effects))


def switched_on(state: FencerState, outcome: SwitchedOn) -> Step[FencerState]:
    """The end of it."""
    record = _at(state, outcome.host, Stage.SWITCHING_ON)
    if record is None:
        return Step(state)
    return _done(state, record.model_copy(update={"switched_on": outcome.done, "detail": outcome.detail}))


def expired(state: FencerState, outcome: Expired, times: Times, now: float) -> Step[FencerState]:
    """An act of a test without an end, or one that the world refused."""
    host = outcome.key.split("/")[1]
    match outcome.request:
        case "look_first":
            return looked(state, Looked(key=outcome.key, host=host, refused=outcome.reason), times)
        case "prove_levels":
            return tested(state, ProvedLevels(key=outcome.key, host=host), times, now)
        case _:
            late = SwitchedOn(key=outcome.key, host=host, done=False, detail=outcome.reason)
            return switched_on(state, late)


def resumed(state: FencerState, now: float) -> FencerState:
    """Another fencer waited for these hosts, nobody knows for how long."""
    waiting = {
        record.order.host: now + FENCED_S
        for record in state.records.values()
        if isinstance(record, FenceTest) and record.stage is Stage.OFF
    }
    return replace(state, test_at=type(state.test_at)(waiting))


def test_of(state: FencerState, host: str) -> FenceTest | None:
    """The latest test of a host."""
    found = state.records.get(FenceTest.PREFIX + host)
    return found if isinstance(found, FenceTest) else None


def _at(state: FencerState, host: str, stage: Stage) -> FenceTest | None:
    record = test_of(state, host)
    return record if record is not None and record.stage is stage else None


def _on(state: FencerState, record: FenceTest, times: Times) -> Step[FencerState]:
    host = record.order.host
    state = replace(state, test_at=state.test_at.discard(host))
    if not record.order.switch_on:
        return _done(state, record)
    request = SwitchOn(
        key=f"switch_on/{host}/{record.order.number}", deadline_s=times.on_s.get(host, 60.0), host=host
    )
    return _kept(state, record.model_copy(update={"stage": Stage.SWITCHING_ON}), Act(record.name, request))


def _done(state: FencerState, record: FenceTest) -> Step[FencerState]:
    record, order = record.model_copy(update={"stage": Stage.DONE}), record.order
    proven = bool(record.levels) and all(level.proven for level in record.levels)
    fact = HostFenceTested(
        host=order.host,
        number=order.number,
        at=order.at,
        passed=proven and not record.refused and (record.switched_on or not order.switch_on),
        refused=record.refused,
        levels=record.levels,
        switched_on=record.switched_on,
        detail=record.detail,
        by=order.by,
        cause=order.key,
        rule="an operator's word",
    )
    return _kept(state, record, Publish(record.name, fact))


def _kept(state: FencerState, record: FenceTest, *effects: Act | Publish) -> Step[FencerState]:
    return Step(replace(state, records=state.records.insert(record.name, record)), effects)
