"""A promise is kept, claimed and withdrawn by compare-and-set: of a claim and a withdrawal one fails, whoever dies or waits."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from libs.core.ports import ConflictError, UnavailableError, WatchdogError
from libs.model import Answer, Incarnation
from libs.promises import Promise
from services.fencer.watcher import Watcher
from services.fencer.watches import ClaimPromise, PromiseSeen, ReadPromise
from services.heartbeat import orders
from services.heartbeat.keeper import Keeper
from tests.unit.made import boot
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast
H1 = boot("h1")
PROMISE = Promise(at=H1, timeout_s=10.0, lag_s=1.0, peers=("h2", "h3"), datastores=("nfs",))


class Device:
    """A watchdog that is armed, or is not."""

    def __init__(self, *, stays: bool = False) -> None:
        self.armed_s: float | None = None
        self.fed, self._stays = 0, stays

    async def arm(self, timeout_s: float) -> float:
        self.armed_s = timeout_s
        return timeout_s

    def feed(self) -> None:
        self.fed += 1

    async def disarm(self) -> None:
        if self._stays:
            raise WatchdogError("nowayout")
        self.armed_s = None


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> Any:
        raise AssertionError("nothing is decided by a wall clock")


class Peers:
    """Who notes a greeting."""

    def __init__(self, *noting: str) -> None:
        self.noting = noting

    async def ask(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        return Answer.UNKNOWN, "not asked"

    async def greet(self, host: str, me: Incarnation, timeout_s: float) -> bool:
        return host in self.noting


def keeper(world: World, device: Device, at: Incarnation = H1) -> Keeper:
    return Keeper(at, device, Process(world), Peers("h2", "h3"), Clock())


async def keep(one: Keeper, instead: Promise | None = None) -> Promise:
    request = orders.KeepPromise(key="keep", deadline_s=5, promise=PROMISE, instead=instead)
    done = await one.perform(request)
    assert isinstance(done, orders.PromiseKept)
    return done.promise


async def read(watcher: Watcher) -> PromiseSeen:
    seen = await watcher.perform(ReadPromise(key="read", deadline_s=5, host="h1", incident="h1-1"))
    assert isinstance(seen, PromiseSeen)
    return seen


def claim(seen: PromiseSeen) -> ClaimPromise:
    assert seen.promise is not None
    return ClaimPromise(
        key="claim", deadline_s=5, incident="h1-1", promise=seen.promise, revision=seen.revision
    )


async def ours(watcher: Watcher, request: ClaimPromise) -> bool:
    done: Any = await watcher.perform(request)
    return bool(done.ours)


async def test_of_a_claim_and_a_withdrawal_the_first_wins_and_the_other_fails() -> None:
    for first, second in itertools.permutations(("claim", "withdraw")):
        world, device = World(), Device()
        host, watcher = keeper(world, device), Watcher(Process(world), Process(world))
        await device.arm(10.0)
        await keep(host)
        request = claim(await read(watcher))
        came: dict[str, bool] = {}
        for what in (first, second):
            if what == "claim":
                came[what] = await ours(watcher, request)
            else:
                came[what] = await host.withdraw() == ""
        assert came == {first: True, second: False}
        assert (device.armed_s is None) is came["withdraw"], "what others count on is never disarmed"


async def test_a_claim_whose_answer_was_lost_is_known_to_be_ours() -> None:
    world = World()
    await keep(keeper(world, Device()))
    watcher = Watcher(Process(world), Process(world))
    request = claim(await read(watcher))
    assert await ours(watcher, request)
    assert await ours(watcher, request), "told again it is ours still"
    other = request.model_copy(update={"incident": "h1-2"})
    assert not await ours(watcher, other), "another incident's is not"


async def test_a_promise_that_changed_since_it_was_read_is_claimed_by_nobody() -> None:
    world = World()
    host, watcher = keeper(world, Device()), Watcher(Process(world), Process(world))
    await keep(host)
    request = claim(await read(watcher))
    longer = PROMISE.model_copy(update={"timeout_s": 60.0})
    await host.perform(orders.KeepPromise(key="k", deadline_s=5, promise=longer, instead=PROMISE))
    assert not await ours(watcher, request)


async def test_whoever_was_presumed_learns_it_and_promises_nothing_more() -> None:
    world = World()
    host, watcher = keeper(world, Device()), Watcher(Process(world), Process(world))
    await keep(host)
    assert await ours(watcher, claim(await read(watcher)))
    assert (await keep(host, PROMISE)).presumed == "h1-1"
    assert "presumed fenced in h1-1" in await host.withdraw()
    later = keeper(world, Device(), boot("h1", 2))
    fresh = PROMISE.model_copy(update={"at": boot("h1", 2)})
    done = await later.perform(orders.KeepPromise(key="k", deadline_s=5, promise=fresh))
    assert isinstance(done, orders.PromiseKept)
    assert done.promise == fresh, "another boot is another"


async def test_what_is_not_known_to_be_withdrawn_stays_armed() -> None:
    world, device = World(), Device()
    host = keeper(world, device)
    await device.arm(10.0)
    await keep(host)
    world.store_down = True
    with pytest.raises(UnavailableError):
        await host.withdraw()
    assert device.armed_s == 10.0
    world.store_down = False
    stubborn = Device(stays=True)
    await stubborn.arm(10.0)
    assert await keeper(world, stubborn).withdraw() == "nowayout"


async def test_a_promise_that_is_still_being_stored_does_not_outlive_the_withdrawal() -> None:
    """Its writer was cancelled; its write may land at any time."""
    world, device = World(), Device()
    host = keeper(world, device)
    await device.arm(10.0)
    assert await host.withdraw() == ""
    assert device.armed_s is None
    with pytest.raises(ConflictError):
        await Process(world).put("h1", PROMISE.model_dump_json().encode(), 0)
    seen = await read(Watcher(Process(world), Process(world)))
    assert seen.promise is not None
    assert seen.promise.withdrawn
    assert await keep(host) == PROMISE, "the next life of the agent promises anew"


async def test_it_is_not_fed_on_what_was_true_when_that_was_decided() -> None:
    """The agent stood still between the decision and the device."""
    device = Device()
    host = keeper(World(), device)
    assert isinstance(host.clock, Clock)
    feed = orders.FeedWatchdog(key="feed", deadline_s=5, until=host.clock.now + 0.5)
    await host.perform(feed)
    host.clock.now += 0.6
    assert await host.perform(feed) == orders.WatchdogFed(key="feed", fed=False)
    arm = orders.ArmWatchdog(key="arm", deadline_s=5, timeout_s=10, until=host.clock.now - 0.1)
    assert await host.perform(arm) == orders.WatchdogArmed(key="arm", too_late=True)
    assert (device.fed, device.armed_s) == (1, None)


async def test_a_majority_that_noted_a_greeting_is_enough_and_the_rest_is_not_waited_for() -> None:
    host = keeper(World(), Device())
    greet = orders.Greet(key="g", deadline_s=5, peers=("h1", "h2", "h3"), enough=2, within_s=1.0)
    done = await host.perform(greet)
    assert isinstance(done, orders.Greeted)
    assert set(done.peers) == {"h2", "h3"}


class Disk:
    """What a host's disk remembers, and in which order."""

    def __init__(self) -> None:
        self.said: list[tuple[Promise, ...]] = []

    def recall(self, at: Incarnation) -> tuple[Promise, ...]:
        return self.said[-1] if self.said else ()

    async def remember(self, at: Incarnation, perhaps: tuple[Promise, ...]) -> None:
        self.said.append(perhaps)


async def test_the_disk_knows_both_promises_before_the_one_is_stored_in_the_place_of_the_other() -> None:
    """So an agent that dies at whatever moment leaves to the next one all that may stand."""
    world, device, disk = World(), Device(), Disk()
    host = Keeper(H1, device, Process(world), Peers(), Clock(), disk)
    await keep(host)
    longer = PROMISE.model_copy(update={"datastores": ()})
    await host.perform(orders.KeepPromise(key="k", deadline_s=5, promise=longer, instead=PROMISE))
    assert disk.said == [(PROMISE,), (PROMISE,), (PROMISE, longer), (longer,)]
    world.store_down = True
    with pytest.raises(UnavailableError):
        await host.perform(orders.KeepPromise(key="k", deadline_s=5, promise=PROMISE, instead=longer))
    assert disk.recall(H1) == (longer,), "nothing was begun"
    world.store_down = False
    await host.withdraw()
    assert disk.recall(H1) == ()
