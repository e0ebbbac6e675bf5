"""The words of the house as values: hosts, VMs, policies, leases, proofs. No behaviour beyond pure questions.

Names follow docs/GLOSSARY.md. Units are in the names; sizes are MiB, times seconds.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Value(BaseModel):
    """A frozen value on the wire. Fields that another version added are tolerated when reading."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Protection(StrEnum):
    """What is promised to a VM when its host fails."""

    RESTART = "restart"
    BEST_EFFORT = "best_effort"
    NONE = "none"


class Priority(StrEnum):
    """Who goes first when room or time is short."""

    HIGHEST = "highest"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    LOWEST = "lowest"

    @property
    def rank(self) -> int:
        """0 is the most important."""
        return list(Priority).index(self)


class HostState(StrEnum):
    """What the detector holds a host to be. `unknown` is possibly running; nothing here says "dead"."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    AGENT_DOWN = "agent_down"
    ISOLATED = "isolated"
    FAILED = "failed"
    FENCED = "fenced"


class VmState(StrEnum):
    """What a hypervisor says of a VM. `unknown` is never read as stopped (DESIGN §4 rule 3)."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    UNKNOWN = "unknown"

    @property
    def active(self) -> bool:
        """True where a process of the VM exists and may write its disks: paused counts."""
        return self in (VmState.RUNNING, VmState.PAUSED)


class StopReason(StrEnum):
    """Why a stopped VM stopped, as its own hypervisor tells it."""

    NONE = "none"
    ON_PURPOSE = "on_purpose"  # shut down in the guest, or by a person's command
    CRASHED = "crashed"  # its process went away, the guest panicked, or it failed to start
    MIGRATED = "migrated"
    SAVED = "saved"
    ORDERED = "ordered"  # by an order of ours to an isolated host: nobody's will that it stays down
    UNKNOWN = "unknown"  # for example after the host booted: no evidence of anybody's intent


class Isolation(StrEnum):
    """What becomes of a VM whose host lives and is cut off from every network."""

    LEAVE = "leave"
    SHUTDOWN = "shutdown"  # stopped there by an order through its storage slot, and started elsewhere


class Health(StrEnum):
    """How a guest is, as far as it can be told from its host. `unknown` is never bad."""

    UNKNOWN = "unknown"  # it has no agent that can be asked, or has not answered in this run
    OK = "ok"
    SILENT = "silent"  # its agent answered in this run, and does so no more
    PANICKED = "panicked"
    WATCHDOG = "watchdog"  # its own watchdog fired, and nothing has healed it
    IO_ERROR = "io_error"  # paused by QEMU, since a disk failed

    @property
    def bad(self) -> bool:
        """True where the guest does not do its work, though its QEMU is there."""
        return self not in (Health.UNKNOWN, Health.OK)


class GuestFailure(StrEnum):
    """What is done about a guest that fails while its QEMU lives."""

    RESTART = "restart"
    ALERT = "alert"


class Failure(StrEnum):
    """What is wrong with a VM. All but `crashed` are the guest's: its QEMU is still there."""

    CRASHED = "crashed"
    PANICKED = "panicked"
    SILENT = "silent"
    WATCHDOG = "watchdog"
    IO_ERROR = "io_error"


class VmPolicy(Value):
    """The policy of one VM, from its own libvirt metadata over the pool's defaults."""

    protection: Protection = Protection.RESTART
    priority: Priority = Priority.MEDIUM
    order: int = Field(0, ge=0, le=9999, description="start order inside a priority; lower starts first")
    isolation: Isolation = Isolation.LEAVE
    on_guest_failure: GuestFailure = Field(
        GuestFailure.RESTART, description="when its guest fails though its QEMU lives"
    )


class VmReport(Value):
    """One VM as one host's hypervisor shows it."""

    uuid: str
    name: str
    state: VmState
    stop_reason: StopReason = StopReason.NONE
    health: Health = Health.UNKNOWN
    agent: bool = Field(False, description="its guest agent is connected: it can be asked")
    destroyed: bool = Field(
        False, description="of one that stopped: by a command of libvirt's, not by the guest itself"
    )
    run: int = Field(
        0, description="libvirt's id of the current or last seen run on this host; 0 = none seen"
    )
    token: int = Field(0, description="the fencing token it was started with, 0 if not by us")
    memory_mib: int = Field(gt=0, description="what it occupies, hypervisor overhead included")
    vcpus: int = Field(gt=0)
    policy: VmPolicy = VmPolicy()
    datastores: tuple[str, ...] = Field((), description="on which of the pool's datastores its disks lie")


class Incarnation(Value):
    """One boot of one host. A host that rebooted is another."""

    host: str
    boot: str = Field(min_length=1, description="the boot id")

    def __str__(self) -> str:
        return f"{self.host}/{self.boot[:8]}"

    # every heartbeat is compared with what is known: pydantic's own way is several times slower

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Incarnation) and self.boot == other.boot and self.host == other.host

    def __hash__(self) -> int:
        return hash((self.host, self.boot))


class Inventory(Value):
    """All that a host's agent saw at one full read. `rev` grows within one agent's life.

    While the agent is silent and its host answers, the detector looks over libvirt and goes on in that life's name."""

    at: Incarnation
    agent: str
    rev: int
    memory_mib: int = Field(gt=0)
    memory_reserved_mib: int = Field(0, ge=0)
    cpus: int = Field(gt=0)
    vms: tuple[VmReport, ...] = ()
    condemned: tuple[str, ...] = Field((), description="VMs that may not run here and cannot be stopped")
    look: int = Field(
        0,
        description="how many looks over libvirt came after this read of a silent agent; 0: its own word",
    )

    def outdated(self, known: Inventory | None) -> bool:
        """True where what is `known` of the host is newer. Among the words of one life of its agent the numbers tell;
        a look is of no more use once another life has spoken, or another boot."""
        if known is None:
            return False
        if known.agent != self.agent or known.at != self.at:
            return self.look > 0
        return (known.rev, known.look) > (self.rev, self.look)

    def vm(self, uuid: str) -> VmReport | None:
        """The report of one VM, or None where this host does not know it."""
        return next((v for v in self.vms if v.uuid == uuid), None)


class ProofMethod(StrEnum):
    """How it is known that an incarnation can do no harm (DESIGN §4 rule 2)."""

    POWER_OFF = "power_off"  # read as off twice, spaced
    NEW_BOOT = "new_boot"  # the host spoke with another boot id, so the old boot is over
    OPERATOR = "operator"
    OBEYED = "obeyed"  # an isolated host says through its storage slot that it has stopped the VMs it names


class FenceProof(Value):
    """The recorded evidence that one incarnation is harmless."""

    of: Incarnation
    method: ProofMethod
    detail: str
    successor: str = Field(
        "", description="boot id of the later boot that proves it; that one lives and can be asked"
    )
    vms: tuple[str, ...] = Field((), description="it proves only that these do not run; empty: nothing does")

    def covers(self, vm: str) -> bool:
        """True where it proves that this VM does not run on that incarnation."""
        return not self.vms or vm in self.vms


class LeaseState(StrEnum):
    """What the holder of a run lease is doing with it."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"  # on purpose: nobody starts it but a person
    FAILED = "failed"  # the holder was asked and does not run it
    EVICTING = "evicting"  # it runs there and is to be stopped by us: its end is no person's will


class RunLease(Value):
    """Who may run a VM now. Written by compare-and-set only; the token grows with every holder."""

    vm: str
    name: str
    token: int = Field(ge=1)
    holder: Incarnation
    state: LeaseState
    run: int = Field(0, description="while it is evicted: the run that is to end")
    start_key: str = Field("", description="the start that took it; empty where it was adopted as found")
    seq: int = Field(1, ge=1, description="grows with every write of this lease; the later reading wins")
    memory_mib: int = Field(gt=0)
    vcpus: int = Field(gt=0)
    policy: VmPolicy = VmPolicy()
    stopped_before: bool = Field(
        False,
        description="its target said before this start that it was stopped on purpose, and may go on so",
    )

    @property
    def wanted(self) -> bool:
        """True where the VM should be running."""
        return self.state is not LeaseState.STOPPED


class VmDefinition(Value):
    """The copy of a VM's definition on the bus: a VM is restarted from it, because its host is gone."""

    uuid: str
    name: str
    xml: str
    sha256: str


class SlotBeat(Value):
    """What a host writes into its slot on a shared datastore, again and again."""

    host: str
    boot: str
    seq: int
    obeyed: int = Field(0, description="number of the latest order that it has carried out")
    stopped: tuple[str, ...] = Field((), description="the VMs of that order, all of which do not run here")


class SlotOrder(Value):
    """What is written to a host through its slot: stop these VMs. To one boot, numbered by the verdict's epoch."""

    boot: str
    number: int = Field(ge=1)
    vms: tuple[str, ...]


class PowerState(StrEnum):
    """What a fence device says. Anything unclear is unknown, and unknown proves nothing."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


class Answer(StrEnum):
    """What one question about a host's life brought."""

    UP = "up"  # it answered
    REFUSED = "refused"  # its kernel answered, the service did not
    HANGS = "hangs"  # its kernel took the connection, and no process answered on it
    SILENT = "silent"  # asked, and nothing came back
    UNKNOWN = "unknown"  # the question could not be asked
