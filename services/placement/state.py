"""What placement knows: the pool as heard, and one record per incident, fenced host and failing VM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import Field
from rpds import HashTrieMap

from libs.core.decider import Records
from libs.events.drains import StayingVm
from libs.model import (
    Failure,
    FenceProof,
    Incarnation,
    Inventory,
    Offers,
    RunLease,
    Value,
    VmNeeds,
    VmPolicy,
    VmReport,
)
from libs.planning.capacity import Capacity
from libs.planning.policies import Ruled
from libs.planning.snapshot import Snapshot
from libs.planning.witness import Witness, Witnesses


class Phase(StrEnum):
    WAITING = "waiting"  # to be planned: now, at its time, or when there is room
    PLANNED = "planned"
    RUNNING = "running"
    GIVEN_UP = "given_up"


OPEN = (Phase.WAITING, Phase.PLANNED)
"""It is still to be started."""


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
    held: bool = Field(False, description="it was told that the lock of its disks refuses its start")
    taken: bool = Field(False, description="its failed holder's last word was that it had been migrated away")
    preempted: bool = Field(False, description="it was stopped by us to make room, and holds none")
    lost: bool = Field(
        False,
        description="it moves since its origin has lost a datastore: once that is back, nothing is done",
    )
    datastores: tuple[str, ...] = ()
    needs: VmNeeds | None = None
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
    made_room: tuple[str, ...] = Field((), description="VMs that were moved or stopped for it, once each")


class RoomOrder(Value):
    """A VM that is moved, or stopped where `to` is None, so that others find room. Of a host that is drained one moves for
    nobody, and its incident is the drain's."""

    key: str
    incident: str
    vm: str
    name: str
    at: Incarnation
    to: Incarnation | None
    report: VmReport
    makes_room_for: tuple[str, ...]
    names: tuple[str, ...] = ()
    done: bool = Field(False, description="it was carried out, and its host has not shown that yet")


class FailedMoves(Value):
    """Of one VM of a host that is drained: to where it was not moved, and why the last time."""

    to: tuple[str, ...] = ()
    reason: str = ""


class Drain(Value):
    """One boot of a host that is emptied."""

    at: Incarnation
    incident: str
    mark: str
    revision: int = Field(0, description="of what was told of it last")
    failed: dict[str, FailedMoves] = Field({}, description="by VM")
    stays: tuple[StayingVm, ...] = Field((), description="what is not moved away, as it is now")
    told: str = Field("", description="what host.drain_stuck named last, and why")
    empty: bool = Field(False, description="that nothing runs there was told")


class HostWords(Value):
    """What operators said of a host, and the detector of its place in the pool."""

    number: int = Field(0, description="of the latest word on its maintenance; an older one is void")
    maintenance: bool = Field(False, description="it takes no new VMs")
    maintained_by: str = Field("", description="whose word that is")
    emptied: bool = Field(False, description="and what runs there is moved away")
    drain: str = Field("", description="why it takes none though nobody said so: it was grey")
    grey: tuple[str, ...] = Field((), description="marks of host.grey that were dealt with")
    removed: str = Field("", description="the life of its agent that was taken out of the pool")
    quarantined: int = Field(0, description="number of the quarantine that it is in, by the detector's word")
    readmitted: int = Field(0, description="of the latest quarantine that is over")

    @property
    def closed(self) -> bool:
        """True where it takes no new VMs."""
        return self.maintenance or self.quarantined > 0 or bool(self.drain)

    @property
    def drained(self) -> str:
        """Which drain it is in, by its mark; "" where it is in none. A person's word comes before our own."""
        if self.maintenance and self.emptied:
            return f"maintenance-{self.number}"
        return self.grey[-1] if self.drain and self.grey else ""

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


class CapacityWords(Value):
    """What was told of the pool's capacity, and of policies that contradict each other."""

    number: int = Field(0, description="of the latest overcommitment")
    overcommitted: bool = False
    rules: int = Field(0, description="how many rules were told to be dropped")
    dropped: tuple[str, ...] = ()


class ReadyWords(Value):
    """Of the plan that is kept ready for the loss of one host, what people are shown."""

    vms: int = Field(description="VMs with protection `restart` that it starts elsewhere")
    left: tuple[str, ...] = Field((), description="such as it finds no place for, by name")


@dataclass(frozen=True, slots=True)
class ReadyPlan:
    """Where the VMs of one boot of a host would go if it were lost. It stays as it is once the host is in doubt."""

    at: Incarnation
    witness: Witness


@dataclass(frozen=True, slots=True)
class Offered:
    """What one boot of a host offers VMs beside room."""

    at: Incarnation
    offers: Offers


@dataclass(frozen=True, slots=True)
class Basis:
    """All that a look at the pool's capacity comes from."""

    usable: Mapping[str, Inventory]
    leases: HashTrieMap[str, RunLease]
    records: Records
    offers: HashTrieMap[str, Offered]

    def same(self, other: Basis) -> bool:
        """Nothing has changed since. Inventories come again and again as they were."""
        return (
            self.leases is other.leases
            and self.records is other.records
            and self.offers is other.offers
            and self.usable.keys() == other.usable.keys()
            and all(_alike(one, other.usable[host]) for host, one in self.usable.items())
        )


def _alike(one: Inventory, other: Inventory) -> bool:
    if one is other:
        return True
    sizes = (one.at, one.memory_mib, one.memory_reserved_mib, one.cpus)
    return (
        sizes == (other.at, other.memory_mib, other.memory_reserved_mib, other.cpus) and one.vms == other.vms
    )


@dataclass(frozen=True, slots=True)
class Proved:
    """The latest look at the pool's capacity, and since when it is as it is."""

    basis: Basis
    snapshot: Snapshot
    ruled: Ruled
    witnesses: Witnesses
    found: Capacity
    short: bool
    since: float
    well: frozenset[str] = frozenset()
    """VMs that ran when the pool could still take it."""


@dataclass(frozen=True, slots=True)
class DrainLook:
    """The latest look at the hosts that are drained."""

    plan_at: float = 0.0
    """When to plan anew what found no place in the latest plan."""
    unplaced: Mapping[str, StayingVm] = field(default_factory=dict)
    """By VM what that is."""
    retry_at: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """When a VM whose migration failed may be moved again."""
    asked: HashTrieMap[str, float] = field(default_factory=HashTrieMap)
    """By its key when a move was ordered that has not ended."""
    since: HashTrieMap[str, tuple[str, float]] = field(default_factory=HashTrieMap)
    """By host what stays there, as it would be told, and since when."""


class PlacementRecord(Value):
    """Records of eleven kinds share one ledger: an incident, the boot of a host that joined last, a host's latest
    proof, whether a host is closed to new VMs, a VM's crashes, where a VM may run that could not be stopped, what
    became of a datastore, what was told of the pool's capacity, what is to be shown of the plans kept ready,
    a VM that is moved or stopped to make room, or since its host is drained; a host that is drained."""

    incident: Incident | None = None
    joined: Incarnation | None = None
    proof: FenceProof | None = None
    former: tuple[FenceProof, ...] = Field(
        (), description="proofs of earlier boots of that host, which leases may still name"
    )
    epoch: int = Field(0, description="of the host when it joined, or of the proof")
    words: HostWords | None = None
    held: Incarnation | None = None
    crashes: tuple[float, ...] = ()
    store: StoreWords | None = None
    capacity: CapacityWords | None = None
    ready: dict[str, ReadyWords] | None = None
    room: RoomOrder | None = None
    drain: Drain | None = None
    told: tuple[str, ...] = Field((), description="crashes that were dealt with: a repeat is no news")


@dataclass(frozen=True, slots=True)
class Beat:
    """One host's latest heartbeat, and when."""

    of: Incarnation
    at: float
    agent: str = ""
    rev: int = 0
    """The inventory of this life of its agent that held at that moment; 0: it had none yet."""

    def outdates(self, inventory: Inventory) -> bool:
        """There is a later inventory than this one."""
        return self.rev > 0 and (inventory.agent != self.agent or inventory.rev < self.rev)


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
    proved: Proved | None = None
    ready: HashTrieMap[str, ReadyPlan] = field(default_factory=HashTrieMap)
    """By host the plan that is kept ready for its loss."""
    offers: HashTrieMap[str, Offered] = field(default_factory=HashTrieMap)
    """By host what it offers, where that is known."""
    drains: DrainLook = field(default_factory=DrainLook)
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
        return {item.vm for incident in self.incidents() for item in incident.items if item.phase in OPEN}

    def rooms(self) -> list[RoomOrder]:
        """What is moved or stopped to make room."""
        found = (record.room for _, record in sorted(self.records.items()) if record.room is not None)
        return list(found)

    def room_of(self, vm: str) -> RoomOrder | None:
        record = self.records.get(f"room.{vm}")
        return record.room if isinstance(record, PlacementRecord) else None

    def drain_of(self, host: str) -> Drain | None:
        """What is kept of the drain of this host."""
        record = self.records.get(f"drain.{host}")
        return record.drain if isinstance(record, PlacementRecord) else None

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
        if not isinstance(record, PlacementRecord):
            return None
        proofs = (*record.former, record.proof)
        return next((one for one in proofs if one is not None and one.of == at), None)
