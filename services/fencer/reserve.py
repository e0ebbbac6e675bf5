"""What is kept of hosts on standby and of what the pool is short of, and what is asked of the world for them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field
from rpds import HashTrieMap

from libs.core.decider import Outcome, Records, Request
from libs.model import Incarnation, Value

SHORTAGE = "pool.shortage"


class Stage(StrEnum):
    OFF = "off"  # or of unknown power: nothing is known of it but that it has not joined
    RISING = "rising"  # its power is being switched on
    BOOTING = "booting"  # until its agent has joined
    SPOILT = "spoilt"  # it could not be had; tried again after a while
    IN = "in"  # a host like any other
    LOST = "lost"  # it failed as any other host may: an operator's until it joins again or is removed
    LOOKED_AT = "looked_at"  # whether it may be switched off
    SINKING = "sinking"  # its power is being switched off
    SILENT = "silent"  # off; until it counts as fenced
    LEAVING = "leaving"  # fenced; until nobody misses it any more


AWAY = (Stage.SINKING, Stage.SILENT, Stage.LEAVING)
"""Its silence is our doing."""


class Reserve(Value):
    """One host on standby. Without such a record it is off."""

    PREFIX: ClassVar[str] = "standby."

    standby: Literal[True] = True
    host: str
    stage: Stage = Stage.OFF
    number: int = Field(0, description="of the latest fact about it, and of the latest act")
    at: Incarnation | None = Field(None, description="the boot that joined last")
    epoch: int = Field(-1, description="with which that joined")
    gone: Incarnation | None = Field(None, description="the latest boot that was taken out of the pool")
    cause: str = ""

    @property
    def name(self) -> str:
        return self.PREFIX + self.host


class Shortage(Value):
    """What the pool is short of. Facts may come in any order."""

    waiting: dict[str, tuple[int, dict[str, int]]] = Field(
        {}, description="by incident its revision, and the memory (MiB) of each VM that waits for room"
    )
    relieved: dict[str, int] = Field({}, description="by incident the revision that is over; the latest few")
    over: int = Field(0, description="number of the latest overcommitment")
    restored: int = Field(0, description="of the latest that is over")
    cause: str = ""

    @property
    def overcommitted(self) -> bool:
        return self.over > self.restored

    @property
    def missing_mib(self) -> int:
        """Memory of all VMs that wait; one of two incidents counts once."""
        vms = {vm: size for _, sizes in self.waiting.values() for vm, size in sizes.items()}
        return sum(vms.values())

    @property
    def largest_mib(self) -> int:
        sizes = [size for _, sizes in self.waiting.values() for size in sizes.values()]
        return max(sizes, default=0)


@dataclass(frozen=True, slots=True)
class ReserveState:
    """What is not stored: a new leader counts its times anew."""

    until: HashTrieMap[str, float] = HashTrieMap()  # noqa: RUF009  it is never changed in place
    """By host the end of its stage; of one that is in, until when it is not looked at."""
    fresh: HashTrieMap[str, float] = HashTrieMap()  # noqa: RUF009  nor this
    """By host until when its joining is given time to end what the pool is short of."""
    lasting_at: float | None = None
    """When the overcommitment that stands will have lasted long enough."""
    lasts: bool = False
    """It has."""
    quiet_at: float | None = None
    """When the pool will have had enough for long enough."""
    quiet: bool = False
    """It has."""


class Rouse(Request):
    """Switch a host on, unless it is in the pool, or what is known of it forbids it."""

    kind: Literal["rouse"] = "rouse"
    host: str


class Roused(Outcome):
    host: str
    done: bool = False
    joined: Incarnation | None = Field(None, description="it is in the pool, in this boot")
    forbidden: bool = Field(False, description="its end is not dealt with: it is an operator's")
    detail: str = ""


class LookIdle(Request):
    """See whether a host may be switched off, and close it to new VMs."""

    kind: Literal["look_idle"] = "look_idle"
    at: Incarnation


class LookedIdle(Outcome):
    host: str
    refused: str = Field("", description="why it stays; empty: it takes no VMs any more, and has none")


class LayDown(Request):
    """Switch a host off on which nothing runs; it is looked at once more."""

    kind: Literal["lay_down"] = "lay_down"
    at: Incarnation


class LaidDown(Outcome):
    host: str
    done: bool
    detail: str = ""


class Dismiss(Request):
    """Take a host out of the pool that was switched off, once all hold it to be fenced."""

    kind: Literal["dismiss"] = "dismiss"
    at: Incarnation


class Dismissed(Outcome):
    host: str
    done: bool
    detail: str = ""


def reserve_of(records: Records, host: str) -> Reserve:
    """What is known of a host on standby."""
    found = records.get(Reserve.PREFIX + host)
    return found if isinstance(found, Reserve) else Reserve(host=host)


def shortage_of(records: Records) -> Shortage:
    """What the pool is short of."""
    found = records.get(SHORTAGE)
    return found if isinstance(found, Shortage) else Shortage()
