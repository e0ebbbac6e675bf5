"""The rules themselves: each of these notices what is made up here, so that its silence in ten thousand worlds means
something. Of the others a deliberate fault shows it (docs/MUTATIONS.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from libs.events.failovers import FailoverCompleted, FailoverPlanned, WaitingVm
from libs.events.hosts import Evidence, HostFailed, HostFenceFailed
from libs.events.signals import Heartbeat
from libs.events.vms import VmRestarted
from libs.model import BEGUN, GUESSED, LeaseState, Protection, RunLease, VmPolicy
from libs.scenario.model import Scenario
from libs.scenario.outcome import Violation
from libs.sim.bus import SimBus
from libs.sim.invariants import Invariants
from libs.sim.loop import Process, SimLoop
from libs.sim.truth import Truth
from libs.sim.world import World, vm_uuid
from services.cli.simplane import PLANE
from services.placement.state import Incident, Item, Phase, PlacementRecord

pytestmark = pytest.mark.fast
SCENARIO = Scenario.model_validate(
    {
        "schema": "rekindle.scenario.v1",
        "name": "made up",
        "management": {"replicas": 2},
        "hosts": [
            {"name": "h1", "fencing": [{"method": "power"}, {"method": "power", "level": 2}]},
            {"name": "h2"},
            {"name": "h3"},
        ],
        "vms": [
            {"name": "dear", "host": "h1", "priority": "high"},
            {"name": "cheap", "host": "h2", "priority": "low"},
        ],
    }
)


class Made:
    """A world in which no service runs: what is written there is made up."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.world = World(SCENARIO, 1, PLANE, loop)
        self.broken: list[Violation] = []
        self.invariants = Invariants(self.world, Truth(self.world), self.broken.append)
        self.writer = Process(loop, "detector/0", "m0")
        self.bus = SimBus(self.world.broker, self.writer, "detector")

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(one.rule, one.detail) for one in self.broken]

    def passes(self, seconds: float) -> None:
        """Time, and what the world does in it."""

        async def wait() -> None:
            await self.loop.nap(seconds)

        self.loop.run_until_complete(wait())

    def row(self, key: str, record: Any, bucket: str = "state") -> None:
        value = f'{{"format":1,"record":{record},"owed":[]}}' if bucket == "state" else record
        self.world.broker.write(bucket, key, value.encode(), None, self.writer)

    def leads(self, who: str) -> None:
        self.row("detector", f'{{"holder":"{who}","token":1}}', "leaders")

    def incident(self, name: str, *items: Item) -> None:
        record = PlacementRecord(incident=Incident(id=name, cause="made up", items=items))
        self.row(f"placement.incident.{name}", record.model_dump_json())

    def item(self, vm: str, **more: Any) -> Item:
        spec = self.world.machines.specs[vm_uuid(vm)]
        at = self.world.machines.hosts[next(one.host for one in SCENARIO.vms if one.name == vm)].at
        size = {"memory_mib": spec.memory_mib, "vcpus": spec.vcpus, "policy": spec.policy}
        return Item(vm=spec.uuid, name=vm, origin=at, **{**size, **more})

    def beats(self, host: str) -> None:
        """Its heartbeat reaches the bus."""
        beat = Heartbeat(at=self.world.machines.hosts[host].at, agent="made up", seq=1)
        for heard in self.world.broker.on_send:
            heard(self.bus, beat)

    def tells(self, fact: Any) -> None:
        self.world.broker.store(fact, "placement", self.writer)


@contextmanager
def made() -> Iterator[Made]:
    loop = SimLoop()
    try:
        yield Made(loop)
    finally:
        loop.close()


# -- rule 8: only a quorum acts


def test_what_a_minority_writes_breaks_a_rule() -> None:
    with made() as world:
        world.leads("detector/0#1")
        assert world.said == []
        world.bus.isolate(True)
        world.row("detector.h1", "null")
        assert world.said == [("8", "detector/0 writes state detector.h1 from a minority's side")]


def test_a_verdict_from_a_minority_breaks_a_rule() -> None:
    with made() as world:
        world.bus.isolate(True)
        at = world.world.machines.hosts["h1"].at
        world.tells(HostFailed(at=at, incident="h1-1", epoch=1))
        assert ("8", "detector/0 writes a verdict on h1 from a minority's side") in world.said


def test_what_is_written_without_most_of_the_servers_breaks_a_rule() -> None:
    with made() as world:
        world.world.broker.up = [True, False, False]
        world.row("detector.h1", "null")
        assert [rule for rule, _ in world.said] == ["8"]


@pytest.mark.parametrize(("leader", "rules"), [("detector/0#1", []), ("detector/1#3", ["8"])])
def test_a_verdict_by_who_does_not_hold_the_role_breaks_a_rule(leader: str, rules: list[str]) -> None:
    with made() as world:
        world.leads(leader)
        world.row("detector.h1", '{"host":"h1","state":"failed","number":1,"incident":"h1-1"}')
        assert [rule for rule, _ in world.said] == rules


# -- rule 10: queued with a stated reason


def waits(reason: str) -> WaitingVm:
    size = {"memory_mib": 128, "vcpus": 1}
    return WaitingVm(vm=vm_uuid("dear"), name="dear", priority="high", reason=reason, **size)


@pytest.mark.parametrize(
    ("reason", "rules"), [("no_room: 128 MiB are missing", []), ("", ["10"]), (" ", ["10"])]
)
def test_a_vm_that_waits_without_a_reason_breaks_a_rule(reason: str, rules: list[str]) -> None:
    with made() as world:
        world.tells(FailoverPlanned(incident="i", revision=1, starts=(), waiting=(waits(reason),)))
        assert [rule for rule, _ in world.said] == rules


@pytest.mark.parametrize(("reason", "rules"), [("no_room: here", []), ("", ["10"])])
def test_a_failover_that_is_complete_while_a_vm_waits_for_no_recorded_reason_breaks_a_rule(
    reason: str, rules: list[str]
) -> None:
    with made() as world:
        world.incident("i", world.item("dear", reason=reason))
        world.tells(FailoverCompleted(incident="i", revision=1, waiting=("dear",)))
        assert [rule for rule, _ in world.said] == rules


@pytest.mark.parametrize(("queued", "rules"), [(True, []), (False, ["10"])])
def test_a_vm_that_is_down_without_room_and_queued_nowhere_is_owed(queued: bool, rules: list[str]) -> None:
    with made() as world:
        for host in world.world.machines.hosts.values():
            host.memory_mib = 64
        at = world.world.machines.hosts["h1"].at
        lease = RunLease(
            vm=vm_uuid("dear"),
            name="dear",
            token=1,
            holder=at,
            state=LeaseState.RUNNING,
            memory_mib=128,
            vcpus=1,
            policy=VmPolicy(protection=Protection.RESTART),
        )
        world.row(lease.vm, lease.model_dump_json(), "leases")
        fenced: Any = object()
        world.invariants.book.fenced[at] = fenced
        if queued:
            world.incident("i", world.item("dear", reason="no_room: 128 MiB are missing"))
        owed = [(rule, said) for rule, said in world.invariants.owed() if "dear" in said]
        assert [rule for rule, _ in owed] == rules
        assert all("no incident says why it waits" in said for _, said in owed)


# -- priority, across incidents


def cheap_takes_room(world: Made, **dear: Any) -> None:
    """`cheap` is planned to h3, while `dear` waits in an incident of its own."""
    world.incident("of-dear", world.item("dear", **{"reason": "no_room: 128 MiB are missing", **dear}))
    world.passes(1.0)
    to = world.world.machines.hosts["h3"].at
    world.incident("of-cheap", world.item("cheap", phase=Phase.PLANNED, to=to, attempt=1))


def test_a_lower_priority_that_takes_room_of_which_another_incident_waits_breaks_a_rule() -> None:
    with made() as world:
        cheap_takes_room(world)
        world.passes(2.0)
        said = "VM dear waits, cheap of another incident took room before it"
        assert ("priority", said) in world.said


@pytest.mark.parametrize(
    "dear",
    [
        {"reason": "its stop failed on h1: it may run there"},
        {"memory_mib": 4096},
        {"avoid": ("h3",)},
        {"policy": VmPolicy(protection=Protection.BEST_EFFORT)},
    ],
    ids=["it waits for something else", "it would not fit", "it must not go there", "it is not as protected"],
)
def test_a_lower_priority_may_start_where_the_higher_could_not(dear: dict[str, Any]) -> None:
    with made() as world:
        cheap_takes_room(world, **dear)
        world.passes(2.0)
        assert world.said == []


def test_a_higher_priority_that_is_planned_by_the_same_plan_breaks_nothing() -> None:
    with made() as world:
        cheap_takes_room(world)
        to = world.world.machines.hosts["h2"].at
        world.incident("of-dear", world.item("dear", phase=Phase.PLANNED, to=to, attempt=1))
        world.passes(2.0)
        assert world.said == []


# -- rule 7: in a storm a neighbour's vote stands on its own, and not that it is heard


@pytest.mark.parametrize(
    ("evidence", "rules"),
    [
        ((Evidence(channel="peer:h2", said="silent"),), []),
        ((), ["7"]),
        ((Evidence(channel="peer:h2", said="unknown"),), ["7"]),
        ((Evidence(channel="peer:h3", said="silent"),), ["7"]),  # it stands in another rack
        ((Evidence(channel="libvirt", said="silent"),), ["7"]),
    ],
)
def test_a_witnessed_verdict_in_a_storm_needs_the_vote_of_a_neighbour(
    evidence: tuple[Evidence, ...], rules: list[str]
) -> None:
    with made() as world:
        world.leads("detector/0#1")
        for entry in world.world.settings.hosts:
            entry.labels["rack"] = "r2" if entry.name == "h3" else "r1"
        world.passes(1.0)
        for name in ("h2", "h3"):
            world.beats(name)
        world.row("detector.pool.storm", '{"held":true}')
        world.row("detector.h1", '{"host":"h1","state":"failed","number":1,"incident":"h1-1"}')
        at = world.world.machines.hosts["h1"].at
        failed = HostFailed(at=at, incident="h1-1", epoch=1, rule="witnessed", evidence=evidence)
        world.world.broker.store(failed, "detector", world.writer)
        assert [rule for rule, _ in world.said if rule == "7"] == rules


# -- rule 10: a start is of one boot, whatever that is called


def test_a_boot_is_meant_by_each_name_that_it_had_and_no_other_boot_is() -> None:
    with made() as world:
        machines, vm = world.world.machines, vm_uuid("cheap")
        host = machines.hosts["h2"]
        host.agentless = True
        machines.begin(host, machines.specs[vm], 3)
        before = host.at
        machines.rename(host, GUESSED)
        for at in (before, host.at):
            world.tells(VmRestarted(vm=vm, name="cheap", at=at, incident="i", start_key="i/1", token=3))
        assert world.said == []
        machines.reboot(host)
        machines.rename(host, BEGUN)
        later = VmRestarted(vm=vm, name="cheap", at=host.at, incident="j", start_key="j/1", token=3)
        world.tells(later)
        assert [rule for rule, _ in world.said] == ["10"]


# -- rule 12: all levels are tried, what is missing is named


@pytest.mark.parametrize(
    ("missing", "tried", "says"),
    [
        (("level 1: it reads on", "level 2: no answer"), (1, 2), ""),
        (("level 1: it reads on",), (1, 2), "of level 2 nothing is said"),
        (("level 1: it reads on", "level 2: no answer"), (1,), "level 2 was not tried"),
        (("its agent answers",), (1,), ""),
        ((), (1, 2), "nothing is named as missing"),
        (("",), (1, 2), "nothing is named as missing"),
    ],
)
def test_an_attempt_that_leaves_out_a_level_or_its_reason_breaks_a_rule(
    missing: tuple[str, ...], tried: tuple[int, ...], says: str
) -> None:
    with made() as world:
        at = world.world.machines.hosts["h1"].at
        world.invariants.book.failed_at["h1-1"] = 0.0
        for outlet in world.world.outlets["h1"]:
            if outlet.level in tried:
                outlet.asked_at["fencer/0"] = 0.0
        world.tells(HostFenceFailed(at=at, incident="h1-1", attempt=1, missing=missing))
        assert [rule for rule, _ in world.said] == (["12"] if says else [])
        assert all(says in said for _, said in world.said)
