"""What the agent's hands are asked to do, and what they bring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.core.decider import Outcome, Request
from libs.events.vms import VmStopFailed
from libs.model import DiskLocks, Incarnation, Inventory, Offers, RunLease, Value, VmDefinition, VmReport
from libs.promises import Promise, SlotBeat, SlotOrder


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


class StopStray(Request):
    """Stop a second copy of this VM, if its lease condemns the run that is here."""

    kind: Literal["stop_stray"] = "stop_stray"
    at: Incarnation
    vm: str


class Tell(Request):
    """Publish these facts, and come back when they are in the stream."""

    kind: Literal["tell"] = "tell"
    facts: tuple[VmStopFailed, ...]


class GiveBack(Request):
    """Give libvirt back what was held back from it as this boot began; start what nobody has a lease of."""

    kind: Literal["give_back"] = "give_back"


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


class ReadPromise(Request):
    """What this boot has promised by its watchdog, in an earlier life of its agent."""

    kind: Literal["read_promise"] = "read_promise"


class ArmWatchdog(Request):
    """Arm the host's watchdog, which feeds it: not after `until` on our monotonic clock."""

    kind: Literal["arm_watchdog"] = "arm_watchdog"
    timeout_s: float
    until: float


class FeedWatchdog(Request):
    """Feed it, not after `until` on our monotonic clock: what vouches for us is too old by then."""

    kind: Literal["feed_watchdog"] = "feed_watchdog"
    until: float


class KeepPromise(Request):
    """Store what this boot promises from now on, instead of `instead`."""

    kind: Literal["keep_promise"] = "keep_promise"
    promise: Promise
    instead: Promise | None = None


class Greet(Request):
    """Tell these peers directly that we live, until so many of them have noted it."""

    kind: Literal["greet"] = "greet"
    peers: tuple[str, ...]
    enough: int
    within_s: float


class AnswerArrival(Request):
    """Tell libvirt's hook whether the VM may come in; why not."""

    kind: Literal["answer_arrival"] = "answer_arrival"
    ask: str
    refused: str = ""


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
    held: bool = False
    """The gate before libvirt holds something back, or may: it could not be read."""


class StopsTried(Outcome):
    """All of them were looked at: what is not named any more does not run, or may."""

    stopped: tuple[Stopped, ...] = ()
    condemned: tuple[Condemned, ...] = ()


class StrayTried(Outcome):
    """Of one VM: empty where the lease does not condemn what runs here, or nothing runs here any more."""

    stopped: tuple[Stopped, ...] = ()
    condemned: tuple[Condemned, ...] = ()


class Told(Outcome):
    """It is in the stream."""


class GaveBack(Outcome):
    """Nothing is held back any more; and what was."""

    vms: tuple[str, ...] = ()


class AllRead(Outcome):
    memory_mib: int
    cpus: int
    reports: tuple[VmReport, ...]
    definitions: tuple[VmDefinition, ...]
    locks: DiskLocks | None = None
    offers: Offers | None = None
    asks: bool | None = None


class Pinged(Outcome):
    """Who answered, and who did not although it was asked. Of the others nothing is known."""

    answered: tuple[tuple[str, int], ...] = ()
    silent: tuple[tuple[str, int], ...] = ()


class Put(Outcome):
    """Stored."""


class Stirred(Outcome):
    """libvirt said that something changed: read again."""


class Renewed(Outcome):
    """What was stored by us may be lost: the plane has recovered from an old copy of its data."""


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


class Departed(Outcome):
    """libvirt said that a VM was migrated away. Where its definition went along nothing shows that any more."""

    vm: str


class ArrivalAsked(Outcome):
    """libvirt's hook waits: a migration is to bring this VM here. Its key names the request."""

    report: VmReport


class PromiseRead(Outcome):
    """The promise that stands for this boot; None: there is none."""

    promise: Promise | None = None


class WatchdogArmed(Outcome):
    """It runs from now on, with this time-out. `too_late`: it was left as it was."""

    timeout_s: float = 0.0
    too_late: bool = False


class WatchdogUnarmed(Outcome):
    """It cannot be armed, or fed, and why."""

    reason: str


class WatchdogFed(Outcome):
    """It was fed, or what vouched for us was too old by then."""

    fed: bool = True


class PromiseKept(Outcome):
    """What stands in the bucket for this boot now: ours, or the word of who has presumed by it."""

    promise: Promise


class Greeted(Outcome):
    """Who has noted it."""

    peers: tuple[str, ...] = ()


Order = (
    PassGate
    | StopAgain
    | StopStray
    | Tell
    | GiveBack
    | ReadAll
    | PingGuests
    | PutInventory
    | PutDefinition
    | WriteSlot
    | Obey
    | ReadPromise
    | ArmWatchdog
    | FeedWatchdog
    | KeepPromise
    | Greet
    | AnswerArrival
)
REQUESTS: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])
