"""What placement knows: the pool as heard, and one record per incident, fenced host and failing VM."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import Field
from rpds import HashTrieMap

from libs.core.decider import Records
from libs.model import Failure, FenceProof, Incarnation, Inventory, RunLease, Value, VmPolicy


class Phase(StrEnum):
    WAITING = "waiting"  # to be planned: now, at its time, or when there is room
    PLANNED = "planned"
    RUNNING = "running"
    GIVEN_UP = "given_up"


class Item(Value):
    """One VM of one incident."""

    vm: str
    name: str
    memory_mib: int
    vcpus: int
    policy: VmPolicy
    origin: Incarnation
    run: int = Field(
        0, description="the run that ended, or is to end, at a living origin; 0 where the origin is fenced"
    )
    phase: Phase = Phase.WAITING
    to: Incarnation | None = None
    attempt: int = 0
    in_place: bool = False
    evict: bool = Field(False, description="its QEMU is still there at the origin and must be stopped first")
    ill: Failure | None = Field(None, description="its guest failed: where that is over, nothing is done")
    shown: tuple[str, int, int] = Field(
        ("", 0, 0), description="the agent's life, the inventory and the look over libvirt that showed it ill"
    )
    stuck: bool = Field(False, description="it was told that it cannot be stopped")
    lost: bool = Field(
        False,
        description="it moves since its origin has lost a datastore: once that is back, nothing is done",
    )
    datastores: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    proofs: tuple[FenceProof, ...] = ()
    reason: str = ""


class Incident(Value):
    """All that one failure left to be done."""

    id: str
    cause: str
    revision: int = 0
    items: tuple[Item, ...] = ()
    exhausted: int = Field(0, description="revision of the last capacity.exhausted; 0 = none is open")
    short: tuple[str, ...] = Field((), description="VMs named in it")


class HostWords(Value):
    """What operators said of a host, and the detector of its place in the pool."""

    number: int = Field(0, description="of the latest word on its maintenance; an older one is void")
    maintenance: bool = Field(False, description="it takes no new VMs")
    drain: str = Field("", description="why it takes none though nobody said so: it was grey")
    grey: tuple[str, ...] = Field((), description="marks of host.grey that were dealt with")
    removed: str = Field("", description="the life of its agent that was taken out of the pool")
    quarantined: int = Field(0, description="number of the quarantine that it is in, by the detector's word")
    readmitted: int = Field(0, description="of the latest quarantine that is over")

    @property
    def closed(self) -> bool:
        """True where it takes no new VMs."""
        return self.maintenance or self.quarantined > 0 or bool(self.drain)

    def removes(self, agent: str) -> bool:
        """True where this is the life of its agent that was taken out of the pool."""
        return bool(agent) and agent == self.removed

    def without(self, agent: str) -> HostWords:
        """What is left of a host that was removed: whom not to listen to, and which words are old."""
        over = max(self.quarantined, self.readmitted)
        return HostWords(number=self.number, removed=agent, readmitted=over, grey=self.grey)


NO_WORDS = HostWords()


class HostLoss(Value):
    """A datastore that one boot of a host has lost."""

    number: int
    at: Incarnation


class StoreWords(Value):
    """What the detector said of one datastore."""

    failed: int = Field(0, description="number of its failure for all, 0 where it has not failed")
    lost: dict[str, HostLoss] = Field({}, description="by host")
    over: tuple[int, ...] = Field(
        (), description="losses and failures that are over: told late, they are void"
    )


class PlacementRecord(Value):
    """Records of seven kinds share one ledger: an incident, the boot of a host that joined last, a host's latest
    proof, whether a host is closed to new VMs, a VM's crashes, where a VM may run that could not be stopped, what
    became of a datastore."""

    incident: Incident | None = None
    joined: Incarnation | None = None
    proof: FenceProof | None = None
    epoch: int = Field(0, description="of the host when it joined, or of the proof")
    words: HostWords | None = None
    held: Incarnation | None = None
    crashes: tuple[float, ...] = ()
    store: StoreWords | None = None
    told: tuple[str, ...] = Field((), description="crashes that were dealt with: a repeat is no news")


@dataclass(frozen=True, slots=True)
class Beat:
    """One host's latest heartbeat, and when."""

    of: Incarnation
    at: float


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why one boot of a host is not to be used: the kind of the fact that said so, and its number (that of
    the suspicion, or the epoch of the verdict)."""

    of: Incarnation
    kind: str
    number: int


@dataclass(frozen=True, slots=True)
class PlacementState:
    records: Records
    heard: HashTrieMap[str, Inventory]
    beats: HashTrieMap[str, Beat]
    down: HashTrieMap[str, Doubt]
    """Hosts not to be used."""
    cleared: HashTrieMap[str, tuple[int, int]]
    """By host the latest suspicion and the latest verdict that are over: facts may come in any order."""
    leases: HashTrieMap[str, RunLease]
    retry_at: HashTrieMap[str, float]
    """When a VM whose start failed may be planned again."""
    plan_at: float | None = None
    """When to plan what waits."""
    stranded: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """Runs on a datastore that is lost where they run, without an incident; and since when this is seen."""

    def incidents(self) -> list[Incident]:
        found = (record.incident for _, record in sorted(self.records.items()))
        return [incident for incident in found if incident is not None]

    def find(self, incident_id: str, vm: str) -> tuple[Incident | None, Item | None]:
        """One VM's item in one incident, if it is still kept."""
        record = self.records.get(f"incident.{incident_id}")
        incident = record.incident if isinstance(record, PlacementRecord) else None
        if incident is None:
            return None, None
        return incident, next((item for item in incident.items if item.vm == vm), None)

    def open_vms(self) -> set[str]:
        """VMs that some incident still has to start."""
        busy = (Phase.WAITING, Phase.PLANNED)
        return {item.vm for incident in self.incidents() for item in incident.items if item.phase in busy}

    def words_on(self, host: str) -> HostWords:
        record = self.records.get(f"host.{host}")
        words = record.words if isinstance(record, PlacementRecord) else None
        return words if words is not None else NO_WORDS

    def held_at(self, vm: str) -> Incarnation | None:
        """Where a VM may run that could not be stopped there: it is started nowhere meanwhile."""
        record = self.records.get(f"held.{vm}")
        return record.held if isinstance(record, PlacementRecord) else None

    def has_joined(self, at: Incarnation) -> bool:
        """True where this is the boot that joined last."""
        record = self.records.get(f"joined.{at.host}")
        return isinstance(record, PlacementRecord) and record.joined == at

    def is_over(self, at: Incarnation) -> bool:
        """True where there is a proof of this boot's end, or of that of a later one of this host."""
        record = self.records.get(f"joined.{at.host}")
        joined_at = record.epoch if isinstance(record, PlacementRecord) and record.joined == at else None
        outlived = joined_at is not None and joined_at < self.epoch_of(at.host)
        return outlived or self.proof_of(at) is not None

    def epoch_of(self, host: str) -> int:
        """Of the latest proof about this host, 0 where there is none."""
        record = self.records.get(f"fenced.{host}")
        return record.epoch if isinstance(record, PlacementRecord) else 0

    def proof_of(self, at: Incarnation) -> FenceProof | None:
        record = self.records.get(f"fenced.{at.host}")
        proof = record.proof if isinstance(record, PlacementRecord) else None
        return proof if proof is not None and proof.of == at else None
