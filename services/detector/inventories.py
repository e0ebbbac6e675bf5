"""What hosts tell of their VMs: kept for the verdict's event, and read for what crashed."""

from __future__ import annotations

from collections.abc import Collection

from libs.core.decider import Effect, Publish, Step
from libs.core.evolve import replace
from libs.model import Inventory
from services.detector import guests
from services.detector.state import DetectorState

State = DetectorState


def heard(state: State, inventory: Inventory, grey_min: int) -> Step[State]:
    """One inventory, and what it says crashed. One that is outdated is not believed."""
    host = inventory.at.host
    view, record = state.view(host), state.record(host)
    if inventory.at.boot in record.former or record.removes(inventory.agent):
        return Step(state)
    before = view.inventory
    if inventory is before or inventory.outdated(before):
        return Step(state)  # the same once more tells nothing
    state = replace(state, views=state.views.insert(host, replace(view, inventory=inventory)))
    return Step(state, tuple(Publish(host, fact) for fact in guests.told(inventory, before, grey_min)))


def read(state: State, hosts: Collection[str], rows: tuple[object, ...], grey_min: int) -> Step[State]:
    """Stored inventories tell a late reader what ran where, and what crashed while nobody listened; what was heard
    since is newer."""
    effects: list[Effect] = []
    for row in rows:
        if not isinstance(row, Inventory) or row.at.host not in hosts:
            continue
        if state.view(row.at.host).inventory is None:
            step = heard(state, row, grey_min)
            state = step.state
            effects += step.effects
    return Step(state, tuple(effects))


def told_again(state: State, grey_min: int) -> tuple[Effect, ...]:
    """What a follower saw and could not say: said again under the same keys."""
    return tuple(
        Publish(host, fact)
        for host, view in sorted(state.views.items())
        if view.inventory is not None and not state.record(host).removes(view.inventory.agent)
        for fact in guests.told(view.inventory, None, grey_min)
    )
