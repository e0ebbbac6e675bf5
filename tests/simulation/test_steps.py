"""What each step of DESIGN §6 does to the simulated world, looked at in that world and not in what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from libs.events.failovers import FailoverCompleted
from libs.events.hosts import HostFailed, HostFenced
from libs.model import ProofMethod, Protection, StopReason, VmState
from libs.scenario.model import Scenario, StepEntry
from libs.sim.hosts import Domain, Os, SimHost
from libs.sim.loop import SimLoop
from libs.sim.network import BUS
from libs.sim.plane import Slot
from libs.sim.run import _quiet, drain
from libs.sim.steps import Stage
from libs.sim.world import World, vm_uuid
from services.cli.simplane import PLANE
from tests.simulation.test_files import DESIGN

READY_S, LOOK_S, WITHIN_S = 60.0, 0.05, 30.0
AT_ONCE_S = 0.01
Step = dict[str, Any]
Shows = Callable[[World], bool]


def host(world: World, name: str = "h1") -> SimHost:
    return world.machines.hosts[name]


def domain(world: World) -> Domain:
    return host(world).domains[vm_uuid("a")]


def slot(world: World, name: str) -> Slot:
    return world.slots[name]


def runs(world: World, name: str) -> bool:
    process = slot(world, name).process
    return process is not None and process.alive and not process.stopped


def vouched(world: World) -> bool:
    proofs = [one.fact.proof for one in world.broker.facts if isinstance(one.fact, HostFenced)]
    return [one.method for one in proofs] == [ProofMethod.OPERATOR]


def held_failed(world: World) -> bool:
    return any(isinstance(one.fact, HostFailed) for one in world.broker.facts)


def failed_over(world: World) -> bool:
    return any(isinstance(one.fact, FailoverCompleted) for one in world.broker.facts)


@dataclass(frozen=True)
class Effect:
    """A step, and what the world shows only after it; `before` it these, each until it shows."""

    step: Step
    shows: Shows
    before: tuple[tuple[Step, Shows], ...] = ()
    within_s: float = AT_ONCE_S


def step(do: str, **fields: Any) -> Step:
    return {"at_s": 0, "do": do, **fields}


H1, A, FENCER = {"host": "h1"}, {"vm": "a"}, {"service": "fencer", "replica": 0}
OFF: tuple[Step, Shows] = (step("power_off", **H1), lambda world: not host(world).power)
DEAD: tuple[Step, Shows] = (
    step("break_fencing", **H1, method="power", how="dead"),
    lambda world: world.outlets["h1"][0].how == "dead",
)
FAILED: tuple[Step, Shows] = (step("power_off", **H1), held_failed)
CUT: tuple[Step, Shows] = (
    step("partition", groups=[["h1"], ["bus"]]),
    lambda world: not world.network.both_ways("h1", BUS),
)
STALLED: tuple[Step, Shows] = (
    step("stall_storage", **H1),
    lambda world: any(one.stalled("h1") for one in world.machines.datastores.values()),
)
AGENT: tuple[Step, Shows] = (step("kill_agent", **H1), lambda world: not runs(world, "heartbeat@h1"))
PAUSED: tuple[Step, Shows] = (step("pause_service", **FENCER), lambda world: not runs(world, "fencer/0"))
NODE: tuple[Step, Shows] = (step("kill_bus", node=1), lambda world: not world.broker.up[1])
CLOSED: tuple[Step, Shows] = (
    step("enter_maintenance", **H1),
    lambda world: world.operator.maintained == {"h1"},
)
UNPROTECTED: tuple[Step, Shows] = (
    step("unprotect", **A),
    lambda world: domain(world).spec.policy.protection is Protection.NONE,
)
GONE = (OFF, (step("power_off", **H1), failed_over))


EFFECTS = {
    "power_off": Effect(*OFF),
    "power_on": Effect(step("power_on", **H1), lambda world: host(world).power, (OFF,)),
    "reboot": Effect(step("reboot", **H1), lambda world: host(world).boots == 2),
    "crash": Effect(step("crash", **H1), lambda world: host(world).os is Os.CRASHED and host(world).power),
    "hang": Effect(step("hang", **H1), lambda world: host(world).os is Os.HUNG and domain(world).state.active),
    "partition": Effect(*CUT),
    "heal": Effect(step("heal"), lambda world: world.network.both_ways("h1", BUS), (CUT,)),
    "delay": Effect(step("delay", seconds=2), lambda world: world.network.delay_s == 2),
    "loss": Effect(step("loss", percent=30), lambda world: world.network.loss == 0.3),
    "stall_storage": Effect(*STALLED),
    "restore_storage": Effect(
        step("restore_storage", **H1), lambda world: not STALLED[1](world), before=(STALLED,)
    ),
    "kill_agent": Effect(*AGENT),
    "start_agent": Effect(
        step("start_agent", **H1), lambda world: runs(world, "heartbeat@h1"), (AGENT,), within_s=2.0
    ),
    "kill_service": Effect(step("kill_service", **FENCER), lambda world: slot(world, "fencer/0").process is None),
    "pause_service": Effect(*PAUSED),
    "resume_service": Effect(
        step("resume_service", **FENCER), lambda world: runs(world, "fencer/0"), (PAUSED,)
    ),
    "kill_bus": Effect(*NODE),
    "start_bus": Effect(step("start_bus", node=1), lambda world: world.broker.up[1], (NODE,)),
    "break_fencing": Effect(*DEAD),
    "mend_fencing": Effect(
        step("mend_fencing", **H1), lambda world: not world.outlets["h1"][0].how, before=(DEAD,)
    ),
    "step_clock": Effect(step("step_clock", **H1, seconds=60), lambda world: world.wall_steps.get("h1") == 60),
    "crash_vm": Effect(step("crash_vm", **A), lambda world: domain(world).stop_reason is StopReason.CRASHED),
    "hang_guest": Effect(step("hang_guest", **A), lambda world: domain(world).state is VmState.PAUSED),
    "shutdown_guest": Effect(
        step("shutdown_guest", **A),
        lambda world: domain(world).stop_reason is StopReason.ON_PURPOSE and not domain(world).destroyed,
    ),
    "destroy_vm": Effect(
        step("destroy_vm", **A),
        lambda world: domain(world).stop_reason is StopReason.ON_PURPOSE and domain(world).destroyed,
    ),
    "fail_start": Effect(
        step("fail_start", **A, host="h2", count=3), lambda world: host(world, "h2").fails == {vm_uuid("a"): 3}
    ),
    "add_host": Effect(
        step("add_host", host={"name": "h9"}),
        lambda world: "h9" in world.machines.hosts and runs(world, "heartbeat@h9"),
        within_s=2.0,
    ),
    "remove_host": Effect(
        step("remove_host", **H1), lambda world: world.operator.removed == {"h1"}, GONE, within_s=WITHIN_S
    ),
    "enter_maintenance": Effect(*CLOSED, within_s=WITHIN_S),
    "exit_maintenance": Effect(
        step("exit_maintenance", **H1), lambda world: not world.operator.maintained, (CLOSED,), WITHIN_S
    ),
    "protect": Effect(
        step("protect", **A),
        lambda world: domain(world).spec.policy.protection is Protection.RESTART,
        (UNPROTECTED,),
    ),
    "unprotect": Effect(*UNPROTECTED),
    "confirm_failed": Effect(step("confirm_failed", **H1), vouched, (DEAD, FAILED), within_s=WITHIN_S),
}  # fmt: skip


@pytest.mark.fast
def test_each_step_of_the_design_is_looked_at() -> None:
    assert set(EFFECTS) == set(DESIGN.split())


def _scenario() -> Scenario:
    return Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "what a step does",
            "duration_s": 1,
            "settings": {"detection": {"quiet_after_start_s": 2, "confirm_silence_s": 3}},
            "hosts": [{"name": "h1"}, {"name": "h2"}, {"name": "h3"}],
            "vms": [{"name": "a", "host": "h1"}],
        }
    )


@pytest.mark.fast
@pytest.mark.parametrize("do", sorted(EFFECTS))
def test_what_a_step_does_to_the_world(do: str) -> None:
    effect, loop = EFFECTS[do], SimLoop()
    world = World(_scenario(), 1, PLANE, loop)
    refused: list[str] = []
    world.operator.on_no.append(lambda command, why: refused.append(why))

    async def until(shows: Callable[[], bool], within_s: float, what: object) -> None:
        late_s = loop.time() + within_s
        while not shows():
            assert loop.time() < late_s, f"not shown in {within_s} s: {what} {refused}"
            await asyncio.sleep(LOOK_S)

    async def play() -> None:
        world.start()
        await until(lambda: not world.lacking(), READY_S, "a pool that is ready")
        stage = Stage(world)
        for first, shows in effect.before:
            stage.perform(StepEntry.model_validate(first))
            await until(lambda shows=shows: shows(world), WITHIN_S, first)  # type: ignore[misc]
        assert not effect.shows(world), "it shows without the step"
        stage.perform(StepEntry.model_validate(effect.step))
        await until(lambda: effect.shows(world), effect.within_s, effect.step)
        assert world.crashed == []

    with _quiet():
        try:
            loop.run_until_complete(play())
        finally:
            for one in world.slots.values():
                world.kill(one, restart=False)
            drain(loop)
