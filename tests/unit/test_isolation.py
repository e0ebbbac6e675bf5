"""A host cut off from every network that lives: what is ordered through its slot, and what its word proves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from libs.core.clock import SystemClock
from libs.core.ports import Clock
from libs.events.hosts import HostIsolated
from libs.events.signals import Question, Reply, Signal, SlotSeen
from libs.model import Answer, ProofMethod, VmReport
from libs.promises import SlotBeat, SlotOrder
from services.fencer.act import Hands
from services.fencer.state import Fence, Ordered, OrderStop
from tests.unit.made import boot, failed, policy, vm
from tests.unit.test_fencer import Desk, Libvirts, Power, recovered
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast


def isolated(*vms: VmReport, epoch: int = 1) -> HostIsolated:
    return HostIsolated(at=boot("h1"), incident=f"h1-{epoch}", epoch=epoch, vms=vms)


GOES = vm("a", policy=policy(isolation="shutdown"))
STAYS = vm("b")


def test_an_isolated_host_is_ordered_to_stop_only_what_its_policy_says() -> None:
    desk = Desk()
    desk.hear(isolated(GOES, STAYS))
    (request,) = desk.asked
    assert isinstance(request, OrderStop)
    assert (request.order.vms, request.order.boot, request.order.number) == (("a",), "h1boot1", 1)
    assert Desk().hear(isolated(STAYS)) == []


def test_an_order_that_is_obeyed_proves_these_vms_stopped_and_no_others() -> None:
    desk = Desk()
    desk.hear(isolated(GOES, STAYS))
    assert desk.hear(Ordered(key="order/h1-1/1", incident="h1-1", stopped=True)) == ["host.obeyed"]
    obeyed = desk.told[-1]
    assert obeyed.proof.method is ProofMethod.OBEYED
    assert (obeyed.proof.covers("a"), obeyed.proof.covers("b")) == (True, False)
    assert desk.hear(isolated(GOES, STAYS)) == [], "told again"


def test_an_order_that_is_not_obeyed_is_given_again_and_told_of_once() -> None:
    desk = Desk()
    desk.hear(isolated(GOES))
    silent = Ordered(key="k", incident="h1-1", stopped=False, missing=("no word",))
    assert desk.hear(silent) == ["host.fence_failed"]
    desk.wait()
    assert [type(request) for request in desk.asked] == [OrderStop, OrderStop]
    assert desk.asked[-1].again
    assert desk.hear(silent) == []


def test_an_order_that_may_lie_in_a_slot_is_carried_through_although_the_host_speaks_again() -> None:
    """It will be obeyed whenever it is read: what it stops must start elsewhere."""
    desk = Desk()
    desk.hear(isolated(GOES))
    desk.hear(recovered(boot("h1")))
    desk.hear(Ordered(key="k", incident="h1-1", stopped=False, written=True, missing=("no word",)))
    desk.wait()
    assert desk.hear(Ordered(key="k", incident="h1-1", stopped=True)) == ["host.obeyed"]


def test_an_order_that_nobody_could_write_ends_when_the_host_speaks_again() -> None:
    desk = Desk()
    desk.hear(isolated(GOES))
    desk.hear(recovered(boot("h1")))
    desk.hear(Ordered(key="k", incident="h1-1", stopped=False, written=False, missing=("no datastore",)))
    assert desk.decider.wake_at(desk.state) is None


def test_an_isolated_host_that_fails_is_fenced() -> None:
    desk = Desk()
    desk.hear(isolated(GOES))
    desk.hear(failed(boot("h1"), GOES, epoch=2))
    assert isinstance(desk.asked[-1], Fence)


async def order(says: Callable[[SlotOrder], SlotBeat | None], clock: Clock | None = None) -> Ordered:
    bus = Process(World())

    def reply(topic: str, question: Signal) -> Signal | None:
        assert isinstance(question, Question)
        assert question.order is not None
        seen = SlotSeen(datastore="nfs", beat=says(question.order))
        peer = boot(topic.removeprefix("ask."))
        return Reply(about="h1", peer=peer, answer=Answer.UNKNOWN, slots=(seen,), ordered=("nfs",))

    bus.replies = reply
    hands = Hands(
        Power(lambda: None, ()),
        bus,
        Libvirts(Answer.SILENT),
        clock or SystemClock(),
        0.1,
        ["h1", "h2"],
        0.9,
        0.05,
    )
    given = SlotOrder(boot="h1boot1", number=3, vms=("a", "c"))
    request = OrderStop(key="o", deadline_s=1.0, at=boot("h1"), incident="h1-3", order=given)
    done = await hands.perform(request)
    assert isinstance(done, Ordered)
    return done


async def test_an_order_is_obeyed_where_the_slot_says_so_of_all_vms() -> None:
    answers = [None, SlotBeat(host="h1", boot="h1boot1", seq=1, obeyed=2, stopped=("x",))]
    answers.append(SlotBeat(host="h1", boot="h1boot1", seq=2, obeyed=3, stopped=("a", "c")))
    done = await order(lambda _: answers.pop(0))
    assert (done.stopped, answers) == (True, [])


@pytest.mark.parametrize(
    "beat",
    [
        SlotBeat(host="h1", boot="h1boot1", seq=1, obeyed=3, stopped=("a",)),
        SlotBeat(host="h1", boot="h1boot9", seq=1, obeyed=3, stopped=("a", "c")),
        SlotBeat(host="h1", boot="h1boot1", seq=1, obeyed=2, stopped=("a", "c")),
        None,
    ],
)
async def test_half_a_word_or_another_boots_is_none(beat: SlotBeat | None) -> None:
    class Quick(SystemClock):
        now = 0.0

        def monotonic(self) -> float:
            self.now += 20.0
            return self.now

    done = await order(lambda _: beat, Quick())
    assert (done.stopped, done.written) == (False, True)
    assert "2 VMs (ordered on nfs)" in done.missing[0]
