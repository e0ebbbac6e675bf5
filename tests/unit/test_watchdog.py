"""When a host feeds its own watchdog (DESIGN §4 rule 4), and what it promises by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from libs.config.settings import Heartbeats
from libs.core.decider import Act, Effect, Expired, Publish
from libs.events.signals import Heard
from libs.promises import Promise, SlotOrder
from services.heartbeat import watchdog
from services.heartbeat.decide import Agent
from services.heartbeat.orders import (
    ArmWatchdog,
    FeedWatchdog,
    Greet,
    Greeted,
    KeepPromise,
    PromiseKept,
    PromiseRead,
    ReadPromise,
    WatchdogArmed,
    WatchdogFed,
    WatchdogUnarmed,
)
from services.heartbeat.watchdog import Dog
from tests.unit.made import boot

pytestmark = pytest.mark.fast
H1 = boot("h1")
PEERS = ("h2", "h3", "h4", "h5")
DOG = Dog(H1, "life", 10.0, PEERS, ("nfs",))


class Desk:
    """A watchdog driven by hand; each act that is begun stays under way until it is told of."""

    def __init__(self, dog: Dog = DOG) -> None:
        self.dog, self.state, self.now = dog, watchdog.initial(dog), 100.0
        self.acts: list[Any] = []
        self.told: list[Any] = []

    def _take(self, effects: tuple[Effect, ...]) -> None:
        self.acts += [one.request for one in effects if isinstance(one, Act)]
        self.told += [one.fact for one in effects if isinstance(one, Publish)]

    def turn(self) -> None:
        self.state, effects = watchdog.due(self.state, self.dog, self.now)
        self._take(effects)

    def hear(self, event: Any) -> None:
        found = watchdog.told(self.state, event, self.dog, self.now)
        assert found is not None
        self.state, effects = found
        self._take(effects)
        self.turn()

    def begun(self, kind: type[Any]) -> Any:
        """The acts of a kind since last asked for; the latest."""
        found = [one for one in self.acts if isinstance(one, kind)]
        self.acts = [one for one in self.acts if not isinstance(one, kind)]
        return found[-1] if found else None

    def after(self, seconds: float) -> Desk:
        self.now += seconds
        self.turn()
        return self

    def heard(self, sent_ago: float = 0.1) -> None:
        self.hear(Heard(at=H1, sent_at=self.now - sent_ago))

    def wrote(self, began_ago: float = 0.1, order: SlotOrder | None = None) -> None:
        self.state = watchdog.wrote(self.state, "nfs", self.now - began_ago, order, self.dog, self.now)
        self.turn()

    def greeted(self, *peers: str) -> None:
        self.hear(Greeted(key="greet/0", peers=peers))

    def fed(self) -> bool:
        """Whether it is fed now; that is done at once."""
        request = self.begun(FeedWatchdog)
        if request is not None:
            assert self.now <= request.until
            self.hear(WatchdogFed(key=request.key))
        return request is not None


def armed(timeout_s: float = 10.0, dog: Dog = DOG) -> Desk:
    """Heard on the bus, armed, its promise kept."""
    desk = Desk(dog)
    desk.turn()
    desk.hear(PromiseRead(key=desk.begun(ReadPromise).key))
    desk.heard()
    desk.hear(WatchdogArmed(key=desk.begun(ArmWatchdog).key, timeout_s=timeout_s))
    desk.hear(PromiseKept(key="keep", promise=desk.begun(KeepPromise).promise))
    return desk


def test_it_is_armed_only_once_somebody_hears_it_since_that_feeds_it() -> None:
    desk = Desk()
    desk.turn()
    desk.hear(PromiseRead(key=desk.begun(ReadPromise).key))
    desk.after(5)
    desk.heard(sent_ago=watchdog.LAG_S + 0.1)
    assert desk.begun(ArmWatchdog) is None, "it was heard long ago"
    desk.heard(sent_ago=0.2)
    assert desk.begun(ArmWatchdog).until == pytest.approx(desk.now - 0.2 + watchdog.LAG_S)


def test_what_is_promised_is_what_the_device_really_has_and_only_then_it_is_advertised() -> None:
    desk = Desk()
    desk.turn()
    desk.hear(PromiseRead(key=desk.begun(ReadPromise).key))
    desk.heard()
    desk.hear(WatchdogArmed(key=desk.begun(ArmWatchdog).key, timeout_s=12.0))
    wanted = desk.begun(KeepPromise).promise
    assert wanted == Promise(at=H1, timeout_s=12.0, lag_s=watchdog.LAG_S, peers=PEERS, datastores=("nfs",))
    assert watchdog.advertised_s(desk.state) is None, "nobody could withdraw it yet"
    desk.hear(PromiseKept(key="keep", promise=wanted))
    assert watchdog.advertised_s(desk.state) == 12.0


def test_a_watchdog_that_cannot_be_armed_is_told_of_once_and_never_advertised() -> None:
    desk = Desk()
    desk.turn()
    desk.hear(PromiseRead(key=desk.begun(ReadPromise).key))
    for _ in range(30):
        desk.heard()
        if (request := desk.begun(ArmWatchdog)) is not None:
            desk.hear(WatchdogUnarmed(key=request.key, reason="no such device"))
        assert watchdog.advertised_s(desk.state) is None
        desk.after(1)
    assert [(fact.kind, fact.reason) for fact in desk.told] == [("host.watchdog_unarmed", "no such device")]
    assert desk.begun(KeepPromise) is None


def test_it_is_not_armed_where_nobody_but_the_bus_could_vouch_for_its_host() -> None:
    """Losing the management plane alone touches no host (rule 4)."""
    desk = Desk(replace(DOG, peers=(), datastores=()))
    desk.turn()
    desk.hear(PromiseRead(key=desk.begun(ReadPromise).key))
    for _ in range(30):
        desk.heard()
        assert desk.begun(ArmWatchdog) is None
        desk.after(1)
    assert [(fact.kind, fact.reason) for fact in desk.told] == [("host.watchdog_unarmed", watchdog.ALONE)]
    for dog in (replace(DOG, peers=()), replace(DOG, datastores=())):
        assert armed(dog=dog).state.armed_s is not None, "one leg beside the bus will do"


def test_each_of_three_vouchers_alone_feeds_it_and_none_of_them_lets_it_go() -> None:
    desk = armed()
    for vouch in (desk.heard, desk.wrote):
        desk.after(2)
        assert not desk.fed(), "nobody has vouched for it since"
        vouch()
        assert desk.fed()
    desk.after(2)
    assert desk.begun(Greet) is not None, "peers are greeted where neither of the others vouches"
    desk.greeted("h2", "h3")
    assert not desk.fed(), "two of four are no majority"
    desk.after(1.2)
    desk.begun(Greet)
    desk.greeted("h2", "h3", "h4")
    assert desk.fed()


def test_what_vouches_counts_from_when_it_was_sent() -> None:
    desk = armed().after(3)
    desk.heard(sent_ago=watchdog.LAG_S + 0.01)
    desk.wrote(began_ago=watchdog.LAG_S + 0.01)
    assert not desk.fed()
    desk.begun(Greet)
    desk.now += watchdog.LAG_S + 0.01  # the peers took so long to say that they noted it
    desk.greeted(*PEERS)
    assert not desk.fed()
    desk.wrote(began_ago=watchdog.LAG_S - 0.01)
    assert desk.fed()


def test_an_order_to_die_takes_the_slots_voice_until_the_bus_has_heard_it_again() -> None:
    desk = armed().after(2)
    die = SlotOrder(boot=H1.boot, number=3, vms=(), die=True)
    desk.wrote(order=die)
    assert not desk.fed()
    desk.after(1)
    desk.wrote(order=die)
    assert not desk.fed(), "it lies there still"
    desk.heard(sent_ago=0.0)
    assert desk.fed(), "the bus hears it"
    desk.after(2)
    desk.wrote(order=die)
    assert desk.fed(), "whoever wrote it has heard of us since: it is void"
    desk.after(2)
    desk.wrote(order=die.model_copy(update={"number": 4}))
    assert not desk.fed(), "another one is not"
    other = armed().after(2)
    other.wrote(order=die.model_copy(update={"boot": "another"}))
    assert other.fed(), "it is not for this boot"


def test_a_host_that_nobody_hears_feeds_it_no_more_however_long() -> None:
    desk = armed()
    desk.fed()
    for _ in range(200):
        desk.after(0.5)
        if desk.begun(Greet) is not None:
            desk.greeted("h2")  # two of five that agree with each other
        assert not desk.fed()


def test_a_new_life_of_the_agent_keeps_what_the_boot_has_promised() -> None:
    """A longer time-out in the pool file holds from the next boot on; what stands is bounded by what others read."""
    stands = Promise(at=H1, timeout_s=10.0, lag_s=0.5, peers=PEERS, datastores=("nfs",))
    desk = Desk(replace(DOG, life="second", timeout_s=30.0))
    desk.turn()
    desk.hear(PromiseRead(key=desk.begun(ReadPromise).key, promise=stands))
    desk.heard(sent_ago=0.6)
    assert desk.begun(ArmWatchdog) is None, "older than what was promised to be fed on"
    desk.heard(sent_ago=0.4)
    request = desk.begun(ArmWatchdog)
    assert request.timeout_s == 10.0
    desk.hear(WatchdogArmed(key=request.key, timeout_s=10.0))
    assert desk.begun(KeepPromise) is None, "it stands as it is"
    assert watchdog.advertised_s(desk.state) == 10.0
    device = Desk(replace(DOG, life="third"))
    device.turn()
    device.hear(PromiseRead(key="promise/0", promise=stands))
    device.heard()
    device.hear(WatchdogArmed(key=device.begun(ArmWatchdog).key, timeout_s=60.0))
    device.after(2).heard()
    assert not device.fed(), "it would live longer than others think"
    assert device.told[0].kind == "host.watchdog_unarmed"


def test_other_peers_vouch_only_once_they_stand_in_the_promise() -> None:
    stands = Promise(at=H1, timeout_s=10.0, lag_s=1.0, peers=("h2",), datastores=())
    desk = Desk()
    desk.turn()
    desk.hear(PromiseRead(key=desk.begun(ReadPromise).key, promise=stands))
    desk.heard()
    desk.hear(WatchdogArmed(key=desk.begun(ArmWatchdog).key, timeout_s=10.0))
    assert desk.begun(KeepPromise).instead == stands
    desk.after(3)
    desk.greeted("h2", "h3", "h4")
    desk.wrote()
    assert not desk.fed(), "whether the old or the new one stands is not known"
    desk.hear(
        PromiseKept(key="keep", promise=stands.model_copy(update={"peers": PEERS, "datastores": ("nfs",)}))
    )
    assert desk.fed()


def test_whoever_was_presumed_dead_feeds_it_no_more() -> None:
    desk = Desk()
    desk.turn()
    gone = Promise(at=H1, timeout_s=10.0, lag_s=1.0, presumed="h1-1")
    desk.hear(PromiseRead(key=desk.begun(ReadPromise).key, promise=gone))
    for _ in range(20):
        desk.heard(0.0)
        desk.after(1)
        assert desk.begun(ArmWatchdog) is None
    assert watchdog.advertised_s(desk.state) is None


def test_a_promise_whose_storing_came_to_no_end_is_read_again_before_anything_is_built_on_it() -> None:
    desk = Desk()
    desk.turn()
    desk.hear(PromiseRead(key=desk.begun(ReadPromise).key))
    desk.heard()
    desk.hear(WatchdogArmed(key=desk.begun(ArmWatchdog).key, timeout_s=10.0))
    wanted = desk.begun(KeepPromise).promise
    desk.hear(Expired(key="keep", request="keep_promise", reason="the bus is away"))
    assert watchdog.advertised_s(desk.state) is None
    wake = watchdog.wake_at(desk.state, DOG)
    assert wake is not None
    desk.now = wake
    desk.turn()
    desk.hear(PromiseRead(key=desk.begun(ReadPromise).key, promise=wanted))
    assert watchdog.advertised_s(desk.state) == 10.0


def test_what_an_earlier_life_armed_is_fed_while_the_gate_waits_for_a_vm_that_does_not_stop() -> None:
    """Its peers know it. The watchdog goes off for a host, and a stop that fails is one VM's (rule 11)."""
    agent = Agent(at=H1, life="second", settings=Heartbeats(), dog=DOG)
    state, now = agent.initial(100.0), 100.0
    begun: list[Any] = []

    def step(event: Any = None) -> None:
        nonlocal state
        found = agent.step(state, event, now)
        state = found.state
        begun.extend(one.request for one in found.effects if isinstance(one, Act))

    step()
    assert [one.kind for one in begun] == ["pass_gate", "read_promise"]
    stands = Promise(at=H1, timeout_s=10.0, lag_s=1.0, peers=PEERS, datastores=("nfs",))
    step(PromiseRead(key="promise/0", promise=stands))
    begun = begun[2:]
    fed = 0
    while now < 130.0:
        while begun:
            match begun.pop(0):
                case Greet(key=key):
                    step(Greeted(key=key, peers=PEERS))
                case ArmWatchdog(key=key):
                    step(WatchdogArmed(key=key, timeout_s=10.0))
                case FeedWatchdog(key=key):
                    fed += 1
                    step(WatchdogFed(key=key))
                case other:
                    raise AssertionError(other)
        wake_at = agent.wake_at(state)
        assert wake_at is not None
        now = max(now, wake_at) + 0.01
        step()
    assert not state.gated
    assert fed > 25


STANDS = Promise(at=H1, timeout_s=10.0, lag_s=1.0, peers=PEERS, datastores=("nfs",))


def test_an_agent_that_starts_anew_while_the_bus_is_away_feeds_on_what_its_disk_remembers() -> None:
    """Losing the management plane alone resets no host, whatever becomes of its agent meanwhile."""
    desk = Desk(replace(DOG, life="second", recalled=(STANDS,)))
    desk.turn()
    desk.hear(Expired(key=desk.begun(ReadPromise).key, request="read_promise", reason="the bus is away"))
    desk.wrote()
    request = desk.begun(ArmWatchdog)
    assert request.timeout_s == 10.0
    desk.hear(WatchdogArmed(key=request.key, timeout_s=10.0))
    for _ in range(20):
        desk.after(1.0)
        if (read := desk.begun(ReadPromise)) is not None:
            desk.hear(Expired(key=read.key, request="read_promise", reason="the bus is away"))
        desk.wrote()
        assert desk.fed()
        assert watchdog.advertised_s(desk.state) is None, "what the bucket says is not known"
    desk.after(1.0)
    desk.hear(PromiseRead(key="promise", promise=STANDS))
    assert watchdog.advertised_s(desk.state) == 10.0
    assert desk.begun(KeepPromise) is None, "it stands as it is"


def test_nothing_is_armed_on_what_nobody_remembers() -> None:
    desk = Desk()
    desk.turn()
    desk.wrote()
    desk.heard()
    desk.after(1.0)
    assert desk.begun(ArmWatchdog) is None


def test_where_either_of_two_promises_may_stand_both_must_be_vouched_for() -> None:
    """Its last life died as it had the one stored in the place of the other: others may presume by either."""
    older = Promise(at=H1, timeout_s=8.0, lag_s=0.5, peers=("h2", "h3", "h4"), datastores=())
    desk = Desk(replace(DOG, life="second", recalled=(older, STANDS)))
    desk.turn()
    desk.wrote()
    assert desk.begun(ArmWatchdog) is None, "its slot is no voucher of the older"
    greet = desk.begun(Greet)
    assert (set(greet.peers), greet.enough) == ({"h2", "h3", "h4", "h5"}, 4)
    desk.greeted("h2", "h3")
    request = desk.begun(ArmWatchdog)
    assert (request.timeout_s, request.until) == (8.0, pytest.approx(desk.now - 0.1 + 0.5))
    only_peers = Desk(replace(DOG, life="second", recalled=(older, STANDS)))
    only_peers.turn()
    only_peers.greeted("h2", "h3")
    assert only_peers.begun(ArmWatchdog) is None, "two of four are no majority of the later"
    only_peers.hear(Greeted(key="greet/0", peers=("h2", "h3", "h4")))
    assert only_peers.begun(ArmWatchdog) is not None


def test_a_promise_that_replaces_nothing_is_fed_on_from_the_moment_of_its_storing() -> None:
    """Nobody can presume by anything else. The bus may go away right then."""
    desk = Desk()
    desk.turn()
    desk.hear(PromiseRead(key=desk.begun(ReadPromise).key))
    desk.heard()
    desk.hear(WatchdogArmed(key=desk.begun(ArmWatchdog).key, timeout_s=10.0))
    desk.begun(KeepPromise)
    desk.after(3.0)
    desk.wrote()
    assert desk.fed()
    desk.hear(Expired(key="keep", request="keep_promise", reason="the bus is away"))
    desk.after(3.0)
    desk.wrote()
    assert desk.fed(), "whether it stands is not known: if anything does, it is this"


def test_a_bus_that_does_not_answer_keeps_no_device_from_being_armed() -> None:
    desk = Desk(replace(DOG, life="second", recalled=(STANDS,)))
    desk.turn()
    desk.hear(Expired(key=desk.begun(ReadPromise).key, request="read_promise", reason="the bus is away"))
    desk.greeted(*PEERS)
    assert desk.begun(ArmWatchdog) is not None, "at once, and not when the bucket may be read again"


def test_an_agent_that_waits_at_its_gate_goes_on_to_write_its_slots_where_its_boot_is_known() -> None:
    def begun(recalled: tuple[Promise, ...]) -> list[str]:
        dog = replace(DOG, life="second", recalled=recalled)
        agent = Agent(at=H1, life="second", settings=Heartbeats(), datastores=("nfs",), dog=dog)
        step = agent.step(agent.initial(100.0), None, 100.0)
        assert not step.state.gated
        assert agent.wake_at(step.state) is not None
        return [one.request.kind for one in step.effects if isinstance(one, Act)]

    assert "write_slot" in begun((STANDS,))
    assert "write_slot" not in begun(()), "a boot that has not passed its gate says nothing"
