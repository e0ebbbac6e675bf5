"""Datastores: lost on one host by its own word and that of its peers, failed for all, and back; judged by nobody who
could not hear."""

from __future__ import annotations

from typing import Any

import pytest

from libs.core.decider import BusChanged, Paused
from libs.events.datastores import DatastoreFailed, DatastoreLost, DatastoreRecovered
from libs.events.hosts import HostFenced
from libs.events.signals import Heartbeat
from libs.events.words import HostRemoved
from libs.model import FenceProof, HostState, Incarnation, PowerState, ProofMethod
from services.detector.state import StoreRecord
from tests.unit.made import beat, boot, seen, stored, vm
from tests.unit.watch import Watch

pytestmark = pytest.mark.fast
LOST_S = 15.0


class Stores(Watch):
    """Each host has one datastore, nfs, or those that it is given; a stalled one takes no more writes."""

    def __init__(self, *hosts: str, has: dict[str, tuple[str, ...]] | None = None, **more: Any) -> None:
        super().__init__(*hosts, datastore_lost_s=LOST_S, **more)
        self.has = {host: ("nfs",) if has is None else has[host] for host in hosts}
        self.stalled_at: dict[tuple[str, str], float] = {}
        self.began: dict[str, float] = {}
        """Hosts whose agent began anew, and has not been able to write since."""

    def beat_of(self, at: Incarnation) -> Heartbeat:
        ages: dict[str, float] = {}
        untried = []
        for name in self.has[at.host]:
            stalled = self.stalled_at.get((at.host, name))
            ages[name] = 0.2 if stalled is None else self.now - max(stalled, self.began.get(at.host, 0.0))
            if stalled is not None and at.host in self.began:
                untried.append(name)
        return Heartbeat(at=at, agent="life", seq=1, stores=ages, untried=tuple(untried))

    def stall(self, *hosts: str, name: str = "nfs") -> None:
        self.stalled_at.update({(host, name): self.now for host in hosts})

    def restore(self, *hosts: str, name: str = "nfs") -> None:
        for host in hosts:
            self.stalled_at.pop((host, name))

    @property
    def facts(self) -> list[str]:
        """What was told of datastores: the word, and of which host where it is of one."""
        found = []
        for fact in self.told:
            if isinstance(fact, DatastoreLost):
                found.append(f"lost {fact.datastore} {fact.at.host} {fact.number}")
            elif isinstance(fact, DatastoreFailed):
                found.append(f"failed {fact.datastore} {fact.number}")
            elif isinstance(fact, DatastoreRecovered):
                found.append(f"recovered {fact.datastore} {fact.host} {fact.number}".replace("  ", " "))
        return found


def stores(*hosts: str, **more: Any) -> Stores:
    """A pool that has been watched for long."""
    made = Stores(*(hosts or ("h1", "h2", "h3")), **more)
    made.joined()
    made.after(60.0)
    assert made.facts == []
    return made


def removed(host: str, agent: str) -> HostRemoved:
    return HostRemoved(at=boot(host), agent=agent, by="ann@desk")


# -- lost on one host


def test_s18_a_datastore_that_one_host_alone_cannot_write_to_is_lost_there_once_and_comes_back() -> None:
    watch = stores()
    watch.hear(seen(boot("h1"), vm("a", datastores=("nfs",)), vm("b", datastores=("san",)), vm("c")))
    watch.stall("h1")
    watch.after(LOST_S - 0.5)
    assert watch.facts == [], "an ordinary stall"
    watch.after(2.5)
    assert watch.facts == ["lost nfs h1 1"]
    fact = next(fact for fact in watch.told if isinstance(fact, DatastoreLost))
    assert (fact.at, fact.well, fact.asked) == (boot("h1"), 2, 3)
    assert [one.uuid for one in fact.vms] == ["a"]
    assert fact.words[0].host == "h1"
    assert fact.words[0].age_s >= LOST_S
    assert {one.host for one in fact.words[1:]} == {"h2", "h3"}, "its peers' word is the evidence"
    watch.after(300.0)
    watch.restore("h1")
    watch.after(4.0)
    assert watch.facts == ["lost nfs h1 1"], "a single write is no recovery"
    watch.after(3.0)
    assert watch.facts == ["lost nfs h1 1", "recovered nfs h1 1"]
    watch.after(300.0)
    watch.stall("h1")
    watch.after(20.0)
    assert watch.facts[2:] == ["lost nfs h1 2"], "another loss has another number"


def test_of_two_hosts_the_well_one_is_the_majority_of_the_others() -> None:
    watch = stores("h1", "h2")
    watch.stall("h2")
    watch.after(20.0)
    assert watch.facts == ["lost nfs h2 1"]


def test_a_minority_of_hosts_loses_it_while_the_others_write() -> None:
    watch = stores("h1", "h2", "h3", "h4", "h5")
    watch.stall("h1", "h2")
    watch.after(20.0)
    assert watch.facts == ["lost nfs h1 1", "lost nfs h2 2"]


def test_one_datastore_says_nothing_of_another_nor_a_host_of_one_that_it_does_not_have() -> None:
    has = {"h1": ("nfs", "san"), "h2": ("nfs",), "h3": ("san",), "h4": ("san",)}
    watch = stores(*has, has=has)
    watch.stall("h1", name="san")
    watch.after(20.0)
    assert watch.facts == ["lost san h1 1"]
    fact = next(fact for fact in watch.told if isinstance(fact, DatastoreLost))
    assert {one.host for one in fact.words} == {"h1", "h3", "h4"}


# -- the storage's own failure


def test_s18_a_datastore_that_nobody_can_write_to_has_failed_and_is_lost_nowhere() -> None:
    watch = stores()
    for host in ("h1", "h2", "h3"):
        watch.stall(host)
        watch.after(0.7)
    watch.after(300.0)
    assert watch.facts == ["failed nfs 1"], "though one host noticed it before the others"
    for host in ("h2", "h1", "h3"):
        watch.restore(host)
        watch.after(2.5)
    watch.after(60.0)
    assert watch.facts == ["failed nfs 1", "recovered nfs 1"], "though one host was back after the others"


def test_where_all_are_fenced_who_told_of_it_a_failure_is_over() -> None:
    """What is left has no slots, and could never tell: its VMs would wait for ever."""
    watch = stores("h1", "h2", has={"h1": ("nfs",), "h2": ()})
    watch.stall("h1")
    watch.after(60.0)
    assert watch.facts == ["failed nfs 1"]
    successor = Stores("h1", "h2", has={"h1": ("nfs",), "h2": ()}, now=watch.now)
    successor.resume(stored(watch.state.records))
    successor.silent.add("h1")
    successor.after(120.0)
    assert successor.facts == [], "it is silent, and may tell yet"
    proof = FenceProof(of=boot("h1"), method=ProofMethod.POWER_OFF, detail="")
    successor.answer("h1", "power", power=PowerState.OFF)
    record = successor.state.record("h1")
    successor.hear(HostFenced(at=boot("h1"), incident=record.incident, epoch=record.epoch, proof=proof))
    successor.after(5.0)
    assert successor.facts == ["recovered nfs 1"]


def test_without_a_majority_that_writes_it_is_the_storage() -> None:
    watch = stores("h1", "h2", "h3")
    watch.stall("h1", "h2")
    watch.after(100.0)
    assert watch.facts == ["failed nfs 1"]
    alone = stores("h1", "h2", has={"h1": ("local",), "h2": ()})
    alone.stall("h1", name="local")
    alone.after(100.0)
    assert alone.facts == ["failed local 1"], "nobody else has it, and nobody can vouch for it"


def test_where_the_others_come_back_and_one_host_does_not_it_is_lost_there() -> None:
    watch = stores("h1", "h2", "h3", "h4")
    watch.stall("h1", "h2", "h3", "h4")
    watch.after(60.0)
    watch.restore("h2", "h3", "h4")
    watch.after(13.0)
    assert watch.facts == ["failed nfs 1", "recovered nfs 1"], "it has its time to come back, too"
    watch.after(5.0)
    assert watch.facts[2:] == ["lost nfs h1 2"]


def test_lost_on_one_and_then_failed_for_all_both_begin_and_end() -> None:
    watch = stores("h1", "h2", "h3", "h4")
    watch.stall("h1")
    watch.after(30.0)
    watch.stall("h2", "h3", "h4")
    watch.after(60.0)
    assert watch.facts == ["lost nfs h1 1", "failed nfs 2"]
    watch.restore("h1", "h2", "h3", "h4")
    watch.after(30.0)
    assert watch.facts[2:] == ["recovered nfs h1 1", "recovered nfs 2"]


def test_others_that_stall_now_and_then_vouch_for_nothing_and_after_twice_the_time_it_is_told() -> None:
    watch = stores("h1", "h2", "h3")
    watch.stall("h1")
    for _ in range(7):
        watch.stall("h2", "h3")
        watch.after(6.0)
        watch.restore("h2", "h3")
        watch.after(0.6)
    assert not any(word.startswith("lost") for word in watch.facts)
    assert watch.facts[0] == "failed nfs 1"


# -- who is not believed


def test_s13_an_agent_that_stood_still_has_lost_nothing() -> None:
    watch = stores()
    watch.stall("h1")
    watch.gone("h1")
    watch.after(30.0)
    watch.silent.clear()
    watch.after(1.5)  # it says for how long it has not written, before it writes
    watch.restore("h1")
    watch.after(60.0)
    assert watch.facts == []
    watch.stall("h1")
    watch.gone("h1")
    watch.after(30.0)
    watch.silent.clear()
    watch.after(LOST_S - 1.0)
    assert watch.facts == [], "after a silence it is heard for a full period first"
    watch.after(3.0)
    assert watch.facts == ["lost nfs h1 1"]


def test_a_silent_host_neither_loses_nor_vouches() -> None:
    watch = stores("h1", "h2", "h3")
    watch.gone("h2", "h3")
    watch.stall("h1")
    watch.after(60.0)
    assert not any(word.startswith("lost") for word in watch.facts)


@pytest.mark.parametrize("event", [Paused(20.0), BusChanged(connected=False)])
def test_s13_a_deaf_observer_judges_nothing(event: Any) -> None:
    watch = stores()
    watch.stall("h1")
    watch.after(LOST_S - 2.0)
    watch.hear(event)
    if isinstance(event, BusChanged):
        watch.after(5.0)
        watch.hear(BusChanged(connected=True))
    watch.after(LOST_S - 1.0)
    assert watch.facts == []
    watch.after(5.0)
    assert watch.facts == ["lost nfs h1 1"]


def test_an_observer_that_has_just_begun_judges_nothing() -> None:
    watch = Stores("h1", "h2", "h3")
    watch.joined()
    watch.stalled_at["h1", "nfs"] = watch.now - 500.0
    watch.after(LOST_S - 1.0)
    assert watch.facts == []
    watch.after(4.0)
    assert watch.facts == ["lost nfs h1 1"]


def test_an_agent_that_begins_anew_says_nothing_good_of_a_datastore_that_hangs() -> None:
    watch = stores()
    watch.stall("h1")
    watch.after(20.0)
    assert watch.facts == ["lost nfs h1 1"]
    watch.began["h1"] = watch.now
    watch.after(60.0)
    assert watch.facts == ["lost nfs h1 1"], "its first age is small, and no write was taken"
    late = stores()
    late.stall("h1", "h2", "h3")
    late.after(5.0)
    late.began |= {"h2": late.now, "h3": late.now}
    late.after(30.0)
    assert late.facts == ["failed nfs 1"], "nor do agents that begin anew vouch for it"


def test_in_a_storm_nothing_is_judged() -> None:
    watch = stores("h1", "h2", "h3", "h4", "h5", "h6")
    watch.stall("h1")
    watch.gone("h4", "h5", "h6")
    assert watch.state.storm is not None
    watch.after(60.0)
    assert watch.facts == []


# -- what is kept


def test_told_once_over_a_restart_and_a_takeover() -> None:
    watch = stores()
    watch.stall("h1")
    watch.after(20.0)
    records = stored(watch.state.records)
    assert isinstance(records[f"{StoreRecord.PREFIX}nfs"], StoreRecord)
    other = Stores("h1", "h2", "h3", now=watch.now)
    other.stalled_at = dict(watch.stalled_at)
    other.resume(records)
    other.joined()
    other.after(60.0)
    assert other.facts == []
    other.restore("h1")
    other.after(30.0)
    assert other.facts == ["recovered nfs h1 1"]
    assert stored(other.state.records) == other.state.records


def test_on_another_boot_the_loss_ends_and_is_told_anew_only_where_it_is_lost_there_too() -> None:
    watch = stores()
    watch.stall("h1")
    watch.after(20.0)
    watch.hear(beat("h1", 2))
    watch.began["h1"] = watch.now
    watch.after(10.0)
    assert watch.facts == ["lost nfs h1 1"], "nothing is known of the new boot yet: it stays as it was"
    watch.after(10.0)
    assert watch.facts == ["lost nfs h1 1", "recovered nfs h1 1", "lost nfs h1 2"]
    fact = [fact for fact in watch.told if isinstance(fact, DatastoreLost)][-1]
    assert fact.at == boot("h1", 2)


def test_it_ends_with_its_host_and_where_the_host_has_it_no_more() -> None:
    watch = stores()
    watch.stall("h1", "h2")
    watch.restore("h2")
    watch.after(20.0)
    watch.gone("h1")
    watch.hear(removed("h1", "life"))
    watch.after(5.0)
    assert watch.facts == ["lost nfs h1 1", "recovered nfs h1 1"]
    other = stores()
    other.stall("h1")
    other.after(20.0)
    other.has["h1"] = ("san",)
    other.after(5.0)
    assert other.facts == ["lost nfs h1 1", "recovered nfs h1 1"]


def test_a_host_that_fails_keeps_its_loss_until_it_is_heard_to_write() -> None:
    watch = stores()
    watch.stall("h1")
    watch.after(20.0)
    watch.gone("h1")
    watch.nobody_sees("h1", "h2", "h3")
    watch.after(60.0)
    at = boot("h1")
    proof = FenceProof(of=at, method=ProofMethod.POWER_OFF, detail="")
    record = watch.state.record("h1")
    watch.hear(HostFenced(at=at, incident=record.incident, epoch=record.epoch, proof=proof))
    assert watch.is_("h1") in (HostState.FENCED, HostState.SUSPECT)
    assert watch.facts == ["lost nfs h1 1"]


def test_a_boot_that_was_fenced_and_speaks_says_nothing_of_its_datastores_until_it_is_another() -> None:
    watch = stores()
    watch.stall("h1")
    watch.after(20.0)
    watch.gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    at, record = boot("h1"), watch.state.record("h1")
    proof = FenceProof(of=at, method=ProofMethod.POWER_OFF, detail="")
    watch.hear(HostFenced(at=at, incident=record.incident, epoch=record.epoch, proof=proof))
    assert watch.is_("h1") is HostState.FENCED
    watch.restore("h1")
    watch.silent.clear()
    watch.after(60.0)
    assert watch.facts == ["lost nfs h1 1"]


def test_hosts_without_datastores_cost_nothing() -> None:
    watch = Stores("h1", "h2", has={"h1": (), "h2": ()})
    watch.joined()
    watch.after(30.0)
    assert len(watch.state.writes) == 0
