"""The hands for hosts on standby: whatever is done is looked at right before, since an order may come late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from libs.core.decider import Outcome
from libs.core.ports import FenceError, FencePaths, Hypervisors, Power, UnavailableError
from libs.liveshot import exported
from libs.model import HostState, Incarnation, PowerState, VmState
from libs.operator import Operator, RefusedError
from libs.planning.admit import Answer, admit_without
from libs.planning.snapshot import Snapshot
from libs.poolview import gone
from services.fencer.reserve import Dismiss, Dismissed, LaidDown, LayDown, LookedIdle, LookIdle, Rouse, Roused

HYPERVISOR_S, STATUS_S = 5.0, 10.0
DISMISSED_S, AGAIN_S = 40.0, 0.5
ENDED = (HostState.FAILED, HostState.FENCED, HostState.ISOLATED, HostState.SUSPECT)
"""Of a host that is held so it is not known, or not dealt with, what runs there."""
Admit = Callable[[Snapshot, str], Awaitable[Answer]]


async def admit_here(snapshot: Snapshot, host: str) -> Answer:
    """May this host leave? Computed in place; of a large pool that takes its time."""
    return admit_without(snapshot, host, removed=True)


class Devices(Power, FencePaths, Protocol):
    """All that can be done with fence devices."""


@dataclass(frozen=True, slots=True)
class ReserveHands:
    devices: Devices
    hypervisors: Hypervisors
    operator: Operator
    """Its words are said in the name of standby."""
    admit: Admit

    async def perform(self, request: Rouse | LookIdle | LayDown | Dismiss) -> Outcome:
        """Raises UnavailableError where the bus does not answer."""
        match request:
            case Rouse():
                return await self._rouse(request)
            case LookIdle():
                return await self._look(request)
            case LayDown():
                return await self._lay_down(request)
            case Dismiss():
                return await self._dismiss(request)

    async def _rouse(self, request: Rouse) -> Roused:
        host = request.host
        record = (await self.operator.view.records("detector")).get(host, {})
        state = HostState(record.get("state", "unknown"))
        if record.get("at") and not gone(record):
            at = Incarnation.model_validate(record["at"])
            if state not in ENDED:
                return Roused(key=request.key, host=host, joined=at)
            why = f"{host} is held to be {state.value}: it is not switched on before `rekindle remove-host`"
            return Roused(key=request.key, host=host, forbidden=True, detail=why)
        done, detail = await self.devices.switch_on(host)
        return Roused(key=request.key, host=host, done=done, detail=detail)

    async def _look(self, request: LookIdle) -> LookedIdle:
        """It is closed between two looks, so that nothing is planned to it after the second."""
        at, host = request.at, request.at.host
        closed = await self._closed_by_us(host)  # and killed before that was known to us
        refused = await self._busy(at, maintained=closed)
        if not refused:
            snapshot, _ = await exported(self.operator.view)
            answer = await self.admit(snapshot, host)
            refused = "" if answer.allowed and not answer.lost else f"the pool needs it: {answer.reason}"
        if refused:
            if closed:
                await self._open(host)
            return LookedIdle(key=request.key, host=host, refused=refused)
        try:
            if not closed:
                await self.operator.enter_maintenance(host)
        except RefusedError as error:
            return LookedIdle(key=request.key, host=host, refused=str(error))
        refused = await self._busy(at, maintained=True)
        if refused:
            await self._open(host)
            return LookedIdle(key=request.key, host=host, refused=refused)
        return LookedIdle(key=request.key, host=host)

    async def _lay_down(self, request: LayDown) -> LaidDown:
        at, host = request.at, request.at.host
        state, _ = await self.devices.status(host, STATUS_S)
        if state is not PowerState.OFF:  # it may be done already, by whoever led before
            refused = await self._busy(at, maintained=True)
            if refused:
                await self._open(host)
                return LaidDown(key=request.key, host=host, done=False, detail=refused)
        try:
            await self.devices.fence(at, lambda: None)
        except FenceError as error:
            # it may be off or not, so it stays closed: what it is, the detector finds
            return LaidDown(key=request.key, host=host, done=False, detail="; ".join(error.missing))
        return LaidDown(key=request.key, host=host, done=True)

    async def _dismiss(self, request: Dismiss) -> Dismissed:
        """As an operator would take a fenced host out; again until the detector has heard of the proof, too."""
        host, why = request.at.host, ""
        until = self.operator.clock.monotonic() + DISMISSED_S
        while self.operator.clock.monotonic() < until:
            record = (await self.operator.view.records("detector")).get(host, {})
            if (record.get("at") or {}).get("boot") != request.at.boot:
                return Dismissed(key=request.key, host=host, done=True)  # it is out, or back
            try:
                await self.operator.remove(host)
            except RefusedError as error:
                why = str(error)
                await asyncio.sleep(AGAIN_S)
        return Dismissed(key=request.key, host=host, done=False, detail=why)

    async def _closed_by_us(self, host: str) -> bool:
        words = await self.operator.words(host)
        return bool(words.get("maintenance")) and words.get("maintained_by") == self.operator.by

    async def _busy(self, at: Incarnation, *, maintained: bool) -> str:
        """Why this host may not be switched off now; "" where nothing runs there, or is to run."""
        view, host = self.operator.view, at.host
        row = next((one for one in await view.hosts() if one["host"] == host), None)
        if row is None or row["incarnation"] != at.boot:
            return f"{host} is in another boot by now"
        if row["state"] != HostState.HEALTHY:
            return f"{host} is held to be {row['state']}"
        if bool(row["maintenance"]) is not maintained:
            return f"{host} is {'in' if row['maintenance'] else 'out of'} maintenance, by somebody's word"
        planned = _planned(await view.records("placement"))
        if planned:
            return f"incidents are open: {', '.join(planned)}"
        running = await view.running(at)
        if running:
            return f"VMs run there: {', '.join(sorted(running))}"
        return await self._shown(at)

    async def _shown(self, at: Incarnation) -> str:
        """What its libvirt says itself."""
        try:
            hypervisor = await self.hypervisors.at(at, HYPERVISOR_S)
            reports = await hypervisor.reports()
            active = sorted(vm.name for vm in reports if vm.state is not VmState.STOPPED)
        except UnavailableError as error:
            return f"its libvirt cannot be asked: {error}"
        return f"VMs run there: {', '.join(active)}" if active else ""

    async def _open(self, host: str) -> None:
        """It takes VMs again."""
        try:
            await self.operator.exit_maintenance(host)
        except RefusedError:
            return  # somebody has said so already


def _planned(records: dict[str, dict[str, Any]]) -> list[str]:
    """Incidents of which something is still to be started."""
    found = [record["incident"] for record in records.values() if record.get("incident")]
    return sorted(
        str(one["id"])
        for one in found
        if any(item["phase"] in ("waiting", "planned") for item in one["items"])
    )
