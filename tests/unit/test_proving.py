"""Placement tells whether the pool could take a failure, once a transition; and obeys the rules of VMs' policies."""

from __future__ import annotations

import pytest

from libs.config.settings import Restart
from libs.core.decider import TableRead
from libs.events.capacity import CapacityOvercommitted, CapacityRestored, PolicyContradicted
from libs.events.facts import AnyFact
from libs.events.failovers import CapacityExhausted, FailoverPlanned
from libs.events.hosts import HostJoined
from libs.model import RunLease, VmReport
from libs.planning.snapshot import PoolPolicy
from services.placement.decide import Placement
from services.placement.proving import SETTLE_S
from services.placement.state import PlacementState
from tests.unit.made import beat, boot, facts, fenced, lease, policy, seen, vm

pytestmark = pytest.mark.fast


class Desk:
    """Placement with hosts that speak, and what it said."""

    def __init__(self, target: int = 1, labels: dict[str, dict[str, str]] | None = None) -> None:
        decider = Placement(Restart(), policy=PoolPolicy(failures_to_tolerate=target), labels=labels or {})
        self.decider: Placement = decider
        self.now = 0.0
        self.state: PlacementState = decider.initial(0.0)
        self.said: list[AnyFact] = []
        self.leases: dict[str, RunLease] = {}

    def hear(self, *inputs: object) -> None:
        for one in inputs:
            step = self.decider.step(self.state, one, self.now)  # type: ignore[arg-type]
            self.state = step.state
            self.said += facts(step.effects)

    def host(self, name: str, *vms: VmReport, memory_mib: int = 1000) -> None:
        """It joins, beats, and shows these VMs, which run under leases."""
        joined = HostJoined(at=boot(name), epoch=0)
        self.hear(joined, beat(name), seen(boot(name), *vms, memory_mib=memory_mib))
        for one in vms:
            held = lease(one.uuid, boot(name), memory_mib=one.memory_mib, vcpus=one.vcpus, policy=one.policy)
            self.leases[one.uuid] = held

    def looks(self, for_s: float = 0.0) -> list[AnyFact]:
        """The readings of the leases in so many seconds, and what was said by them."""
        before = len(self.said)
        end = self.now + for_s
        while True:
            for name, heard in sorted(self.state.heard.items()):
                if heard.at in {beat.of for beat in self.state.beats.values()}:
                    self.hear(beat(name))
            self.hear(TableRead("leases", tuple(self.leases.values())))
            if self.now >= end:
                return self.said[before:]
            self.now = min(end, self.now + 2.0)


def test_a_pool_that_cannot_take_a_loss_says_so_once_and_by_name() -> None:
    desk = Desk()
    desk.host("h1", vm("a", memory_mib=600), vm("b", memory_mib=300), memory_mib=1200)
    desk.host("h2", vm("c", memory_mib=250))
    assert desk.looks(SETTLE_S - 1) == []
    [told] = desk.looks(SETTLE_S)
    assert isinstance(told, CapacityOvercommitted)
    assert (told.number, told.target, told.tolerates, told.upper_bound) == (1, 1, 0, 0)
    assert (told.worst_case, told.unplaced) == (("h1",), ("A",))
    assert told.worst_case_in_words == "if h1 fails, A (600 MiB) cannot start: 150 MiB short on every host"
    assert desk.looks(60.0) == []


def test_what_was_started_past_us_is_named_where_the_pool_cannot_take_a_loss_for_it() -> None:
    desk = Desk()
    desk.host("h1", vm("a", memory_mib=300))
    desk.host("h2", vm("c", memory_mib=300))
    assert desk.looks(30.0) == []
    desk.host("h2", vm("c", memory_mib=300), vm("virsh", memory_mib=600))
    [told] = desk.looks(30.0)
    assert isinstance(told, CapacityOvercommitted)
    assert told.started == ("VIRSH",)


def test_room_that_comes_is_told_once_and_the_next_shortage_is_another() -> None:
    desk = Desk()
    desk.host("h1", vm("a", memory_mib=600))
    desk.host("h2", vm("c", memory_mib=600))
    assert [fact.kind for fact in desk.looks(30.0)] == ["capacity.overcommitted"]
    desk.host("h3")
    assert desk.looks(SETTLE_S - 1) == []
    [told] = desk.looks(20.0)
    assert isinstance(told, CapacityRestored)
    assert (told.number, told.tolerates) == (1, 1)
    desk.host("h3", vm("d", memory_mib=900))
    [told] = desk.looks(30.0)
    assert isinstance(told, CapacityOvercommitted)
    assert told.number == 2


def test_a_shortage_of_a_moment_is_not_told() -> None:
    desk = Desk()
    desk.host("h1", vm("a", memory_mib=600))
    desk.host("h2", vm("c", memory_mib=600))
    assert desk.looks(SETTLE_S - 1) == []
    desk.host("h3")
    assert desk.looks(60.0) == []


def test_nobody_is_told_where_nothing_is_to_be_tolerated() -> None:
    desk = Desk(target=0)
    desk.host("h1", vm("a", memory_mib=600))
    assert desk.looks(60.0) == []
    assert desk.state.proved is None


def test_a_failover_does_not_wait_for_a_look_at_capacity() -> None:
    desk = Desk()
    desk.host("h1", vm("a", memory_mib=600))
    desk.host("h2")
    desk.looks()
    before = desk.state.proved
    desk.hear(fenced(boot("h1"), vm("a", memory_mib=600)))
    assert "failover.planned" in [fact.kind for fact in desk.said]
    desk.looks(30.0)
    assert desk.state.proved is before


def test_who_leads_next_does_not_tell_it_again() -> None:
    desk = Desk()
    desk.host("h1", vm("a", memory_mib=600))
    assert [fact.kind for fact in desk.looks(30.0)] == ["capacity.overcommitted"]
    heir = Desk()
    heir.state = heir.decider.resume(heir.state, desk.state.records, 0.0).state
    heir.host("h1", vm("a", memory_mib=600))
    assert heir.looks(60.0) == []


def test_witnesses_are_kept_from_look_to_look() -> None:
    desk = Desk()
    for number in range(6):
        desk.host(f"h{number}", vm(f"a{number}", memory_mib=100))
    desk.looks(2.0)
    desk.host("h3", vm("a3", memory_mib=100), vm("new", memory_mib=50))
    desk.looks(2.0)
    assert desk.state.proved is not None
    assert desk.state.proved.witnesses.sought == 1


def test_members_that_must_be_apart_are_restarted_apart() -> None:
    desk = Desk()
    apart = policy(anti_affinity="db")
    desk.host("h1", vm("a", policy=apart))
    desk.host("h2", vm("b", policy=apart), memory_mib=5000)
    desk.host("h3", memory_mib=400)
    desk.looks()
    desk.hear(fenced(boot("h1"), vm("a", policy=apart)))
    planned = next(fact for fact in desk.said if isinstance(fact, FailoverPlanned))
    assert [start.to.host for start in planned.starts] == ["h3"]


def test_where_no_host_obeys_a_strict_rule_it_waits_and_the_rule_is_told() -> None:
    desk = Desk(labels={"h2": {"rack": "r1"}, "h1": {"rack": "r2"}})
    wants = policy(requires_labels="rack=r2")
    desk.host("h1", vm("a", policy=wants))
    desk.host("h2")
    desk.looks()
    desk.hear(fenced(boot("h1"), vm("a", policy=wants)))
    short = next(fact for fact in desk.said if isinstance(fact, CapacityExhausted))
    assert short.waiting[0].reason == "no_host_suits: h2: not labelled rack=r2"


def test_whoever_comes_after_another_starts_in_a_later_wave() -> None:
    desk = Desk()
    app, db = vm("a", policy=policy(after="B", priority="highest")), vm("b", policy=policy(priority="low"))
    desk.host("h1", app, db)
    desk.host("h2")
    desk.looks()
    desk.hear(fenced(boot("h1"), app, db))
    planned = next(fact for fact in desk.said if isinstance(fact, FailoverPlanned))
    assert {start.name: start.wave for start in planned.starts} == {"B": 0, "A": 1}


def test_policies_that_contradict_each_other_are_told_once_and_nobody_is_refused_a_restart() -> None:
    desk = Desk()
    both = policy(anti_affinity="db", affinity="near")
    desk.host("h1", vm("a", policy=both), vm("b", policy=both))
    desk.host("h2")
    desk.host("h3")
    told = [fact for fact in desk.looks(30.0) if isinstance(fact, PolicyContradicted)]
    assert [(fact.number, fact.dropped) for fact in told] == [(1, "affinity near over host")]
    desk.hear(fenced(boot("h1"), vm("a", policy=both), vm("b", policy=both)))
    planned = next(fact for fact in desk.said if isinstance(fact, FailoverPlanned))
    assert sorted(start.to.host for start in planned.starts) == ["h2", "h3"]


def test_a_start_names_whom_it_comes_after_by_their_own_start() -> None:
    desk = Desk()
    app, db = vm("a", policy=policy(after="B agent 20; elsewhere")), vm("b")
    desk.host("h1", app, db)
    desk.host("h2")
    desk.looks()
    desk.hear(fenced(boot("h1"), app, db))
    planned = next(fact for fact in desk.said if isinstance(fact, FailoverPlanned))
    starts = {start.vm: start for start in planned.starts}
    assert starts["b"].after == ()
    [before] = starts["a"].after
    assert (before.vm, before.key, before.token) == ("b", starts["b"].key, 1)
    assert (before.ready, before.wait_s) == ("agent", 20.0)
