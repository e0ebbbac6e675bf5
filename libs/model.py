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


_NAME = r"[^\s,;:=]+"
LABELS = rf"^({_NAME}={_NAME}(,{_NAME}={_NAME})*)?$"
_GROUP = rf"{_NAME}(:{_NAME}(:(strict|soft))?)?"
GROUPS = rf"^({_GROUP}(,{_GROUP})*)?$"
"""NAME[:SCOPE[:strict|soft]], the scope being `host` or a label."""
_READY = r"(running|agent)"
_AFTER = rf"{_NAME}( {_READY}( \d{{1,5}})?)?"
AFTER = rf"^({_AFTER}(; ?{_AFTER})*)?$"
"""NAME[ READY[ SECONDS]], the longest wait. Running, or with a guest agent that answers; and ready by its own policy."""
_HOST = r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])"
_PORT = r"([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5])"
PROBE = rf"(tcp:({_HOST}:)?{_PORT}|http:({_HOST}:)?{_PORT}(/\S*)?)"
"""tcp:[HOST:]PORT or http:[HOST:]PORT[/PATH]; without a host that of the guest itself."""
READY = rf"^({PROBE})?$"


class VmPolicy(Value):
    """The policy of one VM, from its own libvirt metadata over the pool's defaults."""

    protection: Protection = Protection.RESTART
    priority: Priority = Priority.MEDIUM
    order: int = Field(0, ge=0, le=9999, description="start order inside a priority; lower starts first")
    isolation: Isolation = Isolation.LEAVE
    on_guest_failure: GuestFailure = Field(
        GuestFailure.RESTART, description="when its guest fails though its QEMU lives"
    )
    start_delay_s: float = Field(0.0, ge=0, le=3600, description="waited before its start begins")
    requires_labels: str = Field("", pattern=LABELS, description="of its host, as rack=r1,disk=ssd")
    prefers_labels: str = Field("", pattern=LABELS)
    affinity: str = Field(
        "", pattern=GROUPS, description="groups to share a place with, as web or web:rack:soft"
    )
    anti_affinity: str = Field("", pattern=GROUPS, description="groups to be apart from")
    after: str = Field(
        "", pattern=AFTER, description="VMs that must be ready first, as db1 or db1 agent 300; cache running"
    )
    ready: str = Field(
        "", pattern=READY, description="what must answer before it is ready, as tcp:5432 or http:8080/health"
    )


class HeldVm(Value):
    """A VM that was kept from libvirt, which would have started it at boot (DESIGN §4 rule 5)."""

    uuid: str
    name: str
    link: str = Field("", description="where the link of its autostart led; empty: it had none")
    resumed: bool = Field(False, description="libvirt-guests was to resume it")


class VmNeeds(Value):
    """What a VM's definition asks of the host that it starts on, beside room and datastores."""

    networks: tuple[str, ...] = Field(
        (), description="libvirt networks, bridges and devices that its interfaces name"
    )
    devices: dict[str, int] = Field(
        {}, description="host devices that are passed through to it, as its host calls them, see Offers"
    )
    cpu_model: str = Field(
        "",
        description="that a host must be able to give it, see Offers; empty: none that a name would tell of",
    )
    host_cpu: bool = Field(
        False, description="its CPU is its host's own: while it runs it moves only to one with the same"
    )


class Offers(Value):
    """What a host has for VMs beside room and datastores. None: not known."""

    networks: tuple[str, ...] | None = Field(
        None, description="active libvirt networks, bridges and network devices, by name"
    )
    devices: dict[str, int] | None = Field(
        None,
        description="that can be passed through: `pci VENDOR:PRODUCT ADDRESS`, `mdev TYPE UUID`, "
        "`usb VENDOR:PRODUCT`; a definition names an address, so that is part of what it is",
    )
    cpu_models: tuple[str, ...] | None = Field(
        None, description="that its hypervisor can give: by KVM as NAME, else as `NAME (qemu)`"
    )
    arch: str = ""
    cpu: str = Field("", description="its processor, with all features: equal marks, equal processors")


class VmReport(Value):
    """One VM as one host's hypervisor shows it."""

    uuid: str
    name: str
    state: VmState
    stop_reason: StopReason = StopReason.NONE
    health: Health = Health.UNKNOWN
    agent: bool = Field(False, description="its guest agent is connected: it can be asked")
    answered: bool = Field(
        False, description="its guest agent has answered in this run, so that its silence means something"
    )
    destroyed: bool = Field(
        False, description="of one that stopped: by a command of libvirt's, not by the guest itself"
    )
    migrated: bool = Field(False, description="this run came, or is coming, from another host by a migration")
    run: int = Field(
        0, description="libvirt's id of the current or last seen run on this host; 0 = none seen"
    )
    token: int = Field(0, description="the fencing token it was started with, 0 if not by us")
    memory_mib: int = Field(gt=0, description="what it occupies, hypervisor overhead included")
    vcpus: int = Field(gt=0)
    policy: VmPolicy = VmPolicy()
    datastores: tuple[str, ...] = Field((), description="on which of the pool's datastores its disks lie")
    needs: VmNeeds | None = Field(None, description="by its definition; None: not known")


GUESSED, BEGUN = "-agentless", "-agentless-begun"
"""How boots of hosts without an agent are called, see Incarnation."""


class Incarnation(Value):
    """One boot of one host. A host that rebooted is another."""

    host: str
    boot: str = Field(min_length=1, description="the boot id")

    def __str__(self) -> str:
        return f"{self.host}/{self.boot[:8]}"

    @property
    def outside(self) -> bool:
        """Named by what watches its host from outside: no gate has stopped there what autostart began."""
        return self.boot.endswith((GUESSED, BEGUN))

    @property
    def guessed(self) -> bool:
        """Nothing showed that it began after the boot before it: perhaps it is the same by another name."""
        return self.boot.endswith(GUESSED)

    # every heartbeat is compared with what is known: pydantic's own way is several times slower

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Incarnation) and self.boot == other.boot and self.host == other.host

    def __hash__(self) -> int:
        return hash((self.host, self.boot))


class DiskLocks(Value):
    """What guards the disks of a host's VMs against a second start, by its libvirt's configuration."""

    manager: str = Field("", description="lockd (virtlockd) or sanlock; empty: none")
    automatic: bool = Field(
        False, description="each disk is locked, and not only leases that a definition names"
    )
    space: str = Field(
        "", description="the directory of its locks, which hosts must share; empty: the disks themselves"
    )


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
    locks: DiskLocks | None = Field(None, description="what guards the disks here; None: unknown")
    offers: Offers | None = Field(
        None,
        description="None: not known. It changes rarely: only the inventory that is stored says it, none that is sent",
    )
    former: tuple[str, ...] = Field(
        (), description="what a host without an agent was called before: boots that are over, or this one"
    )
    asks: bool | None = Field(
        None,
        description="its libvirt asks the agent before it takes a VM in by a migration (ADR 11); None: not known",
    )
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
    WATCHDOG = "watchdog"  # unheard and unseen for longer than its own promise lets it live (rule 4)


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

    @property
    def later(self) -> Incarnation | None:
        """The later boot of the host that proves it, if that is the proof."""
        return Incarnation(host=self.of.host, boot=self.successor) if self.successor else None

    @property
    def guessed(self) -> bool:
        """Of that later boot it is not certain that it is another: a start that was under way may yet come through."""
        return self.later is not None and (self.later.guessed or self.of.outside > self.later.outside)


class LeaseState(StrEnum):
    """What the holder of a run lease is doing with it."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"  # on purpose: nobody starts it but a person
    FAILED = "failed"  # the holder was asked and does not run it
    MIGRATED_OUT = "migrated_out"  # its holder let it go, and no host of the pool shows it: a person's, too
    EVICTING = "evicting"  # it runs there and is to be stopped by us: its end is no person's will


class StrayRun(Value):
    """One run of a VM on one boot, found beside the holder's: it may not go on, and never holds the lease."""

    at: Incarnation
    run: int


class Arrival(Value):
    """A host that was allowed to take a VM in by a migration, ADR 11: it may run there, until that very agent's inventory says
    that it does not."""

    at: Incarnation
    agent: str = Field(description="the life of its agent that asked")
    rev: int = Field(description="its inventory that showed the VM first: what an earlier one says is older")
    found: StopReason = Field(
        StopReason.NONE,
        description="why it was stopped there before, and may go on so; none: not known there",
    )


class RunLease(Value):
    """Who may run a VM now. Written by compare-and-set only; the token grows with every holder."""

    vm: str
    name: str
    token: int = Field(ge=1)
    holder: Incarnation
    state: LeaseState
    run: int = Field(0, description="the run that we are to end (evicting), or have ended (failed)")
    moving_to: Incarnation | None = Field(
        None,
        description="a live migration of ours may bring it there: whoever takes the lease asks there first",
    )
    moving_found: StopReason = Field(
        StopReason.NONE,
        description="why it was stopped there when that migration began, and may go on so; none: not known there",
    )
    arriving: tuple[Arrival, ...] = Field(
        (),
        description="where a person's migration may have brought it, the latest last: asked like moving_to",
    )
    start_key: str = Field("", description="the start that took it; empty where it was adopted as found")
    seq: int = Field(1, ge=1, description="grows with every write of this lease; the later reading wins")
    memory_mib: int = Field(gt=0)
    vcpus: int = Field(gt=0)
    policy: VmPolicy = VmPolicy()
    stopped_before: bool = Field(
        False,
        description="its target said before this start that it was stopped on purpose, and may go on so",
    )
    strays: tuple[StrayRun, ...] = Field(
        (), description="runs beside the holder's that may not have ended yet"
    )

    @property
    def wanted(self) -> bool:
        """True where the VM should be running."""
        return self.state not in (LeaseState.STOPPED, LeaseState.MIGRATED_OUT)


class Mark(Value):
    """Where the data of the plane stand: `number` grows every few seconds, `generation` each time that the plane has
    recovered from an old copy of them."""

    generation: int = 0
    number: int = 0

    def behind(self, other: Mark) -> bool:
        """True where `other` is later."""
        return (self.generation, self.number) < (other.generation, other.number)


class VmDefinition(Value):
    """The copy of a VM's definition on the bus: a VM is restarted from it, because its host is gone."""

    uuid: str
    name: str
    xml: str
    sha256: str


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
