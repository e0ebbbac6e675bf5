"""`rekindle scale-out`: what was asked for because the pool had no room, and what was answered."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from libs import readmodel
from libs.config.settings import Settings
from libs.events.scaleout import (
    ScaleOutAnswered,
    ScaleOutClosed,
    ScaleOutEscalated,
    ScaleOutFact,
    ScaleOutRequested,
    ScaleOutUpdated,
)
from services.alerting.texts import tell
from services.cli import tables
from services.cli.app import ConfigOption, JsonOption, print_json, settings_of


def scale_out(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Requests for capacity, the newest last: what is needed, every answer, and how each ended."""
    found = asyncio.run(_read(settings_of(config)))
    if as_json:
        print_json({"schema": "rekindle.scale_outs.v1", "requests": found})
        return
    for one in found:
        needs = one["needs"]
        sys.stdout.write(
            f"{one['request']}: {one['state']}; {', '.join(needs['vms'])}: {needs['memory_mib']} MiB, "
            f"{needs['vcpus']} vCPUs in all, {needs['host_memory_mib']} MiB and {needs['host_vcpus']} vCPUs at least\n"
        )
        for time, text in one["told"]:
            tables.console.print(f"  {time[:19].replace('T', ' ')}  {text}", highlight=False, soft_wrap=True)


async def _read(settings: Settings) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    async with readmodel.reader(settings) as reader:
        async for _, envelope in reader.events():
            fact = envelope.data
            if not isinstance(fact, ScaleOutFact):
                continue
            if isinstance(fact, ScaleOutRequested):
                found[fact.request] = {"request": fact.request, "state": "requested", "told": []}
            if fact.request not in found:
                continue  # an answer to nothing that is known
            one = found[fact.request]
            one["told"].append((envelope.time.isoformat(), tell(fact)[1]))
            match fact:
                case ScaleOutRequested() | ScaleOutUpdated():
                    one["needs"] = fact.needs.model_dump()
                case ScaleOutAnswered():
                    one["state"] = fact.status
                case ScaleOutEscalated():
                    one["state"] = "escalated"
                case ScaleOutClosed():
                    one["state"] = fact.outcome
    return list(found.values())
