"""Hosts on standby: which are switched on when the pool is short, and which off again. Pure.

Power on is no fencing, and power off is one: a host that is switched off here is held failed and fenced like any other, by
the same proof, so that a VM that somebody has started there in the last moment is restarted elsewhere. A host whose end is
not dealt with is never switched on, one on which anything runs never off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.config.standby import Standby
from libs.core.decider import Act, Effect, Expired, Input, Publish, Step
from libs.core.evolve import replace
from libs.events.capacity import CapacityOvercommitted, CapacityRestored
from libs.events.failovers import CapacityExhausted, CapacityRelieved
from libs.events.hosts import HostFailed, HostJoined, HostRecovered
from libs.events.standby import StandbySwitchedOn
from libs.events.words import HostRemoved
from libs.model import Incarnation
from services.fencer import retiring
from services.fencer.reserve import (
    AWAY,
    SHORTAGE,
    Dismissed,
    LaidDown,
    LookedIdle,
    Reserve,
    ReserveState,
    Rouse,
    Roused,
    Stage,
    reserve_of,
    shortage_of,
)
from services.fencer.retiring import FENCED_S, LOOK_S
from services.fencer.state import OPEN, ORDERS, FencerState, Phase

KINDS = (
    "capacity.exhausted",
    "capacity.relieved",
    "capacity.overcommitted",
    "capacity.restored",
    "host.removed",
)
ABOUT = ("rouse", "look_idle", "lay_down", "dismiss")
"""The requests of this part."""
SETTLE_S = 30.0
"""For placement to plan what waits, and to see what the pool tolerates, once a host has joined."""
RELIEVED_KEPT = 64
BY = "standby"
TIMED = (Stage.BOOTING, Stage.SPOILT, Stage.SILENT, Stage.LEAVING)
"""Stages that end by a time."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """How it is done; without settings nothing is. `sizes`: by host its memory in MiB, None where the pool file does not
    say it. `on_s` and `off_s`: how long its devices may take."""

    settings: Standby | None = None
    sizes: Mapping[str, int | None] = field(default_factory=dict)
    on_s: Mapping[str, float] = field(default_factory=dict)
    off_s: Mapping[str, float] = field(default_factory=dict)


def follow(how: Keeping, step: Step[FencerState], event: Input | None, now: float) -> Step[FencerState]:
    """What an input means for hosts on standby, after the fencer's own part of it."""
    if how.settings is None:
        return step
    effects: list[Effect] = list(step.effects)
    before = step.state
    state = _heard(how, how.settings, before, event, effects, now)
    state = _ripe(state, now)
    state = _due(how.settings, state, effects, now)
    state = retiring.settled(state, effects)
    state = _raised(how, state, effects)
    state = retiring.lowered(state, effects)
    return Step(state, tuple(effects))


def resumed(how: Keeping, state: FencerState, now: float) -> FencerState:
    """Another fencer counted these times, nobody knows from when: they begin anew."""
    if how.settings is None:
        return state
    short = shortage_of(state.records)
    kept = ReserveState()
    if short.overcommitted:
        kept = replace(kept, lasting_at=now + how.settings.overcommitted_s)
    elif not short.waiting and how.settings.idle_s:
        kept = replace(kept, quiet_at=now + how.settings.idle_s)
    for host in how.sizes:
        stage = reserve_of(state.records, host).stage
        wait_s = how.settings.idle_s if stage is Stage.IN else 0.0
        if stage in TIMED:
            wait_s = FENCED_S if stage is Stage.SILENT else how.settings.boot_s
        if wait_s:
            kept = replace(kept, until=kept.until.insert(host, now + wait_s))
    return replace(state, reserve=kept)


def wake_at(state: FencerState) -> float | None:
    """The next moment at which something of this is due."""
    own = state.reserve
    times = [*own.until.values(), *own.fresh.values()]
    times += [at for at in (own.lasting_at, own.quiet_at) if at is not None]
    return min(times, default=None)


def _ripe(state: FencerState, now: float) -> FencerState:
    """Times that have come: what waited for them may be done from now on, whenever nothing else is in its way."""
    own = state.reserve
    for host, at in own.fresh.items():
        if at <= now:
            own = replace(own, fresh=own.fresh.discard(host))
    for host, at in own.until.items():
        if at <= now and reserve_of(state.records, host).stage not in TIMED:
            own = replace(own, until=own.until.discard(host))
    if own.lasting_at is not None and own.lasting_at <= now:
        own = replace(own, lasting_at=None, lasts=True)
    if own.quiet_at is not None and own.quiet_at <= now:
        own = replace(own, quiet_at=None, quiet=True)
    return state if own is state.reserve else replace(state, reserve=own)


# -- what is heard


def _heard(
    how: Keeping,
    settings: Standby,
    state: FencerState,
    event: Input | None,
    effects: list[Effect],
    now: float,
) -> FencerState:
    match event:
        case CapacityExhausted() | CapacityRelieved() | CapacityOvercommitted() | CapacityRestored():
            return _short(settings, state, event, now)
        case HostJoined(at=at) if at.host in how.sizes:
            return _joined(settings, state, event, now)
        case HostFailed(at=at) if at.host in how.sizes:
            if not event.expected:
                return _moved(state, at, Stage.IN, Stage.LOST)
            # it is off after all, where its devices could not say so
            until = state.reserve.until.insert(at.host, now + FENCED_S)
            state = replace(state, reserve=replace(state.reserve, until=until))
            return _moved(state, at, Stage.IN, Stage.SILENT)
        case HostRecovered(at=at) if at.host in how.sizes:
            return _moved(state, at, Stage.LOST, Stage.IN)
        case HostRemoved(at=at) if at.host in how.sizes:
            record = reserve_of(state.records, at.host)
            if record.at != at or record.stage in AWAY:
                return state
            return retiring.kept(state, record.model_copy(update={"stage": Stage.OFF, "gone": at}))
        case Roused() if event.host in how.sizes:
            return _roused(settings, state, event, effects, now)
        case LookedIdle() if event.host in how.sizes:
            return retiring.looked(how.off_s.get(event.host, 180.0), settings, state, event, effects, now)
        case LaidDown() if event.host in how.sizes:
            return retiring.laid(settings, state, event, effects, now)
        case Dismissed() if event.host in how.sizes:
            return retiring.dismissed(settings, state, event, effects, now)
        case Expired(request=request, key=key) if request in ABOUT:
            host = key.split("/")[1]
            failed: Roused | LookedIdle | LaidDown | Dismissed
            if request == "rouse":
                failed = Roused(key=key, host=host, detail=event.reason)
            elif request == "look_idle":
                failed = LookedIdle(key=key, host=host, refused=event.reason)
            elif request == "lay_down":
                failed = LaidDown(key=key, host=host, done=False, detail=event.reason)
            else:
                failed = Dismissed(key=key, host=host, done=False, detail=event.reason)
            return _heard(how, settings, state, failed, effects, now)
        case _:
            return state


def _short(
    settings: Standby,
    state: FencerState,
    fact: CapacityExhausted | CapacityRelieved | CapacityOvercommitted | CapacityRestored,
    now: float,
) -> FencerState:
    before = shortage_of(state.records)
    own = state.reserve
    update: dict[str, object]
    match fact:
        case CapacityExhausted(incident=incident, revision=revision):
            known = max(before.relieved.get(incident, 0), before.waiting.get(incident, (0, {}))[0])
            if revision <= known:
                return state
            sizes = {one.vm: one.memory_mib for one in fact.waiting}
            update = {"waiting": {**before.waiting, incident: (revision, sizes)}, "cause": fact.key}
        case CapacityRelieved(incident=incident, revision=revision):
            waiting = {
                name: one for name, one in before.waiting.items() if name != incident or one[0] > revision
            }
            over = {**before.relieved, incident: max(revision, before.relieved.get(incident, 0))}
            update = {"waiting": waiting, "relieved": dict(list(over.items())[-RELIEVED_KEPT:])}
        case CapacityOvercommitted(number=number):
            if number > before.over and number > before.restored:
                own = replace(own, lasting_at=now + settings.overcommitted_s, lasts=False)
            update = {"over": max(before.over, number), "cause": before.cause or fact.key}
        case CapacityRestored(number=number):
            update = {"restored": max(before.restored, number)}
            if number >= before.over:
                own = replace(own, lasting_at=None, lasts=False)
    after = before.model_copy(update=update)
    if after == before:
        return state
    if after.waiting or after.overcommitted:
        own = replace(own, quiet_at=None, quiet=False)
    else:
        after = after.model_copy(update={"cause": ""})
        if settings.idle_s and not own.quiet:
            own = replace(own, quiet_at=now + settings.idle_s)
    return replace(state, records=state.records.insert(SHORTAGE, after), reserve=own)


def _joined(settings: Standby, state: FencerState, fact: HostJoined, now: float) -> FencerState:
    record = reserve_of(state.records, fact.at.host)
    if fact.epoch < record.epoch or fact.at in (record.at, record.gone):
        return state  # told again, or late
    return _inside(settings, state, record, fact.at, fact.epoch, now)


def _inside(
    settings: Standby, state: FencerState, record: Reserve, at: Incarnation, epoch: int, now: float
) -> FencerState:
    record = record.model_copy(update={"stage": Stage.IN, "at": at, "epoch": epoch, "cause": ""})
    own = state.reserve
    own = replace(
        own,
        until=own.until.discard(record.host),
        fresh=own.fresh.insert(record.host, now + SETTLE_S),
    )
    if settings.idle_s:
        own = replace(own, until=own.until.insert(record.host, now + settings.idle_s))
    return retiring.kept(replace(state, reserve=own), record)


def _moved(state: FencerState, at: Incarnation, before: Stage, after: Stage) -> FencerState:
    """It failed as any host may, or is back from that."""
    record = reserve_of(state.records, at.host)
    looked_at = before is Stage.IN and record.stage is Stage.LOOKED_AT
    if record.at != at or (record.stage is not before and not looked_at):
        return state
    return retiring.kept(state, record.model_copy(update={"stage": after}))


# -- switching on


def _raised(how: Keeping, state: FencerState, effects: list[Effect]) -> FencerState:
    """Switch on as many as it takes, those first that are just large enough. One whose size nobody knows is held to be
    enough, until it has joined and it was not."""
    shortage = shortage_of(state.records)
    if not shortage.waiting and not (shortage.overcommitted and state.reserve.lasts):
        return state
    coming = [host for host in how.sizes if _coming(state, host)]
    missing = float(shortage.missing_mib) if shortage.waiting else 1.0
    room = sum(_size(how, host) for host in coming)
    for host in sorted(
        (one for one in how.sizes if _available(state, one) and _size(how, one) >= shortage.largest_mib),
        key=lambda one: (_size(how, one), one),
    ):
        if room >= missing:
            break
        room += _size(how, host)
        record = reserve_of(state.records, host)
        number = record.number + 1
        update = {"stage": Stage.RISING, "number": number, "cause": shortage.cause}
        request = Rouse(
            key=f"rouse/{host}/{number}", deadline_s=how.on_s.get(host, 180.0) + LOOK_S, host=host
        )
        effects.append(Act(record.name, request))
        state = retiring.kept(state, record.model_copy(update=update))
    return state


def _coming(state: FencerState, host: str) -> bool:
    stage = reserve_of(state.records, host).stage
    return stage in (Stage.RISING, Stage.BOOTING) or (stage is Stage.IN and host in state.reserve.fresh)


def _available(state: FencerState, host: str) -> bool:
    """It is off, and nothing of its former boots is open."""
    fence = state.fence(host)
    if reserve_of(state.records, host).stage is not Stage.OFF or state.switched(host):
        return False
    return fence is None or fence.phase not in (*OPEN, *ORDERS, Phase.EXPECTED)


def _size(how: Keeping, host: str) -> float:
    size = how.sizes[host]
    return float("inf") if size is None else float(size)


def _roused(
    settings: Standby, state: FencerState, outcome: Roused, effects: list[Effect], now: float
) -> FencerState:
    record = reserve_of(state.records, outcome.host)
    if record.stage is not Stage.RISING:
        return state  # it has joined meanwhile
    if outcome.joined is not None:
        return _inside(settings, state, record, outcome.joined, record.epoch, now)
    until = state.reserve.until.insert(record.host, now + settings.boot_s)
    state = replace(state, reserve=replace(state.reserve, until=until))
    if not outcome.done:
        effects.append(Publish(record.name, retiring.failed(record, "on", outcome.detail)))
        stage = Stage.LOST if outcome.forbidden else Stage.SPOILT
        return retiring.kept(state, record.model_copy(update={"stage": stage}))
    told = StandbySwitchedOn(
        host=record.host,
        number=record.number,
        boot_s=settings.boot_s,
        cause=record.cause,
        rule="the pool is short",
    )
    effects.append(Publish(record.name, told))
    return retiring.kept(state, record.model_copy(update={"stage": Stage.BOOTING}))


def _due(settings: Standby, state: FencerState, effects: list[Effect], now: float) -> FencerState:
    for host, at in sorted(state.reserve.until.items()):
        record = reserve_of(state.records, host)
        if at > now or record.stage not in TIMED:
            continue
        if record.stage is Stage.LEAVING:
            state = retiring.dismissing(state, record, effects)
            continue
        until = state.reserve.until.insert(host, now + settings.boot_s)
        state = replace(state, reserve=replace(state.reserve, until=until))
        if record.stage is Stage.SPOILT:
            state = retiring.kept(state, record.model_copy(update={"stage": Stage.OFF}))
            continue
        number = record.number + 1
        record = record.model_copy(update={"number": number})
        if record.stage is Stage.BOOTING:
            reason = f"its power is on and its agent has not joined within {settings.boot_s:g} s"
            effects.append(Publish(record.name, retiring.failed(record, "boot", reason)))
            record = record.model_copy(update={"stage": Stage.SPOILT})
        else:
            reason = f"it was switched off and does not count as fenced after {FENCED_S:g} s"
            effects.append(Publish(record.name, retiring.failed(record, "off", reason)))
        state = retiring.kept(state, record)
    return state
