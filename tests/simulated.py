"""Running a test's body on a loop whose time is simulated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from libs.sim.loop import SimLoop
from libs.sim.run import drain


def play_simulated(body: Callable[[SimLoop], Awaitable[None]]) -> None:
    """The whole body on a loop of its own. Fails where a callback or a task beside it failed."""
    loop = SimLoop()

    async def awaited() -> None:
        await body(loop)

    try:
        loop.run_until_complete(awaited())
    finally:
        drain(loop)
    assert not loop.failures
