"""Which boot an agentless host is in, as far as it can be told from outside.

libvirt gives no boot id over a connection. A run of a VM that goes on over the gap (same VM, same libvirt id)
shows that the host did not boot; where none does, it is held to be another boot. That errs on the side of
"another": a new name for the same boot costs a look, an old name for a new boot would void a fence proof.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

from pydantic import ValidationError

from libs.core.ports import Store, UnavailableError
from libs.model import Answer, Incarnation, Inventory, VmReport
from libs.virt.host import LibvirtHost

LOOK_S = 1.0
PROBE_S = 0.9
MISSES = 2


@dataclass(slots=True)
class Watched:
    """One agentless host."""

    host: LibvirtHost
    inventory: Store

    async def until_up(self) -> Incarnation:
        """Wait until libvirt answers and its VMs can be read; then name the boot."""
        while True:
            try:
                reports = await self.host.reports()
                stored = await self._stored()
            except UnavailableError:
                await asyncio.sleep(LOOK_S)
                continue
            if stored is not None and _goes_on(stored.vms, reports):
                return stored.at
            return Incarnation(host=self.host.name, boot=f"{uuid.uuid4().hex}-agentless")

    async def until_lost(self, interval_s: float) -> None:
        """Return when libvirt fails to answer twice in a row."""
        missed = 0
        while missed < MISSES:
            await asyncio.sleep(interval_s)
            answer, _ = await self.host.probe(PROBE_S)
            missed = 0 if answer is Answer.UP else missed + 1

    async def _stored(self) -> Inventory | None:
        row = await self.inventory.get(self.host.name)
        try:
            return None if row is None else Inventory.model_validate_json(row.value)
        except ValidationError:
            return None  # of another version: then this is another boot


def _goes_on(before: tuple[VmReport, ...], now: list[VmReport]) -> bool:
    runs = {(report.uuid, report.run) for report in before if report.state.active and report.run}
    return any((report.uuid, report.run) in runs for report in now if report.state.active)
