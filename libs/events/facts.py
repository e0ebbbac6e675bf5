"""Every fact that is kept on the bus: past tense, frozen, one union discriminated by `kind`.

Each says who it is about, which incident it belongs to, what caused it and by which rule. `key` names the
fact itself: a repeat has the same key and is dropped by the server and by every consumer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.events.base import HostFact, NumberedFact, PoolFact, RevisedFact, SuspicionFact, VerdictFact, VmFact
from libs.events.datastores import DatastoreFailed, DatastoreLost, DatastoreRecovered
from libs.events.guests import (
    HostDrainEnded,
    HostDraining,
    HostGrey,
    VmEvictFailed,
    VmHealthRestored,
    VmUnhealthy,
)
from libs.events.words import (
    HostConfirmedFailed,
    HostMaintenanceEntered,
    HostMaintenanceExited,
    HostReadmitOrdered,
    HostRemoved,
    StormReleaseOrdered,
)
from libs.model import (
    Failure,
    FenceProof,
    HostState,
    Incarnation,
    StopReason,
    Value,
    VmPolicy,
    VmReport,
)


class Evidence(Value):
    """One channel's word on a host, kept in the verdict: who was asked, what came, how old."""

    channel: str
    said: str
    age_s: float | None = Field(None, description="age at the moment of the verdict; None = never answered")
    detail: str = ""


class HostJoined(HostFact):
    """An incarnation was heard for the first time, or came back after a verdict."""

    kind: Literal["host.joined"] = "host.joined"
    epoch: int = 0

    @property
    def key(self) -> str:
        return f"{super().key}/{self.epoch}"


class HostSuspected(SuspicionFact):
    """Silence was noticed, not yet believed; every other channel is being asked."""

    kind: Literal["host.suspected"] = "host.suspected"
    silent_s: float


class HostUndecided(SuspicionFact):
    """A suspect waits, and is not judged by its silence, since no other host is heard either: the one that is cut off
    may be the observer. No verdict: said once a suspicion, so that a person looks."""

    kind: Literal["host.undecided"] = "host.undecided"
    silent_s: float


class HostRefuted(SuspicionFact):
    """The suspect gave a sign of life in time."""

    kind: Literal["host.refuted"] = "host.refuted"
    was: HostState = HostState.SUSPECT


class HostAgentDown(SuspicionFact):
    """The host answers on another channel while its agent is silent: an alert, never a failover."""

    kind: Literal["host.agent_down"] = "host.agent_down"
    evidence: tuple[Evidence, ...] = ()


class HostFailed(VerdictFact):
    """The verdict. `vms` is all that a late reader needs to know of what ran there."""

    kind: Literal["host.failed"] = "host.failed"
    evidence: tuple[Evidence, ...] = ()
    proof: FenceProof | None = Field(None, description="where the verdict's evidence is already a proof")
    vms: tuple[VmReport, ...] = ()


class HostIsolated(VerdictFact):
    """Alone, alive: no network reaches it, and its storage slot moves. `vms` ran there when it was last heard."""

    kind: Literal["host.isolated"] = "host.isolated"
    evidence: tuple[Evidence, ...] = ()
    vms: tuple[VmReport, ...] = ()


class HostObeyed(VerdictFact):
    """An isolated host says through its slot that it has stopped the VMs that it was ordered to stop: they may be
    started elsewhere. `proof` covers these and no others."""

    kind: Literal["host.obeyed"] = "host.obeyed"
    proof: FenceProof
    vms: tuple[VmReport, ...] = ()


class HostRecovered(VerdictFact):
    """A host that was held failed or isolated, and never proven harmless, is reached again in the same boot."""

    kind: Literal["host.recovered"] = "host.recovered"
    suspicion: int = Field(
        0,
        description="number of the suspicion that is over with it, and of all before; 0: only the verdict is",
    )


class HostFenced(VerdictFact):
    """The incarnation can do no harm: the proof says why."""

    kind: Literal["host.fenced"] = "host.fenced"
    proof: FenceProof
    vms: tuple[VmReport, ...] = ()


class HostFenceRefuted(VerdictFact):
    """An incarnation that was proven harmless speaks: the proof was false, and its VMs may run twice."""

    kind: Literal["host.fence_refuted"] = "host.fence_refuted"


class HostFenceFailed(HostFact):
    """No proof yet: what was tried and what is missing. Said once per distinct reason; retried for ever."""

    kind: Literal["host.fence_failed"] = "host.fence_failed"
    incident: str
    attempt: int
    missing: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.incident}/{self.attempt}"


class HostQuarantined(NumberedFact):
    """The host failed so often within a time that it gets no new VMs. Its number is the epoch of the verdict."""

    kind: Literal["host.quarantined"] = "host.quarantined"
    failed_ago_s: tuple[float, ...] = Field(description="how long before this each of its failures was")
    window_s: float = Field(description="the time within which they were counted")
    quiet_s: float = Field(description="it is let in after so long without a failure, or by an operator")


class HostReadmitted(NumberedFact):
    """The quarantine of this number is over; the host gets new VMs again."""

    kind: Literal["host.readmitted"] = "host.readmitted"
    by: str = Field("", description="the person whose word it was; empty: by itself, after a quiet time")


class StormHeld(PoolFact):
    """More suspects at once than believable: verdicts wait for proof or for an operator. Told again, with
    another number, where a host falls silent after an operator has released those before it."""

    kind: Literal["storm.held"] = "storm.held"
    number: int
    suspects: tuple[str, ...]
    limit: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.number}"


class StormReleased(PoolFact):
    """The number of suspects is believable again."""

    kind: Literal["storm.released"] = "storm.released"
    number: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.number}"


class DetectorDegraded(PoolFact):
    """The detector that leads did not hear itself on the bus, and judged nobody meanwhile. Told when it hears again."""

    kind: Literal["detector.degraded"] = "detector.degraded"
    replica: str = Field(description="one process of the detector")
    number: int
    deaf_s: float

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.replica}/{self.number}"


class PlannedStart(Value):
    """One VM that is to start. `key` is the same for every delivery of this order, another for each attempt."""

    key: str
    vm: str
    name: str
    origin: Incarnation
    to: Incarnation
    wave: int = Field(description="0 first: by priority, then start order")
    priority_rank: int
    memory_mib: int
    vcpus: int
    policy: VmPolicy = VmPolicy()
    proofs: tuple[FenceProof, ...] = Field((), description="why former holders are harmless")
    run: int = Field(0, description="of a living origin: the run that ended, or is to end")
    evict: bool = Field(
        False, description="its QEMU is still there at the origin and must be proven stopped first"
    )


class WaitingVm(Value):
    """A VM that found no room, and what would have to be there for it."""

    vm: str
    name: str
    priority: str
    reason: str
    memory_mib: int
    vcpus: int
    short_memory_mib: int = 0
    short_vcpus: int = 0


class FailoverPlanned(RevisedFact):
    """Who starts where. A later revision of the same incident adds or replaces starts that failed."""

    kind: Literal["failover.planned"] = "failover.planned"
    starts: tuple[PlannedStart, ...] = ()
    waiting: tuple[WaitingVm, ...] = ()


class FailoverCompleted(RevisedFact):
    """Every VM of the incident was seen running with our token, or waits with a stated reason."""

    kind: Literal["failover.completed"] = "failover.completed"
    restarted: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    given_up: tuple[str, ...] = ()


class VmFailed(VmFact):
    """A VM's own hypervisor says that it stopped, and that nobody meant it to; or its guest failed, and its QEMU is
    still there (`report.state`)."""

    kind: Literal["vm.failed"] = "vm.failed"
    run: int
    reason: StopReason
    why: Failure = Failure.CRASHED
    report: VmReport
    agent: str = Field("", description="the life of the host's agent whose inventory showed it")
    rev: int = Field(0, description="and that inventory's number: what is older says nothing of this")
    look: int = Field(0, description="and of the look over libvirt, where its agent is silent")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.vm}/{self.at.boot}/{self._which}"

    @property
    def incident(self) -> str:
        """What is opened for it."""
        return f"vm-{self.vm}-{self.at.boot[:8]}-{self._which}"

    @property
    def _which(self) -> str:
        """The run that crashed. One that ended before anybody read libvirt has the number of the run before
        it, and another token: by its number alone its crash would be taken for the former one, told again."""
        which = f"{self.run}-{self.report.token}"
        return which if self.why is Failure.CRASHED else f"{which}-{self.why.value}"


class VmRestarted(VmFact):
    """The VM was seen running at `at`, with our token."""

    kind: Literal["vm.restarted"] = "vm.restarted"
    incident: str
    start_key: str
    token: int
    called_at: str = Field("", description="wall time of the start call, ISO 8601; for people and reports")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.start_key}"


class Stage(StrEnum):
    """How far an attempt to start a VM came."""

    START = "start"  # to the start itself, or to the lease
    ASK = "ask"  # the origin, where the VM still runs, could not be asked
    EVICT = "evict"  # it could not be stopped there


class VmRestartFailed(VmFact):
    """The start at `at` was tried and is known not to run there; placement plans again."""

    kind: Literal["vm.restart_failed"] = "vm.restart_failed"
    incident: str
    start_key: str
    reason: str
    stage: Stage = Stage.START

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.start_key}"


class VmStartUncertain(VmFact):
    """A start may be under way on a target that does not answer: it is never planned again elsewhere until
    the target is fenced or answers (DESIGN §4 rule 1)."""

    kind: Literal["vm.start_uncertain"] = "vm.start_uncertain"
    incident: str
    start_key: str
    reason: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.start_key}"


class VmGivenUp(VmFact):
    """The VM failed more often than its budget allows; it stays as it is until a person starts it."""

    kind: Literal["vm.given_up"] = "vm.given_up"
    incident: str
    failures: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.incident}"


class VmStoppedByGate(VmFact):
    """A returning host ran a VM whose lease is elsewhere; it was stopped before anything else (rule 5)."""

    kind: Literal["vm.stopped_by_gate"] = "vm.stopped_by_gate"
    token: int
    holder: Incarnation

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.vm}/{self.at.boot}/{self.token}"


class VmStopFailed(VmFact):
    """A VM whose lease is elsewhere runs on a returning host and does not let itself be stopped. The host joins
    all the same (rule 11); the VM is started nowhere while it may run here. In the stream before the first
    heartbeat of this boot, so that whoever hears of the boot can know it."""

    kind: Literal["vm.stop_failed"] = "vm.stop_failed"
    holder: Incarnation
    reason: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.vm}/{self.at.boot}"


class VmStopSettled(VmFact):
    """What could not be stopped there runs there no more, or may run there by now."""

    kind: Literal["vm.stop_settled"] = "vm.stop_settled"

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.vm}/{self.at.boot}"


class CapacityExhausted(RevisedFact):
    """VMs wait because no host has room: what is missing."""

    kind: Literal["capacity.exhausted"] = "capacity.exhausted"
    waiting: tuple[WaitingVm, ...]


class CapacityRelieved(RevisedFact):
    """Nothing of this incident waits for room any more."""

    kind: Literal["capacity.relieved"] = "capacity.relieved"


class MessageUnreadable(PoolFact):
    """Something lies in the stream that no version of ours can read; it was taken out of the way."""

    kind: Literal["message.unreadable"] = "message.unreadable"
    subject: str
    sequence: int
    reason: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.sequence}"


AnyFact = Annotated[
    HostJoined
    | HostSuspected
    | HostUndecided
    | HostRefuted
    | HostAgentDown
    | HostFailed
    | HostIsolated
    | HostObeyed
    | HostRecovered
    | HostFenced
    | HostFenceFailed
    | HostFenceRefuted
    | HostConfirmedFailed
    | HostMaintenanceEntered
    | HostMaintenanceExited
    | HostRemoved
    | HostQuarantined
    | HostReadmitOrdered
    | HostReadmitted
    | StormHeld
    | StormReleased
    | StormReleaseOrdered
    | DetectorDegraded
    | DatastoreLost
    | DatastoreFailed
    | DatastoreRecovered
    | FailoverPlanned
    | FailoverCompleted
    | HostGrey
    | HostDraining
    | HostDrainEnded
    | VmFailed
    | VmUnhealthy
    | VmHealthRestored
    | VmEvictFailed
    | VmRestarted
    | VmRestartFailed
    | VmStartUncertain
    | VmGivenUp
    | VmStoppedByGate
    | VmStopFailed
    | VmStopSettled
    | CapacityExhausted
    | CapacityRelieved
    | MessageUnreadable,
    Field(discriminator="kind"),
]
FACT: TypeAdapter[AnyFact] = TypeAdapter(AnyFact)
