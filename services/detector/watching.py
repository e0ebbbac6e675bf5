"""The VMs of a host whose agent is down, watched over libvirt in its stead: what a look shows becomes an inventory.

A look goes on where the agent's last word ended, in that life's name (`Inventory.look`), so that it is void as soon as
another life of the agent has spoken, and old once the same one speaks on. It shows less than the agent would: guests
are not asked how they are, and of a VM that ended by an order to the host it is not known that it was one. Then what
the agent said stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from libs.core.decider import Act, Effect, Expired, Note, Send, Step
from libs.core.evolve import replace
from libs.events.signals import InventorySeen
from libs.model import Health, HostState, Incarnation, Inventory, StopReason, VmReport, VmState
from services.detector import clocks, inventories, unknowns
from services.detector.asks import Looked, LookOverLibvirt, StoreLook
from services.detector.moves import move
from services.detector.state import DetectorState, Watching

EVERY_S = 2.0
LOOK_S = 8.0
"""For one look; a host that hangs costs no other its own."""
STORE_S = 10.0
State = DetectorState


def due(state: State, host: str, unread_after_s: float, now: float) -> Step[State]:
    """Look at a host whose agent is down, where it is time to. Without a word of its agent on this boot there is
    nothing to go on from: it comes with the next reading of stored inventories."""
    record, view = state.record(host), state.view(host)
    known = _last_word(state, host)
    if record.state is not HostState.AGENT_DOWN or now < view.watching.look_at:
        return Step(state)
    if known is None:
        return unknowns.blind(state, host, "its agent never said what runs there", unread_after_s, now)
    request = LookOverLibvirt(
        key=f"look/{host}/{record.number}/{view.watching.looks}",
        deadline_s=LOOK_S,
        at=known.at,
        agent=known.agent,
        rev=known.rev,
        known_s=clocks.known_s(state, host, now),
    )
    # its outcome sets the next one earlier
    later = replace(view.watching, looks=view.watching.looks + 1, look_at=now + LOOK_S + EVERY_S)
    return Step(_watched(state, host, later), (Act(None, request),))


def looked(state: State, seen: Looked, grey_min: int, clocked: Sequence[str], now: float) -> Step[State]:
    """One look: told as the agent's inventory would be, kept for late readers where it shows a change."""
    host = seen.at.host
    record, watching = state.record(host), state.view(host).watching
    again = replace(watching, look_at=now + EVERY_S, blind=False, blind_since=None)
    state = _watched(state, host, again)
    known = _last_word(state, host)
    if record.state is not HostState.AGENT_DOWN or known is None or known.at != seen.at:
        return Step(state)
    # a look takes no longer than its deadline: as it began its host was in this boot
    state = move(state, clocks.renewed(state, record, now - LOOK_S, clocked), None).state
    if (known.agent, known.rev) != (seen.agent, seen.rev):
        return Step(state)  # its agent has spoken since we asked
    ordered = record.incident.startswith(f"{host}-{seen.at.boot[:8]}-")
    vms = merged(known, seen.reports, ordered=ordered)
    inventory = known.model_copy(update={"vms": vms, "look": known.look + 1})
    effects: list[Effect] = [Send(f"inventory.{host}", InventorySeen(inventory=inventory))]
    if vms != known.vms or not again.stored:
        key = f"store/{host}/{inventory.rev}/{inventory.look}"
        effects.append(Act(None, StoreLook(key=key, deadline_s=STORE_S, inventory=inventory)))
        state = _watched(state, host, replace(again, stored=True))
    if watching.blind:
        effects.append(Note(f"the VMs of {host} can be watched again"))
    step = unknowns.readable(state, host, "over libvirt")
    effects += step.effects
    step = inventories.heard(step.state, inventory, grey_min)
    return Step(step.state, (*effects, *step.effects))


def failed(state: State, expired: Expired, unread_after_s: float, now: float) -> Step[State]:
    """No look, or it was not stored. Of a host that cannot be looked at nothing is said: unknown is never stopped."""
    host = expired.key.split("/")[1]
    watching = state.view(host).watching
    if expired.request == "store_look":
        return Step(_watched(state, host, replace(watching, stored=False)))
    said = () if watching.blind else (Note(f"the VMs of {host} cannot be watched: {expired.reason}"),)
    state = _watched(state, host, replace(watching, look_at=now + EVERY_S, blind=True))
    if state.record(host).state is not HostState.AGENT_DOWN:
        return Step(state, said)
    step = unknowns.blind(state, host, expired.reason, unread_after_s, now)
    return Step(step.state, (*said, *step.effects))


def merged(known: Inventory, reports: Sequence[VmReport], *, ordered: bool) -> tuple[VmReport, ...]:
    """What a look shows, with what only the agent knows. `ordered`: this boot has been told to stop VMs, so that
    an end on purpose may have been by that order: nobody can tell."""
    found = [_with_word(known.vm(report.uuid), report, ordered=ordered) for report in reports]
    present = {report.uuid for report in reports}
    # a VM that vanished was transient and ended, nobody can say why
    gone = {
        "state": VmState.STOPPED,
        "stop_reason": StopReason.UNKNOWN,
        "health": Health.UNKNOWN,
        "agent": False,
        "answered": False,
    }
    found += [one.model_copy(update=gone) for one in _active(known.vms) if one.uuid not in present]
    return tuple(sorted(found, key=lambda report: report.uuid))


def _active(reports: Iterable[VmReport]) -> list[VmReport]:
    return [report for report in reports if report.state.active]


def _with_word(known: VmReport | None, report: VmReport, *, ordered: bool) -> VmReport:
    if known is None:
        return report
    update: dict[str, object] = {"datastores": known.datastores, "needs": known.needs}
    if report.state is VmState.RUNNING and known.state is VmState.RUNNING and known.run == report.run:
        update |= {"health": known.health, "answered": known.answered}
    if not report.state.active and known.run:
        update["run"] = known.run  # whoever looks from outside may have seen no run of it, or an earlier one
    if report.state is VmState.STOPPED and report.stop_reason is StopReason.ON_PURPOSE:
        again = known.state is VmState.STOPPED and known.token == report.token
        if again:  # its agent told whether that was by an order, or by a watchdog
            update["stop_reason"] = known.stop_reason
        elif ordered:
            update["stop_reason"] = StopReason.UNKNOWN
    return report.model_copy(update=update)


def _last_word(state: State, host: str) -> Inventory | None:
    """What its agent, or the look before, said of this boot."""
    inventory = state.view(host).inventory
    at: Incarnation | None = state.record(host).at
    return inventory if inventory is not None and inventory.at == at else None


def _watched(state: State, host: str, watching: Watching) -> State:
    return replace(state, views=state.views.insert(host, replace(state.view(host), watching=watching)))
