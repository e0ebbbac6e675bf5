"""The fence devices of a pool held against what their agents say of themselves, before one of them is needed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from libs.config.entries import HostEntry
from libs.config.settings import FencingSettings
from libs.config.yamlfile import BadInputError, located, read
from libs.power.agents import find_agent
from libs.power.metadata import Metadata, UnreadableMetadataError, ask, misfits

START_S = 5.0
"""An agent takes 0.1 to 1 s to tell of itself. One that hangs must not hold up the start of what watches the pool."""
log = structlog.get_logger()
_known: dict[str, Metadata] = {}
"""By path. What could not be read is asked again."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """What is wrong with one device."""

    where: tuple[str | int, ...]
    """The field, from the top of the pool file."""
    host: str
    reason: str
    unread: bool = False
    """Nothing is known to be wrong: the agent did not tell of its options."""


async def misfits_of(hosts: Sequence[HostEntry], settings: FencingSettings, timeout_s: float) -> list[Misfit]:
    """All that does not fit, in the order of the pool file. Each agent is asked once a process, for `timeout_s` at
    most. Raises BadInputError for an agent that is not there."""
    paths = {find_agent(device.agent) for host in hosts for device in host.fencing}
    slots = asyncio.Semaphore(settings.parallel_max)

    async def one(path: str) -> Metadata | UnreadableMetadataError:
        async with slots:
            try:
                return await ask(path, timeout_s)
            except UnreadableMetadataError as error:
                return error

    unknown = sorted(paths - set(_known))
    answers = dict(zip(unknown, await asyncio.gather(*map(one, unknown)), strict=True))
    _known.update({path: answer for path, answer in answers.items() if isinstance(answer, Metadata)})
    found = []
    for index, host in enumerate(hosts):
        for number, device in enumerate(host.fencing):
            where: tuple[str | int, ...] = ("hosts", index, "fencing", number)
            path = find_agent(device.agent)
            error = answers.get(path)
            if isinstance(error, UnreadableMetadataError):
                agent = os.path.basename(path)
                reason = f"the options of {agent} cannot be checked, as its metadata cannot be read: {error}"
                found.append(Misfit((*where, "agent"), host.name, reason, unread=True))
                continue
            for field, reason in misfits(device, _known[path]):
                found.append(Misfit((*where, *field), host.name, reason))
    return found


async def refuse_misfits(hosts: Sequence[HostEntry], settings: FencingSettings, config: Path) -> None:
    """At the start of what uses the devices. What is wrong in the pool file is refused like any other mistake in it;
    an agent that does not tell of its options in time is warned of, once: it may work all the same, and the pool
    must not go unwatched for it. Raises BadInputError with a line for each mistake."""
    found = await misfits_of(hosts, settings, START_S)
    _, node = read(config) if found else ({}, None)
    wrong = [located(config, node, one.where, f"{one.host}: {one.reason}") for one in found if not one.unread]
    if wrong:
        raise BadInputError("\n".join(wrong))
    for reason in sorted({one.reason for one in found}):
        log.warning("fence devices go unchecked", reason=reason)
