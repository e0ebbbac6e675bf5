"""The agent of one host: the gate before the first beat, and never "stopped" for what could not be read."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from libs.config.settings import Heartbeats
from libs.core.clock import SystemClock
from libs.core.decider import BusChanged, Expired, Input, Step
from libs.core.ports import Hypervisor, Hypervisors, UnavailableError
from libs.events.signals import Heartbeat, InventorySeen, Question, Reply
from libs.model import (
    Answer,
    DiskLocks,
    Health,
    Incarnation,
    Inventory,
    Offers,
    Protection,
    StopReason,
    VmDefinition,
    VmPolicy,
    VmReport,
    VmState,
)
from libs.promises import SlotBeat, SlotOrder
from services.heartbeat.act import Hands
from services.heartbeat.decide import Agent
from services.heartbeat.orders import (
    AllRead,
    Condemned,
    Departed,
    GatePassed,
    PassGate,
    Pinged,
    PingGuests,
    PutDefinition,
    ReadAll,
    Stirred,
    StopAgain,
    Stopped,
    StopsTried,
    Told,
    WriteSlot,
    WroteSlot,
)
from services.heartbeat.state import AgentState
from tests.unit.made import boot, facts, inventory, kinds, lease, requests, sent, vm
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast
H1, H2 = boot("h1"), boot("h2")


def definition(uuid: str, xml: str = "<a/>") -> VmDefinition:
    return VmDefinition(uuid=uuid, name=uuid.upper(), xml=xml, sha256=xml)


class Desk:
    """An agent driven by hand."""

    def __init__(self, **settings: Any) -> None:
        self.decider = Agent(at=H1, life="life", settings=Heartbeats(**settings), memory_reserved_mib=64)
        self.now = 10.0
        self.state: AgentState = self.decider.initial(self.now)
        self.asked: list[Any] = []
        self.said: list[Any] = []
        self.told: list[Any] = []

    def take(self, step: Step[AgentState]) -> list[str]:
        self.state = step.state
        self.asked += requests(step.effects)
        self.said += sent(step.effects)
        self.told += facts(step.effects)
        return [
            *kinds(step.effects),
            *(signal.kind for signal in sent(step.effects)),
            *(request.kind for request in requests(step.effects)),
        ]

    def hear(self, event: Input) -> list[str]:
        return self.take(self.decider.step(self.state, event, self.now))

    def wait(self) -> list[str]:
        wake_at = self.decider.wake_at(self.state)
        assert wake_at is not None
        self.now = max(self.now, wake_at)
        told = self.take(self.decider.step(self.state, None, self.now))
        again = self.decider.wake_at(self.state)
        assert again is not None
        assert again > self.now
        return told

    def after(self, seconds: float) -> list[str]:
        until, told = self.now + seconds, []
        while (self.decider.wake_at(self.state) or until) < until:
            told += self.wait()
        self.now = until
        return told

    def passed(self, *stopped: Stopped) -> Desk:
        self.wait()
        self.hear(GatePassed(key=self.asked[-1].key, stopped=stopped))
        return self

    def reads(self, *vms: VmReport, definitions: tuple[VmDefinition, ...] = ()) -> list[str]:
        """The reading under way ends so."""
        assert self.state.reading
        return self.hear(AllRead(key="read/0", memory_mib=1000, cpus=4, reports=vms, definitions=definitions))

    def shown(self) -> list[VmReport]:
        last = next(one for one in reversed(self.said) if isinstance(one, InventorySeen))
        return list(last.inventory.vms)


# -- the gate


def test_no_beat_leaves_before_the_gate_is_passed() -> None:
    desk = Desk()
    assert desk.wait() == ["pass_gate"]
    for attempt in range(1, 20):
        assert desk.hear(Expired(key="gate", request="pass_gate", reason="libvirt is away")) == []
        assert desk.wait() == ["pass_gate"]
        assert desk.asked[-1].key == f"gate/{attempt}"
    assert desk.said == []
    assert desk.hear(GatePassed(key="gate/19")) == ["heartbeat", "read_all"]


def test_a_gate_without_an_end_is_tried_again() -> None:
    desk = Desk()
    desk.wait()
    assert desk.after(120.0) == ["pass_gate"]


def test_what_the_gate_stopped_is_told() -> None:
    desk = Desk()
    desk.passed(Stopped(report=vm("a"), lease=lease("a", H2, token=7)))
    assert [(fact.vm, fact.token, fact.holder) for fact in desk.told] == [("a", 7, H2)]


CLINGS = Condemned(report=vm("a"), lease=lease("a", H2, token=7), reason="busy")


def test_a_stop_that_fails_for_good_condemns_its_vm_and_not_its_host() -> None:
    desk = Desk()
    desk.wait()
    while not desk.asked[-1].condemn:
        assert desk.now < 20.0
        assert desk.hear(Expired(key="gate", request="pass_gate", reason="busy")) == []
        desk.wait()
    # it is in the stream before this boot is heard: nobody can take the VM for stopped
    assert desk.hear(GatePassed(key="gate/x", condemned=(CLINGS,))) == ["tell"]
    assert [(fact.vm, fact.holder, fact.reason) for fact in desk.asked[-1].facts] == [("a", H2, "busy")]
    assert desk.said == []
    assert desk.hear(Told(key="tell/x")) == ["heartbeat", "read_all"]
    desk.reads(vm("a"))
    said = [signal for signal in desk.said if isinstance(signal, InventorySeen)][-1]
    assert said.inventory.condemned == ("a",)


def test_what_could_not_be_told_is_told_before_the_first_beat_all_the_same() -> None:
    desk = Desk()
    desk.wait()
    desk.hear(GatePassed(key="gate/0", condemned=(CLINGS,)))
    desk.hear(Expired(key="tell", request="tell", reason="no leader"))
    assert desk.wait() == ["pass_gate"]
    assert desk.said == []


def test_the_stop_of_a_condemned_vm_is_tried_for_ever_and_its_end_is_told() -> None:
    desk = Desk()
    desk.wait()
    desk.hear(GatePassed(key="gate/0", condemned=(CLINGS,)))
    desk.hear(Told(key="tell"))
    desk.reads(vm("a"))
    for _ in range(5):
        assert "stop_again" in desk.after(6.0)
        desk.hear(StopsTried(key="stop", condemned=(CLINGS,)))
    assert "stop_again" in desk.after(6.0)
    desk.hear(Expired(key="stop", request="stop_again", reason="no end"))
    assert "stop_again" in desk.after(6.0)
    stopped = Stopped(report=CLINGS.report, lease=CLINGS.lease)
    assert desk.hear(StopsTried(key="stop", stopped=(stopped,))) == ["vm.stopped_by_gate", "vm.stop_settled"]
    assert "stop_again" not in desk.after(60.0)
    desk.reads(vm("a", VmState.STOPPED))
    said = [signal for signal in desk.said if isinstance(signal, InventorySeen)][-1]
    assert said.inventory.condemned == ()


def test_events_and_readings_before_the_gate_say_nothing() -> None:
    desk = Desk()
    desk.hear(Stirred(key="libvirt"))
    assert desk.said == []


# -- beats


def test_it_beats_every_half_second_and_makes_up_for_nothing() -> None:
    desk = Desk().passed()
    desk.reads()
    desk.said.clear()
    desk.after(10.0)
    beats = [signal for signal in desk.said if isinstance(signal, Heartbeat)]
    assert 19 <= len(beats) <= 21
    assert [beat.seq for beat in beats] == list(range(beats[0].seq, beats[0].seq + len(beats)))
    desk.said.clear()
    desk.now += 60.0  # stood still
    desk.wait()
    assert len([signal for signal in desk.said if isinstance(signal, Heartbeat)]) == 1


def test_a_datastore_that_is_back_is_told_of_at_once() -> None:
    desk = Desk()
    desk.decider = replace(desk.decider, datastores=("nfs",))
    desk.state = desk.decider.initial(desk.now)
    desk.passed().after(0.1)

    def ends(*, taken: bool) -> None:
        key = next(one.key for one in reversed(desk.asked) if isinstance(one, WriteSlot))
        missed = Expired(key=key, request="write_slot", reason="no answer")
        desk.hear(WroteSlot(key=key, datastore="nfs") if taken else missed)

    ends(taken=True)
    assert desk.after(0.2) == [], "what is as ever is told with the next beat"
    desk.after(3.0)
    ends(taken=False)
    desk.after(3.1)
    ends(taken=True)
    assert "heartbeat" in desk.wait()
    beats = [signal for signal in desk.said if isinstance(signal, Heartbeat)]
    assert beats[-1].stores == {"nfs": 0.0}, "in the same moment"
    assert beats[-2].stores["nfs"] > 5.0


def test_beats_go_on_while_libvirt_cannot_be_read() -> None:
    desk = Desk().passed()
    desk.hear(Expired(key="read/0", request="read_all", reason="no answer"))
    told = desk.after(5.0)
    assert told.count("heartbeat") >= 9
    assert "read_all" in told


# -- readings


def test_a_reading_that_fails_makes_no_vm_stopped() -> None:
    desk = Desk().passed()
    desk.reads(vm("a"), vm("b"))
    for _ in range(20):
        desk.after(5.0)
        desk.hear(Expired(key="read", request="read_all", reason="no answer"))
    assert [(report.uuid, report.state) for report in desk.shown()] == [
        ("a", VmState.RUNNING),
        ("b", VmState.RUNNING),
    ]
    assert {one.inventory.rev for one in desk.said if isinstance(one, InventorySeen)} == {1}


def test_a_change_is_said_and_stored_at_once_and_a_repeat_only_said_in_its_turn() -> None:
    desk = Desk().passed()
    assert desk.reads(vm("a")) == ["inventory", "put_inventory"]
    desk.after(5.1)
    assert desk.reads(vm("a")) == []
    desk.after(5.1)
    assert desk.reads(vm("a", VmState.PAUSED)) == ["inventory", "put_inventory"]
    assert desk.asked[-1].inventory.rev == 2


def test_after_it_was_cut_off_its_inventory_is_said_again_at_once() -> None:
    """What changed meanwhile was said to nobody, and a beat says only that it changed."""
    desk = Desk().passed()
    desk.reads(vm("a"))
    desk.after(1.0)
    desk.hear(BusChanged(connected=True))
    assert "inventory" in desk.wait()
    assert [one.uuid for one in desk.shown()] == ["a"]


def test_an_inventory_that_was_not_stored_is_stored_at_the_next_reading() -> None:
    desk = Desk().passed()
    desk.reads(vm("a"))
    desk.hear(Expired(key="inventory/1/1", request="put_inventory", reason="no answer"))
    desk.after(5.1)
    assert desk.reads(vm("a")) == ["put_inventory"]


def test_an_event_in_the_middle_of_a_reading_brings_another() -> None:
    desk = Desk().passed()
    desk.hear(Stirred(key="libvirt"))
    desk.reads(vm("a"))
    assert "read_all" in desk.after(0.1)
    assert desk.reads(vm("a", VmState.PAUSED)) == ["inventory", "put_inventory"]
    desk.after(0.2)
    assert not desk.state.reading
    desk.hear(Stirred(key="libvirt"))
    assert "read_all" in desk.after(0.1)


def test_a_transient_vm_that_vanished_is_shown_as_stopped_for_no_known_reason_and_forgotten_later() -> None:
    desk = Desk().passed()
    desk.reads(vm("a"), vm("b", VmState.STOPPED))
    desk.after(5.1)
    desk.reads()
    assert [(r.uuid, r.state, r.stop_reason) for r in desk.shown()] == [
        ("a", VmState.STOPPED, StopReason.UNKNOWN)
    ]
    for _ in range(130):
        desk.after(5.1)
        desk.reads()
    assert desk.shown() == []
    assert len(desk.state.buried) == 0


@pytest.mark.parametrize("while_reading", [False, True])
def test_a_vm_whose_definition_went_along_with_its_migration_is_shown_as_migrated(
    while_reading: bool,
) -> None:
    """`virsh migrate --undefinesource`: that it vanished says nothing, and the event says it once."""
    desk = Desk().passed()
    desk.reads(vm("a"), vm("b"))
    desk.after(5.1)
    if not while_reading:
        desk.reads(vm("a"), vm("b"))
    desk.hear(Departed(key="libvirt", vm="a"))
    if while_reading:
        desk.reads(vm("a"), vm("b"))  # it was still there as that began
    desk.after(0.2)
    desk.reads()
    assert {r.uuid: r.stop_reason for r in desk.shown()} == {
        "a": StopReason.MIGRATED,
        "b": StopReason.UNKNOWN,
    }
    desk.after(5.1)
    desk.reads(vm("a", run=2))
    desk.after(5.1)
    desk.reads()
    assert [r.stop_reason for r in desk.shown() if r.uuid == "a"] == [StopReason.UNKNOWN], "another run"
    for _ in range(130):
        desk.after(5.1)
        desk.reads()
    assert len(desk.state.departed) == 0


def test_a_vm_that_vanished_and_came_back_is_shown_as_it_is() -> None:
    desk = Desk().passed()
    desk.reads(vm("a"))
    desk.after(5.1)
    desk.reads()
    desk.after(5.1)
    desk.reads(vm("a", run=2))
    assert [(r.state, r.run) for r in desk.shown()] == [(VmState.RUNNING, 2)]


def test_definitions_are_copied_on_change_and_with_whether_they_run() -> None:
    desk = Desk().passed()
    desk.reads(vm("a"), definitions=(definition("a"), definition("b")))
    puts = [one for one in desk.asked if isinstance(one, PutDefinition)]
    assert [(put.definition.uuid, put.active) for put in puts] == [("a", True), ("b", False)]
    desk.asked.clear()
    desk.after(5.1)
    desk.reads(vm("a"), definitions=(definition("a", "<changed/>"), definition("b")))
    assert [one.definition.xml for one in desk.asked if isinstance(one, PutDefinition)] == ["<changed/>"]
    desk.hear(Expired(key=desk.asked[-1].key, request="put_definition", reason="no answer"))
    desk.asked.clear()
    desk.after(5.1)
    desk.reads(vm("a"), definitions=(definition("a", "<changed/>"), definition("b")))
    assert [one.definition.uuid for one in desk.asked if isinstance(one, PutDefinition)] == ["a"]


@pytest.mark.parametrize("told", [True, False], ids=["libvirt tells of it", "its event was lost"])
def test_a_policy_that_a_person_changed_is_shown_at_once_or_at_the_next_reading(told: bool) -> None:
    desk = Desk().passed()
    desk.reads(vm("a", policy=VmPolicy(protection=Protection.NONE)))
    if told:
        desk.hear(Stirred(key="libvirt"))
    desk.after(0.1 if told else 5.1)
    changed = vm("a", policy=VmPolicy(protection=Protection.RESTART))
    desk.reads(changed, definitions=(definition("a", "<protected/>"),))
    assert [report.policy.protection for report in desk.shown()] == [Protection.RESTART]
    assert [one.definition.xml for one in desk.asked if isinstance(one, PutDefinition)] == ["<protected/>"]


# -- the hands


class Libvirt:
    """A hypervisor in memory that may not answer."""

    def __init__(self, *vms: VmReport, away: bool = False) -> None:
        self.vms, self.away, self.destroyed = list(vms), away, list[str]()
        self.runs: dict[str, int] = {}
        self.pinged: list[str] = []
        self.mute: set[str] = set()
        self.hung: set[str] = set()
        self.deaf: set[str] = set()
        self.clings: set[str] = set()
        """VMs that do not let themselves be stopped."""

    async def reports(self) -> list[VmReport]:
        if self.away:
            raise UnavailableError("no answer")
        return self.vms

    async def report(self, uuid: str) -> VmReport | None:
        return next((one for one in self.vms if one.uuid == uuid), None)

    async def addresses(self, uuid: str) -> tuple[str, ...]:
        raise AssertionError("an agent probes no guest")

    async def start(self, definition: VmDefinition, token: int) -> None:
        raise AssertionError("an agent starts nothing")

    async def destroy(self, uuid: str) -> None:
        if uuid in self.clings:
            raise UnavailableError(f"{uuid}: Device or resource busy")
        self.destroyed.append(uuid)

    async def migrate(self, uuid: str, target: Hypervisor, timeout_s: float) -> None:
        raise AssertionError("an agent moves nothing")

    async def shut_down(self, uuid: str, grace_s: float) -> None:
        await self.destroy(uuid)

    async def node(self) -> tuple[int, int]:
        return 1000, 4

    async def offers(self) -> Offers | None:
        return None

    async def disk_locks(self) -> DiskLocks | None:
        return DiskLocks(manager="lockd", automatic=True)

    async def definitions(self) -> list[VmDefinition]:
        return []

    async def ping_guest(self, uuid: str, timeout_s: float) -> bool:
        self.pinged.append(uuid)
        if uuid in self.deaf:
            raise UnavailableError(f"{uuid}: its agent is not connected")
        if uuid in self.hung:
            await asyncio.Event().wait()
        return uuid not in self.mute

    def remember_runs(self, runs: dict[str, int]) -> None:
        self.runs = runs


class Neighbours:
    async def at(self, incarnation: Incarnation, timeout_s: float) -> Any:
        raise AssertionError("an agent acts on no neighbour")

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        return (Answer.SILENT, "no answer") if host == "h2" else (Answer.UNKNOWN, "who?")


class Nobody:
    async def ask(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        return Answer.UNKNOWN, "no address for probes"

    async def greet(self, host: str, me: Incarnation, timeout_s: float) -> bool:
        return False


class Datastore:
    """Its slots: none has been written yet."""

    def __init__(self, *, stalls: bool = False) -> None:
        self.stalls = stalls

    async def _reach(self) -> None:
        if self.stalls:
            await asyncio.sleep(60)

    async def beat(self, beat: SlotBeat) -> SlotOrder | None:
        raise AssertionError("only the agent's decider has this written")

    async def read(self, host: str) -> SlotBeat | None:
        await self._reach()
        return None

    async def order(self, host: str, order: SlotOrder) -> None:
        await self._reach()


def hands(libvirt: Libvirt) -> tuple[Hands, World]:
    world = World()
    store = Process(world)
    neighbours: Hypervisors = Neighbours()
    return (
        Hands(
            libvirt,
            neighbours,
            store,
            store,
            store,
            store,
            H1,
            boots_known=True,
            slots={},
            probes=Nobody(),
            probe_s=0.7,
            clock=SystemClock(),
        ),
        world,
    )


class Remembers:
    """What a host remembers of its gate."""

    def __init__(self, boot: str = "") -> None:
        self.kept = boot

    async def boot(self) -> str:
        return self.kept

    async def remember(self, boot: str) -> None:
        self.kept = boot


@pytest.mark.parametrize("remembered", [H1.boot, "the boot before"])
async def test_s06_an_agent_that_begins_again_on_an_old_copy_stops_nothing_that_runs_since_its_gate(
    remembered: str,
) -> None:
    """The copy knows the boot before, and a lease that has moved here since."""
    libvirt = Libvirt(vm("a"))
    hand, world = hands(libvirt)
    host = Remembers(remembered)
    object.__setattr__(hand, "passed", host)
    world.rows["h1"] = (inventory(boot("h1", 9)).model_dump_json().encode(), 1)
    world.rows["a"] = (lease("a", H2).model_dump_json().encode(), 1)
    passed = await hand.perform(PassGate(key="gate/0", deadline_s=5.0, at=H1))
    assert isinstance(passed, GatePassed)
    assert libvirt.destroyed == ([] if remembered == H1.boot else ["a"])
    assert host.kept == H1.boot


async def test_a_gate_that_let_something_through_is_not_remembered_as_passed() -> None:
    libvirt = Libvirt(vm("a"))
    libvirt.clings.add("a")
    hand, world = hands(libvirt)
    host = Remembers()
    object.__setattr__(hand, "passed", host)
    world.rows["a"] = (lease("a", H2).model_dump_json().encode(), 1)
    passed = await hand.perform(PassGate(key="gate/0", deadline_s=5.0, at=H1, condemn=True))
    assert isinstance(passed, GatePassed)
    assert [one.report.uuid for one in passed.condemned] == ["a"]
    assert host.kept == ""


async def test_the_gate_stops_what_runs_under_anothers_lease_and_nothing_else() -> None:
    libvirt = Libvirt(
        vm("mine"), vm("theirs"), vm("former"), vm("free"), vm("paused", VmState.PAUSED), vm("off", VmState.STOPPED)
    )  # fmt: skip
    hand, world = hands(libvirt)
    holders = {"mine": H1, "theirs": H2, "former": boot("h1", 9), "paused": H2, "off": H2}
    for uuid, holder in holders.items():
        world.rows[uuid] = (lease(uuid, holder).model_dump_json().encode(), 1)
    done = await hand.perform(PassGate(key="gate/0", deadline_s=1.0, at=H1))
    assert isinstance(done, GatePassed)
    assert libvirt.destroyed == ["theirs", "former", "paused"]
    assert [one.report.uuid for one in done.stopped] == libvirt.destroyed


async def test_the_gate_is_not_passed_while_libvirt_cannot_tell_whether_a_vm_runs() -> None:
    """Unknown is never stopped: what started by itself at boot may be running twice."""
    libvirt = Libvirt(vm("theirs", VmState.UNKNOWN))
    hand, world = hands(libvirt)
    world.rows["theirs"] = (lease("theirs", H2).model_dump_json().encode(), 1)
    with pytest.raises(UnavailableError, match="cannot tell the state of THEIRS"):
        await hand.perform(PassGate(key="gate/0", deadline_s=1.0, at=H1))
    libvirt.vms = [vm("theirs")]
    done = await hand.perform(PassGate(key="gate/1", deadline_s=1.0, at=H1))
    assert isinstance(done, GatePassed)
    assert libvirt.destroyed == ["theirs"]


async def test_what_starts_up_as_the_gate_looks_is_stopped_at_once_when_it_runs() -> None:
    """As autostart has it: libvirt cannot tell for a moment whether it will run."""
    libvirt = Libvirt(vm("theirs", VmState.UNKNOWN), vm("refused", VmState.UNKNOWN))
    hand, world = hands(libvirt)
    for uuid in ("theirs", "refused"):
        world.rows[uuid] = (lease(uuid, H2).model_dump_json().encode(), 1)
    passing = asyncio.create_task(hand.perform(PassGate(key="gate/0", deadline_s=1.0, at=H1)))
    await asyncio.sleep(0.1)
    libvirt.vms = [vm("theirs"), vm("refused", VmState.STOPPED)]
    done = await passing
    assert isinstance(done, GatePassed)
    assert libvirt.destroyed == ["theirs"]


async def test_an_agent_that_restarts_on_the_same_boot_stops_nothing_and_remembers_the_runs() -> None:
    libvirt = Libvirt(vm("a"))
    hand, world = hands(libvirt)
    # the plane was away while a person migrated it here: its lease still names the other host
    world.rows["a"] = (lease("a", H2).model_dump_json().encode(), 1)
    earlier = Inventory(at=H1, agent="x", rev=3, memory_mib=1, cpus=1, vms=(vm("a", run=7),))
    world.rows["h1"] = (earlier.model_dump_json().encode(), 2)
    done = await hand.perform(PassGate(key="gate/0", deadline_s=1.0, at=H1))
    assert isinstance(done, GatePassed)
    assert (done.stopped, libvirt.destroyed) == ((), [])
    assert libvirt.runs == {"a": 7}


async def test_the_gate_is_not_passed_while_leases_or_libvirt_cannot_be_read() -> None:
    hand, world = hands(Libvirt(vm("a")))
    world.store_down = True
    with pytest.raises(UnavailableError):
        await hand.perform(PassGate(key="gate/0", deadline_s=1.0, at=H1))
    hand, world = hands(Libvirt(vm("a")))
    world.rows["a"] = (b"of another age", 1)
    with pytest.raises(UnavailableError, match="cannot be read"):
        await hand.perform(PassGate(key="gate/0", deadline_s=1.0, at=H1))
    hand, _ = hands(Libvirt(vm("a"), away=True))
    with pytest.raises(UnavailableError):
        await hand.perform(PassGate(key="gate/0", deadline_s=1.0, at=H1))


async def test_a_stop_that_fails_keeps_no_other_from_being_stopped_and_the_gate_only_until_it_condemns() -> (
    None
):
    libvirt = Libvirt(vm("clings"), vm("theirs"))
    libvirt.clings = {"clings"}
    hand, world = hands(libvirt)
    for uuid in ("clings", "theirs"):
        world.rows[uuid] = (lease(uuid, H2).model_dump_json().encode(), 1)
    with pytest.raises(UnavailableError, match="busy"):
        await hand.perform(PassGate(key="gate/0", deadline_s=1.0, at=H1))
    assert libvirt.destroyed == ["theirs"]
    done = await hand.perform(PassGate(key="gate/1", deadline_s=1.0, at=H1, condemn=True))
    assert isinstance(done, GatePassed)
    assert [(one.report.uuid, one.reason) for one in done.condemned] == [
        ("clings", "clings: Device or resource busy")
    ]


async def test_what_could_not_be_stopped_is_tried_again_and_over_once_it_is_stopped_or_may_run() -> None:
    libvirt = Libvirt(vm("a"), vm("b"), vm("mine"))
    libvirt.clings = {"a"}
    hand, world = hands(libvirt)
    world.rows["a"] = (lease("a", H2).model_dump_json().encode(), 1)
    world.rows["b"] = (lease("b", H1).model_dump_json().encode(), 1)
    done = await hand.perform(StopAgain(key="stop/1", deadline_s=1.0, at=H1, vms=("a", "b")))
    assert isinstance(done, StopsTried)
    assert ([one.report.uuid for one in done.condemned], libvirt.destroyed) == (["a"], [])
    libvirt.clings = set()
    done = await hand.perform(StopAgain(key="stop/2", deadline_s=1.0, at=H1, vms=("a", "b")))
    assert isinstance(done, StopsTried)
    assert (done.condemned, [one.report.uuid for one in done.stopped]) == ((), ["a"])


async def test_a_later_life_of_the_agent_goes_on_with_what_was_let_through_and_with_nothing_else() -> None:
    libvirt = Libvirt(vm("a"), vm("gone", VmState.STOPPED), vm("since"))
    libvirt.clings = {"a"}
    hand, world = hands(libvirt)
    for uuid in ("a", "gone", "since"):
        world.rows[uuid] = (lease(uuid, H2).model_dump_json().encode(), 1)
    earlier = Inventory(
        at=H1, agent="x", rev=3, memory_mib=1, cpus=1, vms=(vm("a"), vm("gone")), condemned=("a", "gone")
    )
    world.rows["h1"] = (earlier.model_dump_json().encode(), 2)
    done = await hand.perform(PassGate(key="gate/0", deadline_s=1.0, at=H1))
    assert isinstance(done, GatePassed)
    assert [one.report.uuid for one in done.condemned] == ["a"]
    assert [one.uuid for one in done.settled] == ["gone"]
    assert libvirt.destroyed == []


async def test_a_stale_definition_left_behind_never_replaces_the_one_that_runs_elsewhere() -> None:
    hand, world = hands(Libvirt())
    world.rows["a.h2"] = (definition("a", "<runs/>").model_dump_json().encode(), 1)
    for active, xml in ((False, "<stale/>"), (True, "<edited/>")):
        put = PutDefinition(key="d", deadline_s=1.0, definition=definition("a", xml), active=active)
        await hand.perform(put)
        assert VmDefinition.model_validate_json(world.rows["a.h1"][0]).xml == xml
        assert VmDefinition.model_validate_json(world.rows["a.h2"][0]).xml == "<runs/>"


async def test_an_order_is_written_to_all_datastores_side_by_side_and_one_that_stalls_costs_no_other_time() -> (
    None
):
    hand, _ = hands(Libvirt())
    stores = {"nas": Datastore(stalls=True), "nfs": Datastore(), "san": Datastore(stalls=True)}
    hand = replace(hand, slots=stores, probe_s=0.2)
    began = time.monotonic()
    reply = await hand.answer(
        Question(about="h2", order=SlotOrder(boot="b", number=1, vms=("a",)), slots_only=True)
    )
    assert isinstance(reply, Reply)
    assert reply.ordered == ("nfs",)
    assert time.monotonic() - began < 0.55, "one write and one look, each of them at most 0.2 s"


async def test_it_answers_for_a_neighbour_by_its_own_look() -> None:
    hand, _ = hands(Libvirt())
    reply = await hand.answer(Question(about="h2"))
    said = "libvirt silent: no answer; agent unknown: no address for probes"
    assert reply == Reply(about="h2", peer=H1, answer=Answer.SILENT, detail=said)
    nonsense = await hand.answer(Heartbeat(at=H1, agent="x", seq=1))
    assert isinstance(nonsense, Reply)
    assert nonsense.answer is Answer.UNKNOWN


@pytest.mark.parametrize(
    ("libvirt", "agent", "said"),
    [
        (Answer.UP, Answer.HANGS, Answer.UP),
        (Answer.HANGS, Answer.REFUSED, Answer.REFUSED),
        (Answer.HANGS, Answer.SILENT, Answer.HANGS),
        (Answer.SILENT, Answer.HANGS, Answer.HANGS),
        (Answer.UNKNOWN, Answer.HANGS, Answer.HANGS),
        (Answer.SILENT, Answer.UNKNOWN, Answer.SILENT),
        (Answer.UNKNOWN, Answer.UNKNOWN, Answer.UNKNOWN),
    ],
)
async def test_of_two_looks_at_a_neighbour_the_one_that_shows_more_life_counts(
    libvirt: Answer, agent: Answer, said: Answer
) -> None:
    class Looks:
        async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
            return libvirt, "libvirt's"

        async def ask(self, host: str, timeout_s: float) -> tuple[Answer, str]:
            return agent, "the agent's"

    hand, _ = hands(Libvirt())
    looks: Any = Looks()
    hand = replace(hand, neighbours=looks, probes=looks)
    reply = await hand.answer(Question(about="h2"))
    assert isinstance(reply, Reply)
    assert reply.answer is said
    assert reply.detail == f"libvirt {libvirt.value}: libvirt's; agent {agent.value}: the agent's"


async def test_guests_are_asked_side_by_side_and_one_that_hangs_costs_the_others_nothing() -> None:
    libvirt = Libvirt()
    libvirt.hung, libvirt.mute, libvirt.deaf = {"a"}, {"b"}, {"c"}
    hand, _ = hands(libvirt)
    vms = tuple((uuid, 1) for uuid in "abcdefgh")
    done = await hand.perform(PingGuests(key="ping/0", deadline_s=1.0, vms=vms, within_s=0.05))
    assert isinstance(done, Pinged)
    assert done.answered == tuple((uuid, 1) for uuid in "defgh")
    assert done.silent == (("b", 1),), "what hangs or cannot be asked was not heard to be silent"


async def test_an_agent_started_anew_knows_what_the_one_before_it_told() -> None:
    libvirt = Libvirt(vm("a"))
    hand, world = hands(libvirt)
    told = inventory(H1, vm("a", health=Health.OK, agent=True))
    world.rows["h1"] = (told.model_dump_json().encode(), 1)
    done = await hand.perform(PassGate(key="gate/0", deadline_s=1.0, at=H1))
    assert isinstance(done, GatePassed)
    assert done.earlier == told.vms


async def test_an_agent_that_is_asked_for_its_clock_tells_it_and_looks_at_nobody() -> None:
    asked, _ = hands(Libvirt())
    before = time.time()  # noqa: TID251  what a person's clock shows is asked for
    reply = await asked.answer(Question(about="", clock=True))
    assert isinstance(reply, Reply)
    assert reply.wall_s is not None
    assert before <= reply.wall_s <= time.time()  # noqa: TID251


async def test_what_guards_the_disks_is_told_with_the_inventory() -> None:
    acting, _ = hands(Libvirt())
    read = await acting.perform(ReadAll(key="read/1", deadline_s=1.0))
    assert isinstance(read, AllRead)
    assert read.locks == DiskLocks(manager="lockd", automatic=True)
    desk = Desk().passed()
    desk.hear(read)
    assert [one.inventory.locks for one in desk.said if isinstance(one, InventorySeen)] == [read.locks]
