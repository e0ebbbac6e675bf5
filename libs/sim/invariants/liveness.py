"""What a healed world still owes: rules 9, 10 and 2, and records that outlive their incident."""

from __future__ import annotations

import json
from collections.abc import Iterator

from libs.model import LeaseState, Protection
from libs.sim.definitions import definition, lacking
from libs.sim.hosts import Os, VmSpec
from libs.sim.invariants.book import Book
from libs.sim.invariants.drains import unmoved
from libs.sim.invariants.guests import untreated
from libs.sim.invariants.stores import unrecovered
from libs.sim.invariants.strays import doubles
from libs.sim.invariants.unseen import unknowable
from libs.sim.invariants.verdicts import storm_limit
from libs.sim.invariants.waiting import unstated
from libs.sim.truth import Truth
from libs.sim.world import World

OVERCOMMIT = 4.0
POLICY_TOLD_S = 8.0
"""A policy that was changed so long ago stands in an inventory, also where libvirt's event was lost."""
GATE_S = 15.0
"""What is up for so long, with nothing in its way, must be in the pool."""
DRAIN_S = 30.0
"""On a host that has been drained for so long everything has moved, or has been tried, or is named."""
ALERTED_S = 12.0
"""A fenced host that has been heard for so long must have been told of."""


def owed(world: World, truth: Truth, book: Book, *, soon: bool = False) -> list[tuple[str, str]]:
    """By rule, with the VM, host or incident; a cause before what comes of it. `soon`: also what is not late yet,
    which a world must not end before."""
    gate_s, alerted_s = (0.0, 0.0) if soon else (GATE_S, ALERTED_S)
    return [
        *_storm(world, truth, book, alerted_s),
        *_incidents(world, book),
        *_gates(world, truth, book, gate_s),
        *_leases(world, truth, book, alerted_s),
        *_vms(world, book),
        *(_doubled(world, truth, book) if soon else ()),
        *_guests(world, book),
        *unmoved(world, book, _rooms(world, book), DRAIN_S * (not soon)),
        *_lies(world, truth, book, alerted_s),
        *_records(world, book),
        *_quarantines(world),
        *unrecovered(world, truth, book, alerted_s),
    ]


def stormy(world: World, truth: Truth, book: Book, late_s: float = ALERTED_S) -> bool:
    """More hosts are really silent than believable: neither fenced, nor has their libvirt answered for so long."""
    hosts = world.machines.hosts
    off = {one.name for one in world.members if one.standby and not hosts[one.name].power}
    silent = [one for one in hosts.values() if one.at not in book.fenced and one.name not in off]
    silent = [one for one in silent if truth.answering_for(one.name) <= late_s]
    return len(silent) > storm_limit(len(hosts))


def _storm(world: World, truth: Truth, book: Book, late_s: float) -> Iterator[tuple[str, str]]:
    """One that is over is released: while it is held no silence is believed."""
    if book.storm and not stormy(world, truth, book, late_s):
        yield "7", "a storm is held, and no more are silent than believable"


def _incidents(world: World, book: Book) -> Iterator[tuple[str, str]]:
    """Where not one host of the pool speaks, an observer cannot tell them from its own deafness: it says so, and waits."""
    speaking = any(host.os is Os.UP and host.agent for host in world.machines.hosts.values())
    nobody_knows = book.undecided if not speaking else set()
    for incident in book.failed_at:
        if incident not in book.settled:
            yield "9", f"incident {incident} has neither a proof nor been stood down"
    for key, start in book.orders.items():
        if key not in book.ended and start.to not in book.fenced and start.to not in nobody_knows:
            yield "9", f"the start {start.name} to {start.to} never ended"


def _vms(world: World, book: Book) -> Iterator[tuple[str, str]]:
    for spec in world.machines.specs.values():
        wanted = spec.policy.protection is Protection.RESTART and spec.uuid not in world.stopped_on_purpose
        if not wanted or world.machines.running(spec.uuid) or spec.uuid in book.given_up:
            continue
        if _untold(world, spec.uuid) or unknowable(world, book, spec.uuid):
            continue
        room = _room(world, book, spec)
        if room and not _perhaps_starting(world, book, spec.uuid):
            yield "10", f"VM {spec.name} runs nowhere and {room[0]} has room"
        else:
            yield from unstated(world, book, [spec.uuid])


def _perhaps_starting(world: World, book: Book, vm: str) -> bool:
    """Its start was under way on a host without an agent that lives in that very boot and was named anew since. Nobody
    can tell how it came out but that host, which may have no room: rule 1 comes before rule 10, and that it waits is
    said."""
    known = book.leases.get(vm)
    if not known or known[-1][1].state is not LeaseState.STARTING:
        return False
    holder = known[-1][1].holder
    host = world.machines.hosts[holder.host]
    return host.agentless and holder != host.at and host.number_of(holder) == host.boots


def _doubled(world: World, truth: Truth, book: Book) -> Iterator[tuple[str, str]]:
    """A world does not end before a second copy has; that it lasts too long is for strays.py to say."""
    for vm in doubles(world, truth, book):
        yield "1", f"VM {book.name(vm)} runs twice"


def _guests(world: World, book: Book) -> Iterator[tuple[str, str]]:
    yield from untreated(world, book, _rooms(world, book))


def _rooms(world: World, book: Book) -> dict[str, list[str]]:
    return {spec.uuid: _room(world, book, spec) for spec in world.machines.specs.values()}


def _untold(world: World, vm: str) -> bool:
    """Its policy was changed so shortly before its end that its host may have taken that along."""
    changed = world.machines.policy_at.get(vm)
    ended = [one.ended for one in world.machines.spells.get(vm, []) if one.ended is not None]
    return changed is not None and bool(ended) and ended[-1] - changed < POLICY_TOLD_S


def _room(world: World, book: Book, spec: VmSpec) -> list[str]:
    """Hosts that are up, speak, reach its datastore, have what its definition names, and room."""
    placed = spec.datastore in world.machines.slotted
    found = []
    for host in world.machines.hosts.values():
        speaks = host.os is Os.UP and host.announced == host.at.boot and host.agent
        if not speaks or host.at in book.fenced:
            continue  # one that was fenced by a lie is to be rebooted by a person first
        if host.name in world.operator.closed:
            continue
        reaches = not placed or world.machines.has(host.name, spec.datastore)
        if not reaches or world.machines.store_of(spec.uuid).stalled(host.name):
            continue
        memory = host.memory_mib - host.memory_reserved_mib - sum(d.spec.memory_mib for d in host.active())
        cpus = host.cpus * OVERCOMMIT - sum(domain.spec.vcpus for domain in host.active())
        suits = not lacking(host, definition(spec))
        if suits and memory >= spec.memory_mib and cpus >= spec.vcpus:
            found.append(host.name)
    return found


def _gates(world: World, truth: Truth, book: Book, late_s: float) -> Iterator[tuple[str, str]]:
    """A stop that fails condemns its VM; the host must join as soon as it can be had."""
    for host in world.machines.hosts.values():
        if host.agent and host.announced != host.at.boot and truth.up_for(host.name) > late_s:
            yield "11", f"{host.at} is up and does not come through its gate"
        if host.held and host.agent and host.os is Os.UP and truth.up_for(host.name) > late_s:
            names = ", ".join(book.name(vm) for vm in sorted(host.held))
            yield "5", f"{host.at} held back {names}, and does not give it back to libvirt"
        for vm in host.stop_failed if truth.up_for(host.name) > late_s else ():
            if host.domains[vm].state.active and (host.at, vm) not in book.stop_failed:
                yield "11", f"VM {book.name(vm)} cannot be stopped on {host.at}, and nobody is told"


def _leases(world: World, truth: Truth, book: Book, late_s: float) -> Iterator[tuple[str, str]]:
    """What runs on a host that was named anew is leased to its present name: a failure of it is dealt with by that."""
    for host in world.machines.hosts.values():
        if not host.agentless or host.at in book.fenced or truth.well_for(host.name) <= late_s:
            continue
        for domain in host.active():
            known = book.leases.get(domain.spec.uuid)
            holder = known[-1][1].holder if known else host.at
            if holder.host == host.name and holder != host.at:
                yield "5", f"VM {domain.spec.name} runs on {host.at}, and its lease names {holder}"


def _lies(world: World, truth: Truth, book: Book, late_s: float) -> Iterator[tuple[str, str]]:
    for at in sorted(book.lied - book.heard_again, key=str):
        host = world.machines.hosts[at.host]
        if host.at == at and truth.well_for(at.host) > late_s:
            yield "2", f"{at} is fenced and speaks, and nobody is told"


def _quarantines(world: World) -> Iterator[tuple[str, str]]:
    """What the detector said of a host's quarantine stands in placement's records."""
    for host in world.machines.hosts:
        key = f"placement.host.{host}"
        said = [json.loads(row.value)["record"] for row in world.broker.scan("state", key) if row.key == key]
        closed = any(record and record["words"]["quarantined"] for record in said)
        if closed is not (host in world.operator.quarantined):
            yield "quarantine", f"{host} is {'not ' * closed}in quarantine, and placement holds the opposite"


def _records(world: World, book: Book) -> Iterator[tuple[str, str]]:
    rows = world.broker.scan("state", "")
    most = 4 * (len(world.members) + len(world.scenario.vms)) + 20
    if len(rows) > most:
        yield "bounded", f"{len(rows)} records are kept for a pool that needs {most} at most"
    for row in rows:
        incident = row.key.removeprefix("placement.incident.")
        if incident != row.key and incident in book.completed:
            yield "bounded", f"incident {incident} is completed and its record is kept"
