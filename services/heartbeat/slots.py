"""The host's own slots on its datastores, pure: when to write, how long one has not taken a write, what was ordered.

One write a datastore at a time: one that stalls is waited for and holds up nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rpds import HashTrieMap

from libs.core.decider import Act
from libs.core.evolve import replace
from libs.model import Incarnation
from libs.promises import SlotBeat, SlotOrder
from services.heartbeat.orders import Obey, Obeyed, WriteSlot, WroteSlot

OBEY_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Slot:
    """One datastore's."""

    due: float
    taken_at: float
    """When it took a write last; at first, when we began."""
    writing: bool = False
    began: float = 0.0
    """When the latest write was begun."""
    known: bool = False
    """What an earlier life of this agent wrote there is known."""
    missed: bool = False
    """It has not taken the latest write that ended."""


@dataclass(frozen=True, slots=True)
class SlotState:
    slots: HashTrieMap[str, Slot]
    seq: int = 0
    obeyed: int = 0
    """Number of the latest order carried out on this boot."""
    stopped: tuple[str, ...] = ()
    obeying: int = 0
    """Number of the order that is being carried out, 0 if none."""
    from_read: int = 0
    """The first reading of all VMs that began after the latest order was carried out."""
    ordered: frozenset[str] = field(default_factory=frozenset)
    """VMs that are stopped by order, or were and have not run here since."""


def initial(datastores: tuple[str, ...], now: float) -> SlotState:
    return SlotState(HashTrieMap({name: Slot(now, now) for name in datastores}))


def due(state: SlotState) -> float | None:
    """When the next write is due; None while all are under way, or there is none."""
    return min((slot.due for slot in state.slots.values() if not slot.writing), default=None)


def write(
    state: SlotState,
    at: Incarnation,
    interval_s: float,
    deadline_s: float,
    now: float,
    *,
    watchdog_s: float | None = None,
    life: str = "",
) -> tuple[SlotState, tuple[Act, ...]]:
    """The writes that are due."""
    acts: list[Act] = []
    for name, slot in sorted(state.slots.items()):
        if slot.writing or now < slot.due:
            continue
        seq = state.seq + 1
        beat = SlotBeat(
            host=at.host,
            boot=at.boot,
            seq=seq,
            obeyed=state.obeyed,
            stopped=state.stopped,
            watchdog_s=watchdog_s,
            life=life,
        )
        request = WriteSlot(
            key=f"slot/{name}/{seq}", deadline_s=deadline_s, datastore=name, beat=beat, first=not slot.known
        )
        acts.append(Act(None, request))
        due = max(slot.due + interval_s, now + interval_s / 2)
        slots = state.slots.insert(name, replace(slot, writing=True, due=due, began=now))
        state = replace(state, seq=seq, slots=slots)
    return state, tuple(acts)


def wrote(
    state: SlotState, outcome: WroteSlot, at: Incarnation, now: float
) -> tuple[SlotState, tuple[Act, ...]]:
    """A write was taken; what was ordered is obeyed once, and only by the boot that it names."""
    slot = replace(state.slots[outcome.datastore], writing=False, missed=False, taken_at=now, known=True)
    state = replace(state, slots=state.slots.insert(outcome.datastore, slot))
    former = outcome.former
    if former is not None and former.boot == at.boot and former.obeyed > state.obeyed:
        state = replace(
            state, obeyed=former.obeyed, stopped=former.stopped, ordered=state.ordered | {*former.stopped}
        )
    if former is not None:
        state = replace(state, seq=max(state.seq, former.seq))
    return _obey(state, outcome.order, at)


def _obey(state: SlotState, order: SlotOrder | None, at: Incarnation) -> tuple[SlotState, tuple[Act, ...]]:
    # what was obeyed before stands in the slots; a datastore that stalls or refuses is not waited for
    known = all(slot.known or slot.missed for slot in state.slots.values() if not slot.writing)
    if (
        order is None
        or order.die  # which is the watchdog's
        or order.boot != at.boot
        or order.number <= max(state.obeyed, state.obeying)
        or not known
    ):
        return state, ()
    request = Obey(key=f"obey/{order.number}", deadline_s=OBEY_DEADLINE_S, number=order.number, vms=order.vms)
    # from now on: libvirt shows the first of them as stopped on purpose while others are still being stopped
    ordered = state.ordered | {*order.vms}
    return replace(state, obeying=order.number, ordered=ordered), (Act(None, request),)


def failed(state: SlotState, key: str) -> SlotState:
    """A write was not taken: tried again when it is due."""
    name = key.split("/")[1]
    slots = state.slots.insert(name, replace(state.slots[name], writing=False, missed=True))
    return replace(state, slots=slots)


def obeyed(state: SlotState, outcome: Obeyed, reads: int, now: float) -> SlotState:
    """All of them do not run: said in the slots at once. Where some do, the order is obeyed again when it is read
    again. `reads`: number of the next reading of all VMs."""
    state = replace(state, from_read=reads)
    if outcome.left:
        return replace(state, obeying=0)
    slots = HashTrieMap({name: replace(slot, due=now) for name, slot in state.slots.items()})
    return replace(
        state,
        obeying=0,
        obeyed=outcome.number,
        stopped=outcome.stopped,
        ordered=state.ordered | {*outcome.stopped},
        slots=slots,
    )


def run_again(state: SlotState, active: set[str], read: int) -> SlotState:
    """What was stopped by order and runs here again may be stopped by a person later. A reading that began before
    they were stopped shows them running, too."""
    if state.obeying or read < state.from_read or not state.ordered & active:
        return state
    return replace(state, ordered=state.ordered - active)


def untried(state: SlotState) -> tuple[str, ...]:
    """Datastores that have taken no write since this life of the agent began: nothing good is known of them yet."""
    return tuple(name for name, slot in sorted(state.slots.items()) if not slot.known)


def ages(state: SlotState, now: float) -> dict[str, float]:
    """Of each datastore, for how many seconds it has not taken a write."""
    return {name: round(max(0.0, now - slot.taken_at), 3) for name, slot in sorted(state.slots.items())}
