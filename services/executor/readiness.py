"""Whether a VM is ready for those that start after it; and the probes that tell, where its own policy names one. Pure.

Only what a start waits for now is probed, again and again until it answers or nobody waits for it any more. An answer holds
for the run that gave it. Bounded, the longest not asked first: probes that hang take no turn from starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rpds import HashTrieMap

from libs.core.decider import Act, Expired
from libs.core.evolve import replace
from libs.events.failovers import AwaitedVm
from libs.model import Health, Inventory, LeaseState, RunLease
from services.executor.orders import Probed, ProbeGuest

EVERY_S = 1.0
"""From the end of one probe to the next."""
PROBE_S = 15.0
"""For one probe, with all that is asked to find the guest's address."""
AT_ONCE = 16
"""A quarter of what this service does at once."""


@dataclass(frozen=True, slots=True)
class Probing:
    """One probe of one run of a VM. `asking` names the question that is under way."""

    token: int
    due: float
    asks: int = 0
    asking: str = ""
    answered: bool = False
    said: str = ""


Probes: TypeAlias = "HashTrieMap[str, Probing]"


@dataclass(frozen=True, slots=True)
class Signs:
    """All by which readiness is told."""

    leases: HashTrieMap[str, RunLease]
    heard: HashTrieMap[str, Inventory]
    probes: Probes


def name_of(one: AwaitedVm) -> str:
    """Of its probe."""
    return f"{one.vm} {one.probe}"


def ready(one: AwaitedVm, signs: Signs) -> bool:
    """It runs, in the run that this failover began or in a later one; its guest agent answers where that is asked, and
    its probe."""
    lease = running(one, signs)
    if lease is None:
        return False
    probing = signs.probes.get(name_of(one))
    if one.probe and not (probing is not None and probing.token == lease.token and probing.answered):
        return False
    if one.ready != "agent":
        return True
    inventory = signs.heard.get(lease.holder.host)
    report = inventory.vm(one.vm) if inventory is not None and inventory.at == lease.holder else None
    return (
        report is not None
        and report.state.active
        and report.token == lease.token
        and report.agent
        and report.health is Health.OK
    )


def running(one: AwaitedVm, signs: Signs) -> RunLease | None:
    """The lease of the run that is meant, where it goes on."""
    lease = signs.leases.get(one.vm)
    if lease is None or lease.state is not LeaseState.RUNNING:
        return None
    return lease if lease.start_key == one.key or lease.token > one.token else None


def asked(signs: Signs, wanted: Sequence[AwaitedVm], now: float) -> tuple[Probes, tuple[Act, ...]]:
    """The probes of those that are waited for, and which of them to ask now."""
    runs = {name_of(one): (one, lease) for one in wanted if (lease := running(one, signs)) is not None}
    probes = signs.probes
    for name, probing in signs.probes.items():
        if name not in runs or runs[name][1].token != probing.token:
            probes = probes.discard(name)
    for name, (_, lease) in sorted(runs.items()):
        if name not in probes:
            probes = probes.insert(name, Probing(lease.token, now))
    free = AT_ONCE - _under_way(probes)
    due = [(probing.due, name) for name, probing in probes.items() if _idle(probing) and probing.due <= now]
    acts = []
    for _, name in sorted(due)[: max(0, free)]:
        (one, lease), probing = runs[name], probes[name]
        key = f"probe/{name}/{lease.token}/{probing.asks}"
        acts.append(Act(None, ProbeGuest(key=key, deadline_s=PROBE_S, vm=one.vm, at=lease.holder, probe=one.probe)))  # fmt: skip
        probes = probes.insert(name, replace(probing, asks=probing.asks + 1, asking=key))
    return probes, tuple(acts)


def next_at(probes: Probes) -> float | None:
    """When the next is to be asked; None where none is, or where one that is under way has to end first."""
    if _under_way(probes) >= AT_ONCE:
        return None
    return min((probing.due for probing in probes.values() if _idle(probing)), default=None)


def told(probes: Probes, outcome: Probed | Expired, now: float) -> Probes:
    """How one ended; one that nobody waits for any more, or of another run, says nothing."""
    for name, probing in probes.items():
        if probing.asking == outcome.key:
            answered = isinstance(outcome, Probed) and outcome.ready
            said = outcome.reason[:200]
            later = replace(probing, due=now + EVERY_S, asking="", answered=answered, said=said)
            return probes.insert(name, later)
    return probes


def why_not(one: AwaitedVm, signs: Signs) -> str:
    """What its probe brought last; "" where it has none, or none was asked."""
    probing = signs.probes.get(name_of(one))
    return f"{one.name} {one.probe}: {probing.said}" if probing is not None and probing.said else ""


def _idle(probing: Probing) -> bool:
    return not probing.asking and not probing.answered


def _under_way(probes: Probes) -> int:
    return sum(1 for probing in probes.values() if probing.asking)
