"""Which guests are held to have failed: silence by their own measure only, and never of one that was not asked."""

from __future__ import annotations

from typing import Any

import pytest

from libs.config.settings import Guests, Heartbeats
from libs.model import Health, StopReason, VmReport, VmState
from services.heartbeat.decide import Agent
from services.heartbeat.orders import Fired, GatePassed, Pinged, PingGuests
from tests.unit.made import vm
from tests.unit.test_agent import H1, Desk

pytestmark = pytest.mark.fast
OK, SILENT, UNKNOWN, WATCHDOG = Health.OK, Health.SILENT, Health.UNKNOWN, Health.WATCHDOG


def able(uuid: str, **more: Any) -> VmReport:
    return vm(uuid, **{"agent": True, **more})


class Host(Desk):
    """An agent whose libvirt shows these guests whenever it is read, and whose guests answer or do not."""

    def __init__(
        self, *vms: VmReport, mute: set[str] | None = None, earlier: tuple[VmReport, ...] = ()
    ) -> None:
        super().__init__()
        settings = Guests(ping_every_s=5, silent_after_s=30)
        self.decider = Agent(at=H1, life="life", settings=Heartbeats(), guests=settings)
        self.vms, self.mute, self.unasked = list(vms), mute or set[str](), set[str]()
        self.wait()
        self.hear(GatePassed(key="gate/0", earlier=earlier))
        self.goes_on(0.2)

    def goes_on(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            if self.state.reading:
                self.reads(*self.vms)
            if self.state.guests.asking:
                self.answer()
            wake_at = self.decider.wake_at(self.state)
            assert wake_at is not None
            if wake_at > until:
                break
            self.wait()
        self.now = until

    def answer(self) -> None:
        request = next(one for one in reversed(self.asked) if isinstance(one, PingGuests))
        asked = [one for one in request.vms if one[0] not in self.unasked]
        silent = tuple(one for one in asked if one[0] in self.mute)
        answered = tuple(one for one in asked if one[0] not in self.mute)
        self.hear(Pinged(key=request.key, answered=answered, silent=silent))

    @property
    def health(self) -> list[Health]:
        return [one.health for one in self.shown()]


def test_a_guest_that_answered_and_does_so_no_more_is_silent_after_its_time() -> None:
    host = Host(able("a"), able("b"))
    assert host.health == [OK, OK]
    host.mute = {"a"}
    host.goes_on(27.0)
    assert host.health == [UNKNOWN, OK], "in doubt"
    host.goes_on(10.0)
    assert host.health == [SILENT, OK]
    host.mute = set()
    host.goes_on(6.0)
    assert host.health == [OK, OK], "it answers again"


@pytest.mark.parametrize("guest", [vm("a"), able("a")], ids=["it has no agent", "its agent never answered"])
def test_a_guest_that_never_answered_in_this_run_is_never_judged(guest: VmReport) -> None:
    host = Host(guest, mute={"a"})
    host.goes_on(400.0)
    assert host.health == [UNKNOWN]
    asked = [one for one in host.asked if isinstance(one, PingGuests)]
    assert bool(asked) is guest.agent, "one without an agent is not even asked"


@pytest.mark.parametrize(
    "change",
    [
        {"agent": False},
        {"run": 2},
        {"state": VmState.PAUSED},
        {"state": VmState.UNKNOWN},
        {"state": VmState.STOPPED, "agent": False},
    ],
    ids=["its channel is closed", "it is another run", "it is paused", "unknown", "stopped"],
)
def test_what_cannot_answer_is_not_silent(change: dict[str, Any]) -> None:
    host = Host(able("a"))
    host.mute = {"a"}
    host.goes_on(20.0)
    host.vms = [host.vms[0].model_copy(update=change)]
    host.goes_on(200.0)
    assert host.health == [UNKNOWN]


def test_a_reading_without_sense_says_nothing_of_the_channel() -> None:
    host = Host(able("a"))
    host.mute = {"a"}
    host.goes_on(12.0)
    host.vms = [vm("a", VmState.UNKNOWN)]
    host.goes_on(6.0)
    host.vms = [able("a")]
    host.goes_on(25.0)
    assert host.health == [SILENT]


def test_who_was_not_asked_is_not_silent() -> None:
    """This process stood still, or other guests that hang took all the time."""
    host = Host(able("a"))
    host.unasked = {"a"}
    host.goes_on(300.0)
    assert host.health == [OK]
    host.unasked, host.mute = set(), {"a"}
    host.goes_on(9.0)
    assert SILENT not in host.health, "long without an answer, and asked only once or twice"
    host.goes_on(15.0)
    assert host.health == [SILENT]


def test_guests_that_fall_silent_together_are_told_together() -> None:
    """One was still heard a round later: told one by one, each would be restarted, and nobody would see the host."""
    host = Host(able("a"), able("b"))
    host.mute = {"a"}
    host.goes_on(6.0)
    host.mute = {"a", "b"}
    seen = set()
    for _ in range(90):
        host.goes_on(0.5)
        seen.add(tuple(host.health))
    assert (SILENT, SILENT) in seen
    assert not {(SILENT, UNKNOWN), (SILENT, OK), (UNKNOWN, SILENT), (OK, SILENT)} & seen


def test_one_that_stays_in_doubt_keeps_another_waiting_for_a_while_only() -> None:
    host = Host(able("a"), able("b"), able("c"))
    host.mute = {"a"}
    host.goes_on(10.0)
    host.mute = {"a", "b"}
    host.goes_on(24.0)
    assert host.health == [UNKNOWN, UNKNOWN, OK]
    host.mute = {"a"}
    host.goes_on(10.0)
    assert host.health == [SILENT, OK, OK]


@pytest.mark.parametrize(
    ("action", "health"),
    [("none", WATCHDOG), ("debug", WATCHDOG), ("shutdown", WATCHDOG), ("reset", OK), ("inject-nmi", OK)],
)
def test_a_watchdog_that_fired_without_an_effect_is_a_failure_until_the_agent_answers(
    action: str, health: Health
) -> None:
    host = Host(able("a"))
    host.mute = {"a"}
    host.hear(Fired(key="watchdog", vm="a", run=1, action=action))
    host.goes_on(1.0)
    assert host.health == [health]
    host.mute = set()
    host.goes_on(6.0)
    assert host.health == [OK]


def test_a_watchdog_of_another_run_says_nothing() -> None:
    host = Host(vm("a", run=3))
    host.hear(Fired(key="watchdog", vm="a", run=2, action="none"))
    host.goes_on(10.0)
    assert host.health == [UNKNOWN]


@pytest.mark.parametrize("run", [1, 2])
def test_what_its_watchdog_ended_was_not_shut_down_on_purpose(run: int) -> None:
    host = Host(vm("a", run=2))
    host.hear(Fired(key="watchdog", vm="a", run=run, action="poweroff"))
    host.vms = [vm("a", VmState.STOPPED, run=2, stop_reason=StopReason.ON_PURPOSE)]
    host.goes_on(6.0)
    assert host.shown()[0].stop_reason is (StopReason.CRASHED if run == 2 else StopReason.ON_PURPOSE)


def test_what_libvirt_itself_says_of_a_guest_stands() -> None:
    paused = able("a", state=VmState.PAUSED, health=Health.IO_ERROR)
    host = Host(able("a"))
    host.vms = [paused]
    host.goes_on(6.0)
    assert host.health == [Health.IO_ERROR]
    host.vms = [able("a")]
    host.goes_on(11.0)
    assert host.health == [OK], "a person resumed it"


@pytest.mark.parametrize("health", [OK, SILENT])
def test_an_agent_started_anew_judges_by_what_was_told_before(health: Health) -> None:
    earlier = able("a", health=health), able("b", health=health, run=7)
    host = Host(able("a"), able("b"), mute={"a", "b"}, earlier=earlier)
    host.goes_on(45.0)
    assert host.health == [SILENT, UNKNOWN], "b runs anew, and has never answered in this run"


def test_an_agent_started_anew_knows_of_a_guest_in_doubt_that_it_had_answered() -> None:
    before = Host(able("a"))
    before.mute = {"a"}
    before.goes_on(27.0)
    assert before.health == [UNKNOWN], "in doubt"
    host = Host(able("a"), mute={"a"}, earlier=tuple(before.shown()))
    host.goes_on(45.0)
    assert host.health == [SILENT]


def test_what_is_kept_does_not_grow_with_time() -> None:
    host = Host(able("a"))
    for run in range(2, 60):
        host.vms = [able("a", run=run), vm(f"x{run}", run=run)]
        host.hear(Fired(key="watchdog", vm=f"x{run}", run=run, action="none"))
        host.goes_on(6.0)
    assert len(host.state.guests.known) == 2
