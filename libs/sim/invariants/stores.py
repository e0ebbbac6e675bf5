"""Datastores: who may be held to have lost one, what may move for it, and what must be told of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from libs.sim.hosts import Domain, SimHost
from libs.sim.invariants.book import Book
from libs.sim.loop import Process
from libs.sim.storage import Datastore
from libs.sim.truth import Truth
from libs.sim.world import World

DETECTOR, PLACEMENT = "detector.pool.datastore.", "placement.datastore."
LOOK_S = 0.5
CALM_S = 3.0
"""After so long without loss and delay what is decided is written in the same moment."""
SLACK_S = 1.5
"""Between two writes of a slot, and what is told of them."""
TOLD_S = 4.0
"""So long after it is due a loss must be told."""


class Stores:
    """Looks at what is stored of datastores, and at every plan."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._truth, self._book = world, truth, book
        self._lost: set[tuple[str, str, int]] = set()
        """Datastore, host and number of every loss that was written."""
        self._open: dict[str, set[str]] = {}
        """By datastore the hosts on which it is held lost."""
        self._failed: set[str] = set()
        """Datastores that have failed by the detector's stored word."""
        self._closed: set[str] = set()
        """And by placement's."""
        self._targets: dict[tuple[str, str], str] = {}
        self._observed_since = 0.0
        """Since when some detector has led and every one has run."""
        world.broker.on_row.append(self._row)
        self._look()

    def _row(self, bucket: str, key: str, value: bytes | None, process: Process | None) -> None:
        if bucket != "state" or value is None:
            return
        record = json.loads(value)["record"]
        if record is None:
            return
        if key.startswith(DETECTOR):
            self._judged(record)
        elif key.startswith(PLACEMENT):
            name = key.removeprefix(PLACEMENT)
            (self._closed.add if record["store"]["failed"] else self._closed.discard)(name)
        elif key.startswith("placement.incident.") and record["incident"] is not None:
            for item in record["incident"]["items"]:
                self._planned(record["incident"]["id"], item)

    def _judged(self, record: dict[str, Any]) -> None:
        name = record["datastore"]
        self._open[name] = set(record["lost"])
        (self._failed.add if record["failed"] else self._failed.discard)(name)
        for host, loss in record["lost"].items():
            mark = (name, host, loss["number"])
            if mark not in self._lost:
                self._lost.add(mark)
                self._believable(name, host)

    def _believable(self, name: str, host: str) -> None:
        """It stalled there for long enough, and more others were well with it than were not."""
        store, now = self._world.machines.datastores[name], self._world.loop.time()
        lost_s = self._world.settings.detection.datastore_lost_s - SLACK_S
        if store.longest_s(host, 0.0) < lost_s:
            self._book.broken("store", f"datastore {name} is held lost on {host}, and did not stall there")
        if now - self._truth.rough_at < CALM_S:
            return
        well, ill = self._others(name, host, lost_s)
        if len(well) <= len(ill):
            said = f"well with it are {len(well)} others, and {len(ill)} are not"
            self._book.broken("store", f"datastore {name} is held lost on {host}: {said}")

    def _others(self, name: str, host: str, for_s: float) -> tuple[list[str], list[str]]:
        """Of the others that have it: who has written there for so long, as far as anybody can know by now, and who is
        heard and does not."""
        machines, now = self._world.machines, self._world.loop.time()
        store = machines.datastores[name]
        writing = (one for one in machines.hosts if not machines.hosts[one].agentless)
        others = [one for one in writing if one != host and machines.has(one, name)]
        well = [one for one in others if store.stalled_s(one, now - for_s, now - SLACK_S) == 0.0]
        ill = [one for one in others if store.stalled(one) and self._truth.well_for(one) > SLACK_S]
        return well, [one for one in ill if store.stalled_s(one, now - SLACK_S, now) >= SLACK_S]

    def _planned(self, incident: str, item: dict[str, Any]) -> None:
        """Nothing is planned that lies on a datastore that has failed for all."""
        start = f"{item['to']}/{item['attempt']}" if item["phase"] == "planned" else ""
        if start and self._targets.get((incident, item["vm"]), "") != start:
            name = self._world.machines.specs[item["vm"]].datastore
            if name in self._closed:
                self._book.broken("store", f"VM {item['name']} is planned, and datastore {name} has failed")
        self._targets[incident, item["vm"]] = start

    def _look(self) -> None:
        """What is lost on one host, with nothing in the way of knowing it, is told."""
        now, lost_s = self._world.loop.time(), self._world.settings.detection.datastore_lost_s
        detectors = [slot.process for slot in self._world.slots.values() if slot.name == "detector"]
        if not all(one is not None and not one.stopped for one in detectors):
            self._observed_since = now
        due_s = lost_s + TOLD_S
        if now - max(self._observed_since, self._truth.rough_at, self._book.zero) > due_s:
            for name, store in self._world.machines.datastores.items():
                for host in self._world.machines.hosts:
                    self._told(name, store, host, due_s)
        self._world.loop.world_later(LOOK_S, self._look)

    def _told(self, name: str, store: Datastore, host: str, due_s: float) -> None:
        now = self._world.loop.time()
        hangs = store.stalled_s(host, now - due_s, now) >= due_s - 0.01
        if not hangs or not self._world.machines.has(host, name) or host in self._open.get(name, ()):
            return
        if name in self._failed or self._book.storm or self._truth.well_for(host) < due_s:
            return
        if self._world.machines.hosts[host].agentless:
            return  # it has no slot, so nobody can tell
        others = [
            other for other, one in self._world.machines.hosts.items() if other != host and not one.agentless
        ]
        if all(self._truth.well_for(one) > due_s and not store.stalls_of(one) for one in others) and others:
            self._book.broken("store", f"datastore {name} hangs on {host} alone, and nobody is told")


def stranded(world: World, host: SimHost, domain: Domain) -> bool:
    """Its disk hung there for so long, in this run, that it may be stopped to start elsewhere."""
    lost_s = world.settings.detection.datastore_lost_s - SLACK_S
    name = domain.spec.datastore
    return name in world.machines.slotted and world.machines.store_of(domain.spec.uuid).longest_s(
        host.name, domain.since
    ) >= min(lost_s, world.loop.time() - domain.since)


def unrecovered(world: World, truth: Truth, book: Book, late_s: float) -> Iterator[tuple[str, str]]:
    """What is held lost, or to have failed, where it takes writes by the word of hosts that are believed: a boot that
    was fenced by a lie says nothing, whatever it writes, until a person has rebooted it."""
    for row in world.broker.scan("state", DETECTOR):
        record = json.loads(row.value)["record"]
        if record is None or record["datastore"] not in world.machines.datastores:
            continue
        name, store = record["datastore"], world.machines.datastores[record["datastore"]]
        well = {
            host
            for host, machine in world.machines.hosts.items()
            if machine.at not in book.fenced
            if truth.well_for(host) > late_s and not store.stalled_s(host, world.loop.time() - late_s, 1e9)
        }
        for host in sorted(set(record["lost"]) & {one for one in well if not store.stalled(one)}):
            yield "store", f"datastore {name} takes writes on {host} and is held lost there"
        having = {
            host
            for host, machine in world.machines.hosts.items()
            if world.machines.has(host, name) and machine.at not in book.fenced
        }
        if record["failed"] and having and having <= well:
            yield "store", f"datastore {name} takes writes and is held to have failed"
