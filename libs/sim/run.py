"""Runs one scenario in one simulated world, from its seed to its verdict."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import structlog

from libs.model import Protection
from libs.scenario.model import Scenario
from libs.scenario.outcome import Outcome, TimelineEntry, Violation
from libs.sim import telling
from libs.sim.broker import Stored
from libs.sim.invariants import Invariants
from libs.sim.loop import DeadlockError, SimLoop
from libs.sim.machines import Os
from libs.sim.plane import Plane
from libs.sim.steps import Stage
from libs.sim.truth import Truth
from libs.sim.world import World, vm_uuid

READY_S = 60.0
LOOK_S = 0.5
SETTLED_S = 2.0


@dataclass(slots=True)
class Result:
    """What one run showed."""

    seed: int
    outcome: Outcome
    violations: list[Violation]
    """Of the rules; expectations are in the outcome."""
    log: list[str]
    virtual_s: float
    facts: int = 0


@dataclass(slots=True)
class _Run:
    scenario: Scenario
    world: World
    liveness: bool
    stop_at_first: bool
    violations: list[Violation] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    performed: list[TimelineEntry] = field(default_factory=list)
    zero: float = 0.0
    names: dict[str, str] = field(default_factory=dict)
    seen: set[tuple[str, str]] = field(default_factory=set)

    def now_s(self) -> float:
        return self.world.loop.time() - self.zero

    def violated(self, violation: Violation) -> None:
        if (violation.rule, violation.detail) not in self.seen:
            self.seen.add((violation.rule, violation.detail))
            self.violations.append(violation)
            self.log.append(
                telling.line(violation.at_s, "VIOLATION", f"rule {violation.rule}: {violation.detail}")
            )

    def heard(self, stored: Stored) -> None:
        if self.zero:
            said = telling.gist(stored.fact, self.names)
            self.log.append(telling.line(self.now_s(), stored.fact.kind, said))

    async def play(self) -> None:
        world = self.world
        truth = Truth(world)
        invariants = Invariants(world, truth, self.violated)
        self.names = {vm_uuid(vm.name): vm.name for vm in self.scenario.vms}
        world.broker.on_fact.append(self.heard)
        world.machines.on_change.append(
            lambda host, domain, began: self._real(
                "starts" if began else f"ends ({domain.stop_reason.value})",
                f"{domain.spec.name} on {host.name}",
            )
        )
        world.machines.on_os.append(lambda host: self._real(host.os.value, host.name))
        world.start()
        while lacking := world.lacking():
            await asyncio.sleep(0.1)
            if world.loop.time() > READY_S or self._over():
                self.violated(Violation(rule="ready", at_s=world.loop.time(), detail=lacking))
                return
        # whole milliseconds, so that times since then read well
        self.zero = invariants.zero = round(world.loop.time(), 3)
        stage = Stage(world)
        for step in self.scenario.steps:
            await self._until(step.at_s)
            if self._over():
                return
            self.performed.append(
                TimelineEntry(at_s=round(self.now_s(), 3), event=f"step.{step.do}", subject=step.subject)
            )
            self.log.append(telling.line(self.now_s(), f"step.{step.do}", step.subject))
            stage.perform(step)
        await self._settle(invariants)

    def _real(self, what: str, who: str) -> None:
        if self.zero:
            self.log.append(telling.line(self.now_s(), "(really)", f"{who} {what}"))

    def _over(self) -> bool:
        """Stop where something is broken; the world's own check of its processes is made here."""
        world = self.world
        for name, error in world.crashed:
            self.violated(Violation(rule="crash", at_s=round(self.now_s(), 3), detail=f"{name}: {error!r}"))
        for process, error in world.loop.failures:
            who = process.name if process else "the world"
            self.violated(Violation(rule="crash", at_s=round(self.now_s(), 3), detail=f"{who}: {error!r}"))
        return self.stop_at_first and bool(self.violations)

    async def _until(self, at_s: float) -> None:
        while (left_s := at_s - self.now_s()) > 1e-6 and not self._over():  # noqa: ASYNC110
            await asyncio.sleep(min(LOOK_S, left_s))

    async def _settle(self, invariants: Invariants) -> None:
        """Until nothing is open any more, or the time is over; then what must have happened by now."""
        quiet_since: float | None = None
        while self.now_s() < self.scenario.duration_s and not self._over():
            await asyncio.sleep(LOOK_S)
            if not self._settled(invariants):
                quiet_since = None
            elif quiet_since is None:
                quiet_since = self.now_s()
            elif self.now_s() - quiet_since >= SETTLED_S:
                break
        # in a storm that lasts, an operator is waited for (rule 7): then nothing more must happen
        if self.liveness and not self._over() and not invariants.storm:
            for rule, detail in self._open(invariants):
                invariants.broken(rule, f"at the end {detail}")

    def _settled(self, invariants: Invariants) -> bool:
        if self.liveness:
            return not self._open(invariants)
        if any(one.never is not None for one in self.scenario.expect) or not self.scenario.expect:
            return False
        found = telling.outcome(self.world, self.scenario, self.zero, [], [])
        return found.passed and not self._open(invariants)

    def _open(self, invariants: Invariants) -> list[tuple[str, str]]:
        """What a healed world still owes: by rule, with the VM or the incident."""
        world = self.world
        found = [
            ("9", f"incident {incident} has neither a proof nor been stood down")
            for incident in invariants.failed_at
            if incident not in invariants.settled
        ]
        for spec in world.machines.specs.values():
            wanted = (
                spec.policy.protection is Protection.RESTART and spec.uuid not in world.stopped_on_purpose
            )
            if not wanted or world.machines.running(spec.uuid) or spec.uuid in invariants.given_up:
                continue
            room = self._room(spec.memory_mib, spec.vcpus)
            if room:
                found.append(("10", f"VM {spec.name} runs nowhere and {room} has room"))
        gone = {fenced for fenced in invariants.fenced}
        for key, start in invariants.orders.items():
            if key not in invariants.ended and start.to not in gone:
                found.append(("9", f"the start {start.name} to {start.to} never ended"))
        rows = len(world.broker.scan("state", ""))
        most = 4 * (len(world.members) + len(self.scenario.vms)) + 20
        if rows > most:
            found.append(("bounded", f"{rows} records are kept for a pool that needs {most} at most"))
        return found

    def _room(self, memory_mib: int, vcpus: int) -> str:
        """A host that is up, speaks and has room; "" where none is."""
        world = self.world
        overcommit = 4.0
        for host in world.machines.hosts.values():
            if host.os is not Os.UP or host.announced != host.at.boot or not host.agent:
                continue
            memory = (
                host.memory_mib - host.memory_reserved_mib - sum(d.spec.memory_mib for d in host.active())
            )
            cpus = host.cpus * overcommit - sum(domain.spec.vcpus for domain in host.active())
            if memory >= memory_mib and cpus >= vcpus:
                return host.name
        return ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The services' own logs go nowhere: the simulator has its own."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def run(
    scenario: Scenario, seed: int, plane: Plane, *, liveness: bool = False, stop_at_first: bool = True
) -> Result:
    """Play the scenario. `liveness`: the last step healed the world, so all must come right by the end."""
    loop = SimLoop()
    world = World(scenario, seed, plane, loop)
    playing = _Run(scenario, world, liveness, stop_at_first)
    with _quiet():
        try:
            loop.run_until_complete(playing.play())
            playing._over()
        except DeadlockError as error:
            playing.violated(Violation(rule="deadlock", at_s=round(playing.now_s(), 3), detail=str(error)))
        found = telling.outcome(world, scenario, playing.zero, playing.performed, playing.violations)
        for slot in world.slots.values():
            world.kill(slot, restart=False)
        _drain(loop)
    return Result(seed, found, playing.violations, playing.log, loop.time(), len(world.broker.facts))


def _drain(loop: SimLoop) -> None:
    """Unwind what is left, so that nothing is left to Python's collector."""
    left = [task for task in asyncio.all_tasks(loop) if not task.done()]
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.close()
