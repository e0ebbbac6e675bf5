"""The VMs of a host whose agent is down: watched over libvirt, told as its agent would, and never against its word."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import libvirt
import pytest

from libs.core.decider import Expired, Note, Send, Step, TableRead
from libs.crashes import crashes
from libs.events.hosts import HostAgentDown
from libs.events.signals import InventorySeen, LeaseWritten
from libs.model import (
    Answer,
    Health,
    HostState,
    Incarnation,
    Inventory,
    LeaseState,
    Offers,
    StopReason,
    VmNeeds,
    VmReport,
    VmState,
)
from libs.virt.events import watch
from services.detector.act import Hands
from services.detector.asks import Looked, LookOverLibvirt, StoreLook
from services.detector.state import DetectorState
from services.detector.watching import EVERY_S, merged
from services.executor.decide import Executor
from tests.unit.made import (
    beat,
    boot,
    crashed,
    facts,
    failed,
    inventory,
    kinds,
    lease,
    requests,
    seen,
    sent,
    stored,
    vm,
)
from tests.unit.placing import SETTINGS, Desk
from tests.unit.watch import Watch, pool
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast
H1, H2 = boot("h1"), boot("h2")
STOPPED, PAUSED = VmState.STOPPED, VmState.PAUSED
ON_PURPOSE, ORDERED, UNKNOWN = StopReason.ON_PURPOSE, StopReason.ORDERED, StopReason.UNKNOWN
LIFE = "life"


def put_down(uuid: str, **more: Any) -> VmReport:
    return vm(uuid, STOPPED, stop_reason=ON_PURPOSE, **more)


class Onlooker:
    """A pool whose h1 has lost its agent, and what its detector asks and tells of the VMs there."""

    def __init__(self, *vms: VmReport, rev: int = 3) -> None:
        self.watch: Watch = pool()
        if vms:
            self.watch.hear(seen(H1, *vms, rev=rev, agent=LIFE))
        self.watch.gone("h1")
        assert self.watch.answer("h1", "libvirt", Answer.UP) == ["host.agent_down"]
        self.notes: list[str] = []
        self.sent: list[Inventory] = []

    def looks(self) -> list[LookOverLibvirt]:
        return [one for one in self.watch.asked if isinstance(one, LookOverLibvirt)]

    def stores(self) -> list[Inventory]:
        return [one.inventory for one in self.watch.asked if isinstance(one, StoreLook)]

    def passes(self, seconds: float) -> None:
        """Time passes in which its libvirt answers the questions of the detector."""
        until = self.watch.now + seconds
        while self.watch.now < until:
            self.watch.after(min(0.5, until - self.watch.now))
            self.watch.answer("h1", "libvirt", Answer.UP)

    def take(self, step: Step[DetectorState]) -> list[str]:
        self.notes += [effect.text for effect in step.effects if isinstance(effect, Note)]
        self.sent += [one.inventory for one in sent(step.effects) if isinstance(one, InventorySeen)]
        return self.watch.take(step)

    def hear(self, event: Any) -> list[str]:
        return self.take(self.watch.decider.step(self.watch.state, event, self.watch.now))

    def shows(self, *vms: VmReport, at: Incarnation = H1) -> list[str]:
        """The next look brings this."""
        self.passes(EVERY_S + 0.2)
        asked = self.looks()[-1]
        return self.hear(Looked(key=asked.key, at=at, agent=asked.agent, rev=asked.rev, reports=vms))


# -- when it is looked


def test_a_host_is_looked_at_from_when_its_agent_is_held_down_until_it_speaks() -> None:
    on = Onlooker(vm("a"))
    on.passes(0.2)
    first = on.looks()[0]
    assert (first.at, first.agent, first.rev) == (H1, LIFE, 3)
    for _ in range(3):
        assert on.shows(vm("a")) == []
    assert len(on.looks()) == 3
    assert {look.at.host for look in on.looks()} == {"h1"}, "of the others their agents tell"
    assert on.watch.hear(beat("h1")) == ["host.refuted"]
    on.watch.silent.clear()
    on.watch.after(10)
    assert len(on.looks()) == 3


def test_one_look_at_a_time_and_a_host_that_hangs_is_asked_again() -> None:
    on = Onlooker(vm("a"))
    on.passes(6)
    assert len(on.looks()) == 1, "it is under way"
    for _ in range(2):
        asked = on.looks()[-1]
        assert on.hear(Expired(key=asked.key, request=asked.kind, reason="no answer in 2 s")) == []
        on.passes(EVERY_S + 0.2)
    assert len(on.looks()) == 3
    assert on.notes == ["the VMs of h1 cannot be watched: no answer in 2 s"], "said once"
    assert not on.sent, "nothing is known: nothing is told"
    on.shows(vm("a"))
    assert on.notes[1:] == ["the VMs of h1 can be watched again"]


def test_without_a_word_of_its_agent_on_this_boot_there_is_nothing_to_go_on_from() -> None:
    on = Onlooker()
    on.passes(6)
    assert on.looks() == []
    on.watch.hear(seen(H1, vm("a"), agent=LIFE))
    on.passes(0.2)
    assert len(on.looks()) == 1


# -- what a look comes to


def test_a_vm_that_crashed_is_told_as_by_its_agent_once_and_the_look_is_shared_and_kept() -> None:
    on = Onlooker(vm("a", run=7), vm("b"))
    assert on.shows(crashed("a", run=0), vm("b")) == ["vm.failed"]
    fact = on.watch.told[-1]
    assert (fact.vm, fact.at, fact.run, fact.agent, fact.rev, fact.look) == ("a", H1, 7, LIFE, 3, 1)
    assert [(one.agent, one.rev, one.look) for one in on.sent] == [(LIFE, 3, 1)]
    assert on.stores() == on.sent
    assert on.shows(crashed("a", run=0), vm("b")) == []
    assert on.sent[-1].look == 2
    assert len(on.stores()) == 1, "what did not change is not stored again"
    assert on.watch.is_("h1") is HostState.AGENT_DOWN, "no failover"


def test_a_look_that_could_not_be_stored_is_stored_with_the_next() -> None:
    on = Onlooker(vm("a"))
    on.shows(put_down("a"))
    stored = next(one for one in on.watch.asked if isinstance(one, StoreLook))
    on.hear(Expired(key=stored.key, request=stored.kind, reason="no quorum"))
    on.shows(put_down("a"))
    assert [one.look for one in on.stores()] == [1, 2]


def test_a_late_look_says_nothing_once_the_agent_has_spoken() -> None:
    on = Onlooker(vm("a"))
    on.passes(0.2)
    asked = on.looks()[-1]
    late = Looked(key=asked.key, at=H1, agent=asked.agent, rev=asked.rev, reports=(crashed("a"),))
    on.watch.hear(seen(H1, vm("a", run=2), agent="next"))  # told before its heartbeat is heard
    assert on.hear(late) == []
    on.watch.hear(beat("h1"))
    assert on.hear(late) == []
    assert not on.sent
    known = on.watch.state.view("h1").inventory
    assert known is not None
    assert (known.agent, known.look) == ("next", 0)


def test_a_look_at_another_boot_says_nothing() -> None:
    on = Onlooker(vm("a"))
    assert on.shows(crashed("a"), at=boot("h1", 2)) == []
    assert not on.sent


@pytest.mark.parametrize(
    ("told", "known", "outdated"),
    [
        # the agent's own word: agent, rev, look
        (("one", 3, 0), None, False),
        (("one", 3, 0), ("one", 2, 0), False),
        (("one", 3, 0), ("one", 4, 0), True),
        (("two", 1, 0), ("one", 9, 0), False),
        (("two", 1, 0), ("one", 9, 5), False),
        (("one", 4, 0), ("one", 3, 5), False),
        (("one", 3, 0), ("one", 3, 5), True),
        # a look in its name
        (("one", 3, 1), None, False),
        (("one", 3, 1), ("one", 3, 0), False),
        (("one", 3, 1), ("one", 3, 2), True),
        (("one", 3, 9), ("one", 4, 0), True),
        (("one", 3, 9), ("two", 1, 0), True),
    ],
)
def test_which_word_on_a_host_is_the_newer(
    told: tuple[str, int, int], known: tuple[str, int, int] | None, outdated: bool
) -> None:
    def said(word: tuple[str, int, int]) -> Inventory:
        return inventory(H1, agent=word[0], rev=word[1]).model_copy(update={"look": word[2]})

    assert said(told).outdated(None if known is None else said(known)) is outdated


def test_a_look_at_a_boot_is_void_where_another_boot_has_spoken() -> None:
    late = inventory(H1, agent="one").model_copy(update={"look": 4})
    assert late.outdated(inventory(boot("h1", 2), agent="two"))
    assert not inventory(boot("h1", 2), agent="two").outdated(late)


# -- what libvirt shows, and what only the agent knew


@pytest.mark.parametrize(
    ("known", "shown", "ordered", "expected"),
    [
        (vm("a", health=Health.SILENT), vm("a"), False, {"health": Health.SILENT}),
        (vm("a", health=Health.OK), vm("a", run=2), False, {"health": Health.UNKNOWN, "run": 2}),
        (
            vm("a", health=Health.OK),
            vm("a", PAUSED, health=Health.PANICKED),
            False,
            {"health": Health.PANICKED},
        ),
        (vm("a", run=7), crashed("a", run=3), False, {"run": 7, "stop_reason": StopReason.CRASHED}),
        (vm("a", run=7), put_down("a", run=0), False, {"run": 7, "stop_reason": ON_PURPOSE}),
        (vm("a"), put_down("a"), True, {"stop_reason": UNKNOWN}),
        (vm("a", STOPPED, stop_reason=ORDERED), put_down("a"), False, {"stop_reason": ORDERED}),
        (vm("a", STOPPED, stop_reason=UNKNOWN), put_down("a"), True, {"stop_reason": UNKNOWN}),
        (crashed("a"), put_down("a"), False, {"stop_reason": StopReason.CRASHED}),
        (crashed("a", token=1), put_down("a", token=2), False, {"stop_reason": ON_PURPOSE}),
        (vm("a"), vm("a", VmState.UNKNOWN, run=0), False, {"state": VmState.UNKNOWN}),
        (vm("a", datastores=("nfs",)), vm("a"), False, {"datastores": ("nfs",)}),
        (vm("a", needs=VmNeeds(networks=("br0",))), vm("a"), False, {"needs": VmNeeds(networks=("br0",))}),
        (None, vm("a"), False, {"state": VmState.RUNNING}),
    ],
)
def test_what_a_look_shows_stands_beside_what_only_the_agent_knew(
    known: VmReport | None, shown: VmReport, ordered: bool, expected: dict[str, object]
) -> None:
    before = inventory(H1, *(() if known is None else (known,)))
    [found] = merged(before, [shown], ordered=ordered)
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_vm_that_vanished_ended_for_no_known_reason_and_is_told_once() -> None:
    [gone] = merged(inventory(H1, vm("a", health=Health.OK, agent=True)), [], ordered=False)
    assert (gone.state, gone.stop_reason, gone.health, gone.agent) == (
        STOPPED,
        UNKNOWN,
        Health.UNKNOWN,
        False,
    )
    assert merged(inventory(H1, gone), [], ordered=False) == ()


def test_a_host_that_was_ordered_to_stop_vms_is_not_asked_why_one_stopped() -> None:
    on = Onlooker(vm("a"))
    record = on.watch.state.record("h1")
    isolated = record.model_copy(update={"incident": f"h1-{H1.boot[:8]}-1", "epoch": 1})
    on.watch.resume(on.watch.state.records.insert("h1", isolated))
    on.shows(put_down("a"))
    assert [one.stop_reason for one in on.sent[-1].vms] == [UNKNOWN]


# -- what the others make of it


def look(at: Incarnation, *vms: VmReport, number: int = 1, rev: int = 1, agent: str = LIFE) -> InventorySeen:
    return InventorySeen(
        inventory=inventory(at, *vms, agent=agent, rev=rev).model_copy(update={"look": number})
    )


def agent_down(host: str = "h1") -> HostAgentDown:
    return HostAgentDown(at=boot(host), number=1, evidence=())


def _crash(desk: Desk, number: int = 2) -> list[str]:
    """What a look shows, and the fact that follows from it."""
    shown = look(H1, crashed("a"), number=number)
    told = desk.hear(shown)
    for fact in crashes(shown.inventory, None):
        told += desk.hear(fact)
    return told


def test_a_vm_that_crashes_on_a_host_without_its_agent_starts_elsewhere_and_its_host_is_asked_first() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.off.add("h1")
    desk.hear(agent_down())
    desk.hear(look(H1, vm("a")))
    assert _crash(desk) == ["failover.planned"]
    [start] = desk.told[-1].starts
    assert start.to.host in ("h2", "h3"), "a host without its agent takes no starts"
    assert (start.origin, start.run, start.proofs) == (H1, 1, ()), "by its own host's word alone"


def test_a_crash_that_waited_for_its_host_goes_elsewhere_once_its_agent_is_down() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.off.add("h1")
    desk.after(3)
    desk.vms["h1"] = [crashed("a")]
    desk.hear(seen(H1, crashed("a"), memory_mib=1000))
    for fact in crashes(inventory(H1, crashed("a")), None):
        desk.hear(fact)
    assert "failover.planned" not in desk.after(5), "it waits: its host may speak again"
    desk.hear(agent_down())
    desk.hear(look(H1, crashed("a")))
    assert desk.after(1) == ["failover.planned"]


def test_placement_that_began_late_knows_by_the_look_alone() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.off.add("h1")
    desk.after(3)
    assert _crash(desk) == ["failover.planned"]


@pytest.mark.parametrize("heard", [0, 1], ids=["the agent's word before it fell silent", "the look before"])
def test_what_is_older_than_the_failure_that_a_look_showed_says_nothing_of_it(heard: int) -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.off.add("h1")
    desk.hear(agent_down())
    if heard:
        desk.hear(look(H1, vm("a"), number=heard))
    ill = vm("a", PAUSED, health=Health.PANICKED)
    for fact in crashes(look(H1, ill, number=2).inventory, None):  # it overtakes the look itself
        desk.hear(fact)
    desk.hear(look(H1, ill, number=2))
    assert desk.after(4) == ["failover.planned"]
    [start] = desk.told[-1].starts
    assert (start.evict, start.to.host in ("h2", "h3")) == (True, True)


def test_a_vm_that_a_person_started_again_there_needs_no_start_of_ours() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.off |= {"h1", "h2", "h3"}
    desk.after(3)
    desk.hear(agent_down())
    _crash(desk)  # nowhere to start it
    desk.hear(look(H1, vm("a", run=2), number=3))
    assert "failover.completed" in desk.after(1)


def test_after_the_verdict_on_the_host_nothing_starts_before_the_proof() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    desk.off.add("h1")
    desk.hear(agent_down())
    desk.hear(look(H1, vm("a")))
    desk.hear(failed(H1, vm("a")))
    assert _crash(desk) == []
    assert desk.after(5) == []


def test_a_late_look_does_not_take_placement_back_behind_the_agents_word() -> None:
    desk = Desk()
    desk.hear(seen(H1, vm("a", run=2), agent="next", memory_mib=1000))
    desk.hear(look(H1, crashed("a"), number=9))
    heard = desk.state.heard["h1"].vm("a")
    assert heard is not None
    assert heard.state is VmState.RUNNING


def test_a_vm_that_is_shut_down_while_nobody_but_libvirt_tells_gives_its_lease_up() -> None:
    executor = Executor(SETTINGS)
    state = executor.initial(0.0)
    state = executor.step(state, LeaseWritten(lease=lease("a", H1)), 0.0).state
    state = executor.step(state, seen(H1, vm("a")), 0.0).state
    step = executor.step(state, look(H1, put_down("a")), 1.0)
    [write] = requests(step.effects)
    assert (write.lease.vm, write.lease.state) == ("a", LeaseState.STOPPED)
    late = executor.step(step.state, seen(H1, vm("a", run=2), agent="next"), 2.0)
    again = executor.step(late.state, look(H1, put_down("a"), number=7), 3.0)
    assert again.state.heard["h1"].agent == "next"
    assert (facts(again.effects), kinds(again.effects)) == ([], [])


# -- keeping it


def _hands(world: World) -> Hands:
    process: Any = Process(world)
    return Hands(process, process, process, process, process, 1.0)


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (None, LIFE),
        (inventory(H1, vm("a"), agent=LIFE), LIFE),
        (inventory(H1, vm("a"), agent="next"), "next"),
        (inventory(H1, vm("a"), agent=LIFE, rev=2), LIFE),
    ],
)
def test_a_look_is_kept_unless_the_agent_has_kept_something_since(
    stored: Inventory | None, kept: str
) -> None:
    world = World()
    if stored is not None:
        world.revision += 1
        world.rows["h1"] = (stored.model_dump_json().encode(), world.revision)
    shown = look(H1, put_down("a")).inventory
    request = StoreLook(key="store/h1/1/1", deadline_s=1.0, inventory=shown)
    asyncio.run(_hands(world).perform(request))
    row = Inventory.model_validate_json(world.rows["h1"][0])
    fresh = stored is None or (stored.agent, stored.rev) == (LIFE, 1)
    assert (row.agent, row == shown) == (kept, fresh)


@pytest.mark.parametrize("same_boot", [True, False])
def test_a_look_keeps_what_the_host_offers_which_nobody_but_its_agent_told(same_boot: bool) -> None:
    world, has = World(), Offers(networks=("br0",))
    at = H1 if same_boot else boot("h1", 2)
    told = inventory(at, vm("a"), agent=LIFE if same_boot else "former").model_copy(update={"offers": has})
    world.revision += 1
    world.rows["h1"] = (told.model_dump_json().encode(), world.revision)
    shown = look(H1, put_down("a")).inventory.model_copy(update={"look": 1 if same_boot else 0})
    asyncio.run(_hands(world).perform(StoreLook(key="store/h1/1/1", deadline_s=1.0, inventory=shown)))
    row = Inventory.model_validate_json(world.rows["h1"][0])
    assert (row.at, row.offers) == (H1, has if same_boot else None)


def test_a_look_is_sent_where_its_agents_word_would_be_heard() -> None:
    on = Onlooker(vm("a"))
    on.passes(EVERY_S + 0.2)
    asked = on.looks()[-1]
    answer = Looked(key=asked.key, at=H1, agent=asked.agent, rev=asked.rev, reports=(vm("a"),))
    step = on.watch.decider.step(on.watch.state, answer, on.watch.now)
    assert [effect.topic for effect in step.effects if isinstance(effect, Send)] == ["inventory.h1"]


async def test_of_libvirts_events_only_a_migration_away_says_that_a_vm_departed() -> None:
    registered: dict[int, Any] = {}

    class Connection:
        def domainEventRegisterAny(self, domain: None, event: int, callback: Any, opaque: None) -> None:
            registered[event] = callback

        def registerCloseCallback(self, callback: Any, opaque: None) -> None: ...

    class Opened:
        def on_open(self, opened: Any) -> None:
            opened(Connection())

    class Domain:
        def UUIDString(self) -> str:
            return "a"

    stirred: list[int] = []
    departed: list[str] = []
    host: Any = Opened()
    watch(host, lambda: stirred.append(1), departed=departed.append)
    await asyncio.sleep(0)
    stopped = libvirt.VIR_DOMAIN_EVENT_STOPPED
    for detail in (libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED):
        registered[libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE](None, Domain(), stopped, detail, None)
    assert (departed, len(stirred)) == (["a"], 3)


# -- from when on it is known in which boot the host is


def clocked(watch: Watch, machine: str) -> Watch:
    watch.decider = dataclasses.replace(watch.decider, machine=machine)
    watch.state = dataclasses.replace(watch.state, machine=machine)
    return watch


def test_a_look_says_how_long_ago_its_host_was_heard_in_this_boot() -> None:
    on = Onlooker(vm("a"))
    on.passes(0.2)
    first = on.looks()[0].known_s
    assert first == pytest.approx(2.0, abs=0.5)
    on.shows(vm("a"))
    on.passes(EVERY_S + 0.2)
    assert on.looks()[1].known_s == pytest.approx(first + 2 * EVERY_S, abs=0.6)  # type: ignore[operator]


@pytest.mark.parametrize(("machine", "knows"), [("m1", True), ("m2", False), ("", False)])
def test_a_detector_that_starts_while_an_agent_is_down_knows_from_its_predecessor_on_the_same_machine(
    machine: str, knows: bool
) -> None:
    """On another machine, or after a reboot of this one, the stored time is of a clock that is not ours."""
    before = clocked(pool(), "m1")
    before.hear(seen(H1, vm("a"), agent=LIFE))
    before.after(3.0)
    before.gone("h1")
    before.answer("h1", "libvirt", Answer.UP)
    after = clocked(Watch(*before.decider.hosts, now=before.now + 40.0), machine)
    after.silent.add("h1")
    for host in ("h2", "h3", "h4", "h5"):
        after.hear(beat(host))
    after.resume(stored(before.state.records))
    after.hear(TableRead("inventory", (inventory(H1, vm("a"), agent=LIFE, rev=3),)))
    after.after(1.0)
    [look] = [one for one in after.asked if isinstance(one, LookOverLibvirt)]
    if knows:
        assert look.known_s == pytest.approx(42.0, abs=1.5), "since its last heartbeat, whoever heard that"
    else:
        assert look.known_s is None


def test_a_stored_time_that_lies_ahead_is_of_no_use() -> None:
    before = clocked(pool(), "m1")
    before.hear(seen(H1, vm("a"), agent=LIFE))
    before.gone("h1")
    before.answer("h1", "libvirt", Answer.UP)
    after = clocked(Watch(*before.decider.hosts, now=before.now - 500.0), "m1")
    after.silent.add("h1")
    after.resume(stored(before.state.records))
    after.hear(TableRead("inventory", (inventory(H1, vm("a"), agent=LIFE, rev=3),)))
    after.after(1.0)
    assert [one.known_s for one in after.asked if isinstance(one, LookOverLibvirt)] == [None]
