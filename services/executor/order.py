"""Starts that wait: for another VM to be ready, or for their delay. Pure.

A start waits no longer than its policy says for each VM that it comes after, counted from when it was ordered, or from when
this process began to lead. Its delay counts from then on. Whoever waits takes no turn from others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from rpds import HashTrieMap

from libs.core.decider import Records
from libs.events.failovers import AwaitedVm, PlannedStart
from libs.events.vms import VmWaitedInVain
from libs.model import Protection
from services.executor.orders import Phase, StartRecord
from services.executor.readiness import Signs, ready, why_not


@dataclass(frozen=True, slots=True)
class Wait:
    """Since when a start waits, and since when for its delay alone (None: others are not ready yet)."""

    since: float
    ready_at: float | None = None


Waits: TypeAlias = "HashTrieMap[str, Wait]"


def turn(start: PlannedStart) -> tuple[object, ...]:
    """Whose turn it is among starts of all plans, the least first. A VM that is restarted where it was, and an order of an
    older version, name no urgency: it is the VM's own."""
    policy = start.policy
    own = (0 if policy.protection is Protection.RESTART else 1, start.priority_rank, policy.order)
    return start.urgency or own, start.wave, start.name


def begun(waits: Waits, start: PlannedStart, now: float) -> Waits:
    """A start was ordered: does it wait?"""
    if not start.after and not start.policy.start_delay_s:
        return waits.discard(start.vm)
    return waits.insert(start.vm, Wait(now))


def resumed(records: Records, now: float) -> Waits:
    """Of what is owed: who had not begun yet waits anew."""
    waits: Waits = HashTrieMap()
    for record in records.values():
        if isinstance(record, StartRecord) and record.phase is Phase.QUEUED and not record.tries:
            waits = begun(waits, record.start, now)
    return waits


def moved_on(waits: Waits, records: Records, signs: Signs, now: float) -> Waits:
    """Without those that need not wait any longer, or are not owed any more."""
    for vm, wait in sorted(waits.items()):
        record = records.get(vm)
        if not isinstance(record, StartRecord) or record.phase is not Phase.QUEUED:
            waits = waits.discard(vm)
            continue
        start = record.start
        if wait.ready_at is None and not _awaited(start, wait, signs, now):
            wait = Wait(wait.since, now)
        if wait.ready_at is not None and now >= wait.ready_at + start.policy.start_delay_s:
            waits = waits.discard(vm)
        elif waits[vm] != wait:
            waits = waits.insert(vm, wait)
    return waits


def next_at(waits: Waits, records: Records, signs: Signs) -> float | None:
    """When the next of them has waited long enough, whatever else happens."""
    due = []
    for vm, wait in waits.items():
        record = records.get(vm)
        if not isinstance(record, StartRecord):
            continue
        if wait.ready_at is not None:
            due.append(wait.ready_at + record.start.policy.start_delay_s)
        else:
            left = [one.wait_s for one in record.start.after if not ready(one, signs)]
            due.append(wait.since + max(left, default=0.0))
    return min(due, default=None)


def probed(waits: Waits, records: Records) -> list[AwaitedVm]:
    """Those with a probe that starts wait for, whether it has answered yet or not."""
    found = []
    for vm, wait in waits.items():
        record = records.get(vm)
        if wait.ready_at is None and isinstance(record, StartRecord):
            found += [one for one in record.start.after if one.probe]
    return found


def _awaited(start: PlannedStart, wait: Wait, signs: Signs, now: float) -> list[AwaitedVm]:
    """Those that it waits for still."""
    return [one for one in start.after if now < wait.since + one.wait_s and not ready(one, signs)]


def in_vain(before: Waits, after: Waits, records: Records, signs: Signs, now: float) -> list[VmWaitedInVain]:
    """What is to be told of starts that wait no longer for others, since the longest wait is over."""
    told = []
    for vm, wait in sorted(before.items()):
        record = records.get(vm)
        moved = after.get(vm)
        if wait.ready_at is not None or not isinstance(record, StartRecord):
            continue
        if record.phase is not Phase.QUEUED or (moved is not None and moved.ready_at is None):
            continue
        start = record.start
        missing = [one for one in start.after if not ready(one, signs)]
        if missing:
            told.append(
                VmWaitedInVain(
                    vm=vm,
                    name=start.name,
                    at=start.to,
                    incident=record.incident,
                    start_key=start.key,
                    awaited=tuple(one.name for one in missing),
                    waited_s=round(now - wait.since, 1),
                    why="; ".join(why for one in missing if (why := why_not(one, signs))),
                    cause=record.cause,
                    rule="a wait for others has an end",
                )
            )
    return told
