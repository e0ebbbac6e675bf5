"""The busy loops of a soak, as the kernel schedules them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.lab import procs
from infra.lab.burners import burning
from tests.waiting import eventually


def _loops() -> list[int]:
    return [proc.pid for proc in procs.descendants(os.getpid()) if "-c" in procs.cmdline(proc.pid)]


def _autogroup(pid: int) -> str:
    return Path(f"/proc/{pid}/autogroup").read_text().split()[-1]


async def test_busy_loops_are_at_the_usual_priority() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    with burning(2):
        loops = await eventually(lambda: len(_loops()) == 2 and _loops(), "two loops")
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in loops] == [ours, ours]
    assert _loops() == []


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="sessions are no groups to this kernel")
async def test_yielding_ones_take_the_least_share_as_processes_and_as_sessions() -> None:
    with burning(2, yielding=True):
        loops = await eventually(lambda: len(_loops()) == 2 and _loops(), "two loops")

        def yields() -> bool:
            nice = [os.getpriority(os.PRIO_PROCESS, pid) for pid in loops]
            return nice == [19, 19] and [_autogroup(pid) for pid in loops] == ["19", "19"]

        await eventually(yields, "nice 19, and 19 among sessions")
    assert _loops() == []
