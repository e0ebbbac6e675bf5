"""What of a reading lies on the bus already, and what is to be put there, pure."""

from __future__ import annotations

from libs.core.decider import Act, Effect
from libs.core.evolve import replace
from services.heartbeat.orders import AllRead, PutDefinition, PutInventory
from services.heartbeat.state import AgentState

PUT_DEADLINE_S = 10.0


def due(state: AgentState, outcome: AllRead) -> tuple[AgentState, list[Effect]]:
    """Store what is not stored yet: the inventory, and definitions that changed."""
    state, effects = stored(state)
    active = {report.uuid for report in outcome.reports if report.state.active}
    copied = state.copied
    for definition in outcome.definitions:
        runs = definition.uuid in active
        mark = f"{definition.sha256}/{runs}"
        if copied.get(definition.uuid) != mark:
            key = f"definition/{definition.uuid}/{state.reads}"
            put = PutDefinition(key=key, deadline_s=PUT_DEADLINE_S, definition=definition, active=runs)
            effects.append(Act(None, put))
            copied = copied.insert(definition.uuid, mark)
    return replace(state, copied=copied), effects


def stored(state: AgentState) -> tuple[AgentState, list[Effect]]:
    """The inventory, where it is not stored yet."""
    inventory = state.inventory
    if inventory is None or inventory == state.stored:
        return state, []
    key = f"inventory/{inventory.rev}/{state.reads}"
    put = PutInventory(key=key, deadline_s=PUT_DEADLINE_S, inventory=inventory)
    return replace(state, stored=inventory), [Act(None, put)]
