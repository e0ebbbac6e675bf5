"""Hosts fail one after the other while the management plane itself is killed, paused and cut: no incident may be lost or
doubled, no VM may run twice, and each failover may be late by so much only.

The hosts, their VMs and their power are a lab's. Who runs where is told by the hosts' own lists, whether anything ran twice by
the observer, incidents by the stream of facts as it lies there in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import libvirt

from infra.lab.bus import NODES
from infra.lab.chaos import SETTINGS
from infra.lab.lab import LabError
from infra.lab.planefaults import COMES_BACK, KINDS, LEADER, SERVICE, Fault, Faults
from infra.lab.planenodes import NodesPlane
from infra.lab.run import LabRun
from infra.lab.told import all_told
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.events.envelope import Envelope
from libs.events.failovers import FailoverCompleted
from libs.events.hosts import HostFailed
from libs.events.vms import VmRestarted
from libs.readmodel import reader
from libs.scenario.model import Scenario

LOOK_S = 0.1
RUNNING_S, WHOLE_S, READ_S = 120.0, 180.0, 60.0
ONE_LEADER, DIED, CAME_BACK = "one stream leader", "a server died", "a server came back"
"""Of the failovers beside `stream leader`: with one such fault; with those alone of which a server or node dies; with any after
which it comes back with what it had."""
BARS = {SERVICE: 5.0, LEADER: 10.0, DIED: 10.0}
"""Seconds that a failover may be late in the 95th percentile, by what befell the plane meanwhile."""


@dataclass(frozen=True, slots=True)
class Failover:
    """One host's power was cut. `seconds`: until all its VMs were seen running elsewhere."""

    host: str
    vms: tuple[str, ...]
    began: float
    seconds: float
    beside: tuple[str, ...] = ()
    """Faults of the plane that were there meanwhile."""
    bar: str = ""


@dataclass(slots=True)
class Result:
    """`rekindle.planechaos.v1`."""

    seed: int
    failovers: int = 0
    alone_s: list[float] = field(default_factory=list)
    """Failovers before anything befell the plane: their median is what the others are held against."""
    rows: list[Failover] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    delays: dict[str, dict[str, float]] = field(default_factory=dict)
    incidents: int = 0
    double_running_s: float = 0.0
    sightings: int = 0
    lasted_s: float = 0.0
    found: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.found

    def document(self) -> dict[str, Any]:
        return {"schema": "rekindle.planechaos.v1", "passed": self.passed, **asdict(self)}


def scenario(vms: int = 4) -> Scenario:
    """Three hosts; VMs without an operating system, which are up at once."""
    hosts = ["h1", "h2", "h3"]
    return Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "planechaos",
            "settings": SETTINGS,
            "hosts": [{"name": host} for host in hosts],
            "vms": [{"name": f"vm{n + 1}", "host": hosts[n % len(hosts)]} for n in range(vms)],
        }
    )


def quantile(values: list[float], share: float) -> float:
    """The smallest value that this share of them is not above."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(100 * share) // 100) - 1)]


@dataclass(slots=True)
class PlaneChaos:
    """One run. `say` is told how far it is."""

    root: Path
    failovers: int
    seed: int
    alone: int = 5
    """So many failovers first while nothing befalls the plane."""
    keep: bool = False
    say: Callable[[str], None] = lambda _: None
    run: LabRun = field(init=False)

    def __post_init__(self) -> None:
        self.run = LabRun(
            scenario(),
            self.root,
            say=self.say,
            keep=self.keep,
            bus_nodes=NODES,
            bare=True,
            plane_type=NodesPlane,
        )

    async def play(self) -> Result:
        """Raises RunFailedError, LabError or TimeoutError where the lab itself fails."""
        result = Result(self.seed)
        async with self.run.standing():
            began = time.monotonic()
            for number in range(self.alone):
                row = await self._failover(f"alone {number + 1} of {self.alone}")
                result.alone_s.append(row.seconds)
            assert isinstance(self.run.plane, NodesPlane)
            faults = Faults(self.run.plane, Random(self.seed))
            breaking = asyncio.create_task(faults.run())
            try:
                for number in range(self.failovers):
                    if breaking.done():
                        breaking.result()
                    row = await self._failover(f"{number + 1} of {self.failovers}")
                    result.rows.append(_beside(row, faults.done))
                    result.failovers += 1
            except TimeoutError as error:
                result.found.append(str(error))
            finally:
                breaking.cancel()
                await asyncio.wait([breaking])
            result.faults = dict(sorted(Counter(fault.kind for fault in faults.done).items()))
            result.lasted_s = round(time.monotonic() - began, 1)
            told = await all_told(self.run.plane.settings(), READ_S)
            summary = await asyncio.to_thread(self.run.lab.stop_observer)
            result.double_running_s, result.sightings = summary.double_s, summary.sightings
        self._judge(result, told)
        return result

    # -- one failover

    async def _failover(self, which: str) -> Failover:
        """Cut a host's power, wait until its VMs run elsewhere, switch it on, wait until all is whole."""
        lab = self.run.lab
        placed = await self._whole(which)
        homes = Counter(hosts[0] for hosts in placed.values())
        host = max(lab.hosts, key=lambda name: (homes[name], name))
        vms = tuple(sorted(vm for vm, hosts in placed.items() if hosts == [host]))
        began = time.monotonic()
        await asyncio.to_thread(lab.power_off, host)
        while True:
            placed = await self._placed() or {}
            if all(vm in placed for vm in vms):
                break
            if time.monotonic() - began > RUNNING_S:
                missing = [vm for vm in vms if vm not in placed]
                raise TimeoutError(f"failover {which}: {', '.join(missing)} of {host} run nowhere")
            await asyncio.sleep(LOOK_S)
        took_s = round(time.monotonic() - began, 2)
        self.say(f"failover {which}: {host}, {len(vms)} VMs, {took_s:.2f} s")
        await self._over(host)
        await asyncio.to_thread(lab.power_on, host)
        return Failover(host, vms, began, took_s)

    async def _over(self, host: str) -> None:
        """Its failover is told to be completed: switched on sooner it would be another story."""
        until = time.monotonic() + WHOLE_S
        boot = await asyncio.to_thread(self.run.lab.boot_id, host)
        while time.monotonic() < until:
            done = [one.data for one in self.run.envelopes if isinstance(one.data, FailoverCompleted)]
            if any(fact.incident.startswith(f"{host}-{boot[:8]}-") for fact in done):
                return
            await asyncio.sleep(LOOK_S)
        raise TimeoutError(f"the failover of {host} was not told to be completed in {WHOLE_S:g} s")

    async def _placed(self) -> dict[str, list[str]] | None:
        """Which hosts have each VM, by their own lists; None where one does not say."""
        try:
            return await asyncio.to_thread(self.run.lab.placement)
        except (LabError, OSError, libvirt.libvirtError):
            return None

    async def _whole(self, which: str) -> dict[str, list[str]]:
        """Wait until each VM runs on one host, and all hosts, leases and roles are as they should be."""
        until, lacking = time.monotonic() + WHOLE_S, "the bus does not answer"
        while time.monotonic() < until:
            with contextlib.suppress(UnavailableError, BadInputError, TimeoutError):
                async with asyncio.timeout(READ_S), reader(self.run.plane.settings()) as look:
                    lacking = await self.run.lacking(look)
                placed = await self._placed()
                if not lacking and placed is not None:
                    wrong = [vm.name for vm in self.run.scenario.vms if len(placed.get(vm.name, [])) != 1]
                    if not wrong:
                        return placed
                    lacking = f"not on one host: {', '.join(wrong)}"
            await asyncio.sleep(LOOK_S)
        raise TimeoutError(f"before failover {which} not whole for {WHOLE_S:g} s: {lacking}")

    # -- what became of it

    def _judge(self, result: Result, told: list[Envelope]) -> None:
        failed = [one.data for one in told if isinstance(one.data, HostFailed)]
        incidents = Counter(fact.incident for fact in failed)
        result.incidents = len(incidents)
        cuts = self.alone + result.failovers
        boots = Counter(str(fact.at) for fact in failed)
        if result.incidents != cuts and not result.found:
            result.found.append(f"{cuts} hosts lost their power, and {result.incidents} incidents were told")
        result.found += [f"{at} was held failed {count} times" for at, count in boots.items() if count > 1]
        completed = Counter(one.data.incident for one in told if isinstance(one.data, FailoverCompleted))
        result.found += [f"{one} was never completed" for one in incidents if not completed[one]]
        starts = Counter(
            (one.data.incident, one.data.name) for one in told if isinstance(one.data, VmRestarted)
        )
        result.found += [
            f"{vm} was restarted {n} times for {incident}" for (incident, vm), n in starts.items() if n > 1
        ]
        if result.sightings:
            result.found.append(f"observer: VMs ran twice, for {result.double_running_s:g} s")
        result.delays = delays(result.alone_s, result.rows)
        for bar, most_s in BARS.items():
            late_s = result.delays.get(bar, {}).get("p95", 0.0)
            if late_s > most_s:
                result.found.append(
                    f"{bar}: {late_s:g} s late in the 95th percentile, more than {most_s:g} s"
                )


def _beside(row: Failover, faults: Iterable[Fault]) -> Failover:
    mine = [fault for fault in faults if fault.during(row.began, row.began + row.seconds)]
    bars = {fault.bar for fault in mine}
    bar = LEADER if LEADER in bars else SERVICE if bars else "none"
    return Failover(row.host, row.vms, row.began, row.seconds, tuple(fault.kind for fault in mine), bar)


def delays(alone_s: list[float], rows: list[Failover]) -> dict[str, dict[str, float]]:
    """By what befell the plane meanwhile: how many failovers, and by how much they were later than the median of those
    beside which nothing did."""
    usual_s = statistics.median(alone_s) if alone_s else 0.0
    found: dict[str, dict[str, float]] = {}
    kinds = {bar: [row for row in rows if row.bar == bar] for bar in ("none", SERVICE, LEADER)}
    # with one every few seconds a failover may see several elections, one after the other
    kinds[ONE_LEADER] = [row for row in kinds[LEADER] if sum(KINDS[one] == LEADER for one in row.beside) == 1]
    back = [row for row in kinds[LEADER] if COMES_BACK.intersection(row.beside)]
    kinds |= {DIED: [row for row in kinds[LEADER] if row not in back], CAME_BACK: back}
    for bar, mine in kinds.items():
        late = [round(row.seconds - usual_s, 2) for row in mine]
        if late:
            found[bar] = {
                "count": len(late),
                "median": round(statistics.median(late), 2),
                "p95": quantile(late, 0.95),
                "worst": max(late),
            }
    return found
