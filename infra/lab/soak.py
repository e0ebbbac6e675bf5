"""`rekindle lab soak`: all processors busy, packets lost on every host's link, the bus's leader changed each minute, and
nobody may be held failed: a suspicion has to be refuted.

What happened is told by the facts in the stream and, independently of them, by the hosts' own lists and boots and by the
observer. In the end one host's power is really cut: a plane that saw nothing all the time would see nothing then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.lab import burners
from infra.lab.burners import burning
from infra.lab.bus import NODES
from infra.lab.run import LabRun
from infra.lab.told import all_told
from libs.core.ports import UnavailableError
from libs.events.envelope import Envelope
from libs.events.hosts import DetectorDegraded
from libs.readmodel import reader
from libs.scenario.model import Scenario

CHANGE_EVERY_S = 60.0
FIRST_CHANGE_S = 20.0
LOOK_S = 0.2
VERDICT_S = 60.0
"""For the verdict on the host whose power is cut in the end, with load and loss still there."""
READ_S = 30.0
VERDICTS = frozenset(["host.failed", "host.isolated"])
HARMLESS = frozenset(
    [
        "host.suspected",
        "host.undecided",
        "host.refuted",
        "host.agent_down",
        "storm.held",
        "storm.released",
        "detector.degraded",
    ]
)
"""What may be told: that something was doubted or held, and that a person should look. All else is a verdict, a fence
or a VM touched, since nothing else happens in the pool meanwhile."""


@dataclass(frozen=True, slots=True)
class LeaderChange:
    """One change of the bus's leaders: `kill` of the node that led the stream of facts, or `step_down` of all."""

    at_s: float
    how: str
    node: str
    away_s: float
    """Until every stream that lost its leader had another one; of the only node: until it answered again."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What must not change, as the hosts themselves say it."""

    power: dict[str, str]
    boots: dict[str, str]
    runs: dict[str, dict[str, int]]
    """libvirt's numbers of the active VMs' runs, by host."""
    guest_boots: dict[str, int]


@dataclass(slots=True)
class Result:
    """`rekindle.soak.v1`."""

    minutes: float
    loss_percent: float
    bus_nodes: int
    burners_yield: bool = False
    found: list[str] = field(default_factory=list)
    """What must not have happened and did: empty where it passed."""
    lasted_s: float = 0.0
    facts: dict[str, int] = field(default_factory=dict)
    degraded_s: float = 0.0
    service_restarts: int = 0
    changes: list[LeaderChange] = field(default_factory=list)
    load: float = 0.0
    """The machine's load average over a minute, in the end."""
    idle_percent: float = 0.0
    """Of the processors' time: what nobody used."""
    observer_lowest_hz: float = 0.0
    proof: str = ""
    """How soon the host whose power was cut in the end was held failed."""

    @property
    def passed(self) -> bool:
        return not self.found

    def document(self) -> dict[str, Any]:
        return {"schema": "rekindle.soak.v1", "passed": self.passed, **asdict(self)}


def scenario() -> Scenario:
    """Three hosts with a VM each."""
    names = ("h1", "h2", "h3")
    return Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "soak",
            "hosts": [{"name": name} for name in names],
            "vms": [{"name": f"vm{name[1:]}", "host": name} for name in names],
        }
    )


@dataclass(slots=True)
class Soak:
    """One soak in one lab. `say` is told how far it is."""

    root: Path
    minutes: float
    loss_percent: float
    bus_nodes: int = NODES
    burners: int | None = None
    """Busy loops; None: one a processor."""
    burners_yield: bool = False
    """They take what all else on the machine leaves of it, for where that is the load."""
    keep: bool = False
    bare: bool = False
    say: Callable[[str], None] = lambda _: None
    run: LabRun = field(init=False)
    began: float = 0.0

    def __post_init__(self) -> None:
        self.run = LabRun(
            scenario(), self.root, say=self.say, keep=self.keep, bus_nodes=self.bus_nodes, bare=self.bare
        )

    async def play(self) -> Result:
        """Raises RunFailedError, LabError or TimeoutError where the lab itself fails."""
        result = Result(self.minutes, self.loss_percent, self.bus_nodes, self.burners_yield)
        async with self.run.standing():
            before = await asyncio.to_thread(self._standing)
            with burning(self.burners, yielding=self.burners_yield):
                await asyncio.to_thread(self.run.lab.weather, None, self.loss_percent)
                self.began, since = time.monotonic(), datetime.now(UTC)
                idle_before = burners.idle_s()
                self.say(
                    f"soaking for {self.minutes:g} min: all processors busy, {self.loss_percent:g} % loss"
                )
                await self._last(result)
                result.lasted_s = round(time.monotonic() - self.began, 1)
                idle_s = (burners.idle_s() - idle_before) / burners.PROCESSORS
                result.idle_percent = round(100 * idle_s / result.lasted_s, 1)
                after = await asyncio.to_thread(self._standing)
                result.found += differences(before, after)
                until = await self._verdict_still_possible(result)
                result.found += self._seen(since, until)
                self._count(result, await all_told(self.run.plane.settings(), READ_S), since, until)
            summary = await asyncio.to_thread(self.run.lab.stop_observer)
            if summary.sightings:
                result.found.append(f"observer: VMs ran twice, for {summary.double_s:g} s")
            rates = [rate["lowest_hz"] for rate in summary.hosts.values() if rate.get("lowest_hz")]
            result.observer_lowest_hz = min(rates, default=0.0)
        return result

    # -- the time itself

    async def _last(self, result: Result) -> None:
        """Change leaders minute after minute until the time is over."""
        end_s, number = 60 * self.minutes, 0
        while True:
            due_s = min(FIRST_CHANGE_S + number * CHANGE_EVERY_S, end_s)
            await asyncio.sleep(max(0.0, due_s - self._now_s()))
            if self._now_s() >= end_s:
                return
            change = await self._change(kill=number % 2 == 0)
            result.changes.append(change)
            number += 1
            kinds = Counter[str](envelope.data.kind for envelope in self.run.envelopes)
            verdicts = sum(kinds[kind] for kind in VERDICTS)
            self.say(
                f"{change.at_s / 60:.1f} of {self.minutes:g} min: {change.how} {change.node}, no leader for "
                f"{change.away_s:.1f} s; so far {kinds['host.suspected']} suspicions, "
                f"{kinds['host.refuted']} refuted, {verdicts} verdicts"
            )

    async def _change(self, *, kill: bool) -> LeaderChange:
        """The leader of the bus is another one, or was away."""
        plane, at_s = self.run.plane, round(self._now_s(), 1)
        if self.bus_nodes == 1:  # it leads alone: it can only go and come back
            began = time.monotonic()
            await asyncio.to_thread(plane.kill_bus)
            await self._answers()
            return LeaderChange(at_s, "kill", "the only node", round(time.monotonic() - began, 2))
        if kill:
            node, away_s = await plane.bus.kill_leader()
            return LeaderChange(at_s, "kill", plane.bus.name(node), round(away_s, 2))
        away_s = await plane.bus.step_down()
        return LeaderChange(at_s, "step_down", "all leaders", round(away_s, 2))

    async def _answers(self) -> None:
        """Wait until the bus answers an onlooker. Raises TimeoutError."""
        until = time.monotonic() + READ_S
        while time.monotonic() < until:
            with contextlib.suppress(UnavailableError):
                async with reader(self.run.plane.settings()) as look:
                    await look.leaders()
                    return
            await asyncio.sleep(LOOK_S)
        raise TimeoutError(f"the bus did not answer {READ_S:g} s after it was killed")

    def _now_s(self) -> float:
        return time.monotonic() - self.began

    # -- what became of it

    def _standing(self) -> Standing:
        lab = self.run.lab
        runs: dict[str, dict[str, int]] = {}
        for host in lab.hosts:
            with lab.connect(host) as connection:
                active = connection.listAllDomains()
                runs[host] = {vm.name(): vm.ID() for vm in active if vm.isActive()}
        return Standing(
            power={host: lab.power_state(host) for host in lab.hosts},
            boots={host: lab.boot_id(host) for host in lab.hosts},
            runs=runs,
            guest_boots={vm.name: lab.guest_up_count(vm.name) for vm in self.run.scenario.vms},
        )

    def _seen(self, since: datetime, until: datetime) -> list[str]:
        """What the observer saw begin or end, and whether anything ran twice."""
        observed = self.run.lab.observations()
        moved = [change for change in observed.vms if since <= change.at <= until]
        booted = [up for up in observed.guests if since <= up.at <= until]
        return [
            *(
                f"observer: VM {one.name} {'began' if one.active else 'ended'} on {one.host} "
                f"at {(one.at - since).total_seconds():.1f} s"
                for one in moved
            ),
            *(f"observer: the guest of {one.name} booted anew" for one in booted),
        ]

    @property
    def _cut(self) -> str:
        """The host whose power is cut in the end."""
        return self.run.lab.hosts[-1]

    async def _verdict_still_possible(self, result: Result) -> datetime:
        """Cut the power of one host, and wait for the verdict on it. Returns when it was cut."""
        host = self._cut
        self.say(f"the time is over; cutting the power of {host}, which must be held failed")
        cut_at, began = datetime.now(UTC), time.monotonic()
        await asyncio.to_thread(self.run.lab.power_off, host)
        while time.monotonic() - began < VERDICT_S:
            for one in self.run.envelopes:
                if one.data.kind == "host.failed" and one.subject == host and one.time >= cut_at:
                    after_s = (one.time - cut_at).total_seconds()
                    result.proof = f"{host}, without power, was held failed after {after_s:.2f} s"
                    return cut_at
            await asyncio.sleep(LOOK_S)
        result.found.append(f"{host} has no power, and was not held failed within {VERDICT_S:g} s")
        return cut_at

    def _count(self, result: Result, told: list[Envelope], since: datetime, until: datetime) -> None:
        mine = [one for one in told if since <= one.time <= until]
        result.facts = dict(sorted(Counter(one.data.kind for one in mine).items()))
        degraded = [one.data.deaf_s for one in mine if isinstance(one.data, DetectorDegraded)]
        result.degraded_s = round(sum(degraded), 1)
        result.load = round(os.getloadavg()[0], 1)
        log = (self.root / "up.log").read_text(errors="replace")
        result.service_restarts = log.count("service ended, starting it again")
        # of what is told after the cut only verdicts on other hosts are not its doing
        late = [
            one for one in told if one.time > until and one.data.kind in VERDICTS and one.subject != self._cut
        ]
        result.found += [
            f"stream: {one.data.kind} {one.subject} at {(one.time - since).total_seconds():.1f} s ({one.data.rule})"
            for one in [*mine, *late]
            if one.data.kind not in HARMLESS
        ]


def differences(before: Standing, after: Standing) -> list[str]:
    """What the hosts say that is not as it was."""
    was, now = asdict(before), asdict(after)
    return [
        f"hosts: {what} of {name} {was[what][name]} before, {now[what].get(name)} after"
        for what in was
        for name in was[what]
        if was[what][name] != now[what].get(name)
    ]
