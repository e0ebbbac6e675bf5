"""Deliberate faults around watchdogs: on the host that feeds one, and on the side that presumes by it. See mutations.py."""

from __future__ import annotations

from typing import Any

from libs.promises import Promise
from services.fencer.presume import Presume
from services.heartbeat import watchdog

Patch = tuple[Any, str, Any]
ASSUMED_S = 5.0
"""What the pool file asks for in random worlds."""
_WAIT = Presume.wait_s


def margin_forgotten() -> list[Patch]:
    def wait_s(self: Presume, promise: Promise) -> float:
        return promise.timeout_s

    return [(Presume, "wait_s", wait_s)]


def own_time_out_assumed() -> list[Patch]:
    def wait_s(self: Presume, promise: Promise) -> float:
        return _WAIT(self, promise.model_copy(update={"timeout_s": ASSUMED_S}))

    return [(Presume, "wait_s", wait_s)]


def fed_unheard() -> list[Patch]:
    return [(watchdog, "_fresh_until", lambda state, now: now + watchdog.LAG_S)]


def one_peer_is_enough() -> list[Patch]:
    return [(Promise, "majority", property(lambda self: 1))]


def promise_forgotten() -> list[Patch]:
    return [(watchdog, "initial", lambda dog: watchdog.DogState())]


def fed_by_the_bus_alone() -> list[Patch]:
    return [(watchdog, "vouched_at", lambda state: state.heard_at)]
