"""Deliberate faults for what came later: liars, the plane as a whole, gates, memory. See mutations.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from libs.core.decider import Expired, Step
from libs.core.ports import UnavailableError
from libs.model import Answer, VmState
from libs.restored import guard
from services.detector import canary, storms
from services.detector.decide import Detector
from services.detector.state import HostView
from services.executor import condemn, doubles
from services.executor.act import Hands as ExecutorHands
from services.fencer.act import Hands as FencerHands
from services.heartbeat import arrivals
from services.heartbeat.act import Hands as AgentHands
from services.heartbeat.decide import Agent
from services.heartbeat.orders import Tell, Told
from services.placement import incidents, pool
from services.placement.state import HostWords, PlacementState

Patch = tuple[Any, str, Any]
_FENCE, _DETECTOR_STEP, _AGENT_STEP = FencerHands.perform, Detector.step, Agent.step
_FLOWN = canary.flown
_GATE, _AGENT_ACT, _RECLAIMED = AgentHands._gate, AgentHands.perform, incidents.reclaimed
_INITIAL, _HEARD, _HOLDS = Detector.initial, Detector._heard, storms.holds


class _Mute:
    """Hypervisors that are never asked."""

    async def at(self, incarnation: Any, timeout_s: float) -> Any:
        raise AssertionError("the fencer only probes")

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        return Answer.UNKNOWN, "nobody asked"


@dataclass(frozen=True, slots=True)
class _Deaf:
    """A bus on which nothing is heard."""

    async def listen(self, topics: Any, heard: Any) -> Any:
        return self

    async def ask(self, subject: str, question: Any, timeout_s: float) -> Any:
        raise UnavailableError("nobody asked")

    async def stop(self) -> None:
        return None


def lie_believed() -> list[Patch]:
    """Neither a heartbeat nor libvirt's answer speaks against a device that says off."""

    async def perform(self: FencerHands, request: Any) -> Any:
        bus: Any = _Deaf()
        return await _FENCE(replace(self, hypervisors=_Mute(), bus=bus), request)

    return [(FencerHands, "perform", perform)]


def libvirt_not_asked() -> list[Patch]:
    async def perform(self: FencerHands, request: Any) -> Any:
        return await _FENCE(replace(self, hypervisors=_Mute()), request)

    return [(FencerHands, "perform", perform)]


def refutation_untold() -> list[Patch]:
    return [(Detector, "_beyond", lambda self, state, record, at, now: Step(state))]


def no_quiet_minute() -> list[Patch]:
    def initial(self: Detector, now: float) -> Any:
        return replace(_INITIAL(self, now), quiet_until=now)

    return [(Detector, "initial", initial)]


def bus_lost_vms_stopped() -> list[Patch]:
    """An agent that cannot store what it saw takes itself for isolated, and stops its VMs."""

    async def perform(self: AgentHands, request: Any) -> Any:
        try:
            return await _AGENT_ACT(self, request)
        except UnavailableError:
            if request.kind == "put_inventory":
                for report in await self.hypervisor.reports():
                    await self.hypervisor.destroy(report.uuid)
            raise

    return [(AgentHands, "perform", perform)]


def gate_tried_once() -> list[Patch]:
    """A stop that fails at the gate keeps the whole host out."""

    def step(self: Agent, state: Any, event: Any, now: float) -> Any:
        if isinstance(event, Expired) and event.request == "pass_gate":
            return Step(replace(state, beat_at=now + 1e6))
        return _AGENT_STEP(self, state, event, now)

    return [(Agent, "step", step)]


def gate_waits_for_ever() -> list[Patch]:
    """What cannot be stopped condemns its host: the gate is never passed without it."""

    async def gate(self: AgentHands, request: Any) -> Any:
        return await _GATE(self, request.model_copy(update={"condemn": False}))

    return [(AgentHands, "_gate", gate)]


def failed_stop_untold() -> list[Patch]:
    async def perform(self: AgentHands, request: Any) -> Any:
        return Told(key=request.key) if isinstance(request, Tell) else await _AGENT_ACT(self, request)

    return [(AgentHands, "perform", perform)]


def condemned_elsewhere() -> list[Patch]:
    """Nobody keeps in mind what clings to a boot, sees in its inventory that it runs there, or asks that boot."""

    async def nowhere(self: ExecutorHands, start: Any, lease: Any) -> str:
        return ""

    return [
        (PlacementState, "held_at", lambda self, vm: None),
        (pool, "runs_at", lambda state, item, now: None),
        (ExecutorHands, "_runs_still", nowhere),
    ]


def gate_takes_unknown_for_stopped() -> list[Patch]:
    async def gate(self: AgentHands, at: Any) -> Any:
        return await _GATE(replace(self, hypervisor=_Sure(self.hypervisor)), at)

    return [(AgentHands, "_gate", gate)]


class _Sure:
    """A hypervisor whose unknown is stopped."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    async def reports(self) -> Any:
        return [
            one.model_copy(update={"state": VmState.STOPPED}) if one.state is VmState.UNKNOWN else one
            for one in await self._of.reports()
        ]


def every_beat_kept() -> list[Patch]:
    def heard(self: Detector, state: Any, beat: Any, *more: Any) -> Any:
        kept = replace(state, views=state.views.insert(f"{beat.at.host}@{more[-1]}", HostView()))
        return _HEARD(self, kept, beat, *more)

    return [(Detector, "_heard", heard)]


def one_vm_in_two_incidents() -> list[Patch]:
    return [(incidents, "reclaimed", lambda incident, proof, open_: _RECLAIMED(incident, proof, set()))]


def release_forgets_its_names() -> list[Patch]:
    """Once an operator has released a storm, anybody may be held failed in it."""

    def holds(state: Any, hosts: Any, judged: str, settle_s: float, now: float) -> bool:
        released = state.storm is not None and bool(state.storm.by)
        return not released and _HOLDS(state, hosts, judged, settle_s, now)

    return [(storms, "holds", holds)]


def quarantine_ignored() -> list[Patch]:
    """Placement hears of a quarantine, keeps it in mind, and plans as if there were none."""
    return [(HostWords, "closed", property(lambda self: self.maintenance))]


def canary_ignored() -> list[Patch]:
    """The detector does not mind that it does not hear itself."""

    def flown(bird: Any, replica: str, now: float) -> Any:
        after, effects = _FLOWN(replace(bird, heard_at=now), replica, now)
        return replace(after, deaf_since=None), effects

    return [(canary, "flown", flown), (canary, "overdue", lambda bird, now: False)]


def let_in_unnoted() -> list[Patch]:
    """A host takes in whatever a person brings to it, and nobody writes that down."""

    def begun(comings: Any, asked: Any, told: Any, now: float) -> Any:
        return comings, [arrivals.answer(asked.key)]

    return [(arrivals, "begun", begun)]


def stray_unnoticed() -> list[Patch]:
    """A second copy of a VM is left to itself."""
    return [(doubles, "found", lambda state, vm, inventory, now: (state, []))]


def stray_by_hearsay() -> list[Patch]:
    """What two inventories said, of whatever age, is enough: nobody is asked, and not a moment is waited for."""

    async def runs_twice(hypervisors: Any, request: Any) -> bool:
        return True

    return [(condemn, "runs_twice", runs_twice), (doubles, "MIGRATED_S", 1e-3)]


def old_copy_believed() -> list[Patch]:
    """What lies in the store is held to be the latest, whatever agents have heard."""
    return [(guard.Guard, "ok", property(lambda self: True))]
