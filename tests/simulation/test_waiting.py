"""S11: no state of any service waits without a deadline. Random bad days are played with the real services, and after every
step of every decider what waits is looked at: the deadline of an act under way, or a timer that its `wake_at` knows.

What a wait is told by is in WAITS; that each of these alerts comes is in tests/unit/test_unknowns.py and below.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from libs import lifecycle
from libs.core.decider import Act, Outcome, Records, Step
from libs.events.failovers import FailoverCompleted, FailoverPlanned, PlannedStart
from libs.events.hosts import HostSuspected
from libs.model import HostState
from libs.scenario.model import Scenario
from libs.sim.random_world import draw
from libs.sim.run import run
from services.alerting import owed
from services.alerting import wiring as alerting
from services.alerting.decide import Alerting
from services.alerting.texts import TEXTS, Severity, tell
from services.cli.simplane import PLANE
from services.cli.simulate import load
from services.detector import wiring as detector
from services.executor import orders
from services.executor import wiring as executor
from services.fencer import state as fencer_state
from services.fencer import wiring as fencer
from services.heartbeat import wiring as heartbeat
from services.placement import state as placement_state
from services.placement import wiring as placement
from tests.unit.made import boot, failed, fenced
from tests.unit.test_alerting import Desk as AlertingDesk

SEEDS = (7, 20, 29, 59)
GOLDEN = Path(__file__).parents[1] / "golden"
STORIES = (
    "agent_down_then_power_lost",
    "bmc_dead",
    "guest_cannot_be_stopped",
    "libvirt_late",
    "never_stops_at_the_gate",
    "no_room_then_a_host",
    "panicked_while_stopped_by_order",
    "plane_lost",
)
ONE_BY_ONE = Scenario.model_validate(
    {
        "schema": "rekindle.scenario.v1",
        "name": "three VMs start one after the other",
        "duration_s": 30,
        "settings": {"restart": {"parallel": 1}},
        "hosts": [{"name": f"h{n}"} for n in (1, 2, 3)],
        "vms": [{"name": f"vm{n}", "host": "h1"} for n in (1, 2, 3)],
        "steps": [{"at_s": 5, "do": "power_off", "host": "h1"}],
    }
)
REACHED = {
    "detector": {"unknown", "suspect", "suspect asks", "agent_down", "isolated", "failed", "fenced"},
    "fencer": {"fencing", "waiting", "ordering", "drilling", "testing", "off for a test"},
    "placement": {"planned", "waiting for its time", "waiting for room"},
    "executor": {"queued", "starting", "uncertain", "writing a lease"},
    "heartbeat": {
        "at the gate",
        "beating",
        "reading",
        "asking guests",
        "stopping",
        "writing its slot",
        "obeying",
    },
    "alerting": {"posting", "owed"},
}
START = PlannedStart(
    key="k",
    vm="a",
    name="A",
    origin=boot("h1"),
    to=boot("h2"),
    wave=0,
    priority_rank=0,
    memory_mib=1,
    vcpus=1,
)
FACTS: dict[str, Any] = {
    "host.suspected": HostSuspected(at=boot("h1"), number=1, silent_s=1.5),
    "host.failed": failed(boot("h1")),
    "host.fenced": fenced(boot("h1")),
    "failover.planned": FailoverPlanned(incident="h1-1", revision=1, starts=(START,)),
}


class Wait(NamedTuple):
    """One thing that one state waits for."""

    what: str
    bounded: bool


Waits = Callable[[Any, Any, float | None, set[str], float], Iterator[Wait]]


def _ahead(wake_at: float | None, due: float | None) -> bool:
    """The decider is woken by then."""
    return due is not None and wake_at is not None and wake_at <= due


def of_detector(
    decider: Any, state: Any, wake_at: float | None, acts: set[str], now: float
) -> Iterator[Wait]:
    """All is looked at with each tick. Who is asked is asked anew, whatever becomes of the question."""
    for host in decider.hosts:
        record, suspicion = state.record(host), state.view(host).suspicion
        if record.state is not HostState.HEALTHY:
            yield Wait(record.state.value, wake_at is not None and wake_at <= now + 1.0)
        if suspicion is not None and record.state is HostState.SUSPECT:
            asking = suspicion.ask_at <= now + decider.settings.ask_every_s + 0.001
            yield Wait("suspect asks", asking)


def of_fencer(decider: Any, state: Any, wake_at: float | None, acts: set[str], now: float) -> Iterator[Wait]:
    phase, stage = fencer_state.Phase, fencer_state.Stage
    for host in state.drilling:
        yield Wait("drilling", any(key.startswith(f"paths/{host}/") for key in acts))
    for host, record in state.records.items():
        if isinstance(record, fencer_state.FenceTest):
            name = record.order.host
            if record.stage is stage.OFF:
                yield Wait("off for a test", _ahead(wake_at, state.test_at.get(name)))
            elif record.stage is not stage.DONE:
                yield Wait("testing", any(f"/{name}/{record.order.number}" in key for key in acts))
        if not isinstance(record, fencer_state.FenceRecord):
            continue
        if record.phase in (phase.FENCING, phase.ORDERING):
            yield Wait(record.phase.value, any(record.incident in key for key in acts))
        elif record.phase in (phase.WAITING, phase.ORDER_WAITS):
            yield Wait(record.phase.value, _ahead(wake_at, state.retry_at.get(host)))


def of_placement(
    decider: Any, state: Any, wake_at: float | None, acts: set[str], now: float
) -> Iterator[Wait]:
    """What is planned waits for the executor, and alerting for its answer; what waits is planned again at its time, or
    with whatever may make room, and once a reading of all leases, which is a table's and has no end."""
    phase = placement_state.Phase
    for incident in state.incidents():
        for item in incident.items:
            if item.phase is phase.PLANNED:
                yield Wait("planned", incident.revision > 0)
            elif item.phase is phase.WAITING and state.retry_at.get(item.vm, now) > now:
                yield Wait("waiting for its time", _ahead(wake_at, state.retry_at[item.vm]))
            elif item.phase is phase.WAITING:
                soon = wake_at is not None and wake_at <= now + 1.0
                yield Wait("waiting for room", soon or _says_why(decider, state, incident, item))


def _says_why(decider: Any, state: Any, incident: Any, item: Any) -> bool:
    """It has been told that there is no room; or why else it waits: its host is in doubt, which the detector tells and
    ends, or the reason stands in the item, of a state that has an alert of its own."""
    told = item.vm in incident.short or incident.exhausted > 0
    return told or item.in_place or bool(item.reason)


def of_executor(
    decider: Any, state: Any, wake_at: float | None, acts: set[str], now: float
) -> Iterator[Wait]:
    phase = orders.Phase
    busy = any(record.phase is phase.STARTING for _, record in state.starts())
    for vm, record in state.starts():
        if record.phase is phase.STARTING:
            yield Wait("starting", any(record.start.key in key for key in acts))
        elif record.phase is phase.UNCERTAIN:
            yield Wait("uncertain", _ahead(wake_at, state.retry_at.get(vm)))
        else:
            yield Wait("queued", busy)
    for vm, seq in state.writing.items():
        yield Wait("writing a lease", f"lease/{vm}/{seq}" in acts)


def of_agent(decider: Any, state: Any, wake_at: float | None, acts: set[str], now: float) -> Iterator[Wait]:
    if not state.gated:
        yield Wait("at the gate", wake_at is not None)
        return
    yield Wait("beating", wake_at is not None and wake_at <= now + decider.settings.interval_s + 0.001)
    if state.reading:
        yield Wait("reading", any(key.startswith("read/") for key in acts))
    if state.guests.asking:
        yield Wait("asking guests", any(key.startswith(("ping", "guests")) for key in acts))
    if state.condemned:
        yield Wait("stopping", state.stop_at is not None)
    for name, slot in state.slot_state.slots.items():
        if slot.writing:
            yield Wait("writing its slot", any(key.startswith("slot") and name in key for key in acts))
    if state.slot_state.obeying:
        yield Wait("obeying", any(key.startswith("obey") for key in acts))


def of_alerting(
    decider: Any, state: Any, wake_at: float | None, acts: set[str], now: float
) -> Iterator[Wait]:
    for name in state.records:
        posting = any(key.startswith(f"post/{name}/") for key in acts)
        yield Wait("posting", posting or _ahead(wake_at, state.retry_at.get(name)))
    for one in state.owed.values():
        yield Wait("owed", _ahead(wake_at, one.due_at))


class Checked:
    """A decider, and what it waits for looked at after each step that it takes while it leads."""

    def __init__(self, decider: Any, waits: Waits, met: Counter[str], broken: list[str]) -> None:
        self._decider, self._waits, self._met, self._broken = decider, waits, met, broken
        self._acts: dict[str, float] = {}
        self._leads = waits is of_agent
        """An agent has nobody beside it."""
        self._now = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decider, name)

    def resume(self, state: Any, records: Records, now: float) -> Any:
        """What its predecessor owed is stored with the records and performed anew by the shell, under the same keys."""
        self._leads = True
        self._acts = {f"owed/{name}": now for name in _under_way(records.values())}
        return self._took(self._decider.resume(state, records, now), now, look=False)

    def step(self, state: Any, event: Any, now: float) -> Any:
        if isinstance(event, Outcome):
            ended = {key for key in self._acts if key == event.key or key.removeprefix("owed/") in event.key}
            self._acts = {key: at for key, at in self._acts.items() if key not in ended}
        return self._took(self._decider.step(state, event, now), now, look=self._leads)

    def _took(self, step: Step[Any], now: float, *, look: bool) -> Step[Any]:
        self._now = max(self._now, now)  # what is heard late is handed in with when it came
        for effect in step.effects:
            if isinstance(effect, Act):
                assert effect.request.deadline_s > 0
                self._acts[effect.key] = now + effect.request.deadline_s
        if look:
            wake_at = self._decider.wake_at(step.state)
            for wait in self._waits(self._decider, step.state, wake_at, set(self._acts), self._now):
                self._met[wait.what] += 1
                if not wait.bounded:
                    self._broken.append(f"{type(self._decider).__name__}: {wait.what} at {now:.3f}")
        return step


def _under_way(records: Any) -> Iterator[str]:
    for record in records:
        if isinstance(record, fencer_state.FenceRecord):
            yield record.incident
        elif isinstance(record, fencer_state.FenceTest):
            yield f"/{record.order.host}/{record.order.number}"
        elif isinstance(record, orders.StartRecord):
            yield record.start.key


WIRED: dict[str, tuple[Any, Waits]] = {
    "detector": (detector, of_detector),
    "fencer": (fencer, of_fencer),
    "placement": (placement, of_placement),
    "executor": (executor, of_executor),
    "heartbeat": (heartbeat, of_agent),
    "alerting": (alerting, of_alerting),
}


@contextlib.contextmanager
def looked_at(met: dict[str, Counter[str]], broken: list[str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, (wiring, waits) in WIRED.items():
            shell, seen = wiring.Shell, met.setdefault(name, Counter())

            def checked(
                decider: Any, wired: Any, shell: Any = shell, waits: Any = waits, seen: Any = seen
            ) -> Any:
                if waits is of_alerting:
                    decider = dataclasses.replace(decider, webhook=True)
                return shell(Checked(decider, waits, seen, broken), wired)

            patch.setattr(wiring, "Shell", checked)
        yield


def test_s11_every_state_that_waits_has_a_deadline() -> None:
    met: dict[str, Counter[str]] = {}
    broken: list[str] = []
    with looked_at(met, broken):
        for seed in SEEDS:
            run(draw(seed), seed, PLANE, liveness=True)
        for name in STORIES:
            story = load(GOLDEN / f"{name}.yaml")
            run(story, story.seed, PLANE, stop_at_first=False)
        run(ONE_BY_ONE, 1, PLANE, stop_at_first=False)
    assert not broken, Counter(one.rsplit(" at ", 1)[0] for one in broken)
    missed = {name: sorted(wanted - set(met[name])) for name, wanted in REACHED.items()}
    assert not any(missed.values()), f"never reached: {missed}"


def test_s11_every_state_of_a_host_is_told_of_as_it_begins_or_once_it_lasts() -> None:
    """By the one table of moves, and with words for it. What a healthy host waits for is its next heartbeat."""
    for row in lifecycle.TABLE:
        assert row.fact in TEXTS, f"{row.before} to {row.after} is told by nothing"


def overdue_desk() -> AlertingDesk:
    desk = AlertingDesk(webhook=False)
    desk.decider = Alerting(False, 5.0, overdue=True)
    return desk


def test_s11_whoever_waits_for_another_service_says_so_when_nothing_follows() -> None:
    """Each fact of the way of a failure, and then nothing, ever: an alert by its time, once."""
    for kind, row in owed.TABLE.items():
        desk = overdue_desk()
        desk.hear(FACTS[kind])
        began = desk.now
        assert desk.wait() == ["service.overdue"], kind
        assert desk.now - began == pytest.approx(row.within_s)
        assert desk.told[-1].service == row.service
        assert tell(desk.told[-1])[0] is Severity.CRITICAL
        assert desk.decider.wake_at(desk.state) is None, "once"


@pytest.mark.parametrize("first", ["the fact", "what follows"])
def test_what_follows_ends_the_wait_whichever_is_heard_first(first: str) -> None:
    desk = overdue_desk()
    facts: list[Any] = [failed(boot("h1")), fenced(boot("h1"))]
    for fact in facts if first == "the fact" else reversed(facts):
        desk.hear(fact)
    assert [one.kind for one in desk.state.owed.values()] == ["host.fenced"], (
        "only what comes next is waited for"
    )
    desk.hear(FailoverCompleted(incident="h1-1", revision=0))
    assert desk.decider.wake_at(desk.state) is None


def test_what_nobody_follows_up_in_a_whole_world_is_told() -> None:
    """There is no fencer at all."""
    story = Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "no fencer",
            "duration_s": 150,
            "hosts": [{"name": f"h{n}"} for n in (1, 2, 3)],
            "vms": [{"name": "web", "host": "h1"}],
            "steps": [{"at_s": 5, "do": "power_off", "host": "h1"}],
            "expect": [{"event": "service.overdue", "by_s": 140}],
        }
    )
    services = tuple(name for name in PLANE.services if name != "fencer")
    result = run(story, 1, dataclasses.replace(PLANE, services=services), stop_at_first=False)
    assert result.outcome.passed, "\n".join(result.log)
