"""Facts about hosts: what is held of them, and what was proven; and about the pool's hosts as a whole."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import HostFact, NumberedFact, PoolFact, SuspicionFact, VerdictFact
from libs.model import FenceProof, HostState, Incarnation, Value, VmReport


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
    unknown: int = Field(0, description="number of the `host.unknown` that is over with it; 0: none")

    @property
    def key(self) -> str:
        key = f"{super().key}/{self.epoch}"
        return f"{key}/{self.unknown}" if self.unknown else key


class HostUnknown(NumberedFact):
    """A host of the pool has not been heard since the detector began to listen: nothing is known of it. Told once; no
    verdict. Ends with `host.joined` of this number; a host that was known goes over to `host.suspected`."""

    kind: Literal["host.unknown"] = "host.unknown"
    unheard_s: float = Field(description="for how long the detector has listened")


class HostVmsUnknown(NumberedFact):
    """Nobody can read the host's VMs: libvirt does not answer its agent, or, where that is down, us. What they do is
    unknown; none is held stopped, and none is started or ended for it. Told once, until `host.vms_known`."""

    kind: Literal["host.vms_unknown"] = "host.vms_unknown"
    unread_s: float = Field(description="for how long")


class HostVmsKnown(NumberedFact):
    """The host's VMs are read again: the `host.vms_unknown` of this number is over."""

    kind: Literal["host.vms_known"] = "host.vms_known"


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
    expected: bool = Field(False, description="it was switched off on purpose, to go back to standby")


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
    under_way: bool = Field(False, description="told while the attempt goes on, as it takes long")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.incident}/{self.attempt}" + ("/under_way" if self.under_way else "")


class FencePathFact(NumberedFact):
    """About the way to one fence device of a host; numbered within the host."""

    device: str = Field(description="as missing proofs name it")
    level: int


class FencePathBroken(FencePathFact):
    """The power status of a fence device could not be read twice running: where this host fails now, the device will
    prove nothing."""

    kind: Literal["fence_path.broken"] = "fence_path.broken"
    reason: str


class FencePathMended(FencePathFact):
    """The device is read again."""

    kind: Literal["fence_path.mended"] = "fence_path.mended"


class LevelTested(Value):
    """What one fence level showed in a test."""

    level: int
    devices: tuple[str, ...]
    proven: bool = Field(description="all its devices read off twice, spaced, and the host was silent since")
    found_off: bool = Field(description="it read off before it was told to: its command is not proven")
    took_s: float
    said: tuple[str, ...] = Field((), description="the last word of each device")
    missing: tuple[str, ...] = ()


class HostFenceTested(NumberedFact):
    """The end of a fence test of this number."""

    kind: Literal["host.fence_tested"] = "host.fence_tested"
    at: Incarnation
    passed: bool = Field(description="every level is proven, and the host was switched on where it was to be")
    refused: str = Field("", description="why nothing was done at all")
    levels: tuple[LevelTested, ...] = ()
    switched_on: bool = False
    detail: str = Field("", description="what stood in the way of switching it on")
    by: str = Field(min_length=1, description="user and machine of the person")


class HostWatchdogUnarmed(HostFact):
    """The host has a watchdog by the pool file, and its agent could not arm it, or feed it: it is not advertised, so
    this boot is never presumed fenced by it. Told once a life of the agent and reason."""

    kind: Literal["host.watchdog_unarmed"] = "host.watchdog_unarmed"
    agent: str
    number: int
    reason: str

    @property
    def key(self) -> str:
        return f"{super().key}/{self.agent}-{self.number}"


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


class HostIdentityDoubted(HostFact):
    """Somebody speaks as this host, or from this boot, who cannot be it: `known` is heard, too, or is on another machine.
    It is not listened to."""

    kind: Literal["host.identity_doubted"] = "host.identity_doubted"
    known: Incarnation
    number: int = Field(description="grows within the host that is known")

    @property
    def key(self) -> str:
        return f"{super().key}/{self.number}"
