"""What the agent of one host knows."""

from __future__ import annotations

from dataclasses import dataclass, field

from rpds import HashTrieMap

from libs.model import Inventory
from services.heartbeat import arrivals, guests, slots, watchdog
from services.heartbeat.orders import Stopped


@dataclass(frozen=True, slots=True)
class AgentState:
    gated: bool
    """True once the gate is passed: from then on the host is announced."""
    beat_at: float
    read_at: float
    say_at: float
    slot_state: slots.SlotState
    seq: int = 0
    read_ok_at: float = 0.0
    """When the latest reading of all VMs came, or we began to read."""
    reading: bool = False
    again: bool = False
    """Something stirred while we were reading."""
    reads: int = 0
    tries: int = 0
    gate_since: float | None = None
    condemned: HashTrieMap[str, Stopped] = field(default_factory=HashTrieMap)
    """VMs that may not run here and could not be stopped: tried for ever."""
    stop_at: float | None = None
    """When to try these once more."""
    give_at: float | None = None
    """When to give libvirt back what was held back from it at boot."""
    inventory: Inventory | None = None
    stored: Inventory | None = None
    """The inventory as last stored, or as its storing is under way."""
    copied: HashTrieMap[str, str] = field(default_factory=HashTrieMap)
    """Definitions that are on the bus: VM to hash and whether it was active."""
    buried: HashTrieMap[str, int] = field(default_factory=HashTrieMap)
    """VMs that vanished, and at which reading."""
    departed: HashTrieMap[str, int] = field(default_factory=HashTrieMap)
    """VMs that were migrated away, and after which reading."""
    comings: arrivals.Comings = field(default_factory=HashTrieMap)
    """VMs that libvirt is about to take in, or was let take in and does not show yet."""
    guests: guests.GuestsState = field(default_factory=guests.GuestsState)
    dog: watchdog.DogState = field(default_factory=watchdog.DogState)
