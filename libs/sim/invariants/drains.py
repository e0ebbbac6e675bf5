"""Hosts that are drained: what runs there moves where there is room, or is named with the reason why it stays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from libs.model import LeaseState, VmState
from libs.sim.hosts import Domain, Os, SimHost
from libs.sim.invariants.book import Book
from libs.sim.world import World

DRAIN, ROOM, INCIDENT = "placement.drain.", "placement.room.", "placement.incident."


def drained(words: Mapping[str, object]) -> bool:
    """By placement's own stored word."""
    return bool((words["maintenance"] and words["emptied"]) or (words["drain"] and words["grey"]))


def unmoved(
    world: World, book: Book, room: Mapping[str, Sequence[str]], late_s: float
) -> Iterator[tuple[str, str]]:
    """VMs that run well on a host which has been drained for so long, and that neither move nor are said to stay.
    `room`: hosts that have room for a VM."""
    if not world.settings.placement.migrations:
        return
    now, said = world.loop.time(), _said(world)
    for host in world.machines.hosts.values():
        since = book.drained.get(host.name, now)
        speaks = host.os is Os.UP and host.announced == host.at.boot and host.agent
        if not speaks or host.at in book.fenced or now - since <= late_s:
            continue
        for domain in host.active():
            vm = domain.spec.uuid
            if not _moves(book, host, domain) or now - domain.since <= late_s or vm in said:
                continue
            others = [name for name in room[vm] if name != host.name]
            if others:
                what = (
                    f"VM {domain.spec.name} runs on {host.name}, which is drained, and {others[0]} has room"
                )
                yield "drain", what


def _moves(book: Book, host: SimHost, domain: Domain) -> bool:
    """It runs well under its host's lease."""
    known = book.leases.get(domain.spec.uuid)
    lease = known[-1][1] if known else None
    well = domain.state is VmState.RUNNING and not domain.health.bad
    held = lease is not None and lease.holder == host.at and lease.state is LeaseState.RUNNING
    return well and held and lease is not None and not lease.strays


def _said(world: World) -> set[str]:
    """VMs of which placement's records say that they stay, move, are tried again or are restarted."""
    found = set()
    for prefix in (DRAIN, ROOM, INCIDENT):
        for row in world.broker.scan("state", prefix):
            record = json.loads(row.value)["record"] or {}
            drain, order, incident = (record.get(name) for name in ("drain", "room", "incident"))
            if drain:
                found |= {one["vm"] for one in drain["stays"]} | set(drain["failed"])
            if order:
                found.add(order["vm"])
            if incident:
                found |= {item["vm"] for item in incident["items"] if item["phase"] in ("waiting", "planned")}
    return found
