"""Fence agents as real programs: what counts as off, what is killed, where secrets go."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from pathlib import Path
from typing import Any

import pytest

from libs.config.entries import FenceDevice, HostEntry, Secret
from libs.config.settings import FencingSettings
from libs.config.yamlfile import BadInputError
from libs.core.ports import FenceError
from libs.model import PowerState, ProofMethod
from libs.power.agents import AgentDevice, find_agent
from libs.power.devices import FenceDevices, agent_devices
from tests.unit.fenceagents import AGENT, Seen, agent, calls, program
from tests.unit.made import boot
from tests.waiting import eventually

pytestmark = pytest.mark.fast


def device(path: Path, **more: Any) -> AgentDevice:
    return AgentDevice(FenceDevice(agent=str(path), **{"timeout_s": 5.0, **more}), asyncio.Semaphore(16))


def devices(
    *paths: Path, levels: tuple[int, ...] | None = None, timeouts_s: tuple[float, ...] | None = None
) -> FenceDevices:
    levels = levels or (1,) * len(paths)
    fencing = tuple(
        FenceDevice(agent=str(path), level=level, timeout_s=timeout_s)
        for path, level, timeout_s in zip(paths, levels, timeouts_s or (5.0,) * len(paths), strict=True)
    )
    hosts = [HostEntry(name="h1", uri="test:///default", fencing=fencing)]
    return FenceDevices(agent_devices(hosts), FencingSettings(status_spacing_s=0.05))


# -- one device


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'Status: ON'; exit 0", PowerState.ON),
        ("echo 'Status: OFF'; exit 2", PowerState.OFF),
        ("echo 'noise'; echo 'Status: OFF'; exit 2", PowerState.OFF),
        ("exit 2", PowerState.UNKNOWN),
        ("echo 'No such file' >&2; exit 2", PowerState.UNKNOWN),
        ("echo 'Status: OFF' >&2; exit 2", PowerState.UNKNOWN),
        ("echo 'Status: OFF'; exit 0", PowerState.UNKNOWN),
        ("echo 'Status: OFF'; exit 1", PowerState.UNKNOWN),
        ("echo 'Status: ON'; exit 2", PowerState.UNKNOWN),
        ("exit 0", PowerState.UNKNOWN),
        ("kill -9 $$", PowerState.UNKNOWN),
        ("head -c 300000 /dev/zero; exit 0", PowerState.UNKNOWN),
    ],
)
async def test_off_is_off_only_where_exit_and_output_both_say_so(
    tmp_path: Path, script: str, expected: PowerState
) -> None:
    path = program(tmp_path / "fence_test", f"#!/bin/sh\ncat >/dev/null\n{script}\n")
    state, detail = await device(path).status(5.0)
    assert state is expected
    assert "fence_test" in detail


async def test_an_agent_that_cannot_be_run_is_unknown(tmp_path: Path) -> None:
    path = program(tmp_path / "fence_test", "#!/no/such/interpreter\n")
    state, detail = await device(path).status(5.0)
    assert state is PowerState.UNKNOWN
    assert "cannot be started" in detail


async def test_an_agent_that_reads_nothing_of_its_input_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = program(tmp_path / "fence_test", "#!/bin/sh\nexec <&-\necho 'Status: ON'\n")
    state, _ = await device(path, options={"filler": "x" * 200_000}).status(5.0)
    assert state is PowerState.ON
    gc.collect()
    assert not caplog.records, "asyncio prints what nobody asked for"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    await eventually(lambda: not alive(pid), f"process {pid} is gone")


async def test_a_hang_is_killed_with_its_whole_process_group(tmp_path: Path) -> None:
    path = program(
        tmp_path / "fence_test",
        '#!/bin/sh\ncd "$(dirname "$0")"\nsleep 1000 &\necho $! > child\necho $$ > self\nwait\n',
    )
    began = time.monotonic()
    state, detail = await device(path).status(0.5)
    assert state is PowerState.UNKNOWN
    assert "no answer by its deadline" in detail
    assert time.monotonic() - began < 3
    for name in ("self", "child"):
        await gone(int((tmp_path / name).read_text()))


async def test_a_child_left_behind_by_an_agent_that_ended_is_killed_too(tmp_path: Path) -> None:
    path = program(
        tmp_path / "fence_test",
        '#!/bin/sh\ncd "$(dirname "$0")"\nsleep 1000 >/dev/null 2>&1 &\necho $! > child\necho \'Status: ON\'\n',
    )
    assert (await device(path).status(5.0))[0] is PowerState.ON
    await gone(int((tmp_path / "child").read_text()))


async def test_a_cancelled_call_leaves_no_process_behind(tmp_path: Path) -> None:
    path = program(tmp_path / "fence_test", '#!/bin/sh\ncd "$(dirname "$0")"\necho $$ > self\nsleep 1000\n')
    task = asyncio.create_task(device(path).status(60.0))
    written = tmp_path / "self"
    await eventually(lambda: written.exists() and written.read_text().strip(), "it runs")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await gone(int(written.read_text()))


async def test_parameters_and_secrets_go_to_its_input_only_and_the_action_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(
        tmp_path / "fence_test",
        "#!/bin/sh\ncd \"$(dirname \"$0\")\"\ncat > stdin\ntr '\\0' '\\n' < /proc/$$/cmdline > cmdline\n"
        "tr '\\0' '\\n' < /proc/$$/environ > environ\necho 'Status: ON'\n",
    )
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    options = {"ip": "10.0.0.1", "lanplus": True, "verbose": False, "port": 5, "zzz": "last"}
    one = device(path, options=options, secrets={"password": Secret(file=secret)})
    await one.status(5.0)
    lines = (tmp_path / "stdin").read_text().splitlines()
    assert lines == [
        "ip=10.0.0.1", "lanplus=1", "password=hunter2", "port=5", "verbose=0", "zzz=last", "action=status",
    ]  # fmt: skip
    assert "hunter2" not in (tmp_path / "cmdline").read_text()
    assert "hunter2" not in (tmp_path / "environ").read_text()
    await one.off()
    assert (tmp_path / "stdin").read_text().splitlines()[-1] == "action=off"


async def test_one_call_at_a_time_a_device(tmp_path: Path) -> None:
    path = program(
        tmp_path / "fence_test",
        '#!/bin/sh\ncd "$(dirname "$0")"\ncat >/dev/null\nmkdir busy || exit 9\nsleep 0.1\nrmdir busy\n'
        "echo 'Status: ON'\n",
    )
    one = device(path)
    states = await asyncio.gather(*(one.status(5.0) for _ in range(4)))
    assert {state for state, _ in states} == {PowerState.ON}


@pytest.mark.parametrize("value", ["a\nmethod=cycle", "\n", "a\raction=reboot", "a\r\nb", "a\r"])
def test_a_line_break_in_a_parameter_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(BadInputError, match="line break"):
        device(agent(tmp_path), options={"ip": value})


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("password", '"hunter2"', "double quote"),
        ("password", " hunter2", "begins or ends with a space"),
        ("a=action", "hunter2", "no option has such a name"),
        ("#a", "hunter2", "no option has such a name"),
    ],
)
def test_what_an_agent_would_read_as_something_else_is_refused_unrepeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str, reason: str
) -> None:
    monkeypatch.setenv("BMC", value)
    with pytest.raises(BadInputError, match=reason) as error:
        device(agent(tmp_path), secrets={key: Secret(env="BMC")})
    assert "hunter2" not in str(error.value)


async def test_a_secret_that_an_agent_repeats_in_its_complaint_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all agents do for an option they do not know: `Ignoring unknown option 'pasword=hunter2'`."""
    path = program(
        tmp_path / "fence_test",
        '#!/bin/sh\nread -r a\nread -r b\necho "unknown option $b and $a" >&2\nexit 1\n',
    )
    monkeypatch.setenv("BMC", "hunter2")
    monkeypatch.setenv("BMC_LONGER", "hunter2-of-two")
    secrets = {"pasword": Secret(env="BMC"), "other": Secret(env="BMC_LONGER")}
    one = device(path, secrets=secrets)
    for detail in ((await one.status(5.0))[1], (await one.off())[1]):
        assert "hunter2" not in detail
        assert detail.endswith("exit 1: unknown option pasword=(secret) and other=(secret)")


def test_an_agent_that_is_not_there_is_named_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"fence_nothing is not installed.*package fence-agents"):
        find_agent("fence_nothing")
    (tmp_path / "fence_x").write_text("#!/bin/sh\n")
    with pytest.raises(BadInputError, match="not an executable file"):
        find_agent(str(tmp_path / "fence_x"))
    entry = HostEntry(name="h7", uri="test:///default", fencing=(FenceDevice(agent="fence_nothing"),))
    with pytest.raises(BadInputError, match=r"hosts\.h7\.fencing"):
        agent_devices([entry])


# -- a proof


async def test_off_and_twice_read_off_is_a_proof(tmp_path: Path) -> None:
    seen = Seen()
    proof = await devices(agent(tmp_path)).fence(boot("h1"), seen)
    assert (proof.of, proof.method) == (boot("h1"), ProofMethod.POWER_OFF)
    assert calls(tmp_path) == ["status", "off", "status", "status"]
    assert seen.times == 1


async def test_a_host_found_off_is_fenced_without_a_command(tmp_path: Path) -> None:
    await devices(agent(tmp_path, power="off")).fence(boot("h1"), Seen())
    assert calls(tmp_path) == ["status", "status"]


async def test_off_that_is_refused_and_reads_off_twice_all_the_same_is_a_proof(tmp_path: Path) -> None:
    proof = await devices(agent(tmp_path, off="echo off > power; exit 1")).fence(boot("h1"), Seen())
    assert proof.method is ProofMethod.POWER_OFF


@pytest.mark.parametrize(
    ("off", "missing"),
    [
        ("exit 0", "status: exit 0: Status: ON"),
        ("exit 1", "off: exit 1"),
        ("rm power; exit 0", "status"),
    ],
)
async def test_off_that_does_not_read_off_proves_nothing(tmp_path: Path, off: str, missing: str) -> None:
    with pytest.raises(FenceError) as error:
        await devices(agent(tmp_path, off=off)).fence(boot("h1"), Seen())
    assert any(missing in one or "reads on" in one for one in error.value.missing)
    assert all(one.startswith("level 1: ") for one in error.value.missing)


async def test_off_that_comes_on_again_before_the_second_reading_proves_nothing(tmp_path: Path) -> None:
    """A power cycle, or a BMC whose policy is to come back."""
    path = agent(tmp_path, off="echo off > power; (sleep 0.02; :) ; exit 0")
    flips = AGENT.replace("{off}", "echo off > power; exit 0").replace(
        'echo "Status: OFF"; exit 2', 'echo on > power; echo "Status: OFF"; exit 2'
    )
    program(path, flips)
    with pytest.raises(FenceError):
        await devices(path).fence(boot("h1"), Seen())


async def test_all_devices_of_a_level_must_read_off(tmp_path: Path) -> None:
    good, bad = agent(tmp_path / "a"), agent(tmp_path / "b", off="exit 0")
    with pytest.raises(FenceError):
        await devices(good, bad).fence(boot("h1"), Seen())
    await devices(good, agent(tmp_path / "b")).fence(boot("h1"), Seen())


async def test_the_next_level_is_tried_where_one_gives_no_proof(tmp_path: Path) -> None:
    hangs = program(tmp_path / "fence_hang", "#!/bin/sh\nsleep 1000\n")
    good = agent(tmp_path / "b")
    proof = await devices(hangs, good, levels=(1, 2), timeouts_s=(0.1, 5.0)).fence(boot("h1"), Seen())
    assert "level 2" in proof.detail
    with pytest.raises(FenceError) as error:
        await devices(hangs, hangs, levels=(1, 2), timeouts_s=(0.1, 0.1)).fence(boot("h1"), Seen())
    assert [one.split(":")[0] for one in error.value.missing if "status" in one] == ["level 1", "level 2"]


async def test_a_host_without_a_device_has_no_proof_and_no_reading() -> None:
    power = FenceDevices({}, FencingSettings())
    with pytest.raises(FenceError, match="no fence device"):
        await power.fence(boot("h1"), Seen())
    assert (await power.status("h1", 1.0))[0] is PowerState.UNKNOWN


@pytest.mark.parametrize(
    ("powers", "levels", "expected"),
    [
        (("on",), (1,), PowerState.ON),
        (("off",), (1,), PowerState.OFF),
        (("off", "on"), (1, 1), PowerState.ON),
        (("off", "on"), (1, 2), PowerState.ON),
        (("off", "broken"), (1, 1), PowerState.UNKNOWN),
        (("off", "off"), (1, 1), PowerState.OFF),
        (("broken",), (1,), PowerState.UNKNOWN),
    ],
)
async def test_what_several_devices_amount_to(
    tmp_path: Path, powers: tuple[str, ...], levels: tuple[int, ...], expected: PowerState
) -> None:
    paths = []
    for number, power in enumerate(powers):
        path = agent(tmp_path / str(number), power=power)
        if power == "broken":
            program(path, "#!/bin/sh\nexit 1\n")
        paths.append(path)
    state, _ = await devices(*paths, levels=levels).status("h1", 5.0)
    assert state is expected


def test_a_deadline_covers_every_call_of_every_level(tmp_path: Path) -> None:
    power = devices(agent(tmp_path / "a"), agent(tmp_path / "b"), levels=(1, 2), timeouts_s=(7.0, 7.0))
    # per level: status, off, status, and status once more after the pause
    assert power.deadline_s("h1") >= 2 * (4 * 7.0 + 0.05)
    assert os.access(tmp_path, os.R_OK)
