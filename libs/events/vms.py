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
