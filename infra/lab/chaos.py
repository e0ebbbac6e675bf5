"""Random faults on a lab, round after round: nothing may ever run twice, and all VMs must run again after each.

The faults are drawn (chaosdraw.py) and done by the steps of scenarios (steps.py). Who ran where, and for how long anything ran
twice, is told by the observer alone, which shares no code with Rekindle. A round that must not have gone as it went is written down as a
scenario file: its steps at the times at which they were done, its VMs where they were.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import libvirt
import yaml

from infra.lab import network, stores
from infra.lab.chaosdraw import Round, draw
from infra.lab.lab import LabError
from infra.lab.run import SETTLE_S, LabRun
from infra.lab.steps import Stage, with_ends
from infra.lab.story import vm_outcome
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.events.failovers import FailoverPlanned
from libs.readmodel import reader
from libs.scenario.model import Scenario, StepEntry

SCHEMA = "rekindle.chaos.v1"
WHOLE_S = 120.0
"""For all to be whole again after the last step of a round, and LOOK_S between two looks."""
LOOK_S = 0.5
OFF_S = 4.0
"""A host that was fenced is switched on by its people after so long: sooner it would void the very proof."""
CALL_S = 30.0
PRIORITIES = ("highest", "high", "medium", "medium", "low", "lowest")
SETTINGS: dict[str, Any] = {
    # shorter than production's where nothing but the length of a run depends on it; budgets are for real pools
    "detection": {
        "quiet_after_start_s": 5.0,
        "confirm_silence_s": 5.0,
        "confirm_hung_s": 7.0,
        "datastore_lost_s": 4.0,
        "failures_max": 10_000,
    },
    "heartbeats": {"slot_timeout_s": 0.8},
    "fencing": {"retry_first_s": 0.5, "retry_max_s": 4.0},
    "restart": {"retry_first_s": 0.5, "retry_max_s": 4.0, "crash_budget": 10_000},
}


@dataclass(slots=True)
class VmTold:
    """One VM over the whole day."""

    double_s: float = 0.0
    restarts: int = 0
    longest_downtime_s: float = 0.0
    """In one round, from when it was gone until its guest was up again; where no person had stopped it."""


@dataclass(frozen=True, slots=True)
class Failing:
    """A round that must not have gone as it went, and the file that plays it again, as far as chance allows."""

    number: int
    faults: tuple[str, ...]
    found: tuple[str, ...]
    scenario: str


@dataclass(slots=True)
class Result:
    """`rekindle.chaos.v1`."""

    seed: int
    hosts: int
    bus_nodes: int
    lock_manager: str
    autostart: bool
    faults: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    lasted_s: float = 0.0
    double_running_s: float = 0.0
    sightings: int = 0
    """How often anything was seen on two hosts at once, also for less than one look."""
    failovers: int = 0
    hosts_fenced: int = 0
    longest_downtime_s: float = 0.0
    slowest_whole_s: float = 0.0
    """From the last step of a round until all was whole."""
    vms: dict[str, VmTold] = field(default_factory=dict)
    not_done: list[str] = field(default_factory=list)
    """Steps that the world as it was left nothing to do for: a VM that did not run can not be crashed."""
    failing: list[Failing] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    observer_lowest_hz: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.found

    def document(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "passed": self.passed, **asdict(self)}


def abilities() -> frozenset[str]:
    """What this machine's labs have of that which faults need."""
    has = {"network"} if network.works() else set()
    return frozenset(has | ({"datastores"} if stores.why_not() is None else set()))


def scenario(hosts: int, vms: int, has: frozenset[str], lock_manager: str = "") -> Scenario:
    """The pool: VMs of all priorities over the hosts, every other on a datastore that can stall where there is one."""
    names = [f"h{number + 1}" for number in range(hosts)]
    datastores = [{"name": "nfs"}] if "datastores" in has else []
    machines = [
        {
            "name": f"vm{number + 1}",
            "host": names[number % hosts],
            "priority": PRIORITIES[number % len(PRIORITIES)],
            **({"datastore": "nfs"} if datastores and number % 2 else {}),
        }
        for number in range(vms)
    ]
    return Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "chaos",
            "settings": SETTINGS,
            "datastores": datastores,
            "lock_manager": lock_manager or None,
            "hosts": [{"name": name} for name in names],
            "vms": machines,
        }
    )


@dataclass(slots=True)
class Chaos:
    """One bad day in one lab. `say` is told how far it is."""

    root: Path
    faults: int
    seed: int
    hosts: int = 5
    vms: int = 8
    bus_nodes: int = 1
    lock_manager: str = ""
    autostart: bool = True
    """The VMs of a host that is about to reboot start with it, for that round."""
    keep: bool = False
    say: Callable[[str], None] = lambda _: None
    run: LabRun = field(init=False)
    stage: Stage = field(init=False)
    rounds: list[Round] = field(init=False)

    def __post_init__(self) -> None:
        has = abilities()
        pool = scenario(self.hosts, self.vms, has, self.lock_manager)
        names = [host.name for host in pool.hosts], [vm.name for vm in pool.vms]
        self.rounds = draw(self.seed, self.faults, *names, has)
        self.run = LabRun(pool, self.root, say=self.say, keep=self.keep, bus_nodes=self.bus_nodes, bare=True)

    async def play(self) -> Result:
        """Raises RunFailedError, LabError or TimeoutError where the lab itself fails."""
        result = Result(self.seed, self.hosts, self.bus_nodes, self.lock_manager, self.autostart)
        result.vms = {vm.name: VmTold() for vm in self.run.scenario.vms}
        async with self.run.standing():
            self.stage = Stage(self.run.lab, self.run.plane, self.run.scenario.vms)
            began = time.monotonic()
            for number, one in enumerate(self.rounds, 1):
                if not await self._round(number, one, result):
                    break  # it did not become whole: what followed would say nothing
            result.lasted_s = round(time.monotonic() - began, 1)
            summary = await asyncio.to_thread(self.run.lab.stop_observer)
            result.double_running_s, result.sightings = summary.double_s, summary.sightings
            for told in summary.vms.values():
                if told["name"] in result.vms:
                    result.vms[told["name"]].double_s = max(told["domains_s"], told["processes_s"])
            if summary.sightings:
                result.found.append(f"observer: VMs ran twice, for {summary.double_s:g} s")
            rates = [rate["lowest_hz"] for rate in summary.hosts.values() if rate.get("lowest_hz")]
            result.observer_lowest_hz = min(rates, default=0.0)
        return result

    # -- one round

    async def _round(self, number: int, one: Round, result: Result) -> bool:
        """False where not all became whole again."""
        kinds = [fault.kind for fault in one.faults]
        self.say(f"round {number} of {len(self.rounds)}: {', '.join(kinds)}")
        homes = {vm: hosts[0] for vm, hosts in (await self._places() or {}).items()}
        await self._set_autostarts(self._with_autostart(one))
        self.run.envelopes.clear()
        self.run.zero = datetime.now(UTC)
        done = await self._perform(one, result)
        last = time.monotonic()
        lacking = await self._until_whole(one, done, last)
        await self._set_autostarts(())
        result.slowest_whole_s = max(result.slowest_whole_s, round(time.monotonic() - last, 1))
        result.rounds, result.faults = number, result.faults + len(kinds)
        result.kinds = dict(sorted((Counter(result.kinds) + Counter(kinds)).items()))
        found = [*([lacking] if lacking else []), *self._count(one, result)]
        if found:
            self.say(f"round {number} must not have gone so: {'; '.join(found)}")
            played = self._as_scenario(number, homes, one, done)
            result.failing.append(Failing(number, tuple(kinds), tuple(found), played))
            result.found += [f"round {number}: {what}" for what in found]
        return not lacking

    async def _places(self) -> dict[str, list[str]] | None:
        """Which hosts have each VM, by their own lists; None where one of them does not say."""
        try:
            async with asyncio.timeout(CALL_S):
                return await asyncio.to_thread(self.run.lab.placement)
        except (LabError, OSError, libvirt.libvirtError, TimeoutError):
            return None

    def _with_autostart(self, one: Round) -> tuple[str, ...]:
        return one.rebooted if self.autostart else ()

    async def _set_autostarts(self, hosts: tuple[str, ...]) -> None:
        """The VMs of these hosts start with them, and no others: what a person forgot to take away on a host that a VM
        has left is another matter (see `autostart` of `rekindle doctor`). Raises TimeoutError where a host does not let him."""
        until = time.monotonic() + CALL_S
        for host in self.run.lab.hosts:
            while True:
                try:
                    await asyncio.to_thread(self._set_autostart, host, host in hosts)
                    break
                except (LabError, OSError, libvirt.libvirtError) as error:
                    if time.monotonic() > until:
                        raise TimeoutError(f"autostart of the VMs of {host}: {error}") from error
                    await asyncio.sleep(LOOK_S)

    def _set_autostart(self, host: str, wanted: bool) -> None:
        if self.run.lab.power_state(host) == "off":
            return
        with self.run.lab.connect(host) as connection:
            for domain in connection.listAllDomains():
                starts = wanted and domain.isActive() == 1
                if domain.isPersistent() and bool(domain.autostart()) != starts:
                    domain.setAutostart(starts)

    async def _perform(self, one: Round, result: Result) -> list[StepEntry]:
        """The steps, each with the time at which it was really done."""
        done: list[StepEntry] = []
        for step, _ in with_ends(one.steps):
            await asyncio.sleep(max(0.0, step.at_s - self._now_s()))
            done += await self._do(step, result.not_done)
        return done

    async def _do(self, step: StepEntry, not_done: list[str]) -> list[StepEntry]:
        at_s = round(self._now_s(), 3)
        try:
            async with asyncio.timeout(CALL_S):
                await self._bring_about(step)
        except (LabError, OSError, libvirt.libvirtError, TimeoutError) as error:
            why = str(error) or f"no end in {CALL_S:g} s"
            not_done.append(f"{step.do} {step.subject}: {why}")
            return []
        return [step.model_copy(update={"at_s": at_s})]

    async def _bring_about(self, step: StepEntry) -> None:
        if step.do == "kill_bus" and self.bus_nodes > 1:
            await self.run.plane.bus.kill_leader()
        else:
            await asyncio.to_thread(self.stage.perform, step)

    def _now_s(self) -> float:
        return (datetime.now(UTC) - self.run.zero).total_seconds()

    # -- until all is whole

    async def _until_whole(self, one: Round, done: list[StepEntry], since: float) -> str:
        """Wait, and do what the pool's people would: switch a fenced host on, start what they stopped. What is missing in
        the end; "" where nothing is."""
        off_since: dict[str, float] = {}
        whole_since: float | None = None
        while True:
            await self._people(one, done, off_since)
            lacking, now = await self._lacking(), time.monotonic()
            if lacking:
                whole_since = None
            elif whole_since is None:
                whole_since = now  # what has just befallen a host may not have been noticed
            elif now - whole_since > SETTLE_S:
                return ""
            if now - since > WHOLE_S:
                return lacking or "it was whole for a moment, and again not"
            await asyncio.sleep(LOOK_S)

    async def _people(self, one: Round, done: list[StepEntry], off_since: dict[str, float]) -> None:
        lab, now = self.run.lab, time.monotonic()
        for host in lab.hosts:
            if await asyncio.to_thread(lab.power_state, host) == "on":
                off_since.pop(host, None)
            elif now - off_since.setdefault(host, now) > OFF_S:
                done += await self._do(StepEntry(at_s=0, do="power_on", host=host), [])
        if off_since:
            return
        places = await self._places() if one.put_down else None
        for vm in sorted(one.put_down - set(one.put_down if places is None else places)):
            done += await self._do(StepEntry(at_s=0, do="start_vm", vm=vm), [])

    async def _lacking(self) -> str:
        try:
            async with asyncio.timeout(CALL_S), reader(self.run.plane.settings()) as look:
                lacking = await self.run.lacking(look)
                waiting = [row["vm"] for row in await look.vms() if row["state"] != "running"]
        except (UnavailableError, BadInputError, TimeoutError) as error:
            return f"the bus does not answer: {error}"
        if lacking or waiting:
            return lacking or f"do not run: {', '.join(waiting)}"
        places = await self._places()
        if places is None:
            return "a host's libvirt does not answer"
        names = [vm.name for vm in self.run.scenario.vms]
        wrong = [
            f"{name} on {', '.join(places.get(name, [])) or 'no host'}"
            for name in names
            if len(places.get(name, [])) != 1
        ]
        return f"by their hosts' own lists: {'; '.join(wrong)}" if wrong else ""

    # -- counting

    def _count(self, one: Round, result: Result) -> list[str]:
        """Adds what the round brought to the result. What the observer saw of it that must not be."""
        told = [envelope.data for envelope in self.run.envelopes]
        result.failovers += len(
            {fact.incident for fact in told if isinstance(fact, FailoverPlanned) and fact.starts}
        )
        result.hosts_fenced += sum(1 for fact in told if fact.kind == "host.fenced")
        observed, end = self.run.lab.observations(), datetime.now(UTC)
        found: list[str] = []
        for name, vm in result.vms.items():
            uuid = self.run.lab.vm_uuid(name)
            outcome, _ = vm_outcome(uuid, name, observed, self.run.zero, end, False)
            vm.restarts = outcome.starts - 1
            if name not in one.put_down:
                vm.longest_downtime_s = max(vm.longest_downtime_s, outcome.downtime_s)
        result.longest_downtime_s = max(vm.longest_downtime_s for vm in result.vms.values())
        found += [f"observer: {what}" for what in self._twice(observed.vms)]
        return found

    def _twice(self, changes: list[Any]) -> list[str]:
        """VMs that the observer had on two hosts at once since the round began. The seconds are its own to count, in the
        end; this tells which round to look at."""
        places: dict[str, set[str]] = {}
        found: list[str] = []
        for change in changes:
            where = places.setdefault(change.name, set())
            (where.add if change.active else where.discard)(change.host)
            if len(where) > 1 and change.at >= self.run.zero:
                at_s = (change.at - self.run.zero).total_seconds()
                found.append(f"{change.name} was on {' and '.join(sorted(where))} at {at_s:.1f} s")
        return found

    def _as_scenario(self, number: int, homes: dict[str, str], one: Round, done: list[StepEntry]) -> str:
        """The round as a file for `rekindle lab run --bare`. Libvirt's autostart is set for the whole of it."""
        pool = self.run.scenario
        vms = [
            vm.model_copy(
                update={
                    "host": homes.get(vm.name, vm.host),
                    "autostart": homes.get(vm.name) in self._with_autostart(one),
                }
            )
            for vm in pool.vms
        ]
        steps = sorted(done, key=lambda step: step.at_s)
        ends = {
            "duration_s": round(self._now_s() + 30.0),
            "name": f"round {number} of chaos seed {self.seed}",
        }
        played = pool.model_copy(update={**ends, "vms": tuple(vms), "steps": tuple(steps)})
        document = played.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        expect = [{"vm": vm.name, "state": "running"} for vm in pool.vms]
        text: str = yaml.safe_dump({"schema": pool.format, **document, "expect": expect}, sort_keys=False)
        return text
