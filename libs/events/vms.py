"""Facts about single VMs: what befell them, and what became of their starts."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from libs.events.base import VmFact
from libs.model import Failure, Incarnation, StopReason, VmReport


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
    """The VM was seen running at `at`. `token` is the one it was started with there, 0 if not by us."""

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
    LOCK = "lock"  # to the start, which the lock of its disks refused: somebody holds them


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


class VmStillHeld(VmFact):
    """The lock of its disks refused the start of a VM at `at`: somebody still holds them. Tried for ever, told once an
    incident."""

    kind: Literal["vm.still_held"] = "vm.still_held"
    incident: str
    reason: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.incident}/{self.vm}"


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


class VmRunsTwice(VmFact):
    """The VM runs at `at` and on its holder, by the word of both: this run is condemned, and its agent is to stop it."""

    kind: Literal["vm.runs_twice"] = "vm.runs_twice"
    run: int
    holder: Incarnation
    token: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.vm}/{self.at.boot}/{self.run}"


class VmUnseen(VmFact):
    """Its holder, `at`, says that it was migrated away, and no host of the pool has shown it since: it may run outside the
    pool, or have ended with the host that took it in. Its lease says `migrated_out`: it is started nowhere, also when
    that host fails, until a person starts it or a host of the pool shows it again."""

    kind: Literal["vm.unseen"] = "vm.unseen"
    run: int
    token: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.vm}/{self.at.boot}/{self.run}-{self.token}"


class VmStoppedByGate(VmFact):
    """A host ran a VM whose lease is elsewhere; it was stopped: at its return before anything else (rule 5), or later,
    by whose name the `rule` says, since it ran twice."""

    kind: Literal["vm.stopped_by_gate"] = "vm.stopped_by_gate"
    token: int
    holder: Incarnation

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.vm}/{self.at.boot}/{self.token}"


class VmStopFailed(VmFact):
    """A VM whose lease is elsewhere runs on a host and does not let itself be stopped. A returning host joins
    all the same (rule 11); the VM is started nowhere while it may run here. Of one that returns it is in the stream
    before the first heartbeat of its boot, so that whoever hears of the boot can know it."""

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


class VmMoved(VmFact):
    """It was moved while it ran, to make room or since its host is drained: seen running at `at`, and no more where it
    was."""

    kind: Literal["vm.moved"] = "vm.moved"
    incident: str
    move_key: str
    origin: Incarnation
    token: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.move_key}"


class VmMoveFailed(VmFact):
    """It was to be moved to `at`, to make room or since its host is drained, and is known not to have been: it runs on
    where it was, or ended there. Or one of both hosts is over, and nobody moves it any more: it is that host's failure
    that decides where it runs."""

    kind: Literal["vm.move_failed"] = "vm.move_failed"
    incident: str
    move_key: str
    origin: Incarnation
    reason: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.move_key}"


class VmOrderUncertain(VmFact):
    """It was to be moved to `at`, or to be stopped there where `origin` is None, and nobody can tell what came of it: its
    hosts do not answer, or one shows it on its way. Asked again for ever, told once an order; `vm.moved`,
    `vm.move_failed`, `vm.preempted` or `vm.preempt_failed` is its end. If it fails meanwhile it is started nowhere."""

    kind: Literal["vm.order_uncertain"] = "vm.order_uncertain"
    incident: str
    order_key: str
    origin: Incarnation | None
    reason: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.order_key}"


class VmPreempted(VmFact):
    """It was stopped, since VMs that matter more needed its room. It waits, and starts when there is room."""

    kind: Literal["vm.preempted"] = "vm.preempted"
    incident: str
    stop_key: str
    run: int
    makes_room_for: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.stop_key}"


class VmPreemptFailed(VmFact):
    """It was to be stopped to make room, and was not."""

    kind: Literal["vm.preempt_failed"] = "vm.preempt_failed"
    incident: str
    stop_key: str
    reason: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.stop_key}"


class VmWaitedInVain(VmFact):
    """It was to start after others, which were not ready in the longest time that its policy waits for them: it starts
    without them. Told once a start."""

    kind: Literal["vm.waited_in_vain"] = "vm.waited_in_vain"
    incident: str
    start_key: str
    awaited: tuple[str, ...] = Field(description="VMs that are not ready, by name")
    waited_s: float
    why: str = Field("", description="what their probes brought last, where they have any")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.start_key}"
