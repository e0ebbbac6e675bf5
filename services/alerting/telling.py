"""How people are told: at once after a quiet time, else with the next digest; one message at a time to a channel. Pure."""

from __future__ import annotations

from typing import Literal

from libs.config.alerts import Alerts
from libs.core.decider import Act, Effect
from libs.core.evolve import replace
from services.alerting.notices import Alert, Message, Tell
from services.alerting.state import StandingState, merged, name_of, notice, timed

TELL_S = 30.0
FIRST_S, MOST_S, TRIES = 2.0, 300.0, 290
"""Pauses between tries to tell people, for about a day."""


def queue(
    state: StandingState,
    alert: Alert,
    what: Literal["firing", "resolved"],
    settings: Alerts,
    effects: list[Effect],
    now: float,
) -> StandingState:
    """This is to be told of the alert: at once after a quiet time, else with the next digest. It stands in the alert's own
    record until it is in a message's, so that neither a kill between two writings nor one before the digest loses it."""
    name = name_of(alert.key)
    alert = alert.model_copy(update={"untold": what, "over": what == "resolved"})
    rest = tuple(one for one in state.pending if one != name)
    state = replace(state, records=state.records.insert(name, alert), pending=(*rest, name))
    return state if state.quiet_until is not None else flush(state, settings, effects, now)


def flush(state: StandingState, settings: Alerts, effects: list[Effect], now: float) -> StandingState:
    """Put what waits into messages."""
    names, state = state.pending, replace(state, pending=(), quiet_until=None)
    alerts = [alert for name in names if isinstance(alert := state.records.get(name), Alert) and alert.untold]
    if not alerts:
        return state
    pending = [notice(alert, alert.untold) for alert in alerts]
    for channel in settings.channels:
        wanted = tuple(one for one in pending if one.severity.value in channel.severities)
        if not wanted:
            continue
        record = f"message.{channel.name}"
        on_its_way = state.records.get(record)
        if not isinstance(on_its_way, Message):
            state = send(state, record, Message(channel=channel.name, notices=wanted), effects)
            continue
        # one at a time: what is sent again must not come after what is newer
        after = on_its_way.model_copy(update={"next": merged(on_its_way.next, wanted)})
        state = replace(state, records=state.records.insert(record, after))
    records = state.records
    for alert in alerts:
        told = alert.model_copy(update={"untold": "", "told": True})
        name = name_of(alert.key)
        records = records.remove(name) if alert.over else records.insert(name, told)
    return replace(state, records=records, quiet_until=now + settings.digest_s)


def send(state: StandingState, record: str, message: Message, effects: list[Effect]) -> StandingState:
    changes = {
        "notices": merged(message.notices, message.next),
        "next": (),
        "tries": message.tries + 1,
        "waits": False,
    }
    message = message.model_copy(update=changes)
    request = Tell(
        key=f"tell/{record}/{message.tries}",
        deadline_s=TELL_S,
        channel=message.channel,
        record=record,
        notices=message.notices,
    )
    effects.append(Act(record, request))
    timers = state.timers.discard(f"send/{record}")
    return replace(state, records=state.records.insert(record, message), timers=timers)


def said(state: StandingState, record: str, ok: bool, effects: list[Effect], now: float) -> StandingState:
    """Taken, or given up after a day: what came meanwhile is next. Else it is tried again together with that."""
    message = state.records.get(record)
    if not isinstance(message, Message) or message.waits:
        return state
    if not ok and message.tries < TRIES:
        wait_s = min(FIRST_S * 2.0 ** min(message.tries - 1, 16), MOST_S)
        records = state.records.insert(record, message.model_copy(update={"waits": True}))
        return timed(replace(state, records=records), f"send/{record}", now + wait_s)
    if not message.next:
        return replace(state, records=state.records.remove(record))
    following = Message(channel=message.channel, notices=message.next, tries=0 if ok else TRIES - 1)
    return send(state, record, following, effects)
