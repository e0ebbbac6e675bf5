"""Suspicions and verdicts: rules 4, 6, 7 and 8."""

from __future__ import annotations

import json
from typing import Any

from libs.events.base import Fact
from libs.events.hosts import (
    HostFailed,
    HostJoined,
    HostRecovered,
    HostRefuted,
    HostSuspected,
    HostUndecided,
    StormHeld,
    StormReleased,
)
from libs.events.signals import Heartbeat, Signal
from libs.events.words import StormReleaseOrdered
from libs.model import Answer, Incarnation
from libs.sim.broker import Stored
from libs.sim.bus import SimBus
from libs.sim.hosts import Os
from libs.sim.invariants.book import Book
from libs.sim.loop import Process
from libs.sim.truth import Truth
from libs.sim.world import World

WELL_S = 6.0
"""A host that was well for so long is not to be held failed."""
NEW_BOOT_S = 45.0
"""A fence attempt that began against the former boot may still reach a host so young."""
BEATS, STEADY_S = 2.0, 8.0
"""A host beats without a break where none of its beats is so many intervals late; after so many seconds nobody may hold
it silent: what was decided before that is written by then, or never."""
SUSPECT_OLD_S = 0.3
STORM = "pool.storm"
PROVEN_RULES, WITNESSED, PEER = ("power-off", "rebooted"), "witnessed", "peer:"


class Verdicts:
    """Looks at the detector's records and facts, and at every host that is switched off."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._truth, self._book = world, truth, book
        self._suspects: dict[str, float] = {}
        """Hosts that the stored records hold silent, and since when."""
        self._written: dict[tuple[str, int], float] = {}
        """For how long a host had been well when its suspicion was written, by host and number."""
        self._decided: dict[str, tuple[float, float, float]] = {}
        """For how long it had been well, sound and answering when its verdict was reached, by incident."""
        self._reached: dict[tuple[Process, str], tuple[bytes, tuple[float, float, float]]] = {}
        """The same by writer and record, as of the first call to write what it is still calling to write: while the
        bus takes none, a verdict is written seconds after it was reached, and may be of a host that is back."""
        self._storms: dict[str, tuple[str, set[str]]] = {}
        """Verdicts that were written while more were silent than believable: incident, who, and which neighbours in the
        same rack were heard, whose votes stand on their own."""
        self._held = False
        """The stored record says that a storm is held."""
        self._released: set[str] = set()
        """Suspects whom an operator has named in this storm, and who have been silent since."""
        self._beats_s = BEATS * world.settings.heartbeats.interval_s
        self._beat_at: dict[str, float] = {}
        """When a host's heartbeat last reached the bus."""
        self._steady_since: dict[str, float] = {}
        """Since when a host's heartbeats have reached the bus without a break."""
        self._doubts: set[str] = set()
        """Hosts whose stored record is in any doubt at this moment."""
        self._doubted: set[str] = set()
        """Hosts that were in doubt already when the management plane was lost: they are pursued (ADR 3)."""
        world.broker.on_fact.append(self._fact)
        world.broker.on_row.append(self._row)
        world.broker.on_put.append(self._put)
        world.broker.on_send.append(self._sent)
        world.on_plane_lost.append(self._plane_lost)
        for outlets in world.outlets.values():
            for outlet in outlets:
                outlet.on_off.append(self._off)

    # -- the plane

    def _sent(self, client: SimBus, signal: Signal) -> None:
        if isinstance(signal, Heartbeat) and client.connected and client.reaches_server:
            host, now = signal.at.host, self._world.loop.time()
            if now - self._beat_at.get(host, -self._beats_s) > self._beats_s:
                self._steady_since[host] = now
            self._beat_at[host] = now

    def _steady_for(self, host: str) -> float:
        """For how long this host's heartbeats have reached the bus one after another, with nothing that could lose
        them behind it but the observer's own link; seconds, 0 where one is missing."""
        now = self._world.loop.time()
        process = self._world.slots[f"heartbeat@{host}"].process
        if now - self._beat_at.get(host, -self._beats_s) > self._beats_s or process is None:
            return 0.0  # whose agent has ended may be asked after at once
        return now - max(self._steady_since[host], self._truth.rough_at)

    def _plane_lost(self) -> None:
        self._doubted = set(self._doubts)

    def _quiet(self, at: Incarnation) -> bool:
        """The first minute of the plane, for a host that had no chance yet to be heard in it."""
        world, began = self._world, self._world.plane_began
        minute = world.loop.time() - began < world.settings.detection.quiet_after_start_s
        return minute and self._beat_at.get(at.host, 0.0) < began and at.host not in self._doubted

    # -- records

    def _put(self, bucket: str, key: str, value: bytes | None, process: Process) -> None:
        if bucket != "state" or not key.startswith("detector.") or value is None:
            return
        known = self._reached.get((process, key))
        if known is None or known[0] != value:
            self._reached[process, key] = (value, self._seen(key.removeprefix("detector.")))

    def _seen(self, host: str) -> tuple[float, float, float]:
        """For how long it has been well, sound and answering."""
        if host not in self._world.machines.hosts:
            return 0.0, 0.0, 0.0
        truth = self._truth
        return truth.well_for(host), truth.sound_for(host), truth.answering_for(host)

    def _row(self, bucket: str, key: str, value: bytes | None, process: Process | None) -> None:
        if bucket == "state" and key.startswith("detector.") and value is not None:
            name, record = key.removeprefix("detector."), json.loads(value)["record"]
            if name == STORM:
                self._held = bool(record and record["held"])
            elif "." not in name:  # of a host
                known = self._reached.get((process, key)) if process is not None else None
                self._record(name, record, known[1] if known is not None else self._seen(name))

    def _record(self, host: str, record: dict[str, Any] | None, reached: tuple[float, float, float]) -> None:
        """A host's state is written before it is told."""
        now = self._world.loop.time()
        if record is None or record["state"] not in ("suspect", "agent_down", "isolated", "failed"):
            self._doubts.discard(host)
        else:
            self._doubts.add(host)
        if record is None or record["state"] not in ("suspect", "failed"):
            self._suspects.pop(host, None)
            self._released.discard(host)
            return
        others = sorted(
            name for name, at in self._suspects.items() if name != host and now - at > SUSPECT_OLD_S
        )
        believable = storm_limit(len(self._world.machines.hosts))
        raging = self._held or len(others) + 1 > believable
        if record["state"] == "failed" and raging and host not in self._released:
            raged = ", ".join([host, *others]), self._neighbours(host)
            self._storms.setdefault(record["incident"], raged)
        self._suspects.setdefault(host, now)
        truth = self._truth
        if (host, record["number"]) not in self._written and record["state"] == "suspect":
            steady_s = self._steady_for(host)
            if steady_s > STEADY_S:
                said = f"{host} is suspected; its heartbeats have reached the bus for {steady_s:.1f} s"
                self._book.broken("6", said)
        self._written.setdefault((host, record["number"]), truth.well_for(host))
        if record["state"] == "failed":
            self._decided.setdefault(record["incident"], reached)

    def _neighbours(self, host: str) -> set[str]:
        """The other hosts of its rack that have been heard of late, so that their uplink works and they can vote."""
        settings, now = self._world.settings, self._world.loop.time()
        label, lately_s = settings.detection.domain_label, settings.detection.suspect_after_s
        racks = {one.name: one.labels.get(label) for one in settings.hosts}
        late_s = lately_s + settings.detection.ask_every_s
        return {
            other
            for other, rack in racks.items()
            if other != host and rack is not None and rack == racks.get(host)
            if now - self._beat_at.get(other, -late_s) < late_s
        }

    # -- facts

    def _fact(self, stored: Stored) -> None:
        fact: Fact = stored.fact
        match fact:
            case HostSuspected():
                # by what was so when it was written: with the plane or the bus away it may be told much later
                key = (fact.at.host, fact.number)
                well_s = self._written.get(key, self._truth.well_for(fact.at.host))
                # what is told late of a boot that is over says nothing of the present one
                if well_s > WELL_S and self._world.machines.hosts[fact.at.host].at == fact.at:
                    self._book.broken("6", f"{fact.at} is suspected; it has been well for {well_s:.1f} s")
                if self._quiet(fact.at):
                    self._book.broken("7", f"{fact.at} is suspected in the first minute of the plane")
            case HostRecovered():
                self._book.settled.add(fact.incident)
                self._book.undecided.discard(fact.at)
            case HostRefuted() | HostJoined():
                self._book.undecided.discard(fact.at)  # it has spoken since
            case HostUndecided():
                self._book.undecided.add(fact.at)
            case HostFailed():
                self._verdict(fact, stored.at)
            case StormHeld():
                self._book.storm = True
            case StormReleaseOrdered():
                # of those who are silent now: whoever speaks in between must be released anew
                self._released |= {host for host in fact.suspects if host in self._suspects}
            case StormReleased():
                self._released.clear()
                self._book.storm = False
            case _:
                return

    def _verdict(self, fact: HostFailed, now: float) -> None:
        book, host = self._book, self._world.machines.hosts[fact.at.host]
        known = book.failed.get(fact.at)
        if known is not None and known.incident not in book.settled:
            book.broken("8", f"two verdicts on {fact.at}: {known.incident} and {fact.incident}")
        if host.at == fact.at:
            self._of_a_living(fact)
        silent, neighbours = self._storms.get(fact.incident, ("", set()))
        voted = {one.channel.removeprefix(PEER) for one in fact.evidence if one.said == Answer.SILENT.value}
        stands = fact.rule in PROVEN_RULES or (fact.rule == WITNESSED and bool(voted & neighbours))
        if silent and not stands:
            book.broken("7", f"{fact.at} is held failed ({fact.rule}) in a storm of {silent}")
        if self._quiet(fact.at):
            book.broken("7", f"{fact.at} is held failed ({fact.rule}) in the first minute of the plane")
        book.failed[fact.at] = fact
        book.failed_at[fact.incident] = now

    def _of_a_living(self, fact: HostFailed) -> None:
        """A verdict on a boot that is the present one: what speaks against it?"""
        book, host = self._book, fact.at.host
        proven = fact.rule in PROVEN_RULES
        well_s, sound_s, answering_s = self._decided.get(fact.incident) or self._seen(host)
        lied = any(outlet.how == "lie" for outlet in self._world.outlets[host])
        if fact.rule == "rebooted":
            book.broken("6", f"{fact.at} is held to have rebooted and has not")
        elif well_s > WELL_S:
            book.broken("6", f"{fact.at} is held failed ({fact.rule}); it has been well for {well_s:.1f} s")
        elif sound_s > WELL_S and not (proven and lied):
            book.broken("4", f"{fact.at} is held failed ({fact.rule}); only the bus or the plane was away")
        elif not proven and answering_s > WELL_S:
            book.broken("6", f"{fact.at} is held failed ({fact.rule}); its libvirt answers all the time")

    def _off(self, name: str) -> None:
        host = self._world.machines.hosts[name]
        # by whatever name: a host without an agent may be named anew while it is being fenced
        verdict = any(host.number_of(at) == host.boots for at in self._book.failed)
        if not host.power or verdict or host.at in self._world.operator.tested:
            return
        if host.at in self._world.operator.leaving:
            return
        young = self._world.loop.time() - host.booted_at < NEW_BOOT_S or host.os is Os.BOOTING
        if host.boots > 1 and young:
            return
        self._book.broken("7", f"{host.at} is switched off without a verdict on it")


def storm_limit(hosts: int) -> int:
    """DESIGN §4 rule 7, in the words of the rule: said here again, so that the services' own is checked."""
    if hosts < 3:
        return 1
    return (hosts - 1) // 2 if hosts <= 5 else max(2, hosts // 4)
