"""S20, the second half: one lying observer of five changes nothing. The agent of h5 works in all but its answers to its
peers' question: it has seen nobody, ever, or it has seen everybody. The services are the real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from libs.events.signals import Reply, Signal
from libs.model import Answer
from libs.scenario.model import Scenario
from libs.sim.plane import AgentLife, SimPorts, Work
from libs.sim.run import Result, run
from services.cli.simplane import PLANE, agent
from services.detector.evidence import PEERS_ASKED
from tests.simulation.test_stories import told, untouched

LIAR = "h5"
HOSTS = ("h1", "h2", "h3", "h4", LIAR)
LIES = {"unseen": Answer.SILENT, "seen": Answer.UP}
Answering = Callable[[Signal], Awaitable[Signal]]


def played(lie: str | None, *steps: dict[str, Any], duration_s: float = 60.0) -> tuple[Result, list[str]]:
    """One world, and what the liar was asked about. None: all five tell what they see."""
    asked: list[str] = []

    def lying(answer: Answering) -> Answering:
        async def lies(question: Signal) -> Signal:
            reply = await answer(question)
            assert isinstance(reply, Reply)
            asked.append(reply.about)
            return reply if lie is None else reply.model_copy(update={"answer": LIES[lie], "detail": "a lie"})

        return lies

    async def with_a_liar(ports: SimPorts, life: AgentLife) -> Work:
        if life.entry.name == LIAR:
            tells = ports.bus.answer
            ports.bus.answer = lambda topic, answer: tells(topic, lying(answer))  # type: ignore[method-assign]
        return await agent(ports, life)

    story = Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "a liar",
            "duration_s": duration_s,
            "hosts": [{"name": name} for name in HOSTS],
            "vms": [{"name": f"vm{name[1:]}", "host": name} for name in HOSTS],
            "steps": steps,
        }
    )
    result = run(story, 1, dataclasses.replace(PLANE, agent=with_a_liar), stop_at_first=False)
    assert not result.violations, "\n".join(result.log)
    return result, asked


def verdicts(result: Result) -> set[tuple[str, str]]:
    """Kind and host of what was decided in the end."""
    decisive = ("host.failed", "host.isolated", "host.fenced", "vm.restarted", "failover.completed")
    lines = (line.split() for line in result.log)
    return {(line[1], line[2].split("/")[0].split("-")[0]) for line in lines if line[1] in decisive}


def at_s(result: Result, event: str) -> float:
    return next(float(line.split()[0]) for line in result.log if line.split()[1] == event)


ALIVE: dict[str, tuple[dict[str, Any], ...]] = {
    "its agent is dead": ({"at_s": 5, "do": "kill_agent", "host": "h1"},),
    "it is cut off from the plane alone": (
        {"at_s": 5, "do": "partition", "groups": [["h1"], ["bus", "management"]]},
        {"at_s": 40, "do": "heal"},
    ),
    "it is cut off from the plane and from all peers but one": (
        {"at_s": 5, "do": "partition", "groups": [["h1"], ["bus", "management", "h3", "h4"]]},
        {"at_s": 40, "do": "heal"},
    ),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("how", ALIVE)
def test_s20_a_liar_brings_no_living_host_down(how: str, lie: str) -> None:
    result, asked = played(lie, *ALIVE[how])
    assert "h1" in asked, "it was asked, and lied"
    assert "host.suspected" in "\n".join(result.log)
    untouched(result)


POWER_ON: tuple[dict[str, Any], ...] = (
    {"at_s": 4, "do": "break_fencing", "host": "h1", "how": "hang"},
    {"at_s": 5, "do": "crash", "host": "h1"},
    {"at_s": 30, "do": "mend_fencing", "host": "h1"},
)
POWER_OFF: tuple[dict[str, Any], ...] = ({"at_s": 5, "do": "power_off", "host": "h1"},)


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("steps", [POWER_OFF, POWER_ON], ids=["power off", "power on"])
def test_s20_a_liar_keeps_no_dead_host_from_its_verdict(steps: tuple[dict[str, Any], ...], lie: str) -> None:
    honest, _ = played(None, *steps, duration_s=90.0)
    result, asked = played(lie, *steps, duration_s=90.0)
    assert steps is POWER_OFF or "h1" in asked, "it was asked, and lied"
    assert ("host.failed", "h1") in verdicts(honest)
    assert verdicts(result) == verdicts(honest)
    if lie == "unseen" or steps is POWER_OFF:
        assert at_s(result, "host.failed") - at_s(honest, "host.failed") < 0.5, "not even later"
    else:  # against a peer that has seen it, the others must have been silent for confirm_silence_s
        assert at_s(result, "host.failed") < 5 + 1.7 + 8.0 + 3.0
        assert told(result, "host.failed")[0].split("; ")[0].endswith("outvoted")


def test_the_liar_is_one_of_those_asked() -> None:
    """Three are asked in a round, and they take turns: with five hosts each is asked in every second round at least."""
    assert len(HOSTS) - 2 <= 2 * (PEERS_ASKED - 1)
