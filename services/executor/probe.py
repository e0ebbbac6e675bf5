"""The executor's hands that probe a guest: its address, then a question over the network."""

from __future__ import annotations

import asyncio

from libs.core.ports import GuestProbes, Hypervisors
from libs.readiness import Target, target_of
from services.executor.orders import Probed, ProbeGuest

TARGET_S = 3.0
ASK_S = 3.0
ADDRESSES_MOST = 4
"""Of one guest, all asked at once."""


async def probed(hypervisors: Hypervisors, probes: GuestProbes | None, request: ProbeGuest) -> Probed:
    """One that answers at any of its addresses is ready. Raises UnavailableError where its host could not be asked for
    these."""
    target = target_of(request.probe)
    if target is None or probes is None:
        return Probed(key=request.key, reason="nobody here can probe that")
    addresses = (target.host,) if target.host else await _addresses(hypervisors, request)
    if not addresses:
        return Probed(key=request.key, reason=f"nobody on {request.at.host} knows its guest's address")
    found = await asyncio.gather(*(_ask(probes, target, one) for one in addresses[:ADDRESSES_MOST]))
    well = [said for answers, said in found if answers]
    return Probed(key=request.key, ready=bool(well), reason=(well or [said for _, said in found])[0])


async def _addresses(hypervisors: Hypervisors, request: ProbeGuest) -> tuple[str, ...]:
    host = await hypervisors.at(request.at, TARGET_S)
    return await host.addresses(request.vm)


async def _ask(probes: GuestProbes, target: Target, address: str) -> tuple[bool, str]:
    answers, said = await probes.ask(target, address, ASK_S)
    return answers, f"{address}: {said}"
