"""What a host's own disk promises to remember of its promise: a file, and the simulator's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from libs.core.ports import PromiseMemory
from libs.promisefile import PromiseFile
from libs.promises import Promise
from libs.sim.hosts import SimHost
from libs.sim.loop import Process, SimLoop
from libs.sim.watchdogs import SimPromises
from tests.unit.made import boot

pytestmark = pytest.mark.fast
FIRST, NEXT = boot("h1"), boot("h1", 2)
SHORT = Promise(at=FIRST, timeout_s=5.0, lag_s=1.0, peers=("h2",), datastores=("nfs",))
LONG = SHORT.model_copy(update={"timeout_s": 10.0})
Life = Callable[[], PromiseMemory]
"""A new process on the one host."""


async def _what_one_life_remembers_the_next_recalls(life: Life) -> None:
    assert life().recall(FIRST) == ()
    await life().remember(FIRST, (SHORT,))
    assert life().recall(FIRST) == (SHORT,)
    await life().remember(FIRST, (SHORT, LONG))
    assert life().recall(FIRST) == (SHORT, LONG), "which of them stands is not known"
    await life().remember(FIRST, ())
    assert life().recall(FIRST) == ()


async def _another_boot_has_promised_nothing(life: Life) -> None:
    await life().remember(FIRST, (SHORT,))
    assert life().recall(NEXT) == ()
    await life().remember(NEXT, ())
    assert life().recall(FIRST) == ()


CONTRACT: tuple[Callable[[Life], Awaitable[None]], ...] = (
    _what_one_life_remembers_the_next_recalls,
    _another_boot_has_promised_nothing,
)


@pytest.mark.parametrize("promised", CONTRACT)
def test_a_file(promised: Callable[[Life], Awaitable[None]], tmp_path: Path) -> None:
    file = tmp_path / "promises" / "h1.json"
    asyncio.run(promised(lambda: PromiseFile(file)))  # type: ignore[arg-type]


@pytest.mark.parametrize("promised", CONTRACT)
def test_the_simulators(promised: Callable[[Life], Awaitable[None]]) -> None:
    loop, host = SimLoop(), SimHost("h1", 1024, 0, 1)
    try:
        loop.run_until_complete(promised(lambda: SimPromises(host, Process(loop, "agent", "h1"))))
    finally:
        loop.close()


@pytest.mark.parametrize("content", [b"", b"{", b'{"at": 1}'])
async def test_a_torn_file_is_no_memory(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "h1.json"
    file.write_bytes(content)
    memory = PromiseFile(file)
    assert memory.recall(FIRST) == ()
    await memory.remember(FIRST, (SHORT,))
    assert memory.recall(FIRST) == (SHORT,)


async def test_a_disk_that_takes_no_writes_remembers_nothing_older_either(tmp_path: Path) -> None:
    """Else the next life would go on with what does not stand any more."""
    memory = PromiseFile(tmp_path / "h1.json")
    await memory.remember(FIRST, (SHORT,))
    (tmp_path / "h1.new").mkdir()  # nothing can be written in its place
    await memory.remember(FIRST, (LONG,))
    assert memory.recall(FIRST) == ()
