"""VMs that people migrate: before a host's libvirt takes one in, the lease says that it may run there. ADR 11.

The lease is what every start must win by compare-and-set. So either the arrival is written first, and whoever starts the VM
sees it and asks that host; or a start has taken the lease first, and the migration is refused. Nothing is asked or read for
that where nobody migrates. What the lease says of an arrival goes with what its host's inventories say, level by level.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from libs.core.decider import Act, Effect, Send, Step
from libs.core.ports import ConflictError, UnavailableError
from libs.events.signals import Arriving, LetIn
from libs.leases import arrival_over, let_in, not_arrived
from libs.model import Arrival, Incarnation, Inventory, RunLease
from services.executor import state as kept
from services.executor.orders import ArrivalNoted, NoteArrival, StartRecord
from services.executor.state import State, busy, write

NOTE_S = 2.0
RACES = 3
Read = Callable[[str], Awaitable[tuple[RunLease | None, int]]]
Write = Callable[[RunLease, int], Awaitable[int]]


def asked(state: State, signal: Arriving) -> Step[State]:
    """May it come? Its host's inventory has been heard by now. Asked again, it is looked at again."""
    inventory = signal.inventory
    at, report = inventory.at, inventory.vm(signal.vm)
    start = state.records.get(signal.vm)
    refused = ""
    if report is None:
        refused = "it is not shown as arriving"
    elif state.over.get(at.host) == at:
        refused = f"{at} is proven to be over"
    elif isinstance(start, StartRecord):
        refused = f"it is being started on {start.start.to}"
    if report is None or refused:
        return Step(state, (_told(at, signal.ask, refused),))
    arrival = Arrival(at=at, agent=inventory.agent, rev=inventory.rev, found=signal.found)
    key = f"arrival/{signal.vm}/{signal.ask}"
    request = NoteArrival(key=key, deadline_s=NOTE_S, ask=signal.ask, arrival=arrival, report=report)
    return Step(state, (Act(None, request),))


async def noted(read: Read, write_row: Write, request: NoteArrival) -> ArrivalNoted:
    """Raises UnavailableError where it is not known whether the lease says so."""
    at, ask = request.arrival.at, request.ask
    for _ in range(RACES):
        lease, revision = await read(request.report.uuid)
        change = let_in(lease, request.arrival, request.report)
        if isinstance(change, str):
            return ArrivalNoted(key=request.key, lease=lease, at=at, ask=ask, refused=change)
        if change is None:
            return ArrivalNoted(key=request.key, lease=lease, at=at, ask=ask)
        try:
            await write_row(change, revision)
        except ConflictError:
            continue
        return ArrivalNoted(key=request.key, lease=change, at=at, ask=ask)
    raise UnavailableError("the lease keeps changing")


def answered(state: State, outcome: ArrivalNoted) -> Step[State]:
    """Tell its host, which waits for it."""
    if outcome.lease is not None:
        state = kept.known(state, outcome.lease)
    return Step(state, (_told(outcome.at, outcome.ask, outcome.refused),))


def _told(at: Incarnation, ask: str, refused: str) -> Effect:
    return Send(f"let_in.{at.host}", LetIn(at=at, ask=ask, refused=refused))


def shown(state: State, inventory: Inventory) -> tuple[State, list[Effect]]:
    """What a host does not show (any more) did not arrive there, or has left it."""
    return _forgotten(state, lambda lease: not_arrived(lease, inventory))


def over(state: State, at: Incarnation) -> tuple[State, list[Effect]]:
    """What a boot that is over took in runs there no more."""
    return _forgotten(state, lambda lease: arrival_over(lease, at))


def _forgotten(state: State, ended: Callable[[RunLease], RunLease | None]) -> tuple[State, list[Effect]]:
    acts: list[Effect] = []
    for lease in sorted((one for one in state.leases.values() if one.arriving), key=lambda one: one.vm):
        change = None if busy(state, lease.vm) else ended(lease)
        if change is not None:
            state, act = write(state, change)
            acts.append(act)
    return state, acts
