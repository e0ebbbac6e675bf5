"""What the agent's hands are asked to do, and what they bring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.core.decider import Outcome, Request
from libs.events.vms import VmStopFailed
from libs.model import (
    Incarnation,
    Inventory,
    RunLease,
    SlotBeat,
    SlotOrder,
    Value,
    VmDefinition,
    VmReport,
)


class PassGate(Request):
    """Stop what may not run here, before this boot is announced (DESIGN §4 rule 5)."""

    kind: Literal["pass_gate"] = "pass_gate"
    at: Incarnation
    condemn: bool = False
    """Pass it although a stop failed: that condemns the VM, never the host (rule 11)."""


class StopAgain(Request):
    """Stop what could not be stopped at the gate."""

    kind: Literal["stop_again"] = "stop_again"
    at: Incarnation
    vms: tuple[str, ...]


class Tell(Request):
    """Publish these facts, and come back when they are in the stream."""

    kind: Literal["tell"] = "tell"
    facts: tuple[VmStopFailed, ...]


class ReadAll(Request):
    """Read every VM and every definition."""

    kind: Literal["read_all"] = "read_all"


class PingGuests(Request):
    """Ask the agents of these guests, side by side, for no longer than this in all."""

    kind: Literal["ping_guests"] = "ping_guests"
    vms: tuple[tuple[str, int], ...]
    """Each with the run that is meant."""
    within_s: float


class PutInventory(Request):
    """Store the inventory for late readers."""

    kind: Literal["put_inventory"] = "put_inventory"
    inventory: Inventory


class PutDefinition(Request):
    """Copy a definition to the bus. `active`: it runs here, so this is the one that counts."""

    kind: Literal["put_definition"] = "put_definition"
    definition: VmDefinition
    active: bool


class WriteSlot(Request):
    """Write our beat into our slot on one datastore, and read what is ordered to us there."""

    kind: Literal["write_slot"] = "write_slot"
    datastore: str
    beat: SlotBeat
    first: bool = False
    """Read first what an earlier life of this agent wrote: it must not be forgotten by our first write."""


class Obey(Request):
    """Stop these VMs, since this host is cut off and they are to run elsewhere."""

    kind: Literal["obey"] = "obey"
    number: int
    vms: tuple[str, ...]


class Stopped(Value):
    """A VM that the gate stopped, and the lease that spoke against it."""

    report: VmReport
    lease: RunLease


class Condemned(Stopped):
    """A VM that may not run here and could not be stopped."""

    reason: str


class GatePassed(Outcome):
    stopped: tuple[Stopped, ...] = ()
    condemned: tuple[Condemned, ...] = ()
    earlier: tuple[VmReport, ...] = ()
    """What an earlier life of this agent told of this boot."""
    settled: tuple[VmReport, ...] = ()
    """What an earlier life of this agent, on this boot, could not stop, and now is stopped or may run."""


class StopsTried(Outcome):
    """All of them were looked at: what is not named any more does not run, or may."""

    stopped: tuple[Stopped, ...] = ()
    condemned: tuple[Condemned, ...] = ()


class Told(Outcome):
    """It is in the stream."""


class AllRead(Outcome):
    memory_mib: int
    cpus: int
    reports: tuple[VmReport, ...]
    definitions: tuple[VmDefinition, ...]


class Pinged(Outcome):
    """Who answered, and who did not although it was asked. Of the others nothing is known."""

    answered: tuple[tuple[str, int], ...] = ()
    silent: tuple[tuple[str, int], ...] = ()


class Put(Outcome):
    """Stored."""


class Stirred(Outcome):
    """libvirt said that something changed: read again."""


class WroteSlot(Outcome):
    """The datastore took it."""

    datastore: str
    order: SlotOrder | None = None
    former: SlotBeat | None = None


class Obeyed(Outcome):
    """Which of the VMs were seen not to run here, and which run all the same."""

    number: int
    stopped: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


class Fired(Outcome):
    """libvirt said that a guest's watchdog fired, and what QEMU does about it."""

    vm: str
    run: int
    action: str


Order = PassGate | StopAgain | Tell | ReadAll | PingGuests | PutInventory | PutDefinition | WriteSlot | Obey
REQUESTS: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])
