"""`rekindle check`: does what the pool file names answer? Reads only."""

from __future__ import annotations

import asyncio
from pathlib import Path

from libs.config.alerts import refuse_files
from libs.config.entries import HostEntry
from libs.config.settings import Settings
from libs.config.yamlfile import located, read
from libs.core.clock import SystemClock
from libs.model import Answer, PowerState
from libs.power.checked import misfits_of
from libs.power.devices import fence_devices
from libs.virt.host import LibvirtHost

PROBE_S, POWER_S, METADATA_S = 5.0, 20.0, 20.0


async def check_pool(settings: Settings, path: Path) -> list[str]:
    """One line a finding: file, line, field, reason. Raises BadInputError for what is wrong in the file itself."""
    refuse_files(settings.alerts, path)
    power = fence_devices(settings)
    _, node = read(path)
    # host after host where there are many: who waits for a turn of the agents' would be reported as unreadable
    turns = asyncio.Semaphore(settings.fencing.parallel_max)

    misfits = await misfits_of(settings.hosts, settings.fencing, METADATA_S)
    wrong = [located(path, node, one.where, f"{one.host}: {one.reason}") for one in misfits]

    async def one(index: int, host: HostEntry) -> list[str]:
        def finding(field: str, reason: str) -> str:
            return located(path, node, ("hosts", index, field), f"{host.name}: {reason}")

        found = []
        libvirt = LibvirtHost(host.name, host.uri, settings.vm_defaults, SystemClock().monotonic)
        answer, detail = await libvirt.probe(PROBE_S)
        if answer is not Answer.UP:
            found.append(finding("uri", f"{host.uri} does not answer: {detail}"))
        state, said = await power.status(host.name, POWER_S)
        if state is PowerState.UNKNOWN:
            found.append(finding("fencing", f"the power cannot be read: {said}"))
        return found

    async def in_turn(index: int, host: HostEntry) -> list[str]:
        async with turns:
            return await one(index, host)

    results = await asyncio.gather(*(in_turn(index, host) for index, host in enumerate(settings.hosts)))
    return [*wrong, *(finding for result in results for finding in result)]
