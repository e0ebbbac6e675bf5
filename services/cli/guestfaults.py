"""Deliberate faults about guests that fail while their QEMU lives. See mutations.py."""

from __future__ import annotations

from typing import Any

from libs import leases
from libs.core.decider import Step
from libs.model import Health, LeaseState, VmState
from services.executor import act as executor_act
from services.executor import evict as executor_evict
from services.executor.evict import Eviction, Way
from services.heartbeat import guests
from services.placement import failing, standing

Patch = tuple[Any, str, Any]
_ADOPTED, _JUDGED = leases.adopted, guests.judged


def evict_skipped() -> list[Patch]:
    """A VM whose QEMU lives is taken for stopped."""

    async def evict(hypervisors: Any, rewrite: Any, start: Any, lease: Any) -> Eviction:
        return Eviction(Way.GONE)

    return [(executor_act, "evict", evict)]


def evict_adopted() -> list[Patch]:
    """What libvirt shows as destroyed is a person's will, also where it was our own doing."""

    def adopted(
        lease: Any, at: Any, report: Any, holder_report: Any, holder_known: bool, former: Any = ()
    ) -> Any:
        evicting = lease is not None and lease.state is LeaseState.EVICTING and lease.holder == at
        if evicting and leases.stopped_on_purpose(report):
            return leases.turned(lease, LeaseState.STOPPED)
        return _ADOPTED(lease, at, report, holder_report, holder_known, former)

    return [(leases, "adopted", adopted), (executor_evict, "adopted", adopted)]


def agentless_judged() -> list[Patch]:
    """Who cannot be asked does not answer."""

    def judged(state: Any, reports: Any, settings: Any, now: float) -> Any:
        return tuple(
            one.model_copy(update={"health": Health.SILENT})
            if one.state is VmState.RUNNING and not one.agent
            else one
            for one in _JUDGED(state, reports, settings, now)
        )

    return [(guests, "judged", judged)]


def busy_is_silent() -> list[Patch]:
    """One question without an answer is silence."""

    def silent(state: Any, report: Any, settings: Any, now: float) -> bool:
        guest = state.known.get(report.uuid)
        return guest is not None and guest.run == report.run and guest.missed > 0

    return [(guests, "_silent", silent)]


def grey_unseen() -> list[Patch]:
    """That all guests of a host fail at once is held for chance."""

    def greyed(state: Any, fact: Any, settings: Any) -> Step[Any]:
        return Step(state)

    return [(standing, "on_grey", lambda state, item, settings: False), (failing, "greyed", greyed)]


def failed_eviction_dropped() -> list[Patch]:
    """A VM that could not be stopped once is not tried again."""

    def not_startable(
        state: Any, incident: Any, item: Any, fact: Any, wait_s: float, now: float
    ) -> Step[Any]:
        return Step(state)

    return [(failing, "not_startable", not_startable)]
