"""Hosts on standby that are idle: back to being off, by way of being fenced. Pure."""

from __future__ import annotations

from libs.config.standby import Standby
from libs.core.decider import Act, Effect, Publish
from libs.core.evolve import replace
from libs.events.standby import StandbyFailed, StandbyLeaving, StandbySwitchedOff
from services.fencer.reserve import (
    Dismiss,
    Dismissed,
    LaidDown,
    LayDown,
    LookedIdle,
    LookIdle,
    Reserve,
    Stage,
    reserve_of,
    shortage_of,
)
from services.fencer.state import OPEN, ORDERS, FenceRecord, FencerState, Phase

LOOK_S = 60.0
FENCED_S = 120.0
"""For a host that was switched off to count as fenced; then people are told, and it is waited for on."""


def lowered(state: FencerState, effects: list[Effect]) -> FencerState:
    """One at a time, and none while anything is open."""
    own, shortage = state.reserve, shortage_of(state.records)
    if not own.quiet or shortage.waiting or shortage.overcommitted or _busy(state):
        return state
    inside = [
        record
        for record in state.records.values()
        if isinstance(record, Reserve) and record.stage is Stage.IN and record.at is not None
    ]
    due = [one for one in inside if one.host not in own.until and not state.switched(one.host)]
    if not due:
        return state
    record = min(due, key=lambda one: one.host)
    assert record.at is not None
    number = record.number + 1
    effects.append(
        Act(
            record.name,
            LookIdle(key=f"look_idle/{record.host}/{number}", deadline_s=LOOK_S, at=record.at),
        )
    )
    return kept(state, record.model_copy(update={"stage": Stage.LOOKED_AT, "number": number}))


def _busy(state: FencerState) -> bool:
    """A host is being fenced, or one on standby is on its way."""
    for record in state.records.values():
        if isinstance(record, FenceRecord) and record.phase in (*OPEN, *ORDERS):
            return True
        if isinstance(record, Reserve) and record.stage not in (
            Stage.OFF,
            Stage.IN,
            Stage.LOST,
            Stage.SPOILT,
        ):
            return True
    return False


def looked(
    off_s: float,
    settings: Standby,
    state: FencerState,
    outcome: LookedIdle,
    effects: list[Effect],
    now: float,
) -> FencerState:
    record = reserve_of(state.records, outcome.host)
    if record.stage is not Stage.LOOKED_AT or record.at is None:
        return state
    if outcome.refused:
        until = state.reserve.until.insert(record.host, now + max(settings.idle_s, LOOK_S))
        state = replace(state, reserve=replace(state.reserve, until=until))
        return kept(state, record.model_copy(update={"stage": Stage.IN}))
    told = StandbyLeaving(
        host=record.host,
        number=record.number,
        at=record.at,
        rule=f"the pool has had enough for {settings.idle_s:g} s, and nothing runs there",
    )
    effects.append(Publish(record.name, told))
    request = LayDown(
        key=f"lay_down/{record.host}/{record.number}",
        deadline_s=off_s + LOOK_S,
        at=record.at,
    )
    effects.append(Act(record.name, request))
    return kept(state, record.model_copy(update={"stage": Stage.SINKING}))


def laid(
    settings: Standby, state: FencerState, outcome: LaidDown, effects: list[Effect], now: float
) -> FencerState:
    record = reserve_of(state.records, outcome.host)
    if record.stage is not Stage.SINKING:
        return state
    wait_s = FENCED_S if outcome.done else max(settings.idle_s, LOOK_S)
    until = state.reserve.until.insert(record.host, now + wait_s)
    state = replace(state, reserve=replace(state.reserve, until=until))
    if outcome.done:
        return kept(state, record.model_copy(update={"stage": Stage.SILENT}))
    effects.append(Publish(record.name, failed(record, "off", outcome.detail)))
    return kept(state, record.model_copy(update={"stage": Stage.IN}))


def settled(state: FencerState, effects: list[Effect]) -> FencerState:
    """Those that count as fenced by now leave the pool, so that nobody misses them."""
    for record in list(state.records.values()):
        if not isinstance(record, Reserve) or record.stage is not Stage.SILENT or record.at is None:
            continue
        fence = state.fence(record.host)
        if fence is not None and fence.at == record.at and fence.phase is Phase.FENCED:
            state = dismissing(state, record, effects)
    return state


def dismissing(state: FencerState, record: Reserve, effects: list[Effect]) -> FencerState:
    assert record.at is not None
    number = record.number + 1
    request = Dismiss(key=f"dismiss/{record.host}/{number}", deadline_s=LOOK_S, at=record.at)
    effects.append(Act(record.name, request))
    until = state.reserve.until.discard(record.host)
    state = replace(state, reserve=replace(state.reserve, until=until))
    return kept(state, record.model_copy(update={"stage": Stage.LEAVING, "number": number}))


def dismissed(
    settings: Standby, state: FencerState, outcome: Dismissed, effects: list[Effect], now: float
) -> FencerState:
    record = reserve_of(state.records, outcome.host)
    if record.stage is not Stage.LEAVING or record.at is None:
        return state
    if not outcome.done:  # it is off and fenced, and misses nothing but our word: once more, after a while
        effects.append(Publish(record.name, failed(record, "off", outcome.detail)))
        until = state.reserve.until.insert(record.host, now + settings.boot_s)
        return replace(state, reserve=replace(state.reserve, until=until))
    state = replace(state, reserve=replace(state.reserve, until=state.reserve.until.discard(record.host)))
    off = StandbySwitchedOff(
        host=record.host, number=record.number, at=record.at, rule="switched off, and fenced"
    )
    effects.append(Publish(record.name, off))
    return kept(state, record.model_copy(update={"stage": Stage.OFF, "gone": record.at}))


def failed(record: Reserve, stage: str, reason: str) -> StandbyFailed:
    return StandbyFailed.model_validate(
        {
            "host": record.host,
            "number": record.number,
            "stage": stage,
            "reason": (reason or "no reason was given")[:300],
            "cause": record.cause,
        }
    )


def kept(state: FencerState, record: Reserve) -> FencerState:
    return replace(state, records=state.records.insert(record.name, record))
