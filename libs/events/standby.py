"""Hosts on standby: switched on when the pool is short, and off again. Said by the fencer, whose the devices are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import NumberedFact
from libs.model import Incarnation


class StandbySwitchedOn(NumberedFact):
    """Its power is on, since the pool is short; it is a host of the pool once it has joined."""

    kind: Literal["standby.switched_on"] = "standby.switched_on"
    boot_s: float = Field(description="people are told where it has not joined by then")


class StandbyFailed(NumberedFact):
    """A host on standby cannot be had, or cannot be switched off; another is tried where there is one."""

    kind: Literal["standby.failed"] = "standby.failed"
    stage: Literal["on", "boot", "off"]
    reason: str


class StandbyLeaving(NumberedFact):
    """The pool has had enough for long, and this host is idle: it takes no VMs and is switched off in a moment. That this
    boot of it falls silent then is no failure."""

    kind: Literal["standby.leaving"] = "standby.leaving"
    at: Incarnation


class StandbySwitchedOff(NumberedFact):
    """It is off and fenced, and on standby again."""

    kind: Literal["standby.switched_off"] = "standby.switched_off"
    at: Incarnation
