"""`rekindle fence-test`: an operator has a host really fenced, through each of its levels, and sees it come back. The same for
the command and the simulator.

The fencer does it; here a person is told what it would cost, the host is put into maintenance, and the end is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from libs.core.ports import UnavailableError
from libs.events.words import HostFenceTestOrdered
from libs.model import HostState, Incarnation, Protection
from libs.operator import LOOK_S, Operator, RefusedError

TESTED_S = 900.0
"""For all levels to be tried, the host to count as fenced, and its power to be on again."""
DRAINED_S = 3600.0
"""For all that runs there to move away: a large guest takes minutes, and few move at a time."""
BACK_S = 900.0
"""For a host to boot: eight minutes are not rare for a large one."""
WELL = (HostState.HEALTHY, HostState.AGENT_DOWN)


@dataclass(frozen=True, slots=True)
class Planned:
    """What a test of this boot of a host means."""

    at: Incarnation
    devices: tuple[str, ...]
    """Level and device, in the order in which they are tried."""
    running: dict[str, Protection]
    """What dies with it, if it is forced: by VM what is promised to it."""

    @property
    def named(self) -> str:
        """The VMs, for people."""
        return ", ".join(f"{vm} ({of.value})" for vm, of in sorted(self.running.items())) or "no VM"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How it is to be done."""

    forced: bool = False
    """Also where VMs run there."""
    drain: bool = False
    """What runs there is moved away first."""
    switch_on: bool = True
    back_s: float = BACK_S


async def look(operator: Operator, host: str) -> Planned:
    """What would be done. Raises RefusedError where it cannot be done whatever a person says."""
    record = await operator.record(host)
    state = HostState(record["state"])
    if state not in WELL:
        raise RefusedError(f"{host} is held to be {state.value}: only a host that is well can be tested")
    entry = operator.view.settings.host(host)
    if not entry.fencing:
        raise RefusedError(f"{host} has no fence device")
    at = Incarnation.model_validate(record["at"])
    devices = sorted((one.level, one.name or one.agent.rsplit("/", 1)[-1]) for one in entry.fencing)
    return Planned(
        at, tuple(f"level {level}: {name}" for level, name in devices), await operator.view.running(at)
    )


async def run(
    operator: Operator, planned: Planned, wanted: Wanted, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Do it, and say what came of it. `tell` is told each step, for a person who waits. Raises RefusedError where
    nothing was done, and UnavailableError where the services do not answer: the host then stays in maintenance."""
    host = planned.at.host
    words = await operator.words(host)
    entered = not words.get("maintenance", False)
    if entered or (wanted.drain and not words.get("emptied", False)):
        await operator.enter_maintenance(host, drain=wanted.drain)
        tell(f"{host} is in maintenance and takes no new VMs")
    try:
        if wanted.drain:
            await _moved_away(operator, planned.at, tell)
        await _drained(operator, planned.at, wanted)
        number = await _order(operator, planned.at, wanted)
        tell("ordered; the fencer tries each level")
        test = await _tested(operator, host, number)
        if test["refused"]:
            raise RefusedError(test["refused"])
    except RefusedError:
        if entered:
            await operator.exit_maintenance(host)
        raise
    back_s, never_off = None, not any(level["proven"] for level in test["levels"])
    if never_off:
        record = await operator.record(host)
        never_off = (record["at"]["boot"], record["state"]) == (planned.at.boot, HostState.HEALTHY)
    if test["switched_on"] and not never_off:
        tell(f"{host} has its power back; waiting for it")
        back_s = await _back(operator, planned.at, wanted.back_s)
    leaves = entered and (never_off or back_s is not None)
    if leaves:
        await operator.exit_maintenance(host)
    proven = bool(test["levels"]) and all(level["proven"] for level in test["levels"])
    return {
        "host": host,
        "boot": planned.at.boot,
        "passed": proven and (not wanted.switch_on or back_s is not None),
        "levels": test["levels"],
        "switched_on": test["switched_on"],
        "switch_on_detail": test["detail"],
        "never_off": never_off,
        "back_after_s": None if back_s is None else round(back_s, 1),
        "maintenance": not leaves,
    }


async def _moved_away(operator: Operator, at: Incarnation, tell: Callable[[str], None]) -> None:
    """Until nothing runs there, or placement has said what of it stays. Raises UnavailableError where neither comes."""
    if await operator.view.running(at):
        tell(f"its VMs move away: {', '.join(sorted(await operator.view.running(at)))}")

    async def done() -> bool:
        record = (await operator.view.records("placement")).get(f"drain.{at.host}") or {}
        drain = record.get("drain") or {}
        stuck = drain.get("told") and drain["at"] == at.model_dump(mode="json")
        return bool(stuck) or not await operator.view.running(at)

    await _until(operator, done, DRAINED_S, f"the VMs of {at.host} have not all moved in {DRAINED_S:.0f} s")


async def _drained(operator: Operator, at: Incarnation, wanted: Wanted) -> None:
    """Nothing can start there any more; what runs there still would die."""
    running = await operator.view.running(at)
    if not running or wanted.forced:
        return
    promised = sorted(vm for vm, of in running.items() if of is not Protection.NONE)
    others = sorted(set(running) - set(promised))
    said = [f"protected VMs run there: {', '.join(promised)}"] if promised else []
    said += [f"VMs without protection run there: {', '.join(others)}"] if others else []
    rows = [row for row in await operator.view.hosts() if row["host"] == at.host]
    said += [f"{one['vm']} is not moved away: {one['detail']}" for row in rows for one in row["stays"]]
    raise RefusedError(
        f"{at.host} is not empty; {'; '.join(said)}. Move them away (--drain, virsh migrate --live) or shut them down; by "
        "force they die with it, and those that are protected are restarted elsewhere"
    )


async def _order(operator: Operator, at: Incarnation, wanted: Wanted) -> int:
    known = await _record(operator, at.host)
    number = (known["order"]["number"] if known else 0) + 1
    word = HostFenceTestOrdered(
        host=at.host,
        number=number,
        at=at,
        forced=wanted.forced,
        switch_on=wanted.switch_on,
        by=operator.by,
        said_at=operator.clock.wall().isoformat(timespec="seconds"),
        rule="an operator's word",
    )
    await operator.bus.publish(word)

    async def taken() -> bool:
        found = await _record(operator, at.host)
        return bool(found and found["order"]["number"] >= number)

    await operator.seen("the fencer", taken)
    return number


async def _tested(operator: Operator, host: str, number: int) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def done() -> bool:
        found.update(await _record(operator, host) or {})
        return bool(found["order"]["number"] == number and found["stage"] == "done")

    await _until(operator, done, TESTED_S, f"the fence test of {host} has not ended in {TESTED_S:.0f} s")
    return found


async def _back(operator: Operator, at: Incarnation, within_s: float) -> float | None:
    """Seconds until the host was well in another boot; None where it was not in time."""
    began = operator.clock.monotonic()

    async def well() -> bool:
        record = await operator.record(at.host)
        return bool(record["at"]["boot"] != at.boot and record["state"] == HostState.HEALTHY)

    try:
        await _until(operator, well, within_s, "")
    except UnavailableError:
        return None
    return operator.clock.monotonic() - began


async def _until(operator: Operator, true: Callable[[], Awaitable[bool]], within_s: float, late: str) -> None:
    """A bus that does not answer for a moment is asked again."""
    until = operator.clock.monotonic() + within_s
    while True:
        try:
            if await true():
                return
        except UnavailableError:
            pass
        if operator.clock.monotonic() > until:
            raise UnavailableError(late)
        await asyncio.sleep(LOOK_S)


async def _record(operator: Operator, host: str) -> dict[str, Any] | None:
    return (await operator.view.records("fencer")).get(f"test.{host}")
