"""Hosts on standby: switched on when the pool is short, off when it has had enough; never against an open end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from libs.config.settings import FencingSettings, Settings
from libs.config.standby import Standby
from libs.core.clock import SystemClock
from libs.core.decider import Expired, Records
from libs.core.ports import Row
from libs.events.capacity import CapacityOvercommitted, CapacityRestored
from libs.events.failovers import CapacityExhausted, CapacityRelieved, WaitingVm
from libs.events.hosts import HostJoined
from libs.events.words import HostRemoved
from libs.model import HostState, Incarnation, Inventory, PowerState, VmState
from libs.operator import Operator
from libs.planning.admit import Answer, admit_without
from libs.planning.snapshot import Snapshot
from libs.poolview import PoolView
from services.fencer.decide import Fencer
from services.fencer.reserve import (
    Dismissed,
    LaidDown,
    LayDown,
    LookedIdle,
    LookIdle,
    Reserve,
    Rouse,
    Roused,
    Stage,
)
from services.fencer.reservehands import ReserveHands
from services.fencer.standby import BY, SETTLE_S, Keeping
from services.fencer.state import Fenced, FencerState
from tests.unit import desk
from tests.unit.made import boot, failed, inventory, proof, vm

pytestmark = pytest.mark.fast
BOOT_S, IDLE_S, OVER_S = 100.0, 50.0, 40.0


def waits(name: str, memory_mib: int = 1000) -> WaitingVm:
    return WaitingVm(vm=name, name=name, priority="high", reason="no_room", memory_mib=memory_mib, vcpus=1)


def short(incident: str, *vms: WaitingVm, revision: int = 1) -> CapacityExhausted:
    return CapacityExhausted(incident=incident, revision=revision, waiting=vms or (waits("a"),))


def over(number: int) -> CapacityOvercommitted:
    return CapacityOvercommitted(number=number, target=1, tolerates=0, verified=0, upper_bound=0)


class Pool(desk.Desk[FencerState]):
    """Hosts on standby with their memory in MiB."""

    def __init__(self, idle_s: float = IDLE_S, **sizes: int | None) -> None:
        settings = Standby(boot_s=BOOT_S, idle_s=idle_s, overcommitted_s=OVER_S)
        keeping = Keeping(settings, sizes or {"s1": 4000})
        super().__init__(Fencer(FencingSettings(drill_every_s=0), {}, reserve=keeping), 1000.0)
        self.lead()

    def lead(self, records: Records | None = None) -> None:
        """Another process takes it up, a while later."""
        self.now += 1
        self.take(
            self.decider.resume(self.state, self.state.records if records is None else records, self.now)
        )

    def at(self, host: str) -> Stage:
        found = self.state.records.get(Reserve.PREFIX + host)
        return found.stage if isinstance(found, Reserve) else Stage.OFF

    def roused(self, host: str = "s1", **more: Any) -> list[str]:
        request = next(one for one in reversed(self.asked) if isinstance(one, Rouse) and one.host == host)
        return self.hear(Roused(key=request.key, host=host, **{"done": True, **more}))

    def joins(self, host: str = "s1", number: int = 1) -> list[str]:
        return self.hear(HostJoined(at=boot(host, number), epoch=number))

    def idles(self) -> LookIdle:
        """Until one is looked at."""
        while True:
            self.wait()
            if self.asked and isinstance(found := self.asked[-1], LookIdle):
                return found

    def later(self, seconds: float) -> None:
        """Time goes by; what is due is done."""
        until = self.now + seconds
        while (due := self.decider.wake_at(self.state)) is not None and due <= until:
            self.wait()
        self.now = until


def test_a_host_is_switched_on_when_vms_wait_for_room_and_waited_for() -> None:
    pool = Pool()
    assert pool.hear(short("i1")) == ["rouse/s1/1"]
    assert pool.roused() == ["standby.switched_on"]
    assert pool.told[-1].cause == "capacity.exhausted/i1/1"
    assert pool.hear(short("i2", waits("b"))) == [], "one is on its way, and has room for both"
    assert pool.joins() == []
    assert pool.at("s1") is Stage.IN


def test_as_many_are_switched_on_as_it_takes_and_none_that_is_too_small() -> None:
    pool = Pool(small=500, s2=2000, s3=2000, s4=2000)
    assert pool.hear(short("i1", waits("a", 1500), waits("b", 1500))) == ["rouse/s2/1", "rouse/s3/1"]


def test_the_smallest_that_does_is_taken_and_one_of_unknown_size_last() -> None:
    pool = Pool(large=9000, fits=2000, unknown=None)
    assert pool.hear(short("i1", waits("a", 1500))) == ["rouse/fits/1"]


def test_a_vm_of_two_incidents_counts_once() -> None:
    pool = Pool(s1=2000, s2=2000)
    pool.hear(short("i1", waits("a", 1500)))
    assert pool.hear(short("i2", waits("a", 1500))) == []


def test_one_that_has_joined_is_given_time_before_the_next_is_switched_on() -> None:
    pool = Pool(s1=1500, s2=1500)
    pool.hear(short("i1"))
    pool.roused()
    pool.joins()
    pool.later(SETTLE_S - 1)
    assert pool.at("s2") is Stage.OFF
    pool.later(2)
    assert pool.at("s2") is Stage.RISING, "its room was not what the VM needs"


def test_what_is_relieved_asks_for_nothing_also_where_it_is_told_late_or_again() -> None:
    pool = Pool()
    pool.hear(CapacityRelieved(incident="i1", revision=2))
    assert pool.hear(short("i1", revision=2)) == []
    assert pool.hear(short("i1", revision=3)) == ["rouse/s1/1"]


def test_one_whose_agent_does_not_join_is_told_and_the_next_is_tried_and_it_again_later() -> None:
    pool = Pool(s1=2000, s2=2000)
    pool.hear(short("i1"))
    pool.roused()
    assert pool.wait() == ["standby.failed", "rouse/s2/1"]
    assert (pool.told[-1].host, pool.told[-1].stage) == ("s1", "boot")
    pool.roused("s2", done=False, detail="no answer")
    assert (pool.told[-1].host, pool.told[-1].stage, pool.told[-1].reason) == ("s2", "on", "no answer")
    pool.later(BOOT_S + 1)
    assert [pool.at(host) for host in ("s1", "s2")] == [Stage.RISING, Stage.OFF]


def test_an_act_without_an_end_is_a_host_that_cannot_be_had() -> None:
    pool = Pool()
    pool.hear(short("i1"))
    said = pool.hear(Expired(key="rouse/s1/1", request="rouse", reason="no end in 180 s"))
    assert said == ["standby.failed"]
    assert pool.at("s1") is Stage.SPOILT


def test_overcommitment_that_lasts_switches_one_on_and_one_that_ends_does_not() -> None:
    pool = Pool()
    pool.hear(over(1))
    pool.later(OVER_S - 1)
    pool.hear(CapacityRestored(number=1, target=1, tolerates=1))
    pool.later(OVER_S)
    assert pool.asked == []
    pool.hear(over(2))
    pool.later(OVER_S + 1)
    assert [request.key for request in pool.asked] == ["rouse/s1/1"]


def test_a_restoration_that_overtakes_its_overcommitment_is_believed() -> None:
    pool = Pool()
    pool.hear(CapacityRestored(number=3, target=1, tolerates=1))
    pool.hear(over(3))
    pool.later(2 * OVER_S)
    assert pool.asked == []


def test_a_host_that_failed_is_never_switched_on_before_it_was_removed() -> None:
    pool = Pool()
    pool.joins()
    pool.hear(failed(boot("s1")))
    assert pool.at("s1") is Stage.LOST
    assert not [one for one in pool.hear(short("i1")) if one.startswith("rouse")]
    pool.hear(Fenced(key="fence/s1-1/1", incident="s1-1", proof=proof(boot("s1"))))
    assert pool.at("s1") is Stage.LOST, "fenced, and what came of it may be open"
    assert "rouse/s1/1" in pool.hear(HostRemoved(at=boot("s1"), agent="x", by="anna"))


def test_one_of_which_the_detector_knows_an_open_end_is_left_to_people() -> None:
    pool = Pool()
    pool.hear(short("i1"))
    assert pool.roused(done=False, forbidden=True, detail="it is held to be fenced") == ["standby.failed"]
    assert pool.at("s1") is Stage.LOST
    pool.later(10 * BOOT_S)
    assert len(pool.asked) == 1


def test_one_that_is_in_the_pool_already_is_taken_as_it_is() -> None:
    pool = Pool()
    pool.hear(short("i1"))
    assert pool.roused(done=False, joined=boot("s1")) == []
    assert pool.at("s1") is Stage.IN


def test_an_idle_one_is_closed_switched_off_fenced_and_out_of_the_pool() -> None:
    pool = Pool()
    pool.joins()
    looked = pool.idles()
    assert looked.at == boot("s1")
    assert pool.hear(LookedIdle(key=looked.key, host="s1")) == ["standby.leaving", "lay_down/s1/1"]
    assert pool.hear(LaidDown(key="lay_down/s1/1", host="s1", done=True)) == []
    expected = failed(boot("s1")).model_copy(update={"expected": True})
    pool.hear(expected)
    said = pool.hear(Fenced(key="fence/s1-1/1", incident="s1-1", proof=proof(boot("s1"))))
    assert said == ["host.fenced", "dismiss/s1/2"], "only then may it be missed by nobody"
    assert pool.hear(Dismissed(key="dismiss/s1/2", host="s1", done=True)) == ["standby.switched_off"]
    assert pool.at("s1") is Stage.OFF
    pool.hear(HostJoined(at=boot("s1"), epoch=1))
    assert pool.at("s1") is Stage.OFF, "that is told again"
    assert pool.hear(short("i1")) == ["rouse/s1/3"]


def test_one_that_is_not_idle_stays_and_is_looked_at_again_later() -> None:
    pool = Pool()
    pool.joins()
    looked = pool.idles()
    assert pool.hear(LookedIdle(key=looked.key, host="s1", refused="VMs run there: a")) == []
    assert pool.at("s1") is Stage.IN
    pool.later(59)
    assert pool.at("s1") is Stage.IN
    pool.later(2)
    assert pool.at("s1") is Stage.LOOKED_AT


def test_none_is_switched_off_while_the_pool_is_short_or_a_host_is_being_fenced() -> None:
    pool = Pool()
    pool.joins()
    pool.hear(over(1))
    pool.later(3 * IDLE_S)
    assert not [one for one in pool.asked if isinstance(one, LookIdle)]
    pool.hear(CapacityRestored(number=1, target=1, tolerates=1))
    pool.hear(failed(boot("h7")))
    pool.later(IDLE_S + 1)
    assert not [one for one in pool.asked if isinstance(one, LookIdle)]
    pool.hear(Fenced(key="fence/h7-1/1", incident="h7-1", proof=proof(boot("h7"))))
    assert [one.at for one in pool.asked if isinstance(one, LookIdle)] == [boot("s1")]


def test_one_that_cannot_be_switched_off_is_told_and_stays() -> None:
    pool = Pool()
    pool.joins()
    looked = pool.idles()
    pool.hear(LookedIdle(key=looked.key, host="s1"))
    assert pool.hear(LaidDown(key="lay_down/s1/1", host="s1", done=False, detail="refused")) == [
        "standby.failed"
    ]
    assert pool.at("s1") is Stage.IN


def test_one_that_is_off_and_not_held_failed_is_told_of() -> None:
    pool = Pool()
    pool.joins()
    looked = pool.idles()
    pool.hear(LookedIdle(key=looked.key, host="s1"))
    pool.hear(LaidDown(key="lay_down/s1/1", host="s1", done=True))
    assert pool.wait() == ["standby.failed"]
    assert pool.at("s1") is Stage.SILENT, "it is waited for on"


def test_without_an_idle_time_none_is_ever_switched_off() -> None:
    pool = Pool(idle_s=0.0)
    pool.joins()
    pool.later(100_000)
    assert pool.asked == []


@pytest.mark.parametrize("stage", [one for one in Stage if one is not Stage.OFF])
def test_every_stage_that_waits_has_a_deadline_also_after_another_has_taken_over(stage: Stage) -> None:
    pool = Pool(idle_s=IDLE_S)
    record = Reserve(host="s1", stage=stage, at=boot("s1"), number=3)
    pool.lead(pool.state.records.insert(record.name, record))
    acts = (Stage.RISING, Stage.LOOKED_AT, Stage.SINKING)  # owed, each with its own
    assert stage in (*acts, Stage.LOST) or pool.decider.wake_at(pool.state) is not None


def test_without_settings_nothing_is_done() -> None:
    found = desk.Desk(Fencer(FencingSettings(drill_every_s=0), {}), 0.0)
    assert found.hear(short("i1")) == []


# -- the hands


class Devices:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.reads = PowerState.ON

    async def status(self, host: str, timeout_s: float) -> tuple[PowerState, str]:
        return self.reads, ""

    async def fence(self, at: Incarnation, off_seen: Any) -> Any:
        self.said.append(f"off {at.host}")
        return proof(at)

    async def switch_on(self, host: str) -> tuple[bool, str]:
        self.said.append(f"on {host}")
        return True, ""


class Libvirt:
    def __init__(self, *vms: str, state: VmState = VmState.RUNNING) -> None:
        self.vms, self.state = vms, state

    async def at(self, incarnation: Incarnation, timeout_s: float) -> Libvirt:
        return self

    async def reports(self) -> list[Any]:
        return [vm(name, self.state) for name in self.vms]


class Buckets:
    """Stores by name, without contention."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], bytes] = {}

    def store(self, bucket: str) -> Bucket:
        return Bucket(self.rows, bucket)


@dataclass
class Bucket:
    rows: dict[tuple[str, str], bytes]
    name: str

    async def get(self, key: str) -> Row | None:
        value = self.rows.get((self.name, key))
        return None if value is None else Row(key, value, 1)

    async def scan(self, prefix: str) -> list[Row]:
        mine = sorted(key for name, key in self.rows if name == self.name and key.startswith(prefix))
        return [Row(key, self.rows[self.name, key], 1) for key in mine]


class Ground:
    """A pool of three hosts in the stores; placement takes words up at once."""

    def __init__(self, *, libvirt: Libvirt | None = None) -> None:
        names = ("h1", "h2", "s1")
        hosts = [{"name": one, "uri": "test:///default", "standby": one == "s1"} for one in names]
        self.settings = Settings.model_validate({"hosts": hosts})
        self.buckets = Buckets()
        self.devices, self.libvirt = Devices(), libvirt or Libvirt()
        view = PoolView(self.settings, self.buckets.store)  # type: ignore[arg-type]
        self.operator = Operator(view, self, SystemClock(), BY)  # type: ignore[arg-type]
        self.hands = ReserveHands(self.devices, self.libvirt, self.operator, self.admit)  # type: ignore[arg-type]
        self.asked: list[str] = []
        self.words: dict[str, Any] = {}

    async def admit(self, snapshot: Snapshot, host: str) -> Answer:
        self.asked.append(host)
        return admit_without(snapshot, host, removed=True)

    async def publish(self, fact: Any) -> None:
        entered = fact.kind == "host.maintenance_entered"
        self.words = {
            "number": fact.number,
            "maintenance": entered,
            "maintained_by": fact.by if entered else "",
        }
        await self.put("state", f"placement.host.{fact.host}", {"record": {"words": self.words}})

    async def put(self, bucket: str, key: str, value: Any) -> None:
        self.buckets.rows[bucket, key] = json.dumps(value).encode()

    async def stands(self, *vms: str, state: HostState = HostState.HEALTHY) -> Ground:
        for name in ("h1", "h2", "s1"):
            at = boot(name)
            runs = [vm(one) for one in vms] if name == "s1" else []
            told: Inventory = inventory(at, *runs)
            await self.put("inventory", name, told.model_dump(mode="json"))
            held = state if name == "s1" else HostState.HEALTHY
            record = {"state": held.value, "at": at.model_dump(mode="json")}
            await self.put("state", f"detector.{name}", {"record": record})
        return self


LOOK = LookIdle(key="look_idle/s1/1", deadline_s=60.0, at=boot("s1"))
LAY = LayDown(key="lay_down/s1/1", deadline_s=60.0, at=boot("s1"))


async def test_an_idle_host_is_closed_and_then_switched_off() -> None:
    ground = await Ground().stands()
    looked = await ground.hands.perform(LOOK)
    assert isinstance(looked, LookedIdle)
    assert looked.refused == ""
    assert ground.words["maintenance"] is True
    laid = await ground.hands.perform(LAY)
    assert isinstance(laid, LaidDown)
    assert laid.done
    assert ground.devices.said == ["off s1"]


async def test_killed_after_it_was_closed_it_is_looked_at_again_and_not_left_closed() -> None:
    idle, busy = await Ground().stands(), await Ground().stands()
    for ground in (idle, busy):
        await ground.operator.enter_maintenance("s1")
    looked = await idle.hands.perform(LOOK)
    assert isinstance(looked, LookedIdle)
    assert (looked.refused, idle.words["maintenance"]) == ("", True)
    busy.libvirt.vms = ("late",)
    looked = await busy.hands.perform(LOOK)
    assert isinstance(looked, LookedIdle)
    assert "late" in looked.refused.lower()
    assert busy.words["maintenance"] is False


async def test_a_host_that_a_person_closed_stays_on_and_closed() -> None:
    ground = await Ground().stands()
    person = Operator(ground.operator.view, ground, SystemClock(), "ann@desk")  # type: ignore[arg-type]  # of the port what it uses
    await person.enter_maintenance("s1")
    looked = await ground.hands.perform(LOOK)
    assert isinstance(looked, LookedIdle)
    assert "by somebody's word" in looked.refused
    assert ground.words["maintenance"] is True


async def test_a_host_on_which_something_runs_by_any_account_is_never_switched_off() -> None:
    told = await Ground().stands("a")
    shown = await Ground(libvirt=Libvirt("b")).stands()
    begun = await Ground(libvirt=Libvirt("b", state=VmState.UNKNOWN)).stands()
    for ground in (told, shown, begun):
        looked = await ground.hands.perform(LOOK)
        assert isinstance(looked, LookedIdle)
        assert "VMs run there" in looked.refused
        laid = await ground.hands.perform(LAY)
        assert isinstance(laid, LaidDown)
        assert not laid.done
        assert ground.devices.said == []


async def test_what_began_after_the_look_keeps_the_host_and_opens_it_again() -> None:
    ground = await Ground().stands()
    await ground.hands.perform(LOOK)
    ground.libvirt.vms = ("late",)
    laid = await ground.hands.perform(LAY)
    assert isinstance(laid, LaidDown)
    assert "late" in laid.detail.lower()
    assert ground.words["maintenance"] is False
    assert ground.devices.said == []


async def test_a_host_in_doubt_or_another_boot_is_not_switched_off() -> None:
    suspect = await Ground().stands(state=HostState.SUSPECT)
    other = await Ground().stands()
    rebooted = LOOK.model_copy(update={"at": boot("s1", 2)})
    for ground, request in ((suspect, LOOK), (other, rebooted)):
        looked = await ground.hands.perform(request)
        assert isinstance(looked, LookedIdle)
        assert looked.refused
        assert ground.words == {}


async def test_a_host_that_the_pool_needs_for_its_failures_to_tolerate_stays() -> None:
    ground = await Ground().stands()
    big = [vm(f"v{number}", memory_mib=280) for number in range(2)]
    await ground.put("inventory", "h1", inventory(boot("h1"), *big).model_dump(mode="json"))
    await ground.put(
        "inventory", "h2", inventory(boot("h2"), vm("w", memory_mib=500)).model_dump(mode="json")
    )
    looked = await ground.hands.perform(LOOK)
    assert isinstance(looked, LookedIdle)
    assert looked.refused.startswith("the pool needs it"), looked.refused
    assert ground.words == {}


@pytest.mark.parametrize("state", [HostState.FAILED, HostState.FENCED, HostState.ISOLATED, HostState.SUSPECT])
async def test_a_host_whose_end_is_open_is_not_switched_on(state: HostState) -> None:
    ground = await Ground().stands(state=state)
    roused = await ground.hands.perform(Rouse(key="rouse/s1/1", deadline_s=60.0, host="s1"))
    assert isinstance(roused, Roused)
    assert roused.forbidden
    assert ground.devices.said == []


async def test_one_that_has_joined_is_not_switched_on_once_more() -> None:
    ground = await Ground().stands()
    roused = await ground.hands.perform(Rouse(key="rouse/s1/1", deadline_s=60.0, host="s1"))
    assert isinstance(roused, Roused)
    assert roused.joined == boot("s1")
    assert ground.devices.said == []


async def test_one_that_is_off_is_switched_on() -> None:
    ground = Ground()
    roused = await ground.hands.perform(Rouse(key="rouse/s1/1", deadline_s=60.0, host="s1"))
    assert isinstance(roused, Roused)
    assert roused.done
    assert ground.devices.said == ["on s1"]


@pytest.mark.parametrize(
    "host",
    [{}, {"standby": True}, {"fencing": [{"agent": "sim"}]}],
)
def test_a_pool_that_could_switch_none_on_is_refused(host: dict[str, Any]) -> None:
    entry = {"name": "h1", "uri": "test:///default", **host}
    with pytest.raises(ValueError, match="standby: no host has standby: true and a fence device"):
        Settings.model_validate({"hosts": [entry], "standby": {}})
