"""Plans that are kept ready, one for the loss of each host, so that a failover begins from a plan and not from a search.

They are the witness plans of the capacity proof (libs/planning/witness.py): each is kept while it holds, and only one that
the pool's changes have broken is sought anew. A host in doubt keeps the plan that it had: that is when it is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from libs.core.evolve import replace
from libs.model import Inventory
from libs.planning.witness import Witness
from services.placement.state import Item, PlacementRecord, PlacementState, ReadyPlan, ReadyWords

State = PlacementState
RECORD = "pool.ready"
LEFT_SHOWN = 8


def kept(state: State, usable: Mapping[str, Inventory], of: Mapping[str, Witness]) -> State:
    """With the plans of the hosts that are usable now."""
    ready = state.ready
    for host, inventory in usable.items():
        witness, known = of.get(host), ready.get(host)
        if witness is not None and (
            known is None or known.witness is not witness or known.at != inventory.at
        ):
            ready = ready.insert(host, ReadyPlan(inventory.at, witness))
    return replace(state, ready=ready)


def shown(state: State) -> State:
    """With what people are shown of them, written where it has changed."""
    words = {
        host: ReadyWords(vms=len(plan.witness.placed), left=plan.witness.left[:LEFT_SHOWN])
        for host, plan in sorted(state.ready.items())
        if host in state.heard
    }
    record = PlacementRecord(ready=words)
    if state.records.get(RECORD) == record:
        return state
    return replace(state, records=state.records.insert(RECORD, record))


def start_from(state: State, wanted: Iterable[Item]) -> dict[str, str]:
    """By VM where the plan that was ready for the loss of its host has it."""
    found = {}
    for item in wanted:
        plan = state.ready.get(item.origin.host)
        if plan is None or plan.at != item.origin or item.run:
            continue
        placed = plan.witness.placed
        to = placed.get(f"{item.vm}@{item.origin.host}") or placed.get(item.name)
        if to is not None:
            found[item.vm] = to
    return found
