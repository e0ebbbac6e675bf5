"""Plans and what came of them: rules 8 and 10, and priority."""

from __future__ import annotations

import json
from typing import Any

from libs.events.base import Fact
from libs.events.failovers import FailoverCompleted, FailoverPlanned
from libs.events.vms import VmGivenUp, VmRestarted, VmRestartFailed
from libs.sim.broker import Stored
from libs.sim.definitions import suits
from libs.sim.invariants.book import Book
from libs.sim.loop import Process
from libs.sim.truth import Truth
from libs.sim.world import World


class Plans:
    """Looks at every plan and every outcome of a start."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._book = world, book
        self._start_failed: set[str] = set()
        self._closed: set[str] = set()
        """Hosts in quarantine by placement's own stored word."""
        self._targets: dict[tuple[str, str], str] = {}
        """By incident and VM the start that placement last stored."""
        world.broker.on_fact.append(self._fact)
        world.broker.on_row.append(self._row)

    def _row(self, bucket: str, key: str, value: bytes | None, process: Process | None) -> None:
        if bucket != "state" or not key.startswith("placement.") or value is None:
            return
        record = json.loads(value)["record"] or {}
        words, incident = record.get("words"), record.get("incident")
        if words is not None:
            host = key.removeprefix("placement.host.")
            (self._closed.add if words["quarantined"] else self._closed.discard)(host)
        if incident is not None:
            for item in incident["items"]:
                self._item(incident["id"], item)

    def _item(self, incident: str, item: dict[str, Any]) -> None:
        """A quarantined host gets no new VM; one that crashes there is restarted there."""
        start = f"{item['to']}/{item['attempt']}" if item["phase"] == "planned" else ""
        if start and self._targets.get((incident, item["vm"])) != start:
            host = item["to"]["host"]
            if host in self._closed and item["to"] != item["origin"]:
                self._book.broken(
                    "quarantine", f"VM {item['name']} is planned to {host}, which is in quarantine"
                )
        self._targets[incident, item["vm"]] = start

    def _fact(self, stored: Stored) -> None:
        fact: Fact = stored.fact
        match fact:
            case FailoverPlanned():
                self._book.completed.discard(fact.incident)
                self._planned(fact)
            case FailoverCompleted():
                if not fact.waiting:
                    self._book.completed.add(fact.incident)
            case VmRestarted():
                self._restarted(fact)
            case VmRestartFailed():
                self._book.ended.add(fact.start_key)
                self._start_failed.add(fact.vm)
            case VmGivenUp():
                self._book.given_up.add(fact.vm)
            case _:
                return

    def _planned(self, fact: FailoverPlanned) -> None:
        for start in fact.starts:
            known = self._book.orders.setdefault(start.key, start)
            if known.to != start.to:
                self._book.broken("8", f"one order {start.key} to {known.to} and to {start.to}")
        for waiting in fact.waiting:
            if not waiting.reason.startswith("no_room") or waiting.vm in self._start_failed:
                continue
            if waiting.vm in self._world.machines.policy_at:
                continue  # what was planned by is not known to be what holds now
            machines = self._world.machines
            rank = machines.specs[waiting.vm].policy.priority.rank
            for start in fact.starts:
                took = start.memory_mib >= waiting.memory_mib and start.vcpus >= waiting.vcpus
                lower = start.priority_rank > rank and self._store(start.vm) == self._store(waiting.vm)
                there = suits(machines.hosts[start.to.host], machines.specs[waiting.vm])
                if took and lower and there and start.policy.protection is self._protection(waiting.vm):
                    said = f"VM {waiting.name} waits, {start.name} took room before it"
                    self._book.broken("priority", said)

    def _store(self, vm: str) -> str:
        """One on another datastore may have room where this one cannot be."""
        return self._world.machines.specs[vm].datastore

    def _protection(self, vm: str) -> object:
        return self._world.machines.specs[vm].policy.protection

    def _restarted(self, fact: VmRestarted) -> None:
        self._book.ended.add(fact.start_key)
        spells = self._world.machines.spells.get(fact.vm, [])
        # a boot of a host without an agent may have got another name since: the same boot all the same
        host = self._world.machines.hosts[fact.at.host]
        number = host.number_of(fact.at)
        ran = (one for one in spells if number is not None and host.number_of(one.at) == number)
        if not any(one.token == fact.token for one in ran):
            said = f"VM {fact.name} is said to run on {fact.at} with token {fact.token}; it never did"
            self._book.broken("10", said)
