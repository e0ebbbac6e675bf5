"""When the host's watchdog is fed (DESIGN §4 rule 4), pure.

Only while the bus hears this host, a slot of it takes writes and carries no order to die, or a majority of its peers
sees it. What vouches for the host is counted from when it *sent* the word that was heard, and may be `lag_s` old when
the watchdog is fed: so the host outlives its last word that anybody knows of by the promise's `bound_s` at most. Arming
feeds, so nothing is armed without a voucher either; else an agent that starts again and again would keep a host alive
that nobody hears. docs/WATCHDOG.md has the whole argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rpds import HashTrieMap

from libs.core.decider import Act, Effect, Expired, Note, Publish
from libs.core.evolve import replace
from libs.events.hosts import HostWatchdogUnarmed
from libs.events.signals import Heard
from libs.model import Incarnation
from libs.promises import Promise, SlotOrder
from services.heartbeat.orders import (
    ArmWatchdog,
    FeedWatchdog,
    Greet,
    Greeted,
    KeepPromise,
    PromiseKept,
    PromiseRead,
    ReadPromise,
    WatchdogArmed,
    WatchdogFed,
    WatchdogUnarmed,
)

LAG_S = 1.0
"""How old a voucher may be when the watchdog is fed on it. A slower bus, slot or peer does not keep the host alive."""
GREET_AFTER_S = 1.5
"""Neither the bus nor a slot has vouched for so long: then peers are greeted, too."""
GREET_EVERY_S = 1.0
RETRY_S = 1.0
REARM_S = 10.0
DEADLINE_S = 10.0
FED_WITHIN, FEED_S = 10, 1.0
"""It is fed so often within its time-out and as often as that, and not oftener."""
NEVER = -math.inf
ALONE = "no datastore and no other host with an agent could vouch for this host: the loss of the bus alone would reset it"
KINDS = ("read_promise", "arm_watchdog", "feed_watchdog", "keep_promise", "greet")
Outcomes = PromiseRead | WatchdogArmed | WatchdogUnarmed | WatchdogFed | PromiseKept | Greeted
Effects = tuple[Effect, ...]


@dataclass(frozen=True, slots=True)
class Dog:
    """The host's watchdog as the pool file has it."""

    at: Incarnation
    life: str
    """Of its agent."""
    timeout_s: float
    peers: tuple[str, ...]
    """Who is asked whether they see us. No more than a host can greet each second."""
    datastores: tuple[str, ...]
    recalled: tuple[Promise, ...] = ()
    """Promises of which one stands for this boot, if any does, as an earlier life of its agent left them on the host's own
    disk. None: nothing is known before the bucket is read."""


@dataclass(frozen=True, slots=True)
class DogState:
    read: bool = False
    """It was read from the bucket what this boot has promised before."""
    promise: Promise | None = None
    """What stands in the bucket, by the last that is known of it."""
    trying: Promise | None = None
    """What may stand instead: its storing is under way, or came to no end."""
    armed_s: float | None = None
    """The time-out that the device really has; None while this life of the agent has not armed it."""
    busy: frozenset[str] = frozenset()
    """Kinds of acts that are under way, one of each at most."""
    retry_at: float = NEVER
    """When the bucket may be read or written next."""
    rearm_at: float = NEVER
    """When the device may be armed next, whatever the bus does."""
    heard_at: float = NEVER
    """When the latest heartbeat was sent of which the fencer that leads said that it heard it."""
    wrote_at: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """By datastore: when the latest write that it took was begun."""
    greeted_at: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """By peer: when the latest greeting was sent that it has noted."""
    greet_at: float = NEVER
    greeting_since: float = NEVER
    fed_at: float = NEVER
    die: tuple[int, float] = (0, NEVER)
    """The latest order to die, and when it was first read. Void once the bus has heard us since: who wrote it has."""
    told: str = ""
    acts: int = 0


def initial(dog: Dog) -> DogState:
    """What is known as a life of the agent begins. One that had to ask the bus first could feed nothing while that is
    away, whatever its slots and peers say (rule 4: losing the management plane alone touches no host)."""
    first, second = [*dog.recalled, None, None][:2]
    return DogState(promise=first, trying=second)


def perhaps(state: DogState) -> tuple[Promise, ...]:
    """The promises of which one stands, if any does: others may presume by any of them."""
    return tuple(one for one in (state.promise, state.trying) if one is not None)


def advertised_s(state: DogState) -> float | None:
    """What this host's heartbeats may say: only what is armed, and promised where it can be withdrawn by nobody else."""
    promise = state.promise
    stands = promise is not None and not promise.presumed and state.read
    return promise.timeout_s if stands and promise is not None and state.armed_s is not None else None


def told(state: DogState, event: object, dog: Dog, now: float) -> tuple[DogState, Effects] | None:
    """What an input changes; None where it is none of ours."""
    match event:
        case Heard():
            return heard(state, event, dog), ()
        case PromiseRead() | WatchdogArmed() | WatchdogUnarmed() | WatchdogFed() | PromiseKept() | Greeted():
            return done(state, event, dog, now)
        case Expired(request=kind, reason=reason) if kind in KINDS:
            return expired(state, kind, reason, dog, now)
        case _:
            return None


def heard(state: DogState, signal: Heard, dog: Dog) -> DogState:
    """The fencer that leads has heard a heartbeat of ours."""
    if signal.at != dog.at:
        return state
    return replace(state, heard_at=max(state.heard_at, signal.sent_at))


def wrote(
    state: DogState, datastore: str, began: float, order: SlotOrder | None, dog: Dog, now: float
) -> DogState:
    """A slot took a write, and this is what was ordered to us there."""
    state = replace(state, wrote_at=state.wrote_at.insert(datastore, began))
    if order is not None and order.die and order.boot == dog.at.boot and order.number > state.die[0]:
        state = replace(state, die=(order.number, now))
    return state


def vouched_at(state: DogState) -> float:
    """When the latest word was sent of which one of the three channels knows; -inf where none does. By whom we may be
    vouched for is only known from the promise that stands: where it may be either of two, both must say so."""
    return min((_vouched_by(state, one) for one in perhaps(state)), default=state.heard_at)


def _vouched_by(state: DogState, promise: Promise) -> float:
    slots = [at for name, at in state.wrote_at.items() if name in promise.datastores]
    if state.die[1] > state.heard_at:
        slots = []
    seen = sorted((at for peer, at in state.greeted_at.items() if peer in promise.peers), reverse=True)
    majority = seen[promise.majority - 1 : promise.majority]
    return max([state.heard_at, *slots, *majority])


def wake_at(state: DogState, dog: Dog) -> float | None:
    """When something is due by itself."""
    due = []
    if not state.read and "read_promise" not in state.busy:
        due.append(state.retry_at)
    if "keep_promise" not in state.busy and _wanted(state, dog) is not None:
        due.append(state.retry_at)
    if _greets(state):
        due.append(_greet_due(state))
    return min(due, default=None)


def done(state: DogState, outcome: Outcomes, dog: Dog, now: float) -> tuple[DogState, Effects]:
    """What an act of ours brought."""
    match outcome:
        case PromiseRead():
            return replace(_idle(state, "read_promise"), read=True, promise=outcome.promise, trying=None), ()
        case WatchdogArmed():
            state = _idle(state, "arm_watchdog")
            if outcome.too_late:
                return state, ()
            promised_s = min((one.timeout_s for one in perhaps(state)), default=outcome.timeout_s)
            if outcome.timeout_s > promised_s:  # it is not fed then: a promise may only be kept
                said = f"the device takes {outcome.timeout_s:g} s at least, and {promised_s:g} s are promised"
                return _failed(state, said, dog, now)
            return replace(state, armed_s=outcome.timeout_s, fed_at=now, told=""), ()
        case WatchdogUnarmed():
            return _failed(_idle(state, "arm_watchdog", "feed_watchdog"), outcome.reason, dog, now)
        case WatchdogFed():
            return replace(_idle(state, "feed_watchdog"), fed_at=now if outcome.fed else state.fed_at), ()
        case PromiseKept():
            state = replace(_idle(state, "keep_promise"), promise=outcome.promise, trying=None)
            over = Note("presumed fenced by its own promise: the watchdog is fed no more")
            return state, (over,) if outcome.promise.presumed else ()
        case Greeted():
            at = state.greeting_since
            noted = HashTrieMap({**dict(state.greeted_at), **dict.fromkeys(outcome.peers, at)})
            return replace(_idle(state, "greet"), greeted_at=noted, greet_at=now + GREET_EVERY_S), ()


def expired(state: DogState, kind: str, reason: str, dog: Dog, now: float) -> tuple[DogState, Effects]:
    """An act of ours came to no end, or the bus did not answer: nothing is known of what it did."""
    state = _idle(state, kind)
    if kind in ("arm_watchdog", "feed_watchdog"):
        return _failed(state, reason, dog, now)
    if kind == "greet":
        return replace(state, greet_at=now + GREET_EVERY_S), ()
    # of a promise it is not known any more which one stands
    read = state.read and kind != "keep_promise"
    return replace(state, retry_at=now + RETRY_S, read=read), ()


def due(state: DogState, dog: Dog, now: float) -> tuple[DogState, Effects]:
    """All that is to be done now."""
    effects: list[Effect] = []
    state = _reads(state, now, effects)
    state = _arms(state, dog, now, effects)
    state = _feeds(state, now, effects)
    state = _promises(state, dog, now, effects)
    if _greets(state) and now >= _greet_due(state):
        effects.append(Act(None, _greeting(state)))
        state = replace(_begun(state, "greet"), greeting_since=now)
    return state, tuple(effects)


def _reads(state: DogState, now: float, effects: list[Effect]) -> DogState:
    if state.read or "read_promise" in state.busy or now < state.retry_at:
        return state
    effects.append(Act(None, ReadPromise(key=f"promise/{state.acts}", deadline_s=DEADLINE_S)))
    return _begun(state, "read_promise")


def _arms(state: DogState, dog: Dog, now: float, effects: list[Effect]) -> DogState:
    """Take it over from an earlier life of the agent, or arm it first; a promise that stands bounds the time-out."""
    until = _fresh_until(state, now)
    busy, known = "arm_watchdog" in state.busy, state.read or bool(perhaps(state))
    if not known or state.armed_s is not None or busy or now < state.rearm_at or until is None:
        return state
    if not (dog.peers or dog.datastores or perhaps(state)):  # rule 4: losing the plane alone touches no host
        state, told = _failed(state, ALONE, dog, now)
        effects.extend(told)
        return state
    wanted_s = min([dog.timeout_s, *(one.timeout_s for one in perhaps(state))])
    arm = ArmWatchdog(key=f"arm/{state.acts}", deadline_s=DEADLINE_S, timeout_s=wanted_s, until=until)
    effects.append(Act(None, arm))
    return _begun(state, "arm_watchdog")


def _feeds(state: DogState, now: float, effects: list[Effect]) -> DogState:
    until = _fresh_until(state, now)
    if state.armed_s is None or "feed_watchdog" in state.busy or until is None:
        return state
    if now - state.fed_at < min(FEED_S, state.armed_s / FED_WITHIN):
        return state
    effects.append(Act(None, FeedWatchdog(key=f"feed/{state.acts}", deadline_s=DEADLINE_S, until=until)))
    return _begun(state, "feed_watchdog")


def _fresh_until(state: DogState, now: float) -> float | None:
    """Until when it may be fed; None: not now, nobody vouches for us, or we were presumed dead."""
    if any(one.presumed for one in perhaps(state)):
        return None
    until = vouched_at(state) + _lag_s(state)
    return until if now <= until else None


def _lag_s(state: DogState) -> float:
    """Shrinks, and never grows while a promise stands."""
    return min([LAG_S, *(one.lag_s for one in perhaps(state))])


def _wanted(state: DogState, dog: Dog) -> Promise | None:
    """What this life of the agent is to promise; None where nothing more is to be promised than stands."""
    if state.armed_s is None or not state.read or (state.promise is not None and state.promise.presumed):
        return None
    lag_s = LAG_S if state.promise is None else min(LAG_S, state.promise.lag_s)
    wanted = Promise(
        at=dog.at, timeout_s=state.armed_s, lag_s=lag_s, peers=dog.peers, datastores=dog.datastores
    )
    return None if wanted == state.promise else wanted


def _promises(state: DogState, dog: Dog, now: float, effects: list[Effect]) -> DogState:
    wanted = _wanted(state, dog)
    if wanted is None or "keep_promise" in state.busy or now < state.retry_at:
        return state
    keep = KeepPromise(key=f"keep/{state.acts}", deadline_s=DEADLINE_S, promise=wanted, instead=state.promise)
    effects.append(Act(None, keep))
    return replace(_begun(state, "keep_promise"), trying=wanted)


def _greets(state: DogState) -> bool:
    may = not any(one.presumed for one in perhaps(state)) and any(one.peers for one in perhaps(state))
    return may and "greet" not in state.busy


def _greeting(state: DogState) -> Greet:
    """All who may vouch for us; a majority will do where it is known of whom."""
    stands = perhaps(state)
    peers = tuple(dict.fromkeys(peer for one in stands for peer in one.peers))
    lag_s = _lag_s(state)
    return Greet(
        key=f"greet/{state.acts}",
        deadline_s=lag_s + 1.0,
        peers=peers,
        enough=stands[0].majority if len(stands) == 1 else len(peers),
        within_s=lag_s,
    )


def _greet_due(state: DogState) -> float:
    """Peers are bothered only where nobody else vouches."""
    quiet_since = max([state.heard_at, *state.wrote_at.values()])
    return max(quiet_since + GREET_AFTER_S, state.greet_at)


def _failed(state: DogState, reason: str, dog: Dog, now: float) -> tuple[DogState, Effects]:
    """It is armed anew after a while; until then nothing is advertised, and people are told once a reason."""
    state = replace(state, armed_s=None, rearm_at=now + REARM_S)
    if reason == state.told:
        return state, ()
    fact = HostWatchdogUnarmed(
        at=dog.at, agent=dog.life, number=state.acts, reason=reason[:300], rule="it is not promised"
    )
    return replace(state, told=reason), (Publish(dog.at.host, fact),)


def _begun(state: DogState, kind: str) -> DogState:
    return replace(state, busy=state.busy | {kind}, acts=state.acts + 1)


def _idle(state: DogState, *kinds: str) -> DogState:
    return replace(state, busy=state.busy - {*kinds})
