"""A watchdog of a real kernel, spoken to by the very code that a host's agent has: it is fed, stopped, and bites."""

from __future__ import annotations

import asyncio
import os
import re

import pytest

from infra.lab.dogguest import LINE, TIMEOUT_S, command, dog_guest

pytestmark = [pytest.mark.lab, pytest.mark.long]
KINDS = ("softdog", "card") if os.environ.get("REKINDLE_WATCHDOG_CARD") else ("softdog",)
"""The card's kernel is a download of 70 MB."""
WHOLE_S = 240.0


class Console:
    """What a guest says, and when by its own clock."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said: list[tuple[str, float]] = []

    async def to_the_end(self) -> None:
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode(errors="replace"):
            found = re.search(rf"{LINE}(\S+) ([0-9.]+)", line)
            if found:
                self.said.append((found[1], float(found[2])))
        await self._process.wait()

    def at(self, what: str) -> float:
        """When it said that for the last time."""
        return next(when for said, when in reversed(self.said) if said.startswith(what))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_kernels_watchdog_is_fed_stopped_and_resets_its_machine_within_its_time_out(
    kind: str,
) -> None:
    with dog_guest(card=kind == "card") as made:
        process = await asyncio.create_subprocess_exec(
            *command(made), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        console = Console(process)
        try:
            async with asyncio.timeout(WHOLE_S):
                await console.to_the_end()
        finally:
            if process.returncode is None:
                process.kill()
    words = [said for said, _ in console.said if said != "alive"]
    assert words == [f"armed:KernelWatchdog:{TIMEOUT_S}.0", "disarmed", "last"], console.said[-3:]
    fed_s = console.at("disarmed") - console.at("armed")
    assert fed_s > 1.5 * TIMEOUT_S, "it was fed, and did not bite"
    assert console.at("last") - console.at("disarmed") > 1.5 * TIMEOUT_S, "stopped, it does not"
    lived_s = console.at("alive") - console.at("last")
    assert TIMEOUT_S - 1.0 < lived_s < TIMEOUT_S + 1.0, "fed no more, it resets its machine"
