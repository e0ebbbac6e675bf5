"""The detector over boots of hosts, its own starts and pauses, storms, and VMs that crash."""

from __future__ import annotations

import pytest
from rpds import HashTrieMap

from libs.core.decider import BusChanged, Input, Paused, TableRead
from libs.events.hosts import HostFailed
from libs.events.signals import Goodbye
from libs.events.vms import VmFailed
from libs.model import PowerState, ProofMethod, VmPolicy
from services.detector.decide import ECHO_S, Detector
from tests.unit.made import (
    beat,
    boot,
    crashed,
    fenced,
    inventory,
    seen,
    stored,
    vm,
)
from tests.unit.watch import DEFAULT, S, Watch, pool, records_of

pytestmark = pytest.mark.fast


# -- boots


def test_a_new_boot_proves_that_the_old_one_is_over() -> None:
    watch = pool()
    watch.hear(seen(boot("h1"), vm("a")))
    assert watch.hear(beat("h1", 2)) == ["host.failed", "host.joined"]
    failed, joined = watch.told[-2:]
    assert isinstance(failed, HostFailed)
    assert failed.at == boot("h1")
    assert failed.proof is not None
    assert (failed.proof.method, failed.proof.of) == (ProofMethod.NEW_BOOT, boot("h1"))
    assert [report.uuid for report in failed.vms] == ["a"]
    assert joined.at == boot("h1", 2)
    assert watch.is_("h1") is S.HEALTHY


def test_what_an_old_boot_still_says_is_an_echo() -> None:
    watch = pool()
    watch.hear(beat("h1", 2))
    assert watch.hear(beat("h1", 1)) == []
    assert watch.hear(seen(boot("h1"), crashed("a"))) == []
    assert watch.state.record("h1").at == boot("h1", 2)


def test_a_failed_host_that_boots_again_joins_without_a_second_verdict() -> None:
    watch = pool().gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    assert watch.hear(beat("h1", 2)) == ["host.joined"]
    assert watch.told[-1].cause == watch.state.record("h1").incident


def test_a_fenced_boot_that_still_speaks_is_not_believed() -> None:
    watch = pool().gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    watch.hear(fenced(boot("h1")))
    assert watch.is_("h1") is S.FENCED
    assert watch.hear(beat("h1")) == []
    assert watch.is_("h1") is S.FENCED
    assert watch.hear(beat("h1", 2)) == ["host.joined"]
    assert watch.is_("h1") is S.HEALTHY


def test_a_fenced_boot_that_goes_on_speaking_refutes_its_proof_and_that_is_told_once() -> None:
    watch = pool().gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    watch.hear(fenced(boot("h1")))
    watch.after(ECHO_S - 0.1)
    assert watch.hear(beat("h1")) == [], "an echo of what it said before"
    watch.after(0.2)
    assert watch.hear(beat("h1")) == ["host.fence_refuted"]
    assert watch.told[-1].incident == watch.state.record("h1").incident
    assert watch.hear(beat("h1")) == []
    assert watch.is_("h1") is S.FENCED, "its VMs were started elsewhere: it is not to be used"
    # the next detector knows that it was told
    watch.resume(stored(watch.state.records))
    watch.after(2 * ECHO_S)
    assert watch.hear(beat("h1")) == []


def test_a_failed_host_that_speaks_again_before_any_proof_has_recovered() -> None:
    watch = pool().gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    assert watch.hear(beat("h1")) == ["host.recovered"]
    assert watch.told[-1].incident == watch.told[-2].incident
    watch.gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    incidents = [fact.incident for fact in watch.told if fact.kind == "host.failed"]
    assert len(set(incidents)) == 2, "two verdicts are two incidents"
    assert [fact.epoch for fact in watch.told if fact.kind == "host.failed"] == [1, 2]


def test_a_fence_proof_of_another_boot_changes_nothing() -> None:
    watch = pool().gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    watch.hear(fenced(boot("h1", 9)))
    assert watch.is_("h1") is S.FAILED


def test_hosts_that_are_not_in_the_pool_are_not_listened_to() -> None:
    watch = pool("h1")
    assert watch.hear(beat("stranger")) == []
    assert watch.hear(seen(boot("stranger"), crashed("a"))) == []
    assert "stranger" not in watch.state.records


# -- after a start


@pytest.mark.long
def test_a_host_that_was_never_heard_of_stays_unknown_for_ever() -> None:
    watch = Watch("h1", "h2")
    watch.resume(HashTrieMap())
    watch.hear(beat("h2"))
    watch.silent.add("h1")
    watch.after(3600)
    assert watch.is_("h1") is S.UNKNOWN
    assert [fact.kind for fact in watch.told] == ["host.joined"]
    assert watch.asked == []


def test_a_host_known_from_before_is_unknown_until_the_quiet_time_is_over_and_then_suspected() -> None:
    before = pool("h1", "h2", "h3")
    watch = Watch("h1", "h2", "h3", now=5000.0)
    watch.resume(records_of(before))
    watch.silent.add("h1")
    assert watch.after(2.0) == []
    assert watch.is_("h1") is S.UNKNOWN
    assert watch.until(5059.9) == []
    assert watch.asked == []
    assert watch.until(5060.3) == ["host.suspected"]
    assert watch.hear(beat("h1")) == ["host.refuted"]


def test_a_host_known_from_before_that_speaks_in_the_quiet_time_is_simply_there() -> None:
    watch = Watch("h1", "h2", now=5000.0)
    watch.resume(records_of(pool("h1", "h2")))
    watch.silent = {"h1"}
    watch.after(10)
    assert watch.hear(beat("h1")) == ["host.joined"]
    assert watch.is_("h1") is S.HEALTHY


def test_a_detector_that_starts_long_after_the_plane_has_no_quiet_time() -> None:
    watch = Watch("h1", "h2", now=5000.0)
    watch.decider = Detector(("h1", "h2"), DEFAULT, plane_started=1000.0)
    watch.state = watch.decider.initial(5000.0)
    watch.resume(records_of(pool("h1", "h2")))
    watch.silent.add("h1")
    assert watch.after(1.8) == ["host.suspected"]


def test_a_successor_pursues_what_its_predecessor_suspected_and_asks_anew() -> None:
    before = pool().gone("h1")
    before.nobody_sees("h1", "h2", "h3")
    watch = Watch(*before.decider.hosts, now=7000.0)
    for host in ("h2", "h3", "h4", "h5"):
        watch.hear(beat(host))
    watch.resume(records_of(before))
    assert watch.is_("h1") is S.SUSPECT
    watch.silent.add("h1")
    watch.after(0.3)
    assert {ask.kind for ask in watch.asked} == {"ask_power", "ask_libvirt", "ask_peer"}
    assert watch.answer("h1", "power", power=PowerState.OFF) == ["host.failed"]


def test_a_follower_hears_and_takes_over_with_warm_views() -> None:
    leader, follower = pool("h1", "h2"), Watch("h1", "h2")
    for host in ("h1", "h2"):
        follower.state = follower.decider.step(follower.state, beat(host), follower.now).state
    follower.now += 1.0
    assert follower.resume(records_of(leader)) == []
    follower.silent.add("h1")
    # heard as a follower: no quiet time for it, since it had its chance
    assert follower.after(1.0) == ["host.suspected"]


# -- deaf


@pytest.mark.parametrize("deafness", [Paused(5.0), BusChanged(True)])
def test_whoever_was_deaf_discards_its_evidence_and_listens_for_a_full_period(deafness: Input) -> None:
    watch = pool().gone("h1")
    watch.nobody_sees("h1", "h2", "h3")
    watch.after(1.0)
    watch.now += 5.0
    watch.hear(deafness)
    deaf_at = watch.now
    watch.silent |= {"h2", "h3"}
    assert watch.after(1.3) == []
    assert watch.is_("h2") is S.HEALTHY
    # what comes in is not judged before the period is over, even if it is a proof
    assert watch.answer("h1", "power", power=PowerState.OFF) == []
    watch.until(deaf_at + 1.95)
    assert watch.is_("h1") is S.SUSPECT
    assert "host.failed" in watch.after(0.3)


def test_while_the_bus_is_away_nobody_is_suspected() -> None:
    watch = pool()
    watch.hear(BusChanged(False))
    watch.silent = set(watch.decider.hosts)
    assert watch.after(60.0) == []
    watch.hear(BusChanged(True))
    watch.silent = {"h1"}
    assert watch.after(1.3) == []
    assert watch.after(0.4) == ["host.suspected"]


def test_a_suspect_is_not_judged_while_the_bus_is_away() -> None:
    watch = pool().gone("h1")
    watch.hear(BusChanged(False))
    for _ in range(20):
        watch.nobody_sees("h1", "h2", "h3")
        watch.answer("h1", "power", power=PowerState.OFF)
        assert watch.after(1.0) == []
    assert watch.is_("h1") is S.SUSPECT


def test_a_goodbye_makes_silence_mean_nothing_for_its_grace() -> None:
    watch = pool()
    watch.hear(Goodbye(at=boot("h1"), agent="life", grace_s=10.0))
    watch.silent.add("h1")
    assert watch.after(9.8) == []
    assert watch.after(0.4) == ["host.suspected"]
    watch.hear(beat("h1"))
    assert watch.after(1.7) == ["host.suspected"], "the grace ended with the next heartbeat"


# -- storms


def test_more_suspects_than_believable_hold_the_verdict_and_alert_once() -> None:
    watch = pool().gone("h1", "h2", "h3")
    for _ in range(30):
        for host in ("h1", "h2", "h3"):
            watch.nobody_sees(host, "h4", "h5")
        watch.after(1.0)
    told = [fact.kind for fact in watch.told]
    assert told.count("storm.held") == 1
    assert "host.failed" not in told
    held = next(fact for fact in watch.told if fact.kind == "storm.held")
    assert (held.suspects, held.limit) == (("h1", "h2", "h3"), 2)


def test_a_proof_passes_the_hold_and_the_rest_stay_held() -> None:
    watch = pool().gone("h1", "h2", "h3")
    assert watch.answer("h1", "power", power=PowerState.OFF) == ["host.failed"]
    for _ in range(20):
        watch.nobody_sees("h2", "h4", "h5")
        watch.after(1.0)
    assert watch.is_("h2") is S.SUSPECT, "the failed one still counts as long as it is not fenced"


def test_the_hold_ends_when_the_number_is_believable_again() -> None:
    watch = pool().gone("h1", "h2", "h3")
    watch.after(0.5)
    for host in ("h1", "h2"):
        watch.silent.discard(host)
        watch.hear(beat(host))
    assert watch.after(0.2) == ["storm.released"]
    for _ in range(4):
        watch.nobody_sees("h3", "h4", "h5")
        watch.after(1.0)
    assert watch.is_("h3") is S.FAILED


# -- VMs that crash


def test_a_vm_that_its_own_hypervisor_calls_crashed_is_told_once() -> None:
    watch = pool("h1", "h2")
    watch.hear(seen(boot("h1"), vm("a", run=4)))
    assert watch.hear(seen(boot("h1"), crashed("a", run=4), rev=2)) == ["vm.failed"]
    fact = watch.told[-1]
    assert isinstance(fact, VmFailed)
    assert (fact.vm, fact.run, fact.at) == ("a", 4, boot("h1"))
    assert watch.hear(seen(boot("h1"), crashed("a", run=4), rev=2)) == []
    assert watch.hear(seen(boot("h1"), crashed("a", run=4), vm("b"), rev=3)) == []


def test_an_unprotected_vm_may_crash() -> None:
    watch = pool("h1", "h2")
    assert watch.hear(seen(boot("h1"), crashed("a", policy=VmPolicy(protection="none")))) == []


def test_a_crash_that_only_the_stored_inventory_tells_of_is_told() -> None:
    """The agent stored it and said it while no detector was there; what it says from now on is no news."""
    watch = Watch("h1", "h2")
    watch.resume(records_of(pool("h1", "h2")))
    row = inventory(boot("h1"), crashed("a"), rev=7)
    told = watch.hear(TableRead("inventory", (row,)))
    told += watch.hear(seen(boot("h1"), crashed("a"), rev=7))
    assert told == ["vm.failed"]


def test_a_crash_seen_as_a_follower_is_told_on_taking_over() -> None:
    watch = Watch("h1", "h2")
    event = seen(boot("h1"), crashed("a"))
    watch.state = watch.decider.step(watch.state, event, watch.now).state
    assert watch.resume(HashTrieMap()) == ["vm.failed"]


def test_an_older_inventory_of_the_same_agent_is_not_believed() -> None:
    watch = pool("h1", "h2")
    watch.hear(seen(boot("h1"), vm("a"), rev=5))
    assert watch.hear(seen(boot("h1"), crashed("a"), rev=4)) == []
    watch.gone("h1")
    watch.answer("h1", "power", power=PowerState.OFF)
    assert [report.uuid for report in watch.told[-1].vms] == ["a"]
