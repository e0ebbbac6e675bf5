"""Asking and weighing: which channels are asked next, and what their answers amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from rpds import HashTrieMap

from libs.config.settings import Detection
from libs.core.decider import Act
from libs.core.evolve import replace
from libs.events.hosts import Evidence as KeptEvidence
from libs.events.signals import SlotSeen
from libs.model import Answer, Incarnation, PowerState
from services.detector.asks import Answered, AskLibvirt, AskPeer, AskPower
from services.detector.state import Channel, DetectorState, HostRecord, HostView, SlotView, Suspicion, Unread
from services.detector.verdict import Evidence

Kept = tuple[KeptEvidence, ...]
Channels: TypeAlias = "HashTrieMap[str, Channel]"
POWER, LIBVIRT, PEER, SLOT = "power", "libvirt", "peer:", "slot:"
PEERS_ASKED = 3
PATIENCE = 2
"""So many times `ask_timeout_s` a peer's answer is waited for."""
SIGNS_KEPT = 2
SLOT_SPACING = 1.2
"""A slot stands still where two readings this many intervals apart show the same: a host that works has written
between them, unless its datastore stalls."""


def order(host: str, peers: Sequence[str], domains: Mapping[str, str]) -> list[str]:
    """Peers in the order of asking: a neighbour of the suspect's own failure domain, whose uplink is the same, then
    one of each other domain in turn."""
    by_domain: dict[str, list[str]] = {}
    for peer in peers:
        by_domain.setdefault(domains.get(peer, peer), []).append(peer)
    own = by_domain.pop(domains.get(host, host), [])
    others = [by_domain[name] for name in sorted(by_domain)]
    mixed = [group[i] for i in range(max(map(len, others), default=0)) for group in others if i < len(group)]
    return [*own[:1], *mixed, *own[1:]]


def next_round(
    suspicion: Suspicion, record: HostRecord, peers: Sequence[str], settings: Detection, now: float
) -> tuple[Suspicion, tuple[Act, ...]]:
    """Ask every channel that is not still being asked. Peers take turns where there are many; the first of them is
    asked in every round."""
    rest = peers[1:]
    turn = suspicion.round * (PEERS_ASKED - 1)
    chosen = [*peers[:1], *(rest[(turn + i) % len(rest)] for i in range(min(PEERS_ASKED - 1, len(rest))))]
    host, number = record.host, record.number
    tag = f"ask/{host}/{number}/{suspicion.round}"
    wanted: dict[str, Act] = {
        POWER: Act(
            None,
            AskPower(key=f"{tag}/power", deadline_s=4 * settings.ask_timeout_s, host=host, number=number),
        ),
        LIBVIRT: Act(
            None,
            AskLibvirt(key=f"{tag}/libvirt", deadline_s=2 * settings.ask_timeout_s, host=host, number=number),
        ),
    }
    for peer in chosen:
        ask = AskPeer(
            key=f"{tag}/{peer}",
            deadline_s=PATIENCE * settings.ask_timeout_s,
            host=host,
            number=number,
            peer=peer,
        )
        wanted[PEER + peer] = Act(None, ask)
    channels, acts = _of_use(suspicion.channels, settings, now), []
    for name, act in wanted.items():
        last = channels.get(name)
        waiting = last is not None and (last.at is None or last.at < last.asked_at)
        if waiting and last is not None and now - last.asked_at < act.request.deadline_s:
            continue
        channels = channels.insert(name, replace(last, asked_at=now) if last else Channel(asked_at=now))
        acts.append(act)
    later = replace(
        suspicion, round=suspicion.round + 1, ask_at=now + settings.ask_every_s, channels=channels
    )
    return later, tuple(acts)


def _of_use(channels: Channels, settings: Detection, now: float) -> Channels:
    """Without peers whose answer counts for nothing any more, or will not come: they take turns, and a suspicion that
    lasts would end with one entry for each host of the pool. Power and libvirt are asked in every round."""
    fresh_s, patience_s = _fresh_s(settings), PATIENCE * settings.ask_timeout_s
    for name, channel in channels.items():
        until = max(
            channel.asked_at + patience_s, channel.asked_at if channel.at is None else channel.at + fresh_s
        )
        if name.startswith(PEER) and until < now:
            channels = channels.discard(name)
    return channels


def answered(suspicion: Suspicion, event: Answered, at: Incarnation, now: float) -> Suspicion:
    """The suspicion with one more answer. A sign of life on any channel is kept with its time."""
    asked = suspicion.channels.get(event.channel)
    channel = Channel(
        asked_at=asked.asked_at if asked else now,
        at=now,
        answer=event.answer,
        power=event.power,
        detail=event.detail,
    )
    suspicion = replace(suspicion, channels=suspicion.channels.insert(event.channel, channel))
    if event.answer in (Answer.UP, Answer.REFUSED):
        since = now if suspicion.reached_since is None else suspicion.reached_since
        suspicion = replace(living(suspicion, event.channel, now), reached_since=since)
    elif event.channel == LIBVIRT:
        suspicion = replace(suspicion, reached_since=None)
    if event.answer is Answer.HANGS:
        suspicion = replace(suspicion, kernel_at=now)
    for seen in event.slots:
        if seen.trouble:
            word = Unread(event.channel.removeprefix(PEER), seen.trouble, now)
            suspicion = replace(suspicion, unread=suspicion.unread.insert(seen.datastore, word))
        else:
            suspicion = replace(suspicion, unread=suspicion.unread.discard(seen.datastore))
            suspicion = _read(suspicion, seen, at, channel.asked_at, now)
    return suspicion


def living(suspicion: Suspicion, channel: str, now: float) -> Suspicion:
    """The suspicion as after a sign of life on that channel. When the latest came on any other than one is asked: for
    that the latest two will do, whichever that one is."""
    latest = sorted(suspicion.signs.insert(channel, now).items(), key=lambda sign: sign[1])[-SIGNS_KEPT:]
    return replace(suspicion, alive_at=now, signs=HashTrieMap(latest))


def _read(suspicion: Suspicion, seen: SlotSeen, at: Incarnation, asked_at: float, now: float) -> Suspicion:
    """One reading of a slot. A slot of another boot, or that could not be read, says nothing of this one."""
    if seen.beat is None or seen.beat.boot != at.boot:
        return suspicion
    seq, known = seen.beat.seq, suspicion.slots.get(seen.datastore)
    if known is not None and seq < known.seq:
        return suspicion  # read earlier than what is known, and told later
    if known is not None and seq == known.seq:
        view = replace(known, still_at=max(known.still_at, asked_at))
    else:
        view = SlotView(seq, first_at=now - seen.age_s, still_at=asked_at)
    suspicion = replace(suspicion, slots=suspicion.slots.insert(seen.datastore, view))
    if known is not None and seq > known.seq:
        return replace(living(suspicion, SLOT + seen.datastore, now), moved_at=now)
    return suspicion


def evidence(
    state: DetectorState,
    host: str,
    settings: Detection,
    slot_interval_s: float,
    domains: Mapping[str, str],
    domains_known: int,
    now: float,
) -> Evidence:
    """What the channels amount to at this moment. Answers older than three rounds count for nothing.

    `domains` are the failure domains of hosts that have one named; `domains_known` those in which peers live."""
    view = state.view(host)
    suspicion = view.suspicion
    if suspicion is None:
        return Evidence(silent_s(state, host, now), 0.0, last_word=bool(view.last_word))
    fresh_s = _fresh_s(settings)
    fresh = {
        name: channel
        for name, channel in sorted(suspicion.channels.items())
        if channel.at is not None and now - channel.at <= fresh_s
    }
    power, libvirt = fresh.get(POWER), fresh.get(LIBVIRT)
    voters = [
        name.removeprefix(PEER)
        for name, channel in fresh.items()
        if name.startswith(PEER) and channel.answer is Answer.SILENT
    ]
    alive_at = max(at for at in (suspicion.since, suspicion.alive_at, suspicion.alone_at) if at is not None)
    signs = [name for name, channel in fresh.items() if channel.answer in (Answer.UP, Answer.REFUSED)]
    lone = len(signs) == 1 and signs[0].startswith(PEER)
    return Evidence(
        silent_s=silent_s(state, host, now),
        quiet_s=now - max(alive_at, suspicion.kernel_at or alive_at),
        hung_s=now - alive_at,
        power_off=power is not None and power.power is PowerState.OFF,
        last_word=bool(view.last_word),
        lives_elsewhere=bool(signs),
        lone=lone,
        lone_s=_quiet_but_for(suspicion, signs[0], now) if lone else 0.0,
        unreachable=libvirt is not None and libvirt.answer in (Answer.SILENT, Answer.HANGS),
        hangs=any(c.answer is Answer.HANGS for c in fresh.values()),
        votes=len(voters),
        domains=len({domains.get(peer, peer) for peer in voters}),
        domains_known=domains_known,
        neighbour=host in domains and any(domains.get(peer) == domains[host] for peer in voters),
        slot_moves=suspicion.moved_at is not None and now - suspicion.moved_at <= fresh_s,
        slot_still=_still(suspicion, slot_interval_s, fresh_s, now),
    )


def _quiet_but_for(suspicion: Suspicion, channel: str, now: float) -> float:
    """For how long no other channel than this one has brought a sign of life, a kernel's answer included."""
    signs = (at for name, at in suspicion.signs.items() if name != channel)
    others = (suspicion.since, suspicion.alone_at, suspicion.kernel_at, *signs)
    return now - max(at for at in others if at is not None)


def silent_s(state: DetectorState, host: str, now: float) -> float:
    """Since its last heartbeat, or since we began to listen."""
    return now - max(state.listening_since, state.view(host).heard_at or state.listening_since)


def _fresh_s(settings: Detection) -> float:
    return 3 * settings.ask_every_s + settings.ask_timeout_s


def lives(view: HostView, settings: Detection, now: float) -> bool:
    """It spoke, or showed that it lives, just now."""
    fresh_s = _fresh_s(settings)
    if view.heard_at is not None and now - view.heard_at <= fresh_s:
        return True
    alive_at = None if view.suspicion is None else view.suspicion.alive_at
    return alive_at is not None and now - alive_at <= fresh_s


def _still(suspicion: Suspicion, slot_interval_s: float, fresh_s: float, now: float) -> bool:
    """Some slot was read twice with room for a write between, none has moved in that time."""
    spaced_s = SLOT_SPACING * slot_interval_s
    views = suspicion.slots.values()
    still = any(v.still_at - v.first_at >= spaced_s and now - v.still_at <= fresh_s for v in views)
    return still and (suspicion.moved_at is None or now - suspicion.moved_at > fresh_s)


def as_kept(suspicion: Suspicion | None, found: Evidence, last_word: str, now: float) -> Kept:
    """The evidence as it is kept in the event: who was asked, what came, how old it was."""
    kept = [KeptEvidence(channel="heartbeat", said="silent", age_s=round(found.silent_s, 3))]
    if last_word:
        kept.append(KeptEvidence(channel="last word", said=last_word))
    for name, channel in sorted(suspicion.channels.items()) if suspicion else ():
        said = channel.power.value if name == POWER else channel.answer.value
        age_s = None if channel.at is None else round(now - channel.at, 3)
        kept.append(
            KeptEvidence(
                channel=name,
                said="asked, no answer yet" if channel.at is None else said,
                age_s=age_s,
                detail=channel.detail[:200],
            )
        )
    for name, view in sorted(suspicion.slots.items()) if suspicion else ():
        still_s = round(max(0.0, view.still_at - view.first_at), 3)
        said = f"write {view.seq}, unchanged for {still_s} s"
        kept.append(KeptEvidence(channel=SLOT + name, said=said, age_s=round(now - view.still_at, 3)))
    for name, word in sorted(suspicion.unread.items()) if suspicion else ():
        said, detail = "could not be read", f"{word.peer}: {word.trouble}"
        kept.append(
            KeptEvidence(channel=SLOT + name, said=said, age_s=round(now - word.at, 3), detail=detail)
        )
    return tuple(kept)
