"""What a host writes into its slots, what is written to it there, and what it promises by its watchdog."""

from __future__ import annotations

from pydantic import Field

from libs.model import Incarnation, Value


class SlotBeat(Value):
    """What a host writes into its slot on a shared datastore, again and again."""

    host: str
    boot: str
    seq: int
    obeyed: int = Field(0, description="number of the latest order that it has carried out")
    stopped: tuple[str, ...] = Field((), description="the VMs of that order, all of which do not run here")
    watchdog_s: float | None = Field(None, description="the time-out that it advertises; None: no promise")
    life: str = Field("", description="of its agent, where it has a watchdog: each counts its writes anew")


class SlotOrder(Value):
    """What is written to a host through its slot: stop these VMs. To one boot, numbered by the verdict's epoch."""

    boot: str
    number: int = Field(ge=1)
    vms: tuple[str, ...]
    die: bool = Field(False, description="instead: feed no watchdog any more for this slot's sake")


class Promise(Value):
    """What one boot of a host promises by its armed watchdog (DESIGN §4 rule 4): not to live for longer than
    `bound_s` after it began to send the last word of which one of its channels knows.

    Kept by compare-and-set in the bucket `watchdogs`: withdrawn only before anybody has presumed by it, and presumed
    by only while it stands. See docs/WATCHDOG.md."""

    at: Incarnation
    timeout_s: float = Field(gt=0, description="that the device really has")
    lag_s: float = Field(
        ge=0, description="how old what it is fed on may be, counted from when that was sent"
    )
    peers: tuple[str, ...] = Field((), description="of which a majority that sees it keeps it fed")
    datastores: tuple[str, ...] = Field((), description="on which a slot that takes its writes keeps it fed")
    presumed: str = Field("", description="the incident in which this boot was presumed fenced by it")
    withdrawn: bool = Field(
        False, description="it holds no more; that stays written, so that no late write undoes it"
    )

    @property
    def bound_s(self) -> float:
        """The longest life after the last word."""
        return self.timeout_s + self.lag_s

    @property
    def majority(self) -> int:
        """Of its peers: any two of this size have one in common."""
        return len(self.peers) // 2 + 1


class Remembered(Value):
    """What a host's own disk says of its promise: one of these stands for this boot, if any does."""

    at: Incarnation
    perhaps: tuple[Promise, ...] = ()
