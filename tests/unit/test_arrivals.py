"""Before a host takes a VM in by a migration everybody who may start the VM knows of it (ADR 11)."""

from __future__ import annotations

import pytest

from libs.core.decider import Outcome
from libs.events.signals import Arriving, LeaseWritten, LetIn
from libs.leases import ARRIVALS_MOST, adopted, arrival_over, let_in, moved, moving, not_arrived
from libs.model import (
    Arrival,
    Incarnation,
    LeaseState,
    Protection,
    RunLease,
    StopReason,
    VmPolicy,
    VmReport,
    VmState,
)
from libs.strays import condemn
from services.executor.act import Hands as ExecutorHands
from services.executor.orders import ArrivalNoted, NoteArrival, Result, WriteLease
from services.heartbeat.orders import AnswerArrival, ArrivalAsked, GatePassed
from tests.unit.made import boot, fenced, inventory, lease, policy, proof, seen, sent, vm
from tests.unit.test_agent import Desk as AgentDesk
from tests.unit.test_executor import Desk, Lab, order, plan

pytestmark = pytest.mark.fast
H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")
COMING = vm("a", VmState.PAUSED, migrated=True, run=0)
TO_H2 = Arrival(at=H2, agent="life", rev=2)
HELD = lease("a", H1)
NOTED = HELD.model_copy(update={"arriving": (TO_H2,), "seq": 2})


# -- the lease


def test_the_lease_names_where_it_may_arrive_the_latest_last() -> None:
    assert let_in(HELD, TO_H2, COMING) == NOTED
    to_h3 = Arrival(at=H3, agent="life", rev=9)
    both = let_in(NOTED, to_h3, COMING)
    assert isinstance(both, RunLease)
    again = let_in(both, TO_H2, COMING)
    assert isinstance(again, RunLease)
    assert [one.at for one in again.arriving] == [H3, H2]


@pytest.mark.parametrize("known", [lease("a", H2), moving(HELD, H2)])
def test_a_lease_that_names_that_boot_as_it_lies_says_enough(known: RunLease) -> None:
    assert let_in(known, TO_H2, COMING) is None


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (moving(HELD, H3), "it is being moved to h3"),
        (lease("a", H3, LeaseState.STARTING), "it is being started on h3"),
        (condemn(HELD, H3, 1), "another copy of it may still run on h3"),
        (
            HELD.model_copy(
                update={
                    "arriving": tuple(
                        Arrival(at=boot(f"k{n}"), agent="life", rev=1) for n in range(ARRIVALS_MOST)
                    )
                }
            ),
            f"{ARRIVALS_MOST} hosts have not said yet",
        ),
    ],
)
def test_what_is_started_or_moved_elsewhere_or_runs_twice_is_not_let_in(known: RunLease, why: str) -> None:
    said = let_in(known, TO_H2, COMING)
    assert isinstance(said, str)
    assert said.startswith(why)


def test_what_nobody_holds_is_that_hosts_from_then_on() -> None:
    found = let_in(None, TO_H2, COMING)
    assert isinstance(found, RunLease)
    assert (found.holder, found.token) == (H2, 1)


def test_it_is_forgotten_only_once_that_host_no_longer_shows_it_or_is_over() -> None:
    assert not_arrived(NOTED, inventory(H2, COMING, rev=2)) is None
    assert not_arrived(NOTED, inventory(H2, vm("a", VmState.UNKNOWN), rev=3)) is None
    assert not_arrived(NOTED, inventory(H2, rev=1)) is None, "said before it was to come"
    assert not_arrived(NOTED, inventory(H3)) is None
    for shown in (
        inventory(H2, rev=3),
        inventory(H2, vm("a", VmState.STOPPED), rev=3),
        inventory(H2, rev=1, agent="next"),
        inventory(boot("h2", 2), vm("a")),
    ):
        left = not_arrived(NOTED, shown)
        assert left is not None
        assert (left.arriving, left.seq) == ((), NOTED.seq + 1)
    assert arrival_over(NOTED, H1) is None
    over = arrival_over(NOTED, H2)
    assert over is not None
    assert over.arriving == ()


def test_once_the_lease_has_followed_it_no_longer_arrives_there() -> None:
    left = vm("a", VmState.STOPPED, stop_reason=StopReason.MIGRATED)
    held = adopted(NOTED, H2, vm("a"), left, holder_known=True)
    assert held is not None
    assert (held.holder, held.arriving) == (H2, ())
    elsewhere = adopted(NOTED, H3, vm("a"), left, holder_known=True)
    assert elsewhere is not None
    assert elsewhere.arriving == (TO_H2,), "of that host nothing is known by this"
    assert moved(NOTED, H2).arriving == ()


# -- the agent


def asked(ask: str = "q1", **more: VmPolicy) -> ArrivalAsked:
    return ArrivalAsked(key=ask, report=vm("a", VmState.PAUSED, run=0, **more))


def at_work(*vms: VmReport) -> AgentDesk:
    desk = AgentDesk().passed()
    desk.reads(*vms)
    return desk


def answers(desk: AgentDesk) -> list[tuple[str, str]]:
    return [(one.ask, one.refused) for one in desk.asked if isinstance(one, AnswerArrival)]


def test_it_is_shown_and_the_executor_asked_before_libvirt_gets_its_word() -> None:
    desk = at_work(vm("a", VmState.STOPPED, stop_reason=StopReason.MIGRATED))
    assert desk.hear(asked()) == ["inventory", "arriving", "put_inventory"]
    word = desk.said[-1]
    assert isinstance(word, Arriving)
    assert (word.ask, word.vm, word.found, word.inventory.rev) == ("q1", "a", StopReason.MIGRATED, 2)
    [shown] = desk.shown()
    assert (shown.state, shown.migrated, shown.run) == (VmState.PAUSED, True, 0)
    assert answers(desk) == []
    desk.hear(LetIn(at=boot("h1", 2), ask="q1"))
    assert answers(desk) == [], "of another boot"
    desk.hear(LetIn(at=H1, ask="q1"))
    desk.hear(LetIn(at=H1, ask="q1"))
    assert answers(desk) == [("q1", "")]


def test_it_is_shown_until_libvirt_shows_it_itself() -> None:
    desk = at_work()
    desk.hear(asked())
    desk.hear(LetIn(at=H1, ask="q1"))
    desk.after(0.1)
    desk.reads()
    assert [one.run for one in desk.shown()] == [0], "read before QEMU had begun"
    desk.after(6.0)
    desk.reads(vm("a", VmState.PAUSED, migrated=True, run=7))
    assert [one.run for one in desk.shown()] == [7]
    desk.after(6.0)
    desk.reads()
    assert [one.state for one in desk.shown()] == [VmState.STOPPED], "it has ended"


def test_what_does_not_come_is_shown_no_longer_after_a_while_and_has_not_ended_here() -> None:
    desk = at_work()
    desk.hear(asked())
    desk.hear(LetIn(at=H1, ask="q1"))
    for _ in range(5):
        desk.after(5.5)
        desk.reads()
        assert len(desk.shown()) == 1
    desk.after(5.5)
    desk.reads()
    assert desk.shown() == []


def test_a_refusal_is_told_with_its_reason_and_the_vm_shown_no_more() -> None:
    desk = at_work()
    desk.hear(asked())
    desk.hear(LetIn(at=H1, ask="q1", refused="it is being started on h3"))
    assert answers(desk) == [("q1", "it is being started on h3")]
    desk.after(0.1)
    desk.reads()
    assert desk.shown() == []


def test_while_nobody_answers_it_is_asked_again_and_then_refused() -> None:
    desk = at_work()
    desk.hear(asked())
    told = desk.after(4.5)
    assert told.count("arriving") == 7
    [(ask, why)] = answers(desk)
    assert ask == "q1"
    assert "the management plane has not answered in 4 s" in why
    desk.hear(LetIn(at=H1, ask="q1"))
    assert len(answers(desk)) == 1, "too late"


def test_before_the_gate_nothing_comes_in_and_what_nobody_protects_always() -> None:
    desk = AgentDesk()
    desk.hear(asked())
    desk.hear(asked("q2", policy=policy(protection=Protection.NONE)))
    [(first, why), second] = answers(desk)
    assert first == "q1"
    assert "try again in a moment" in why
    assert second == ("q2", "")
    assert desk.said == []


def test_asked_twice_for_one_vm_the_first_request_is_void() -> None:
    desk = at_work()
    desk.hear(asked())
    desk.hear(asked("q2"))
    assert answers(desk) == [("q1", "it was asked once more")]
    desk.hear(LetIn(at=H1, ask="q2"))
    assert answers(desk)[1:] == [("q2", "")]


def test_the_next_life_of_an_agent_shows_what_the_one_before_let_in() -> None:
    desk = AgentDesk()
    desk.wait()
    desk.hear(GatePassed(key=desk.asked[-1].key, earlier=(COMING, vm("b"))))
    desk.reads(vm("b"))
    assert [(one.uuid, one.run) for one in desk.shown()] == [("a", 0), ("b", 1)]


# -- the executor


def word(rev: int = 2, at: Incarnation = H2) -> Arriving:
    return Arriving(ask="q1", vm="a", inventory=inventory(at, COMING, rev=rev))


def told(desk: Desk, event: Outcome | Arriving) -> list[LetIn]:
    step = desk.decider.step(desk.state, event, desk.now)
    desk.take(step)
    return [one for one in sent(step.effects) if isinstance(one, LetIn)]


def test_the_executor_writes_it_down_and_then_says_so() -> None:
    desk = Desk()
    desk.hear(LeaseWritten(lease=HELD))
    assert told(desk, word()) == []
    [request] = [one for one in desk.asked if isinstance(one, NoteArrival)]
    assert request.arrival == TO_H2
    noted = ArrivalNoted(key=request.key, lease=NOTED, at=H2, ask="q1")
    assert told(desk, noted) == [LetIn(at=H2, ask="q1")]
    assert desk.state.leases["a"] == NOTED


def test_what_is_being_started_is_not_let_in_anywhere_nor_anything_on_a_boot_that_is_over() -> None:
    desk = Desk()
    desk.hear(plan(order("a", to=H3)))
    [said] = told(desk, word())
    assert said.refused == "it is being started on h3/h3boot1"
    desk = Desk()
    desk.hear(fenced(H2))
    [said] = told(desk, word())
    assert said.refused == "h2/h2boot1 is proven to be over"


def test_its_lease_forgets_where_it_did_not_arrive() -> None:
    for event in (seen(H2, rev=3), fenced(H2)):
        desk = Desk()
        desk.hear(LeaseWritten(lease=NOTED))
        desk.hear(seen(H2, COMING, rev=2))
        assert not [one for one in desk.asked if isinstance(one, WriteLease)]
        desk.hear(event)
        [write] = [one for one in desk.asked if isinstance(one, WriteLease)]
        assert write.lease.arriving == ()


async def noted(hands: ExecutorHands) -> ArrivalNoted:
    request = NoteArrival(key="k", deadline_s=2.0, ask="q1", arrival=TO_H2, report=COMING)
    done = await hands.perform(request)
    assert isinstance(done, ArrivalNoted)
    return done


async def test_either_the_arrival_or_the_start_wins_the_lease() -> None:
    lab = Lab(H2, H3, held=HELD)
    assert (await noted(lab.hands)).refused == ""
    assert lab.lease().arriving == (TO_H2,)
    lab.hosts[H2].vms["a"] = VmState.PAUSED
    done = await lab.start(order("a", to=H3, proofs=(proof(H1),)))
    assert (done.result, lab.hosts[H3].starts) == (Result.NOT_STARTED, [])
    assert "it may have been moved to h2/h2boot1, which says that it is paused" in done.reason

    lab = Lab(H2, H3, held=HELD)
    assert (await lab.start(order("a", to=H3, proofs=(proof(H1),)))).result is Result.STARTED
    late = lab.lease().model_copy(update={"state": LeaseState.STARTING})
    lab.put("leases.a", late.model_dump_json())
    assert (await noted(lab.hands)).refused == "it is being started on h3/h3boot1"


@pytest.mark.parametrize("state", [None, VmState.STOPPED])
async def test_where_it_may_have_arrived_says_whether_it_may_be_started_elsewhere(
    state: VmState | None,
) -> None:
    lab = Lab(H2, H3, held=NOTED)
    if state is not None:
        lab.hosts[H2].vms["a"] = state
    done = await lab.start(order("a", to=H3, proofs=(proof(H1),)))
    assert done.result is Result.STARTED
    assert lab.lease().arriving == ()


async def test_a_host_that_does_not_answer_keeps_it_until_that_host_is_over_too() -> None:
    lab = Lab(H3, held=NOTED)
    done = await lab.start(order("a", to=H3, proofs=(proof(H1),)))
    assert (done.result, lab.hosts[H3].starts) == (Result.NOT_STARTED, [])
    assert "it may have been moved to h2/h2boot1, which does not say" in done.reason
    done = await lab.start(order("a", to=H3, proofs=(proof(H1), proof(H2))))
    assert done.result is Result.STARTED


async def test_a_person_who_put_it_down_where_it_had_come_means_it() -> None:
    lab = Lab(H2, H3, held=NOTED)
    lab.hosts[H2].vms["a"] = VmState.STOPPED
    lab.hosts[H2].reasons["a"] = StopReason.ON_PURPOSE
    done = await lab.start(order("a", to=H3, proofs=(proof(H1),)))
    assert (done.result, lab.hosts[H3].starts) == (Result.NOT_STARTED, [])
    assert lab.lease().holder == H2
