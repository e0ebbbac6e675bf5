"""Deliberate faults about verdicts and fence proofs. See mutations.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from libs.core.decider import Step
from libs.model import FenceProof, PowerState, ProofMethod
from libs.power.devices import FenceDevices
from libs.sim import bootgate
from services.detector import hearing, storms
from services.detector.decide import Detector
from services.detector.verdict import RULES, Rule
from services.fencer.act import Hands as FencerHands
from services.fencer.decide import Fencer
from services.fencer.state import Fence, Fenced, OrderStop
from services.heartbeat import heldback
from services.heartbeat.act import Hands as AgentHands
from services.heartbeat.orders import GatePassed

Patch = tuple[Any, str, Any]
_FENCE = FenceDevices.fence
_FENCER_ACT = FencerHands.perform
_FENCE_OUTCOME = Fencer._outcome


def fence_skipped() -> list[Patch]:
    async def perform(self: FencerHands, request: Any) -> Any:
        if not isinstance(request, Fence | OrderStop):
            return await _FENCER_ACT(self, request)
        proof = FenceProof(of=request.at, method=ProofMethod.POWER_OFF, detail="nobody looked")
        return Fenced(key=request.key, incident=request.incident, proof=proof)

    return [(FencerHands, "perform", perform)]


def command_believed() -> list[Patch]:
    async def level(self: FenceDevices, devices: Any, off_seen: Callable[[], None]) -> list[str]:
        done = [await device.off() for device in devices]
        off_seen()
        return [detail for ok, detail in done if not ok]

    return [(FenceDevices, "_level", level)]


def one_reading() -> list[Patch]:
    async def level(self: FenceDevices, devices: Any, off_seen: Callable[[], None]) -> list[str]:
        found = [await device.status(device.timeout_s) for device in devices]
        for device, (state, _) in zip(devices, found, strict=True):
            if state is not PowerState.OFF:
                await device.off()
        off_seen()
        found = [await device.status(device.timeout_s) for device in devices]
        return [detail for state, detail in found if state is not PowerState.OFF]

    return [(FenceDevices, "_level", level)]


def unknown_is_off() -> list[Patch]:
    level = FenceDevices._level

    async def mutated(self: FenceDevices, devices: Any, off_seen: Callable[[], None]) -> list[str]:
        wrong = await level(self, devices, off_seen)
        return [one for one in wrong if "no answer" not in one and "refused" not in one]

    return [(FenceDevices, "_level", mutated)]


def fence_once() -> list[Patch]:
    """A fence attempt that failed is the last one."""

    def outcome(self: Fencer, state: Any, outcome: Any, now: float) -> Any:
        step = _FENCE_OUTCOME(self, state, outcome, now)
        return Step(replace(step.state, retry_at=type(step.state.retry_at)()), step.effects)

    return [(Fencer, "_outcome", outcome)]


def last_level_skipped() -> list[Patch]:
    """The first level of fence devices is tried, again and again, and no other."""

    def levels(self: FenceDevices, host: str) -> Any:
        first = min(device.level for device in self._devices[host])
        return [device for device in self._devices[host] if device.level == first]

    async def fence(self: FenceDevices, incarnation: Any, off_seen: Callable[[], None]) -> Any:
        if not self._devices.get(incarnation.host):
            return await _FENCE(self, incarnation, off_seen)
        alone = FenceDevices({incarnation.host: levels(self, incarnation.host)}, self._settings)
        return await _FENCE(alone, incarnation, off_seen)

    return [(FenceDevices, "fence", fence)]


def storm_guard_off() -> list[Patch]:
    return [(storms, "raging", lambda state, hosts, silent: False)]


def deaf_believed() -> list[Patch]:
    return [(hearing, "deaf", lambda state, until, period_s: state)]


def silence_is_proof() -> list[Patch]:
    """Silence alone, for a moment, is a verdict, whatever the other channels say."""
    from services.detector import verdict

    hasty = Rule(
        "silence-only", RULES[-1].verdict, "silence", lambda e, s: e.silent_s > s.suspect_after_s, "hasty"
    )
    return [(verdict, "RULES", (hasty,))]


def new_boot_is_old() -> list[Patch]:
    """A host that comes back is held to be the one that it was: no proof, no failover."""

    def rebooted(self: Detector, state: Any, record: Any, at: Any, now: float) -> Any:
        healthy = record.model_copy(update={"at": at})
        return Step(replace(state, records=state.records.insert(record.host, healthy)))

    return [(Detector, "_rebooted", rebooted)]


def not_held_back() -> list[Patch]:
    return [(bootgate, "held_back", lambda lease, at, policy, answered, led: "")]


def never_given_back() -> list[Patch]:
    async def held(port: Any) -> bool:
        return False

    return [(heldback, "any_held", held)]


def gate_off() -> list[Patch]:
    async def gate(self: AgentHands, request: Any) -> GatePassed:
        return GatePassed(key=request.key)

    return [(AgentHands, "_gate", gate)]
