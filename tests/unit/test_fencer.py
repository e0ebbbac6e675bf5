"""From a verdict to a proof: once per incident, for ever, and never a healthy host by an old order."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from libs.config.settings import FencingSettings
from libs.core.clock import SystemClock
from libs.core.decider import Expired, Records
from libs.core.ports import FenceError, Hypervisor, OffSeen
from libs.events.hosts import HostFailed, HostFenced, HostJoined, HostRecovered
from libs.events.signals import Question, Reply, Signal, SlotSeen
from libs.events.words import HostConfirmedFailed
from libs.model import Answer, FenceProof, Incarnation, PowerState, ProofMethod
from libs.promises import SlotBeat
from services.fencer.act import Hands
from services.fencer.decide import Fencer
from services.fencer.state import Fence, Fenced, FencerState, Phase
from tests.unit import desk
from tests.unit.made import beat, boot, failed, proof, stored, vm
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast
SETTINGS = FencingSettings(retry_first_s=1.0, retry_max_s=30.0)


class Desk(desk.Desk[FencerState]):
    """A fencer."""

    def __init__(self) -> None:
        super().__init__(Fencer(SETTINGS, {"h1": 12.0}), 100.0)

    def fails(self, *missing: str, epoch: int = 1) -> list[str]:
        return self.hear(Fenced(key=self.asked[-1].key, incident=f"h1-{epoch}", missing=missing))

    def succeeds(self, epoch: int = 1, number: int = 1) -> list[str]:
        done = Fenced(key=self.asked[-1].key, incident=f"h1-{epoch}", proof=proof(boot("h1", number)))
        return self.hear(done)

    def phase(self) -> Phase:
        phase: Phase = self.state.records["h1"].phase
        return phase


def recovered(at: Incarnation, epoch: int = 1) -> HostRecovered:
    return HostRecovered(at=at, incident=f"{at.host}-{epoch}", epoch=epoch)


def test_fifty_tellings_of_one_failure_are_one_attempt() -> None:
    desk = Desk()
    for _ in range(50):
        desk.hear(failed(boot("h1"), vm("a")))
    assert [request.key for request in desk.asked] == ["fence/h1-1/1"]
    assert desk.asked[0].deadline_s == 12.0
    desk.succeeds()
    for _ in range(50):
        desk.hear(failed(boot("h1"), vm("a")))
    assert len(desk.asked) == 1
    assert [fact.kind for fact in desk.told] == ["host.fenced"]


def test_a_proof_is_told_with_all_that_a_late_reader_needs() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1"), vm("a"), vm("b")))
    assert desk.succeeds() == ["host.fenced"]
    fact = desk.told[0]
    assert isinstance(fact, HostFenced)
    assert (fact.at, fact.incident, fact.epoch) == (boot("h1"), "h1-1", 1)
    assert [report.uuid for report in fact.vms] == ["a", "b"]
    assert fact.proof.of == boot("h1")
    assert fact.cause == failed(boot("h1")).key
    assert desk.decider.wake_at(desk.state) is None
    assert desk.succeeds() == [], "told once"


def test_it_is_tried_for_ever_with_a_growing_pause_and_said_once_per_reason() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    pauses, told = [], []
    for attempt in range(1, 12):
        told += desk.fails("level 1: no answer")
        began = desk.now
        assert desk.wait() == [f"fence/h1-1/{attempt + 1}"]
        pauses.append(desk.now - began)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * 6]
    assert told == ["host.fence_failed"]
    assert desk.fails("level 1: refused") == ["host.fence_failed"], "another reason is news"
    assert desk.told[-1].missing == ("level 1: refused",)


def test_after_a_thousand_attempts_the_pause_is_still_the_longest() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    for _ in range(1100):
        desk.fails("no answer")
        desk.wait()
    desk.fails("no answer")
    assert desk.decider.wake_at(desk.state) == desk.now + 30.0


def test_an_attempt_without_an_end_counts_as_failed() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    late = Expired(key="fence/h1-1/1", request="fence", reason="no end in 12.0 s")
    assert desk.hear(late) == ["host.fence_failed"]
    assert "no end in 12.0 s" in desk.told[-1].missing[0]
    assert desk.wait() == ["fence/h1-1/2"]
    assert desk.hear(late) == [], "of an attempt that is over"


def test_a_verdict_that_brings_its_proof_needs_no_device() -> None:
    desk = Desk()
    new_boot = proof(boot("h1"), ProofMethod.NEW_BOOT)
    assert desk.hear(failed(boot("h1"), vm("a"), proof=new_boot)) == ["host.fenced"]
    assert desk.asked == []
    assert desk.told[0].proof == new_boot


@pytest.mark.parametrize("fails_before", [0, 1])
def test_a_new_boot_is_a_proof_whether_an_attempt_is_under_way_or_waits(fails_before: int) -> None:
    desk = Desk()
    desk.hear(failed(boot("h1"), vm("a")))
    for _ in range(fails_before):
        desk.fails("no answer")
    assert desk.hear(HostJoined(at=boot("h1", 2), epoch=1)) == ["host.fenced"]
    assert desk.told[-1].at == boot("h1")
    assert desk.told[-1].proof.method is ProofMethod.NEW_BOOT
    assert desk.decider.wake_at(desk.state) is None
    assert desk.fails("no answer") == []
    assert desk.phase() is Phase.FENCED


def test_the_same_boot_joining_proves_nothing() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    assert desk.hear(HostJoined(at=boot("h1"), epoch=0)) == []
    assert desk.phase() is Phase.FENCING


def test_a_host_that_speaks_again_while_we_wait_is_left_alone() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    desk.fails("no answer")
    assert desk.hear(recovered(boot("h1"))) == []
    assert desk.phase() is Phase.STOOD_DOWN
    assert desk.decider.wake_at(desk.state) is None
    # its next failure is another incident
    assert desk.hear(failed(boot("h1"), epoch=2)) == ["fence/h1-2/1"]


def test_an_attempt_under_way_when_the_host_speaks_again_is_the_last() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    assert desk.hear(recovered(boot("h1"))) == []
    desk.fails("no answer")
    assert desk.decider.wake_at(desk.state) is None, "a healthy host must not be shot by an old order"
    assert desk.phase() is Phase.STOOD_DOWN


def test_an_attempt_under_way_that_succeeds_is_a_proof_whatever_the_host_said() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1"), vm("a")))
    desk.hear(recovered(boot("h1")))
    assert desk.succeeds() == ["host.fenced"]


def test_a_recovery_of_another_incident_changes_nothing() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1"), epoch=2))
    desk.fails("no answer", epoch=2)
    desk.hear(recovered(boot("h1"), epoch=1))
    assert desk.phase() is Phase.WAITING


def test_a_second_failure_heard_before_the_boot_between_them_leaves_no_orphans() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1"), vm("a")))
    desk.fails("no answer")
    # host.joined of boot 2 comes late: it was on its way to a replica that died
    desk.hear(failed(boot("h1", 2), vm("b"), epoch=2))
    fenced = [fact for fact in desk.told if isinstance(fact, HostFenced)]
    assert [(fact.at, fact.incident) for fact in fenced] == [(boot("h1"), "h1-1")]
    assert [report.uuid for report in fenced[0].vms] == ["a"]
    assert desk.asked[-1].key == "fence/h1-2/1"


def test_an_older_failure_told_late_does_not_undo_a_newer() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1", 2), epoch=2))
    desk.succeeds(epoch=2, number=2)
    assert desk.hear(failed(boot("h1"), vm("a"), epoch=1)) == ["host.fenced"], "a later boot: it is over"
    assert (desk.told[-1].at, desk.told[-1].incident) == (boot("h1"), "h1-1")
    assert desk.phase() is Phase.FENCED
    assert desk.state.records["h1"].incident == "h1-2"


def test_a_successor_tries_at_once_what_its_predecessor_waited_with() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    for _ in range(6):
        desk.fails("no answer")
        desk.wait()
    desk.fails("no answer")
    after = Desk()
    after.now = 7.0
    after.take(after.decider.resume(after.state, stored(desk.state.records), after.now))
    assert after.decider.wake_at(after.state) == 7.0
    assert after.take(after.decider.step(after.state, None, after.now)) == ["fence/h1-1/8"]


def test_a_successor_of_one_that_was_fencing_or_done_waits_for_nothing() -> None:
    for end in (lambda d: None, lambda d: d.succeeds()):
        desk = Desk()
        desk.hear(failed(boot("h1")))
        end(desk)
        after = Desk()
        # what is owed is performed again by the shell, under its key
        step = after.decider.resume(after.state, stored(desk.state.records), 7.0)
        assert step.effects == ()
        assert after.decider.wake_at(step.state) is None


def test_many_hosts_have_one_record_each() -> None:
    decider = Fencer(SETTINGS, {})
    state = decider.initial(0.0)
    for number in range(200):
        for epoch in (1, 2, 3):
            state = decider.step(state, failed(boot(f"h{number}"), epoch=epoch), 1.0).state
    assert len(state.records) == 200
    assert isinstance(state.records, Records)


# -- the hands


class Power:
    """A power port that does what the test says between the first reading of off and the proof."""

    def __init__(self, then: Callable[[], None], missing: tuple[str, ...] = ()) -> None:
        self.then, self.missing = then, missing

    async def status(self, host: str, timeout_s: float) -> tuple[PowerState, str]:
        return PowerState.UNKNOWN, ""

    async def fence(self, incarnation: Incarnation, off_seen: OffSeen) -> FenceProof:
        if self.missing:
            raise FenceError(self.missing)
        off_seen()
        self.then()
        return proof(incarnation)


class Libvirts:
    """A hypervisors port of which only the probe is used."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.asked = answer, 0

    async def at(self, incarnation: Incarnation, timeout_s: float) -> Hypervisor:
        raise AssertionError("the fencer only probes")

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        self.asked += 1
        return self.answer, "libvirt answers"


def slot_of(at: Incarnation, writes: bool) -> Callable[[str, Signal], Signal | None]:
    """Peers that read the slot of this boot: it moves with each reading, or it does not."""
    seq = itertools.count(1)

    def reply(topic: str, question: Signal) -> Signal | None:
        assert isinstance(question, Question)
        assert question.slots_only, "nobody is to be waited for who looks over a network"
        beat = SlotBeat(host=at.host, boot=at.boot, seq=next(seq) if writes else 1)
        seen = SlotSeen(datastore="nfs", beat=beat)
        return Reply(about=question.about, peer=boot("h2"), answer=Answer.UNKNOWN, slots=(seen,))

    return reply


async def fence(
    said_before: Signal | None,
    said_after: Signal | None,
    missing: tuple[str, ...] = (),
    libvirt: Answer = Answer.SILENT,
    writes: bool = False,
    of: Incarnation | None = None,
) -> Fenced:
    bus = Process(World())
    bus.replies = slot_of(of or boot("h1"), writes)

    def say(signal: Signal | None) -> None:
        if signal is not None:
            bus.heard(signal)

    power = Power(lambda: say(said_after), missing)
    hands = Hands(
        power,
        bus,
        Libvirts(libvirt),
        SystemClock(),
        witness_s=0.1,
        peers=["h1", "h2"],
        ask_timeout_s=0.9,
        slot_spacing_s=0.05,
    )
    original = power.fence

    async def begin(incarnation: Incarnation, off_seen: OffSeen) -> FenceProof:
        say(said_before)
        return await original(incarnation, off_seen)

    power.fence = begin  # type: ignore[method-assign]
    done = await hands.perform(Fence(key="k", deadline_s=1.0, at=boot("h1"), incident="h1-1"))
    assert isinstance(done, Fenced)
    return done


async def test_a_heartbeat_after_its_power_read_off_voids_the_proof() -> None:
    done = await fence(None, beat("h1"))
    assert done.proof is None
    assert "heartbeat" in done.missing[0]


async def test_a_heartbeat_before_its_power_read_off_does_not() -> None:
    assert (await fence(beat("h1"), None)).proof == proof(boot("h1"))


async def test_a_heartbeat_of_another_boot_does_not_either() -> None:
    assert (await fence(None, beat("h1", 2))).proof == proof(boot("h1"))


async def test_an_answer_of_its_libvirt_after_its_power_read_off_voids_the_proof() -> None:
    done = await fence(None, None, libvirt=Answer.UP)
    assert done.proof is None
    assert done.missing == ("h1: libvirt answers after its power read off",)


@pytest.mark.parametrize("answer", [Answer.SILENT, Answer.REFUSED, Answer.UNKNOWN])
async def test_anything_else_that_its_libvirt_is_said_to_do_does_not(answer: Answer) -> None:
    """Of a lab's or a proxy's address something may refuse although the machine is off."""
    assert (await fence(None, None, libvirt=answer)).proof == proof(boot("h1"))


async def test_what_is_missing_is_handed_on() -> None:
    done = await fence(None, None, missing=("level 1: no answer", "level 2: refused"))
    assert (done.proof, done.missing) == (None, ("level 1: no answer", "level 2: refused"))


def test_records_survive_being_written_down() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1"), vm("a")))
    assert stored(desk.state.records) == desk.state.records
    assert isinstance(failed(boot("h1")), HostFailed)


# -- an operator's word


def word(number: int = 1, epoch: int = 1) -> HostConfirmedFailed:
    return HostConfirmedFailed(
        at=boot("h1", number),
        incident=f"h1-{epoch}",
        epoch=epoch,
        by="ann@desk",
        said_at="2026-11-22T12:00:00",
    )


def test_an_operators_word_is_a_proof_of_that_boot_and_says_whose_it_is() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1"), vm("a")))
    desk.fails("level 1: no answer")
    assert desk.hear(word()) == ["host.fenced"]
    fact = desk.told[-1]
    assert (fact.proof.method, fact.proof.of, fact.rule) == (ProofMethod.OPERATOR, boot("h1"), "operator")
    assert "ann@desk" in fact.proof.detail
    assert [report.uuid for report in fact.vms] == ["a"]
    assert fact.cause == word().key
    assert desk.decider.wake_at(desk.state) is None, "no more attempts"


def test_an_operators_word_ends_an_attempt_under_way_and_is_told_once() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    assert desk.hear(word()) == ["host.fenced"]
    assert [desk.hear(word()) for _ in range(50)] == [[]] * 50
    assert desk.succeeds() == [], "the attempt that was under way brings nothing new"


@pytest.mark.parametrize(
    "other",
    [word(number=2), word(number=2, epoch=2).model_copy(update={"epoch": 1}), word().model_copy(update={"incident": "x"})],
    ids=["another boot", "another boot and incident", "another incident"],
)  # fmt: skip
def test_a_word_on_another_boot_or_incident_proves_nothing(other: HostConfirmedFailed) -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    assert desk.hear(other) == []
    assert desk.phase() is Phase.FENCING


def test_a_word_on_what_is_over_proves_nothing() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    desk.succeeds()
    desk.hear(failed(boot("h1", 2), epoch=2))
    assert desk.hear(word()) == [], "an older verdict than the present one"
    assert desk.phase() is Phase.FENCING


@pytest.mark.parametrize("waits", [False, True])
def test_a_word_on_a_host_that_has_spoken_since_is_void(waits: bool) -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    if waits:
        desk.fails("no answer")
    desk.hear(recovered(boot("h1")))
    assert desk.hear(word()) == []
    assert not any(isinstance(fact, HostFenced) for fact in desk.told)


def test_a_word_that_overtakes_its_verdict_is_kept_also_by_a_successor() -> None:
    desk = Desk()
    assert desk.hear(word()) == []
    assert desk.decider.wake_at(desk.state) is None
    desk.take(desk.decider.resume(desk.decider.initial(desk.now), stored(desk.state.records), desk.now))
    assert desk.hear(failed(boot("h1"), vm("a"))) == ["host.fenced"]
    assert desk.asked == [], "no device is needed"
    assert desk.told[-1].proof.of == boot("h1")


def test_a_word_that_overtakes_a_second_verdict_leaves_the_first_as_it_is() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    desk.fails("no answer")
    assert desk.hear(word(number=2, epoch=2)) == []
    assert desk.phase() is Phase.WAITING, "the first is not proven by it"
    told = desk.hear(failed(boot("h1", 2), epoch=2))
    assert told == ["host.fenced", "host.fenced"]
    assert [fact.proof.method for fact in desk.told[-2:]] == [ProofMethod.NEW_BOOT, ProofMethod.OPERATOR]


def test_a_word_that_overtakes_two_verdicts_waits_for_its_own() -> None:
    desk = Desk()
    desk.hear(word(number=2, epoch=2))
    assert desk.hear(failed(boot("h1"))) == ["fence/h1-1/1"]
    assert desk.hear(failed(boot("h1", 2), epoch=2)) == ["host.fenced", "host.fenced"]


def test_a_word_whose_host_speaks_before_the_verdict_is_heard_is_void() -> None:
    desk = Desk()
    desk.hear(word())
    desk.hear(recovered(boot("h1")))
    assert desk.hear(failed(boot("h1"))) == ["fence/h1-1/1"], "no proof by that word"


def test_a_boot_that_joins_proves_nothing_about_a_verdict_that_has_yet_to_be_heard() -> None:
    desk = Desk()
    desk.hear(word())
    assert desk.hear(HostJoined(at=boot("h1", 2), epoch=1)) == []


async def test_a_write_to_its_slot_after_its_power_read_off_voids_the_proof() -> None:
    done = await fence(None, None, writes=True)
    assert done.proof is None
    assert "wrote to its slot on nfs" in done.missing[0]


async def test_a_slot_that_stands_still_or_is_another_boots_does_not() -> None:
    assert (await fence(None, None, writes=False)).proof == proof(boot("h1"))
    assert (await fence(None, None, writes=True, of=boot("h1", 2))).proof == proof(boot("h1"))


async def test_a_heartbeat_after_a_level_was_held_silent_and_before_its_proof_is_handed_on_voids_it() -> None:
    """The agents of other levels are ended first, which may take seconds."""
    bus = Process(World())

    class Slow(Power):
        async def fence(self, incarnation: Incarnation, off_seen: OffSeen) -> FenceProof:
            witness = off_seen()
            assert witness is not None
            assert await witness.said() == []
            witness.close()
            bus.heard(beat("h1"))
            return proof(incarnation)

    hands = Hands(
        Slow(lambda: None),
        bus,
        Libvirts(Answer.SILENT),
        SystemClock(),
        witness_s=0.1,
        peers=["h1", "h2"],
        ask_timeout_s=0.9,
        slot_spacing_s=None,
    )
    done = await hands.perform(Fence(key="k", deadline_s=1.0, at=boot("h1"), incident="h1-1"))
    assert isinstance(done, Fenced)
    assert (done.proof, "heartbeat" in done.missing[0]) == (None, True)
