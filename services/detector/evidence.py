"""Asking and weighing: which channels are asked next, and what their answers amount to."""

from __future__ import annotations

from libs.config.settings import Detection
from libs.core.decider import Act
from libs.core.evolve import replace
from libs.events.facts import Evidence as KeptEvidence
from libs.model import Answer, PowerState
from services.detector.asks import AskLibvirt, AskPeer, AskPower
from services.detector.state import Channel, DetectorState, HostRecord, Suspicion
from services.detector.verdict import Evidence

Kept = tuple[KeptEvidence, ...]
POWER, LIBVIRT, PEER = "power", "libvirt", "peer:"
PEERS_ASKED = 3


def next_round(
    suspicion: Suspicion, record: HostRecord, peers: tuple[str, ...], settings: Detection, now: float
) -> tuple[Suspicion, tuple[Act, ...]]:
    """Ask every channel that is not still being asked. Peers take turns where there are many."""
    turn = suspicion.round * PEERS_ASKED
    chosen = [peers[(turn + i) % len(peers)] for i in range(min(PEERS_ASKED, len(peers)))]
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
            key=f"{tag}/{peer}", deadline_s=2 * settings.ask_timeout_s, host=host, number=number, peer=peer
        )
        wanted[PEER + peer] = Act(None, ask)
    channels, acts = suspicion.channels, []
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


def evidence(state: DetectorState, host: str, settings: Detection, now: float) -> Evidence:
    """What the channels amount to at this moment. Answers older than three rounds count for nothing."""
    view = state.view(host)
    suspicion = view.suspicion
    silent_from = max(state.listening_since, view.heard_at or state.listening_since)
    if suspicion is None:
        return Evidence(now - silent_from, 0.0, False, False, False, 0)
    fresh_s = 3 * settings.ask_every_s + settings.ask_timeout_s
    fresh = {
        name: channel
        for name, channel in sorted(suspicion.channels.items())
        if channel.at is not None and now - channel.at <= fresh_s
    }
    power, libvirt = fresh.get(POWER), fresh.get(LIBVIRT)
    return Evidence(
        silent_s=now - silent_from,
        quiet_s=now - max(suspicion.since, suspicion.alive_at or suspicion.since),
        power_off=power is not None and power.power is PowerState.OFF,
        lives_elsewhere=any(c.answer in (Answer.UP, Answer.REFUSED) for c in fresh.values()),
        unreachable=libvirt is not None and libvirt.answer is Answer.SILENT,
        votes=sum(1 for n, c in fresh.items() if n.startswith(PEER) and c.answer is Answer.SILENT),
    )


def as_kept(suspicion: Suspicion | None, found: Evidence, now: float) -> Kept:
    """The evidence as it is kept in the event: who was asked, what came, how old it was."""
    kept = [KeptEvidence(channel="heartbeat", said="silent", age_s=round(found.silent_s, 3))]
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
    return tuple(kept)
