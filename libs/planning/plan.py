"""Who starts where after a loss: pure, deterministic, blind to the order of its input.

A `restart` VM goes before any `best_effort`, a higher priority before any number of lower, then start order; of one
such class as many as possible. Then as few soft rules broken, as few moves, and as even a load as may be. Nothing is
weighed against anything else.

The first try puts the big ones first, each onto the usable host with the most memory left: that spreads the load, and
is nearly always all that is needed. Only where it leaves something out, others are tried, and the best is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from libs.model import Protection
from libs.planning.exact import improved
from libs.planning.holes import Opener
from libs.planning.pack import VARIANTS, Packer, full_worth, worth
from libs.planning.pool import Pool, Rooms
from libs.planning.snapshot import Snapshot, SnapshotVm
from libs.planning.waves import waves
from libs.planning.why import Unplaced, why
from libs.planning.witness import kept

LOOKS_MAX = 60_000
"""Looks of a VM at a host in all tries beside the first: some 50 ms."""


@dataclass(frozen=True, slots=True)
class Start:
    """`urgency`: its own rank, or that of the most urgent VM that waits for it. Unlike `wave` it can be compared between plans."""

    vm: str
    from_host: str | None
    to: str
    wave: int
    urgency: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Migration:
    """A healthy VM that is moved, before any start, in the order in which they are told."""

    vm: str
    from_host: str
    to: str


@dataclass(frozen=True, slots=True)
class Preemption:
    """A VM that is stopped, since one that matters more gets its room."""

    vm: str
    host: str


@dataclass(frozen=True, slots=True)
class Plan:
    starts: tuple[Start, ...]
    unplaced: tuple[Unplaced, ...]
    migrations: tuple[Migration, ...] = ()
    preemptions: tuple[Preemption, ...] = ()


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a plan may do to VMs that are well."""

    migrations: bool = False
    preemption: bool = False
    fixed: frozenset[str] = frozenset()
    """VMs that stay as they are."""


NOTHING = Allowed()


def _rank(vm: SnapshotVm) -> tuple[int, int, int]:
    return (0 if vm.protection is Protection.RESTART else 1, vm.priority.rank, vm.order)


def plan(
    snapshot: Snapshot,
    failed: frozenset[str],
    avoid: Mapping[str, frozenset[str]] | None = None,
    allowed: Allowed = NOTHING,
) -> Plan:
    """Place every protected running VM of the failed hosts. `avoid` names hosts where a start just failed."""
    return plan_in(Pool(snapshot), failed, avoid, allowed)


def plan_in(
    pool: Pool,
    failed: frozenset[str],
    avoid: Mapping[str, frozenset[str]] | None = None,
    allowed: Allowed = NOTHING,
) -> Plan:
    """The same, in a pool that is made ready for planning already."""
    without = [pool.place[name] for name in failed if name in pool.place]
    vms = [vm for at in without for vm in pool.on[at] if vm.protection is not Protection.NONE]
    packer, fresh = Packer(classes(vms), avoid or {}), Rooms(pool, without)
    best = packed(packer, fresh)
    opener = Opener(packer, best)
    if packer.left(best) and (allowed.migrations or allowed.preemption):
        made = _with_room_made(packer, fresh, best, allowed)
        if worth(packer.classes, made.rooms) > worth(packer.classes, best):
            opener = made
    return _told(packer, opener)


def plan_from(
    ready: Mapping[str, str],
    snapshot: Snapshot,
    failed: frozenset[str],
    avoid: Mapping[str, frozenset[str]] | None = None,
    allowed: Allowed = NOTHING,
) -> tuple[Plan, bool]:
    """The same, begun from a plan that was kept ready: by VM the host that it gives. It is the plan where it still holds:
    each of its targets may still take its VM, everybody is placed, and no soft rule is broken. False with the answer of
    a search, where it does not."""
    pool = Pool(snapshot)
    if ready:
        without = [pool.place[name] for name in failed if name in pool.place]
        vms = [vm for at in without for vm in pool.on[at] if vm.protection is not Protection.NONE]
        packer = Packer(classes(vms), avoid or {})
        rooms = kept(packer, Rooms(pool, without), [vm for one in packer.classes for vm in one], ready)
        holds = any(hosts == rooms.at.get(vm) for vm, to in ready.items() for hosts in [pool.place.get(to)])
        if holds and not packer.left(rooms) and not packer.regrets(rooms):
            return _told(packer, Opener(packer, rooms)), True
    return plan_in(pool, failed, avoid, allowed), False


def classes(vms: Iterable[SnapshotVm]) -> list[list[SnapshotVm]]:
    """By importance; in a class the big ones first."""
    found: dict[tuple[int, int, int], list[SnapshotVm]] = {}
    for vm in sorted(vms, key=lambda vm: (-vm.memory_mib, -vm.vcpus, vm.name)):
        found.setdefault(_rank(vm), []).append(vm)
    return [found[rank] for rank in sorted(found)]


def packed(packer: Packer, fresh: Rooms) -> Rooms:
    """The best packing that leaves everything where it runs."""
    best = packer.whole(fresh.copy(), "worst", "large")
    left = packer.left(best)
    soft = packer.regrets(best)
    if not soft and all(packer.hopeless(fresh, vm) for vm in left):
        return best
    looks = max(1, sum(map(len, packer.classes)) * len(fresh.pool.hosts))
    tries = VARIANTS[1 : 1 + LOOKS_MAX // looks]
    found = [best, *(packer.whole(fresh.copy(), score, order) for score, order in tries)]
    if len(tries) == len(VARIANTS) - 1 and len(packer.classes) > 1:
        found.append(packer.by_class(fresh.copy()))
    best = max(found, key=lambda rooms: full_worth(packer, rooms))
    if any(not packer.hopeless(fresh, vm) for vm in packer.left(best)):
        exact = improved(packer, fresh)
        if exact is not None and worth(packer.classes, exact) > worth(packer.classes, best):
            return exact
    return best


def _with_room_made(packer: Packer, fresh: Rooms, best: Rooms, allowed: Allowed) -> Opener:
    """Class by class as the best packing has it; for who is left out, a hole is opened before the next class."""
    opener = Opener(packer, fresh.copy(), fixed=allowed.fixed)
    for vms in packer.classes:
        for vm in vms:
            at = best.at.get(vm.name)
            if at is not None and opener.rooms.fits(vm, at, packer.bar(vm)):
                opener.put(vm, at)
        for vm in vms:
            if vm.name in opener.rooms.at:
                continue
            at = packer.choose(opener.rooms, vm, "tight")
            if at is not None:
                opener.put(vm, at)
            elif not (allowed.migrations and opener.move_for(vm)) and allowed.preemption:
                opener.stop_for(vm, lambda one: _rank(one)[:2])
    return opener


def _told(packer: Packer, opener: Opener) -> Plan:
    rooms = opener.rooms
    hosts = rooms.pool.hosts
    everyone = [vm for vms in packer.classes for vm in vms]
    wave, urgency = waves(everyone, _rank)
    return Plan(
        starts=tuple(
            Start(vm.name, vm.host, hosts[rooms.at[vm.name]].name, wave[vm.name], urgency[vm.name])
            for vm in everyone
            if vm.name in rooms.at
        ),
        unplaced=tuple(why(vm, rooms, packer.bar(vm)) for vm in packer.left(rooms)),
        migrations=tuple(Migration(vm, hosts[at].name, hosts[to].name) for vm, at, to in opener.moves),
        preemptions=tuple(Preemption(vm, hosts[at].name) for vm, at in opener.stopped),
    )
