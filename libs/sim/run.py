"""Runs one scenario in one simulated world, from its seed to its verdict."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import structlog

from libs.scenario.model import Scenario
from libs.scenario.outcome import Outcome, TimelineEntry, Violation
from libs.sim import telling
from libs.sim.broker import Stored
from libs.sim.invariants import Invariants
from libs.sim.loop import DeadlockError, SimLoop
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
class _Play:
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
    told: set[str] = field(default_factory=set)
    """Events since the last step."""

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
            self.told.add(stored.fact.kind)
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
        world.operator.on_no.append(lambda command, why: self._real(f"is refused: {why}", command))
        world.machines.on_os.append(lambda host: self._real(host.os.value, host.name))
        world.start(plane_first=self.liveness)
        while lacking := world.lacking():
            await asyncio.sleep(0.1)
            if world.loop.time() > READY_S or self._over():
                self.violated(Violation(rule="ready", at_s=world.loop.time(), detail=lacking))
                return
        # whole milliseconds, so that times since then read well
        self.zero = invariants.book.zero = round(world.loop.time(), 3)
        stage = Stage(world)
        for step in self.scenario.steps:
            await self._until(step.at_s)
            while step.once is not None and step.once not in self.told and not self._late():  # noqa: ASYNC110  on the clock of the world
                await asyncio.sleep(LOOK_S)
            if self._over():
                return
            self.told.clear()
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

    def _late(self) -> bool:
        return self.now_s() >= self.scenario.duration_s or self._over()

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
        if self.liveness and not self._over():
            invariants.end()

    def _settled(self, invariants: Invariants) -> bool:
        if self.liveness:
            return invariants.settled
        if any(one.never is not None for one in self.scenario.expect) or not self.scenario.expect:
            return False
        found = telling.outcome(self.world, self.scenario, self.zero, [], [])
        return found.passed and invariants.settled


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
    """Play the scenario. `liveness`: as where it says `healed`, so all must come right by the end."""
    with _quiet(), _uncollected():
        return _run(scenario, seed, plane, liveness, stop_at_first)


def _run(scenario: Scenario, seed: int, plane: Plane, liveness: bool, stop_at_first: bool) -> Result:
    loop = SimLoop()
    world = World(scenario, seed, plane, loop)
    playing = _Play(scenario, world, liveness or scenario.healed, stop_at_first)
    try:
        loop.run_until_complete(playing.play())
        playing._over()
    except DeadlockError as error:
        playing.violated(Violation(rule="deadlock", at_s=round(playing.now_s(), 3), detail=str(error)))
    found = telling.outcome(world, scenario, playing.zero, playing.performed, playing.violations)
    for slot in world.slots.values():
        world.kill(slot, restart=False)
    drain(loop)
    return Result(seed, found, playing.violations, playing.log, loop.time(), len(world.broker.facts))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collector: a world is small and ends soon, most of it by counts of references, and a tenth of
    its time is saved. What runs must be gone before it is on again, or it looks all of it over."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def drain(loop: SimLoop) -> None:
    """Unwind what is left, so that nothing is left to Python's collector."""
    left = [task for task in asyncio.all_tasks(loop) if not task.done()]
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.close()
