"""What is not known of a host, told once for a person to look: that it was never heard since we listen, or that nobody can
read its VMs. Neither is a verdict, and nothing is done about it: unknown is never *stopped* (DESIGN §4 rule 3).

Both are numbered in one row, and end by the fact that names the number: `host.joined` where the host is heard (or
`host.suspected`, once the quiet time is over), `host.vms_known` where its VMs are read again.
"""

from __future__ import annotations

from libs.core.decider import Effect, Step
from libs.core.evolve import replace
from libs.events.hosts import HostUnknown, HostVmsKnown, HostVmsUnknown
from libs.events.signals import Heartbeat
from libs.model import HostState
from services.detector.moves import move
from services.detector.state import DetectorState, HostRecord

State = DetectorState
KNOWN = "known from before; it is suspected once the quiet time is over"
JOIN_S = 60.0
"""For a host of which nothing is known to join, however short the quiet time: it may be switched on together with us."""
NEVER = "never heard of: does its agent run?"


def look(
    state: State, hosts: tuple[str, ...], standby: frozenset[str], after_s: float, now: float
) -> Step[State]:
    """Hosts of the pool that have not been heard for `after_s` since we began to listen. One of which nothing is known
    from before has the quiet time to join; one on standby has all the time there is."""
    effects: list[Effect] = []
    unheard_s = now - state.listening_since
    grace = state.listening_since + JOIN_S
    if unheard_s < after_s:
        return Step(state)
    for host in hosts:
        record = state.record(host)
        if record.state is not HostState.UNKNOWN or record.unheard or state.view(host).heard_at is not None:
            continue
        excused = record.removed or host in standby or now < max(state.quiet_until, grace)
        if record.at is None and excused:
            continue
        number = record.alerts + 1
        fact = HostUnknown(
            host=host,
            number=number,
            unheard_s=round(unheard_s, 1),
            rule=NEVER if record.at is None else KNOWN,
        )
        step = move(state, record.model_copy(update={"alerts": number, "unheard": number}), fact)
        state = step.state
        effects += step.effects
    return Step(state, tuple(effects))


def read(state: State, record: HostRecord, beat: Heartbeat, after_s: float) -> Step[State]:
    """A heartbeat's word on whether its agent can read the VMs."""
    if beat.unread_s >= after_s:
        return unreadable(state, record.host, beat.unread_s, "its libvirt does not answer its agent")
    return readable(state, record.host, "its agent reads them") if record.unread else Step(state)


def blind(state: State, host: str, why: str, after_s: float, now: float) -> Step[State]:
    """No look at the VMs of a host whose agent is down: told once that has lasted."""
    view = state.view(host)
    since = now if view.watching.blind_since is None else view.watching.blind_since
    view = replace(view, watching=replace(view.watching, blind_since=since))
    state = replace(state, views=state.views.insert(host, view))
    return unreadable(state, host, now - since, why) if now - since >= after_s else Step(state)


def doubtful(state: State, host: str, after_s: float, now: float) -> Step[State]:
    """A suspect that no rule can judge, for longer than any rule needs: its libvirt could never be asked, or it answers
    now and then. Of those that are named in a held storm, or are undecided, it was told why they wait."""
    record, suspicion = state.record(host), state.view(host).suspicion
    if record.state is not HostState.SUSPECT or record.undecided == record.number or suspicion is None:
        return Step(state)
    if state.storm is not None and host in state.storm.suspects:
        return Step(state)
    waited_s = now - max(suspicion.since, state.judge_from)
    if waited_s < after_s:
        return Step(state)
    return unreadable(state, host, waited_s, "it is silent, and no channel can tell whether it lives")


def unreadable(state: State, host: str, unread_s: float, why: str) -> Step[State]:
    """Nobody can tell what its VMs do. Said once."""
    record = state.record(host)
    if record.unread or record.at is None:
        return Step(state)
    number = record.alerts + 1
    fact = HostVmsUnknown(host=host, number=number, unread_s=round(unread_s, 1), rule=why[:300])
    return move(state, record.model_copy(update={"alerts": number, "unread": number}), fact)


def readable(state: State, host: str, how: str) -> Step[State]:
    """They are read again."""
    record = state.record(host)
    if not record.unread:
        return Step(state)
    fact = HostVmsKnown(host=host, number=record.unread, rule=how)
    return move(state, record.model_copy(update={"unread": 0}), fact)
