"""A host presumed fenced by its own promise (DESIGN §4 rule 4), pure.

It promised to live for `bound_s` at most after the last word that one of its channels knows. So it is presumed only once
that has passed, by our clock and with a margin, since the last of these words was *received*: by us over the bus, who
alone say "heard"; by a slot, which shows its last write; by a majority of its peers, to whom it says so directly. The
last look at slots and peers begins after all of that has passed: what they know of by then would show. Any sign of
life, a break in our own hearing or another fencer in our place begins the count again; and the promise is claimed by
compare-and-set in the end, so that it has stood all the while. docs/WATCHDOG.md has the whole argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rpds import HashTrieMap

from libs.core.decider import Act, Effect, Expired, Records, Send
from libs.core.evolve import replace
from libs.events.signals import Heard, Heartbeat
from libs.model import Answer, FenceProof, ProofMethod
from libs.promises import Promise, SlotBeat
from services.fencer.state import OPEN, FenceRecord
from services.fencer.watches import (
    NEVER,
    AskUnseen,
    Claimed,
    ClaimPromise,
    Mark,
    Peer,
    PresumeState,
    PromiseSeen,
    ReadPromise,
    Shown,
    Unseen,
    Watch,
    Word,
)

DRIFT = 0.01
"""Clocks, the watchdog's own among them, run apart by this share at most."""
ASK_EVERY_S = 1.0
SLACK_S = 0.6
"""For a question and its answer to cross the bus, beside the look that it asks for."""
READ_S = 5.0
PATIENCE_S = 3.0
"""For the last rounds."""
READ_AGAIN_S = 1.0
LOOK_OLD_S = 3.0
"""So old may a peer's own look be in the last round: what it shows beside the rest is not needed for the argument."""
STILL_S = 0.5
"""Between two readings of a slot that show the same."""
SIGNS = (Answer.UP, Answer.REFUSED, Answer.HANGS)
"""A peer that had such an answer saw it then, and is none of those to whom it was unseen all the while."""


@dataclass(frozen=True, slots=True)
class Presume:
    """How: of the fencer's settings."""

    margin_s: float
    ask_timeout_s: float

    def wait_s(self, promise: Promise) -> float:
        """How long after the last word that a host with this promise is presumed fenced."""
        return promise.bound_s * (1 + DRIFT) + self.margin_s


def heard(state: PresumeState, beat: Heartbeat, now: float) -> tuple[PresumeState, tuple[Effect, ...]]:
    """A heartbeat of a host that wants to know whether it is heard."""
    if beat.sent_at is None:
        return state, ()
    word = Word(beat.at, beat.agent, beat.slot_seq, now)
    watch = state.watches.get(beat.at.host)
    watches = state.watches
    if watch is not None and watch.at == beat.at:
        again = replace(_begun(watch, now), slots=HashTrieMap(), sign="")
        watches = watches.insert(beat.at.host, again)
    state = replace(state, words=state.words.insert(beat.at.host, word), watches=watches)
    return state, (Send(f"heard.{beat.at.host}", Heard(at=beat.at, sent_at=beat.sent_at)),)


def anew(state: PresumeState, now: float) -> PresumeState:
    """We stood still, were deaf, or lead only from now on: nothing that we did not hear counts (rule 6)."""
    watches = HashTrieMap({host: _begun(watch, now) for host, watch in state.watches.items()})
    return replace(state, since=now, watches=watches)


def follow(state: PresumeState, records: Records, hosts: Iterable[str], now: float) -> PresumeState:
    """Watch those of the hosts with a watchdog whose incident is open, and no others."""
    for host in hosts:
        record, watch = records.get(host), state.watches.get(host)
        if not isinstance(record, FenceRecord) or record.phase not in OPEN:
            if watch is not None:
                state = replace(state, watches=state.watches.discard(host))
        elif record.recovered:
            continue
        elif watch is None or watch.incident != record.incident:
            word = state.words.get(host)
            heard_at = word.heard_at if word is not None and word.at == record.at else NEVER
            made = Watch(record.at, record.incident, max(state.since, heard_at), opened=now)
            state = replace(state, watches=state.watches.insert(host, made))
    return state


def wake_at(state: PresumeState) -> float | None:
    """The next reading or round."""
    due = [watch.read_at for watch in state.watches.values() if not watch.read and not watch.reading]
    due += [
        watch.ask_at for watch in state.watches.values() if watch.promise is not None and not watch.claiming
    ]
    return min(due, default=None)


def due(state: PresumeState, how: Presume, now: float) -> tuple[PresumeState, tuple[Effect, ...]]:
    """Readings and rounds that are due."""
    effects: list[Effect] = []
    for host, watch in sorted(state.watches.items()):
        if not watch.read and not watch.reading and now >= watch.read_at:
            effects.append(_read(watch))
            watch = replace(watch, reading=True, round=watch.round + 1)
        elif watch.promise is not None and not watch.claiming and now >= watch.ask_at:
            watch, acts = _round(watch, watch.promise, how, now)
            effects += acts
        else:
            continue
        state = replace(state, watches=state.watches.insert(host, watch))
    return state, tuple(effects)


def _read(watch: Watch) -> Act:
    key = f"read/{watch.incident}/{watch.round}"
    return Act(None, ReadPromise(key=key, deadline_s=READ_S, host=watch.at.host, incident=watch.incident))


def _round(watch: Watch, promise: Promise, how: Presume, now: float) -> tuple[Watch, list[Act]]:
    """Ask all of its peers. As soon as its time is over a round asks for no looks, and takes those of the round before."""
    over_at = watch.since + how.wait_s(promise)
    quick = now >= over_at and not watch.quick
    acts = [
        Act(
            None,
            AskUnseen(
                key=f"unseen/{watch.incident}/{watch.round}/{peer}",
                deadline_s=how.ask_timeout_s + SLACK_S + 1.0,
                host=watch.at.host,
                incident=watch.incident,
                peer=peer,
                asked_at=now,
                quick=quick,
                within_s=how.ask_timeout_s + SLACK_S,
            ),
        )
        for peer in promise.peers
    ]
    later = now + ASK_EVERY_S
    ask_at = over_at if now < over_at < later + ASK_EVERY_S / 2 else later
    return replace(watch, round=watch.round + 1, asked_at=now, ask_at=ask_at, quick=quick), acts


def promised(state: PresumeState, outcome: PromiseSeen, now: float) -> PresumeState:
    """What the host promised. Where an earlier life of ours has claimed it, and did not come to tell, the count is kept
    all the same: that it was claimed is no evidence of its silence since."""
    watch, promise = _of(state, outcome.incident), outcome.promise
    if watch is None:
        return state
    mine = promise is not None and promise.at == watch.at and not promise.withdrawn
    watch = replace(watch, read=True, reading=False, promise=promise if mine else None)
    return _kept(state, replace(watch, revision=outcome.revision, ask_at=now))


def answered(
    state: PresumeState, outcome: Unseen, how: Presume, now: float
) -> tuple[PresumeState, tuple[Effect, ...]]:
    """What a peer sees; with the last that was missing its promise is claimed."""
    watch = _of(state, outcome.incident)
    if watch is None or watch.promise is None:
        return state, ()
    word = state.words.get(watch.at.host)
    greeted_by = None if outcome.unheard_s is None else now - outcome.unheard_s / (1 + DRIFT)
    before = watch.peers.get(outcome.peer, Peer(NEVER, None))
    peer = replace(before, asked_at=outcome.asked_at, greeted_by=greeted_by)
    if not outcome.quick:
        peer = replace(peer, answer=outcome.answer, looked_at=outcome.asked_at)
        peer = replace(peer, seen_at=now) if outcome.answer in SIGNS else peer
    promise, watch = watch.promise, replace(watch, peers=watch.peers.insert(outcome.peer, peer))
    for seen in outcome.slots:
        if not seen.trouble and seen.datastore in promise.datastores:
            watch = _shown(watch, word, seen.datastore, seen.beat, outcome.asked_at, now)
    if watch.claiming or lacking(watch, how, watch.asked_at):
        return _kept(state, watch), ()
    claim = ClaimPromise(
        key=f"claim/{watch.incident}/{watch.round}",
        deadline_s=READ_S,
        incident=watch.incident,
        promise=promise,
        revision=watch.revision,
    )
    return _kept(state, replace(watch, claiming=True)), (Act(None, claim),)


def _shown(
    watch: Watch, word: Word | None, datastore: str, beat: SlotBeat | None, asked_at: float, now: float
) -> Watch:
    """One reading. What is shown was begun before its announcement, or before it was first seen; a write that hung may
    land late and show an older one again, so that only two readings tell that it stands still. Where nothing of this boot
    is shown that is no reading: its reader may be looking at another place."""
    if beat is None or beat.boot != watch.at.boot:
        return watch
    known, life, seq = watch.slots.get(datastore), beat.life, beat.seq
    if known is not None and (known.mark.life, known.mark.seq) == (life, seq):
        again = replace(known, last_at=max(known.last_at, asked_at))
        return replace(watch, slots=watch.slots.insert(datastore, again))
    if known is not None and (asked_at < known.last_at or (life == known.mark.life and seq < known.mark.seq)):
        return watch  # read before what is known, or through a cache
    announced = word is not None and word.at == watch.at and word.life == life and seq <= word.slot_seq
    by = word.heard_at if known is None and announced and word is not None else now
    watch = replace(
        watch, slots=watch.slots.insert(datastore, Shown(Mark(life, seq, by), asked_at, asked_at))
    )
    if known is None:
        return watch
    return replace(_begun(watch, now), sign=f"its slot on {datastore} moves")


def claimed(state: PresumeState, outcome: Claimed, now: float) -> tuple[PresumeState, FenceProof | None]:
    """Ours: it has stood all the while. Else it was changed meanwhile, and the count begins again."""
    watch = _of(state, outcome.incident)
    if watch is None or watch.promise is None:
        return state, None
    if outcome.ours and watch.since < watch.asked_at:
        return state, _proof(watch, watch.promise, now)
    watch = replace(_begun(watch, now), claiming=False, read=False, promise=None, read_at=now)
    return _kept(state, watch), None


def expired(state: PresumeState, outcome: Expired, now: float) -> PresumeState | None:
    """An act of ours that came to no end; None where it is none of ours."""
    if outcome.request not in ("read_promise", "claim_promise", "ask_unseen"):
        return None
    watch = _of(state, outcome.key.split("/")[1])
    if watch is None or outcome.request == "ask_unseen":
        return state
    if outcome.request == "claim_promise":  # whether it is ours is read
        watch = replace(watch, claiming=False, read=False, promise=None)
    return _kept(state, replace(watch, reading=False, read_at=now + READ_AGAIN_S))


def lacking(watch: Watch, how: Presume, now: float) -> tuple[str, ...]:
    """What keeps a host from being presumed fenced at this moment, at which the last round was asked."""
    promise, host = watch.promise, watch.at.host
    if promise is None:
        said = "has promised none that could be read" if watch.read else "could not be read yet"
        return (f"watchdog: {host} {said}",)
    by = now - how.wait_s(promise)
    found = []
    if watch.since > by:
        said = (
            f"its time-out of {promise.timeout_s:g} s, {promise.lag_s:g} s and the margin have not passed yet"
        )
        found.append(f"watchdog: {said}{f' ({watch.sign})' if watch.sign else ''}")
    for datastore in promise.datastores:
        known = watch.slots.get(datastore)
        if known is None or known.last_at < now or known.last_at - known.first_at < STILL_S:
            found.append(f"watchdog: no peer could read the slot of {host} on {datastore} twice")
        elif known.mark.by > by:
            found.append(f"watchdog: the slot of {host} on {datastore} has not stood still for long enough")
    unseen = [name for name in promise.peers if _unseen(watch.peers.get(name), now, by)]
    if len(unseen) < promise.majority:
        others = ", ".join(sorted({*promise.peers} - {*unseen})) or "it has none"
        said = (
            f"{len(unseen)} of its {len(promise.peers)} peers report it unseen, {promise.majority} are needed"
        )
        found.append(f"watchdog: {said}: {others}")
    return tuple(found)


def _unseen(peer: Peer | None, now: float, by: float) -> bool:
    """Asked in the last round, it could not see the host, and was not greeted by it in all that time."""
    if peer is None or peer.asked_at < now or peer.greeted_by is None:
        return False
    looked = peer.answer is Answer.SILENT and now - peer.looked_at <= LOOK_OLD_S
    return looked and max(peer.greeted_by, peer.seen_at) <= by


def runs_out(state: PresumeState, how: Presume, host: str, now: float) -> bool:
    """True while a host's own promise may still be the proof, and nothing but time speaks against it: people need not
    be told yet. Not for longer than it takes, however often the count begins again."""
    watch = state.watches.get(host)
    if watch is None or (watch.read and watch.promise is None):
        return False
    wait_s = READ_S if watch.promise is None else how.wait_s(watch.promise)
    return now < watch.opened + wait_s + PATIENCE_S


def missing(state: PresumeState, how: Presume, host: str) -> tuple[str, ...]:
    """For people: why an attempt at the host has no proof by its watchdog either."""
    watch = state.watches.get(host)
    return () if watch is None else lacking(watch, how, watch.asked_at)


def _proof(watch: Watch, promise: Promise, now: float) -> FenceProof:
    peers = sorted(name for name, peer in watch.peers.items() if peer.answer is Answer.SILENT)
    detail = (
        f"unheard for {now - watch.since:.1f} s; it advertised {promise.timeout_s:g} s, fed on words of up to {promise.lag_s:g} s; unseen by "
        f"{', '.join(peers) or 'those asked then'} of {len(promise.peers)} peers; still slots: "
        f"{', '.join(sorted(promise.datastores)) or 'it has none'}"
    )
    return FenceProof(of=watch.at, method=ProofMethod.WATCHDOG, detail=detail)


def _begun(watch: Watch, now: float) -> Watch:
    """The count begins again; slots and peers have their own times."""
    return replace(watch, since=max(watch.since, now))  # what waited in an inbox was heard before now


def _of(state: PresumeState, incident: str) -> Watch | None:
    return next((watch for watch in state.watches.values() if watch.incident == incident), None)


def _kept(state: PresumeState, watch: Watch) -> PresumeState:
    return replace(state, watches=state.watches.insert(watch.at.host, watch))


def resumed(state: PresumeState, now: float) -> PresumeState:
    """We lead from now on. What another life of ours was about to ask is asked anew."""
    return replace(state, since=now, watches=HashTrieMap())
