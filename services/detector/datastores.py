"""Datastores, by the word of all hosts that are well: lost on one of them, or the storage's own failure.

Each heartbeat tells for how long each datastore has taken no write of the host's slot. One host alone is never
believed: a datastore is lost there only while a strict majority of the other hosts that have it took writes all the
time. Where no majority does, the storage has failed, and nothing is to move; until it is well again, or nobody is left who
could tell.

Who was silent meanwhile, or whom we could not hear, says nothing: an agent that stood still wrote nothing, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from rpds import HashTrieMap

from libs.config.settings import Detection
from libs.core.decider import Effect, Publish, Step
from libs.core.evolve import replace
from libs.events.datastores import (
    DatastoreFailed,
    DatastoreLost,
    DatastoreRecovered,
    StoreWord,
)
from libs.events.facts import AnyFact
from libs.events.signals import Heartbeat
from libs.model import HostState, VmReport
from services.detector.state import DetectorState, Loss, StoreRecord, Writes

State = DetectorState
Hosts = tuple[str, ...]
WELL_SHARE = 3
"""A datastore is well where its latest write is younger than this part of `datastore_lost_s`, and is back once it has
been so for as long: what lies between well and lost is neither, since all hosts do not stop in the same moment."""
WORDS_KEPT = 16


class Said(StrEnum):
    """What one host's heartbeats say of one datastore."""

    VOUCHES = "takes writes, and did so all the time"
    WELL = "takes writes again for a while"
    FRESH = "takes writes since just now"
    UNSURE = "not known"
    LOST = "takes none"


@dataclass(slots=True)
class _Words:
    """What all hosts that are heard say of one datastore."""

    age_s: dict[str, float] = field(default_factory=dict)
    said: dict[str, Said] = field(default_factory=dict)

    def of(self, *said: Said) -> list[str]:
        return [host for host, word in self.said.items() if word in said]

    def majority(self, *said: Said) -> bool:
        """A strict majority of those who are asked about a host that lost it, which is all others."""
        return 2 * len(self.of(*said)) > len(self.said) - 1

    def kept(self) -> tuple[StoreWord, ...]:
        """As they stand in the fact: who takes no writes first."""
        hosts = sorted(self.said, key=lambda host: (-self.age_s[host], host))[:WORDS_KEPT]
        return tuple(
            StoreWord(host=host, age_s=round(self.age_s[host], 1), said=self.said[host].value)
            for host in hosts
        )


def heard(state: State, beat: Heartbeat, settings: Detection, now: float) -> HashTrieMap[str, Writes]:
    """What the hosts say of their datastores, after this heartbeat. A silence before it voids what was known of its host."""
    host = beat.at.host
    before = state.writes.get(host)
    if before is None and not beat.stores:
        return state.writes
    if before is not None and (now - before.heard_at >= settings.suspect_after_s or before.at != beat.at):
        before = None
    well_s, untried = settings.datastore_lost_s / WELL_SHARE, beat.untried
    well = {
        name: now if before is None else before.well_since.get(name, now)
        for name, age_s in beat.stores.items()
        if age_s < well_s and name not in untried
    }
    if before is None:
        writes = Writes(at=beat.at, heard_at=now, since=now, age_s=beat.stores, well_since=well)
    else:
        writes = replace(before, heard_at=now, age_s=beat.stores, well_since=well)
    return state.writes.insert(host, writes)


def look(state: State, hosts: Hosts, settings: Detection, now: float) -> Step[State]:
    """Judge every datastore. Not while a storm is held: whom we do not hear may know better."""
    if now < state.judge_from or state.storm is not None:
        return Step(state)
    words = _words(state, hosts, settings, now)
    effects: list[Effect] = []
    for name in sorted({*words, *_open(state)}):
        step = _judged(state, name, words.get(name) or _Words(), hosts, settings)
        state = step.state
        effects += step.effects
    return Step(state, tuple(effects))


def _words(state: State, hosts: Hosts, settings: Detection, now: float) -> dict[str, _Words]:
    found: dict[str, _Words] = {}
    for host, writes in _reporting(state, hosts, settings, now):
        for name, told_s in writes.age_s.items():
            words = found.setdefault(name, _Words())
            words.age_s[host] = told_s + now - writes.heard_at
            words.said[host] = _said(state, writes, name, words.age_s[host], settings, now)
    return found


def _reporting(state: State, hosts: Hosts, settings: Detection, now: float) -> Iterable[tuple[str, Writes]]:
    """Hosts that are well and were heard just now, with what they said last."""
    for host in hosts:
        writes, record = state.writes.get(host), state.record(host)
        if writes is None or record.state is not HostState.HEALTHY or record.at != writes.at:
            continue
        if now - writes.heard_at < settings.suspect_after_s:
            yield host, writes


def _said(state: State, writes: Writes, name: str, age_s: float, settings: Detection, now: float) -> Said:
    lost_s = settings.datastore_lost_s
    well_since = writes.well_since.get(name)
    if well_since is not None and age_s < lost_s / WELL_SHARE:
        well_s = now - max(well_since, state.listening_since)
        if well_s >= lost_s:
            return Said.VOUCHES
        return Said.WELL if well_s >= lost_s / WELL_SHARE else Said.FRESH
    observed_s = now - max(writes.since, state.listening_since)
    return Said.LOST if min(age_s, observed_s) >= lost_s else Said.UNSURE


def _open(state: State) -> list[str]:
    """Datastores of which something is told and not over."""
    found = (record for record in state.records.values() if isinstance(record, StoreRecord))
    return [record.datastore for record in found if record.failed or record.lost]


def _judged(state: State, name: str, words: _Words, hosts: Hosts, settings: Detection) -> Step[State]:
    before = record = _record(state, name)
    facts: list[AnyFact] = []
    for host in sorted(record.lost):
        over = _over(state, name, words, hosts, host)
        if over:
            facts.append(
                DatastoreRecovered(datastore=name, number=record.lost[host].number, host=host, rule=over)
            )
            lost = {one: loss for one, loss in record.lost.items() if one != host}
            record = record.model_copy(update={"lost": lost})
    if record.failed:
        rule = (
            "a majority takes writes again" if words.said and words.majority(Said.VOUCHES, Said.WELL) else ""
        )
        if rule or (rule := _nobody_left(state, name, hosts)):
            facts.append(DatastoreRecovered(datastore=name, number=record.failed, rule=rule))
            record = record.model_copy(update={"failed": 0})
    elif _has_failed(words, settings):
        record = record.model_copy(update={"number": record.number + 1, "failed": record.number + 1})
        facts.append(
            DatastoreFailed(
                datastore=name,
                number=record.number,
                hosts=tuple(sorted(words.of(Said.LOST))),
                asked=len(words.said),
                words=words.kept(),
                rule="no majority of the hosts takes writes",
            )
        )
    if not record.failed and words.majority(Said.VOUCHES):
        for host in sorted(words.of(Said.LOST)):
            at = state.record(host).at
            known = record.lost.get(host)
            if at is None or (known is not None and known.at == at):
                continue
            record, fact = _lost(state, record, host, words)
            facts.append(fact)
    if record is before:
        return Step(state)
    key = f"{StoreRecord.PREFIX}{name}"
    state = replace(state, records=state.records.insert(key, record))
    return Step(state, tuple(Publish(key, fact) for fact in facts))


def _lost(state: State, record: StoreRecord, host: str, words: _Words) -> tuple[StoreRecord, DatastoreLost]:
    at = state.record(host).at
    assert at is not None
    number = record.number + 1
    record = record.model_copy(
        update={"number": number, "lost": {**record.lost, host: Loss(number=number, at=at)}}
    )
    fact = DatastoreLost(
        datastore=record.datastore,
        number=number,
        at=at,
        well=len(words.of(Said.VOUCHES)),
        asked=len(words.said),
        words=words.kept(),
        vms=_lying_there(state, host, record.datastore),
        rule="no write for datastore_lost_s, while a majority of the others took theirs",
    )
    return record, fact


def _has_failed(words: _Words, settings: Detection) -> bool:
    """Somebody takes no writes, and no majority vouches, or could still. In doubt for a second period it has."""
    if not words.of(Said.LOST) or words.majority(Said.VOUCHES, Said.WELL, Said.FRESH):
        return False
    for_long = max(words.age_s[host] for host in words.of(Said.LOST)) >= 2 * settings.datastore_lost_s
    return for_long or not words.majority(Said.VOUCHES, Said.WELL, Said.FRESH, Said.UNSURE)


def _nobody_left(state: State, name: str, hosts: Hosts) -> str:
    """Why nobody could tell that it is well again: whoever is not fenced speaks, and says nothing of it. What the others
    said holds no longer; one that comes back tells anew."""
    for host in hosts:
        record, writes = state.record(host), state.writes.get(host)
        speaks = state.view(host).heard_at is not None
        silent_on_it = speaks and (writes is None or name not in writes.age_s)
        if record.at is not None and record.state is not HostState.FENCED and not silent_on_it:
            return ""
    return "no host is left that could tell"


def _over(state: State, name: str, words: _Words, hosts: Hosts, host: str) -> str:
    """Why its loss on this host is over; "" where it is not."""
    at, loss = state.record(host).at, _record(state, name).lost[host]
    if host not in hosts or at is None:
        return "the host is out of the pool"
    said = words.said.get(host)
    if said in (Said.VOUCHES, Said.WELL):
        return "takes writes again"
    if said is Said.LOST and loss.at != at:
        return "that boot is over"  # and it is lost on the present one: that is told anew
    writes = state.writes.get(host)
    speaks = writes is not None and writes.at == at and state.record(host).state is HostState.HEALTHY
    return "the host has it no more" if speaks and writes and name not in writes.age_s else ""


def _lying_there(state: State, host: str, name: str) -> tuple[VmReport, ...]:
    """What runs there with a disk on it, by the host's own latest word."""
    inventory = state.view(host).inventory
    if inventory is None or inventory.at != state.record(host).at:
        return ()
    return tuple(vm for vm in inventory.vms if vm.state.active and name in vm.datastores)


def _record(state: State, name: str) -> StoreRecord:
    found = state.records.get(f"{StoreRecord.PREFIX}{name}")
    return found if isinstance(found, StoreRecord) else StoreRecord(datastore=name)
