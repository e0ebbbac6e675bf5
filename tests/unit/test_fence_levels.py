"""Fence levels in a race: when the next begins, who wins, what is ended, and what is told meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from libs.config.entries import FenceDevice, FenceLevel, HostEntry
from libs.config.settings import FencingSettings, Settings
from libs.core.ports import FenceError
from libs.model import FenceProof, PowerState
from libs.power.devices import FenceDevices, agent_devices, fence_devices
from libs.power.levels import WITNESS_S
from tests.unit.fenceagents import Seen, agent, calls, program
from tests.unit.made import boot
from tests.waiting import eventually

pytestmark = pytest.mark.fast
SPACING_S = 0.02
LOAD_S = 1.5
"""For a machine that is busy with other tests; what is ruled out would take 9 s and more."""


class Outlet:
    """A device without a process. `how`: works, hangs, refuses, lies; `after_s` each call takes."""

    def __init__(
        self, name: str, level: int = 1, how: str = "works", power: str = "on", after_s: float = 0.0
    ) -> None:
        self.name, self.level, self.timeout_s = name, level, 30.0
        self.how, self.power, self.after_s = how, power, after_s
        self.calls: list[tuple[str, float]] = []
        self.cancelled = 0

    async def _call(self, what: str) -> None:
        self.calls.append((what, asyncio.get_running_loop().time()))
        try:
            await asyncio.sleep(1000.0 if self.how == "hangs" else self.after_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def status(self, timeout_s: float) -> tuple[PowerState, str]:
        await self._call("status")
        state = PowerState.OFF if self.how == "lies" else PowerState(self.power)
        return state, f"{self.name} reads {state.value}"

    async def off(self) -> tuple[bool, str]:
        await self._call("off")
        if self.how == "refuses":
            return False, f"{self.name}: off: HTTP 409"
        if self.how == "works":
            self.power = "off"
        return True, f"{self.name}: off: exit 0"

    async def on(self) -> tuple[bool, str]:
        await self._call("on")
        self.power = "on"
        return True, f"{self.name}: on: exit 0"

    def did(self) -> list[str]:
        return [what for what, _ in self.calls]


def power(
    *outlets: Outlet, levels: dict[int, FenceLevel] | None = None, **settings: float | None
) -> FenceDevices:
    given = FencingSettings.model_validate({"status_spacing_s": SPACING_S, **settings})
    return FenceDevices({"h1": outlets}, given, {"h1": levels or {}})


async def fails(devices: FenceDevices) -> tuple[str, ...]:
    with pytest.raises(FenceError) as error:
        await devices.fence(boot("h1"), Seen())
    return error.value.missing


async def proof_of(devices: FenceDevices) -> tuple[FenceProof, float]:
    began = asyncio.get_running_loop().time()
    proof = await devices.fence(boot("h1"), Seen())
    return proof, asyncio.get_running_loop().time() - began


async def test_s07_a_bmc_that_died_with_its_host_holds_up_the_next_level_no_longer_than_stated() -> None:
    bmc, pdu = Outlet("bmc", 1, "hangs"), Outlet("pdu", 2)
    proof, took_s = await proof_of(power(bmc, pdu, next_level_after_s=0.15))
    assert "level 2 (pdu)" in proof.detail
    assert pdu.calls[0][1] - bmc.calls[0][1] >= 0.15
    assert took_s < 0.15 + SPACING_S + LOAD_S
    assert bmc.cancelled == 1, "what still hangs is ended, not left"


async def test_s07_without_a_race_the_levels_own_deadline_is_the_bound() -> None:
    bmc, pdu = Outlet("bmc", 1, "hangs"), Outlet("pdu", 2)
    own = {1: FenceLevel(deadline_s=0.2)}
    proof, took_s = await proof_of(power(bmc, pdu, levels=own, next_level_after_s=None))
    assert "level 2" in proof.detail
    assert 0.2 <= took_s < 0.2 + SPACING_S + LOAD_S


async def test_a_level_of_its_own_time_begins_the_next_when_the_host_says_so() -> None:
    bmc, pdu = Outlet("bmc", 1, "hangs"), Outlet("pdu", 2)
    _, took_s = await proof_of(
        power(bmc, pdu, levels={1: FenceLevel(next_after_s=0.0)}, next_level_after_s=9.0)
    )
    assert took_s < LOAD_S, "at once"


async def test_the_first_proof_wins_and_a_level_that_failed_begins_the_next_at_once() -> None:
    refuses, pdu = Outlet("bmc", 1, "refuses"), Outlet("pdu", 2)
    proof, took_s = await proof_of(power(refuses, pdu, next_level_after_s=9.0))
    assert ("level 2" in proof.detail, took_s < LOAD_S) == (True, True)
    slow, quick = Outlet("bmc", 1, after_s=0.3), Outlet("pdu", 2)
    proof, _ = await proof_of(power(slow, quick, next_level_after_s=0.0))
    assert "level 2" in proof.detail
    quick, never = Outlet("bmc", 1), Outlet("pdu", 2)
    proof, _ = await proof_of(power(quick, never, next_level_after_s=5.0))
    assert ("level 1" in proof.detail, never.calls) == (True, []), "a level that is not needed is not touched"


async def test_both_power_supplies_of_a_level_must_be_off() -> None:
    one, two = Outlet("psu-a"), Outlet("psu-b", how="refuses")
    missing = await fails(power(one, two))
    assert missing == ("level 1: psu-b: off: HTTP 409", "level 1: psu-b reads on")
    assert one.power == "off"
    two.how = "works"
    proof, _ = await proof_of(power(one, two))
    assert "level 1 (psu-a, psu-b)" in proof.detail
    assert one.did()[-2:] == ["status", "status"], "found off: not told again"


async def test_s08_a_device_that_answers_409_to_off_of_a_host_that_is_off_is_no_obstacle() -> None:
    found_off = Outlet("bmc", how="refuses", power="off")
    await proof_of(power(found_off))
    assert found_off.did() == ["status", "status"], "fenced at once, and nothing is commanded"

    class GoesOff(Outlet):
        """It goes off by itself between our look and our command, which is then refused."""

        async def off(self) -> tuple[bool, str]:
            self.power = "off"
            return await super().off()

    proof, _ = await proof_of(power(GoesOff("bmc", how="refuses")))
    assert "level 1" in proof.detail


class Lives:
    """A witness who has seen the host live."""

    def __init__(self, lives: Callable[[], bool]) -> None:
        self.lives, self.closed = lives, False

    async def said(self) -> Sequence[str]:
        return ["h1 sent heartbeats after its power read off"] if self.lives() else []

    def close(self) -> None:
        self.closed = True


async def test_s09_a_level_that_says_off_of_a_host_that_lives_is_none_and_the_next_is_tried() -> None:
    """One that lies must not keep an honest one behind it from ever being asked."""
    bmc, pdu = Outlet("bmc", 1, "lies"), Outlet("pdu", 2)
    witnesses: list[Lives] = []

    def off_seen() -> Lives:
        witnesses.append(Lives(lambda: pdu.power == "on"))
        return witnesses[-1]

    proof = await power(bmc, pdu).fence(boot("h1"), off_seen)
    assert "level 2 (pdu)" in proof.detail
    pdu.how, pdu.power = "refuses", "on"
    with pytest.raises(FenceError) as error:
        await power(bmc, pdu).fence(boot("h1"), off_seen)
    assert error.value.missing[0] == "level 1: h1 sent heartbeats after its power read off"
    assert all(one.closed for one in witnesses)


async def test_each_level_has_a_witness_of_its_own_when_they_race() -> None:
    """What was heard before a level's first reading of off says nothing against that level, whatever another read."""
    beats = [0]

    class Since(Lives):
        def __init__(self) -> None:
            before = beats[0]
            super().__init__(lambda: beats[0] > before)

    early, pdu = Outlet("bmc", 1, "lies"), Outlet("pdu", 2, after_s=0.05)
    devices = power(early, pdu, next_level_after_s=0.0, status_spacing_s=0.2)
    running = asyncio.ensure_future(devices.fence(boot("h1"), Since))
    await eventually(lambda: early.did() == ["status"], "it has read off once")
    await asyncio.sleep(0.03)
    beats[0] += 1  # the host speaks while the other level has yet to switch it off
    assert "level 2 (pdu)" in (await running).detail


async def test_what_is_missing_can_be_told_while_everything_hangs() -> None:
    bmc, pdu, third = Outlet("bmc", 1, "hangs"), Outlet("pdu", 2, "hangs"), Outlet("ups", 3)
    devices = power(bmc, pdu, third, levels={2: FenceLevel(next_after_s=900.0)}, next_level_after_s=0.05)
    assert devices.missing("h1") == ()
    running = asyncio.ensure_future(devices.fence(boot("h1"), Seen()))
    await eventually(lambda: bool(pdu.calls), "the second level has begun")
    assert devices.missing("h1") == (
        "level 1: bmc: status: no answer for 0 s",
        "level 2: pdu: status: no answer for 0 s",
        "level 3: ups: not asked yet, the level before it is tried",
    )
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert devices.missing("h1") == ()
    assert (bmc.cancelled, pdu.cancelled) == (1, 1)


async def test_a_level_that_runs_into_its_deadline_says_at_which_call() -> None:
    missing = await fails(power(Outlet("bmc", how="hangs"), level_deadline_s=0.1))
    assert missing == (
        "level 1: bmc: status: no answer for 0 s",
        "level 1: no proof within the level's deadline of 0.1 s",
    )


def test_a_levels_deadline_is_what_its_calls_may_take_unless_one_is_given() -> None:
    slow, quick = Outlet("a", 1), Outlet("b", 2)
    slow.timeout_s, quick.timeout_s = 20.0, 3.0
    one, two = power(slow, quick).levels("h1")
    assert (one.deadline_s, two.deadline_s) == (
        4 * 20.0 + SPACING_S + WITNESS_S,
        4 * 3.0 + SPACING_S + WITNESS_S,
    )
    assert (one.next_after_s, two.next_after_s) == (10.0, 10.0)
    one, two = power(slow, quick, levels={2: FenceLevel(deadline_s=7.0)}, level_deadline_s=30.0).levels("h1")
    assert (one.deadline_s, two.deadline_s) == (30.0, 7.0)


async def test_the_loser_of_a_race_is_killed_with_its_agent(tmp_path: Path) -> None:
    script = '#!/bin/sh\ncd "$(dirname "$0")"\necho $$ > self\nsleep 1000\n'
    hangs, works = program(tmp_path / "fence_mute", script), agent(tmp_path / "b")
    fencing = tuple(
        FenceDevice(agent=str(path), level=level, timeout_s=60.0)
        for level, path in enumerate((hangs, works), 1)
    )
    host = HostEntry(name="h1", uri="test:///default", fencing=fencing)
    settings = FencingSettings(status_spacing_s=0.05, next_level_after_s=0.5)
    began = time.monotonic()
    await FenceDevices(agent_devices([host], settings), settings).fence(boot("h1"), Seen())
    assert time.monotonic() - began < 5.0
    assert not Path(f"/proc/{(tmp_path / 'self').read_text().strip()}").exists()
    assert calls(tmp_path / "b") == ["status", "off", "status", "status"]


def test_two_outlets_behind_one_agent_are_told_apart(tmp_path: Path) -> None:
    path = str(agent(tmp_path))
    pool = {
        "hosts": [
            {
                "name": "h1",
                "uri": "test:///default",
                "fencing": [
                    {"agent": path},
                    {"agent": path, "level": 2},
                    {"agent": path, "level": 2},
                    {"agent": path, "level": 2, "name": "psu-b"},
                ],
            }
        ]
    }
    levels = fence_devices(Settings.model_validate(pool)).levels("h1")
    names = [[device.name for device in level.devices] for level in levels]
    assert names == [["fence_test"], ["fence_test#1", "fence_test#2", "psu-b"]]


# -- a test of all levels


async def test_each_level_is_tested_in_turn_and_told_of_with_its_devices() -> None:
    bmc, pdu = Outlet("bmc", 1), Outlet("pdu", 2)
    mute = Outlet("old", 3, "hangs")
    devices = power(bmc, pdu, mute, levels={3: FenceLevel(deadline_s=0.1)})
    one, two, three = await devices.test("h1", Seen())
    assert (one.level, one.proven, one.found_off, one.devices) == (1, True, False, ("bmc",))
    assert (two.proven, two.said) == (True, ("pdu reads off",))
    assert (three.proven, three.missing[0]) == (False, "old: status: no answer for 0 s")
    assert bmc.calls[-1][1] <= pdu.calls[0][1], "one after the other"
    again, *_ = await devices.test("h1", Seen())
    assert (again.proven, again.found_off) == (True, True)


async def test_power_comes_back_from_the_last_level_to_the_first() -> None:
    bmc, pdu = Outlet("bmc", 1, power="off"), Outlet("pdu", 2, power="off")
    assert await power(bmc, pdu).switch_on("h1") == (True, "")
    assert (pdu.calls[0][0], bmc.calls[0][0]) == ("on", "on")
    assert pdu.calls[0][1] <= bmc.calls[0][1]
