"""Deliberate faults about plans, and about what every shell owes. See mutations.py."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from libs.core.decider import Publish, Step
from libs.core.ledger import Ledger
from libs.core.ports import UnavailableError
from libs.core.shell import Shell
from libs.jetstream.lease import JetStreamLease
from libs.planning import plan as planning
from services.placement import incidents
from services.placement import pool as placement_pool
from services.placement.decide import Placement

Patch = tuple[Any, str, Any]
_PLAN, _WAITING = Placement._plan, incidents._waiting
_SHELL_INIT = Shell.__init__


def promised_room_forgotten() -> list[Patch]:
    """What is leased or planned but not yet seen occupies nothing."""
    shot = placement_pool.snapshot

    def snapshot(state: Any, policy: Any, labels: Any, wanted: Any, now: float) -> Any:
        bare = replace(
            state,
            leases=type(state.leases)(),
            records=type(state.records)(
                {key: record for key, record in state.records.items() if record.incident is None}
            ),
            heard=type(state.heard)(
                {host: inventory.model_copy(update={"vms": ()}) for host, inventory in state.heard.items()}
            ),
        )
        return shot(bare, policy, labels, wanted, now)

    return [(placement_pool, "snapshot", snapshot)]


def priority_inverted() -> list[Patch]:
    def rank(vm: Any) -> tuple[int, int, int]:
        return (1, -vm.priority.rank, vm.order)

    return [(planning, "_rank", rank)]


def waits_without_a_reason() -> list[Patch]:
    return [(incidents, "_reason", lambda one: ""), (incidents, "_waiting", _without_reason)]


def _without_reason(item: Any, missing: Any) -> Any:
    return _WAITING(item, missing).model_copy(update={"reason": ""})


def each_incident_for_itself() -> list[Patch]:
    """One plan an incident, in which nothing is known of what waits in others."""

    def planned(self: Placement, state: Any, now: float) -> Any:
        effects: list[Any] = []
        for incident in state.incidents():
            others = [one for one in state.incidents() if one.id != incident.id]
            before = state.retry_at
            for item in (item for one in others for item in one.items):
                state = replace(state, retry_at=state.retry_at.insert(item.vm, now + 1e6))
            step = _PLAN(self, state, now)
            later = min((at for at in before.values() if at > now), default=None)
            state = replace(step.state, retry_at=before, plan_at=later)
            effects += step.effects
        return Step(state, tuple(effects))

    return [(Placement, "_plan", planned)]


def room_unnoticed() -> list[Patch]:
    return [(Placement, "_due", lambda self, state, now: state)]


def waiting_dropped() -> list[Patch]:
    """A start that failed is not planned again."""
    return [(Placement, "_restart_failed", lambda self, state, fact, now: Step(state))]


def reclaim_off() -> list[Patch]:
    """What was planned to a host that was fenced since is not planned again."""
    return [(incidents, "reclaimed", lambda incident, proof, open_: incident)]


def debts_forgotten() -> list[Patch]:
    return [(Ledger, "owed", lambda self: [])]


def ack_first() -> list[Patch]:
    take = Shell._take

    async def mutated(self: Shell[Any], item: Any) -> None:
        if item.delivery is not None and self._leading():
            with contextlib.suppress(UnavailableError):
                await item.delivery.ack()
            item = replace(item, delivery=None)
        await take(self, item)

    return [(Shell, "_take", mutated)]


def no_publish_retry() -> list[Patch]:
    """A fact that could not be stored at once is given up."""
    from libs.sim import bus

    async def publish(self: Shell[Any], effect: Publish, before: Any) -> None:
        with contextlib.suppress(UnavailableError):
            await self._w.bus.publish(effect.fact)
        self._done(effect.record, effect.key)

    return [(bus, "PUBLISH_BUDGET_S", 0.0), (Shell, "_publish", publish)]


class _ByTheWall:
    """A clock that passes as the machine's wall clock does."""

    def __init__(self, clock: Any) -> None:
        self._clock, self._zero = clock, (clock.monotonic(), clock.wall())

    def monotonic(self) -> float:
        monotonic, wall = self._zero
        passed: float = monotonic + (self._clock.wall() - wall).total_seconds()
        return passed

    def wall(self) -> Any:
        return self._clock.wall()


def timed_by_the_wall() -> list[Patch]:
    """A shell gives its decider the time by a clock that a person, or a time server, steps."""

    def init(self: Shell[Any], decider: Any, wiring: Any, **more: Any) -> None:
        _SHELL_INIT(self, decider, replace(wiring, clock=_ByTheWall(wiring.clock)), **more)

    return [(Shell, "__init__", init)]


def nobody_minds_who_leads() -> list[Patch]:
    """Every replica holds itself to lead; what is written is compared and set all the same."""
    return [
        (JetStreamLease, "held", lambda self: True),
        (JetStreamLease, "token", property(lambda self: 1)),
    ]


def blind_writes() -> list[Patch]:
    """Two replicas that both hold themselves to lead, and write whatever is there."""

    async def compare(self: Ledger, key: str, payload: bytes | None, expected: int) -> int:
        if payload is None:
            await self._store.delete(key, None)
            return 0
        return await self._store.put(key, payload, None)

    return [
        (Ledger, "_compare", compare),
        (JetStreamLease, "held", lambda self: True),
        (JetStreamLease, "token", property(lambda self: 1)),
    ]
