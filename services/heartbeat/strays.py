"""A second copy of a VM on this host, which its lease condemns: it is stopped, and what comes of it is told. ADR 5."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

from rpds import HashTrieMap

from libs.core.decider import Act, Effect, Publish, Step
from libs.events.vms import VmStopFailed, VmStoppedByGate
from libs.model import Incarnation, RunLease
from services.heartbeat.orders import Stopped, StopStray, StrayTried

STOP_DEADLINE_S = 60.0
RULE = "it ran twice, and its lease is elsewhere"
Condemned: TypeAlias = "HashTrieMap[str, Stopped]"  # a string: rpds classes are not subscriptable at run time


def told(at: Incarnation, lease: RunLease, condemned: Collection[str]) -> tuple[Effect, ...]:
    """The executor says that a lease condemns a run here. It says so again until that is over: where a stop has failed
    it is tried again anyway."""
    if lease.vm in condemned or all(one.at != at for one in lease.strays):
        return ()
    request = StopStray(key=f"stray/{lease.vm}", deadline_s=STOP_DEADLINE_S, at=at, vm=lease.vm)
    return (Act(None, request),)


def tried(condemned: Condemned, outcome: StrayTried, at: Incarnation) -> Step[Condemned]:
    """What was stopped is told; what could not be is told, tried for ever, and started nowhere meanwhile."""
    effects: list[Effect] = []
    for one in outcome.stopped:
        fact = VmStoppedByGate(
            vm=one.report.uuid,
            name=one.report.name,
            at=at,
            token=one.lease.token,
            holder=one.lease.holder,
            rule=RULE,
        )
        effects.append(Publish(at.host, fact))
    for left in outcome.condemned:
        condemned = condemned.insert(left.report.uuid, left)
        failed = VmStopFailed(
            vm=left.report.uuid,
            name=left.report.name,
            at=at,
            holder=left.lease.holder,
            reason=left.reason[:300],
            rule=RULE,
        )
        effects.append(Publish(at.host, failed))
    return Step(condemned, tuple(effects))
