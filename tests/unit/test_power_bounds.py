"""Many fence devices at once: how many agents run, how long a call may wait, what stands between two readings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from libs.config.entries import FenceDevice, HostEntry
from libs.config.settings import FencingSettings
from libs.core.ports import FenceError
from libs.model import PowerState
from libs.power.devices import FenceDevices, agent_devices
from tests.unit.fenceagents import Seen, agent, calls, program
from tests.unit.made import boot

pytestmark = pytest.mark.fast

# Notes how many of its kind run beside it.
CROWD = """\
#!/bin/sh
cd "$(dirname "$0")"
cat >/dev/null
mkdir -p running && touch running/$$
ls running | wc -l >> crowd
sleep 0.15
rm running/$$
echo 'Status: ON'
"""


def pool(agents: list[Path], *, parallel_max: int = 16, spacing_s: float = 0.05) -> FenceDevices:
    """Each agent is the only device of a host of its own: h0, h1, ..."""
    settings = FencingSettings(parallel_max=parallel_max, status_spacing_s=spacing_s)
    hosts = [
        HostEntry(name=f"h{n}", uri="test:///default", fencing=(FenceDevice(agent=str(path), timeout_s=5.0),))
        for n, path in enumerate(agents)
    ]
    return FenceDevices(agent_devices(hosts, settings), settings)


async def test_no_more_agents_run_at_once_than_the_pool_allows_however_many_hosts_are_asked(
    tmp_path: Path,
) -> None:
    power = pool([program(tmp_path / "fence_crowd", CROWD)] * 7, parallel_max=2)
    readings = await asyncio.gather(*(power.status(f"h{n}", 5.0) for n in range(7)))
    assert {state for state, _ in readings} == {PowerState.ON}
    crowd = [int(line) for line in (tmp_path / "crowd").read_text().split()]
    assert (len(crowd), max(crowd)) == (7, 2)


@pytest.mark.parametrize(("others_ip", "at_once"), [("10.0.9.1", 1), ("10.0.9.2", 2)])
async def test_the_outlets_of_one_power_strip_are_asked_one_after_the_other_whoever_hangs_on_them(
    tmp_path: Path, others_ip: str, at_once: int
) -> None:
    path = program(tmp_path / "fence_crowd", CROWD)
    hosts = [
        HostEntry(
            name=name,
            uri="test:///default",
            fencing=(FenceDevice(agent=str(path), timeout_s=5.0, options={"ip": ip, "plug": plug}),),
        )
        for name, ip, plug in (("h1", "10.0.9.1", 1), ("h2", others_ip, 2))
    ]
    power = FenceDevices(agent_devices(hosts), FencingSettings())
    await asyncio.gather(*(power.status(name, 5.0) for name in ("h1", "h2")))
    crowd = [int(line) for line in (tmp_path / "crowd").read_text().split()]
    assert (len(crowd), max(crowd)) == (2, at_once)


async def test_a_call_that_gets_no_turn_by_its_deadline_is_unknown_and_says_why(tmp_path: Path) -> None:
    hangs, works = program(tmp_path / "fence_hang", "#!/bin/sh\nsleep 1000\n"), agent(tmp_path / "a")
    power = pool([hangs, works], parallel_max=1)
    slow = asyncio.create_task(power.status("h0", 1.5))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    state, detail = await power.status("h1", 0.3)
    assert (state, time.monotonic() - began < 1.0) == (PowerState.UNKNOWN, True)
    assert "no turn by its deadline" in detail
    assert "fencing.parallel_max" in detail
    assert not (tmp_path / "a" / "calls").exists()
    await slow
    assert (await power.status("h1", 5.0))[0] is PowerState.ON, "what was given up holds no slot"


async def test_waiting_for_a_turn_does_not_make_a_call_longer_than_its_deadline(tmp_path: Path) -> None:
    hangs = program(tmp_path / "fence_hang", "#!/bin/sh\nsleep 1000\n")
    power = pool([hangs, hangs], parallel_max=1)
    began = time.monotonic()
    await asyncio.gather(power.status("h0", 0.6), power.status("h1", 1.0))
    assert time.monotonic() - began < 1.5


async def test_a_queue_before_one_mute_device_holds_up_no_other(tmp_path: Path) -> None:
    hangs, works = program(tmp_path / "fence_hang", "#!/bin/sh\nsleep 1000\n"), agent(tmp_path / "a")
    power = pool([hangs, works], parallel_max=2)
    waiting = [asyncio.create_task(power.status("h0", 3.0)) for _ in range(4)]
    await asyncio.sleep(0.1)
    assert (await power.status("h1", 2.0))[0] is PowerState.ON
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_child_that_escapes_with_the_agents_output_does_not_hold_up_the_deadline(
    tmp_path: Path,
) -> None:
    script = '#!/bin/sh\ncd "$(dirname "$0")"\nsetsid sleep 30 &\necho $! > child\necho "Status: ON"\n'
    power = pool([program(tmp_path / "fence_test", script)])
    began = time.monotonic()
    try:
        assert (await power.status("h0", 0.5))[0] is PowerState.UNKNOWN
        assert time.monotonic() - began < 4.0
        assert (await power.status("h0", 0.5))[1].endswith("no answer by its deadline"), (
            "its turn is free again"
        )
    finally:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes() == b"sleep\x0030\0" and str(tmp_path) == os.readlink(
                    path.parent / "cwd"
                ):
                    os.kill(int(path.parent.name), signal.SIGKILL)


# Notes the time of each reading; `off` works.
CLOCK = """\
#!/bin/sh
cd "$(dirname "$0")"
while read -r line; do case "$line" in action=*) action="${line#action=}";; esac; done
echo "$action" >> calls
case "$action" in
  off) echo off > power;;
  status) date +%s.%N >> readings
    if [ "$(cat power)" = off ]; then echo "Status: OFF"; exit 2; else echo "Status: ON"; fi;;
esac
"""


@pytest.mark.parametrize("levels", [(1,), (1, 2), (1, 5, 9)])
async def test_off_and_two_readings_apart_as_configured_are_the_proof_at_every_level(
    tmp_path: Path, levels: tuple[int, ...]
) -> None:
    *above, last = levels
    refuses = [agent(tmp_path / str(level), off="exit 0") for level in above]
    works = agent(tmp_path / str(last))
    program(works, CLOCK)
    fencing = tuple(
        FenceDevice(agent=str(path), level=level, timeout_s=5.0)
        for level, path in zip(levels, [*refuses, works], strict=True)
    )
    settings = FencingSettings(status_spacing_s=0.4)
    host = HostEntry(name="h1", uri="test:///default", fencing=fencing)
    proof = await FenceDevices(agent_devices([host], settings), settings).fence(boot("h1"), Seen())
    assert proof.detail.startswith(f"level {last} (fence_test) read off twice, 0.4 s apart")
    assert calls(tmp_path / str(last)) == ["status", "off", "status", "status"]
    *_, first, second = (float(line) for line in (tmp_path / str(last) / "readings").read_text().split())
    assert second - first >= 0.4
    for level in above:
        assert calls(tmp_path / str(level)) == ["status", "off", "status"]


@pytest.mark.parametrize("level", [1, 2, 9])
@pytest.mark.parametrize(
    "status", ["exit 2", "echo 'Status: OFF'; exit 0", "echo 'Status: OFF' >&2; exit 2", "sleep 1000"]
)
async def test_no_level_takes_an_exit_status_without_its_output_for_off(
    tmp_path: Path, level: int, status: str
) -> None:
    path = program(tmp_path / "fence_test", f"#!/bin/sh\nread -r line\n{status}\n")
    fencing = (FenceDevice(agent=str(path), level=level, timeout_s=0.5),)
    host = HostEntry(name="h1", uri="test:///default", fencing=fencing)
    settings = FencingSettings(status_spacing_s=0.05)
    with pytest.raises(FenceError) as error:
        await FenceDevices(agent_devices([host], settings), settings).fence(boot("h1"), Seen())
    assert all(reason.startswith(f"level {level}: fence_test: ") for reason in error.value.missing)
