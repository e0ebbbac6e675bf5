"""When a host is presumed fenced by its own promise (DESIGN §4 rule 4): never a moment sooner than it says."""

from __future__ import annotations

from typing import Any

import pytest

from libs.config.settings import FencingSettings
from libs.core.decider import BusChanged, Expired, Paused
from libs.events.hosts import HostFenced, HostRecovered
from libs.events.signals import Heard, Heartbeat, SlotSeen
from libs.model import Answer, Incarnation, ProofMethod
from libs.promises import Promise, SlotBeat
from services.fencer.presume import Presume
from services.fencer.state import Fence, Fenced, FencerState, Phase
from services.fencer.watches import AskUnseen, Claimed, ClaimPromise, PromiseSeen, ReadPromise, Unseen
from services.fencer.watchful import Watchful
from tests.unit import desk
from tests.unit.made import boot, failed, proof, sent, vm

pytestmark = pytest.mark.fast
H1 = boot("h1")
PEERS = ("h2", "h3", "h4", "h5")
HOW = Presume(margin_s=2.0, ask_timeout_s=0.9)
PROMISE = Promise(at=H1, timeout_s=10.0, lag_s=1.0, peers=PEERS, datastores=("nfs",))
WAIT_S = 11.0 * 1.01 + 2.0
LONG_S = 1000.0
SEQ = 40


class Desk(desk.Desk[FencerState]):
    """A fencer of five hosts with watchdogs. Time goes on by deadlines; peers answer as `world` says."""

    def __init__(self, promise: Promise | None = PROMISE) -> None:
        hosts = ("h1", *PEERS)
        super().__init__(Watchful(FencingSettings(), {"h1": 12.0}, watched=hosts, how=HOW), 100.0)
        self.promise = promise
        self.answers: dict[str, Answer] = dict.fromkeys(PEERS, Answer.SILENT)
        self.unheard_s: dict[str, float | None] = dict.fromkeys(PEERS, LONG_S)
        self.slot: SlotBeat | None = SlotBeat(host="h1", boot=H1.boot, seq=SEQ, life="life")
        self.trouble = ""
        self.claimed: list[ClaimPromise] = []
        self.ours, self.slow = True, False
        self.take(self.decider.resume(self.state, self.state.records, self.now))

    def beats(self, at: Incarnation = H1, seq: int = SEQ) -> list[Any]:
        """It is heard, and told so."""
        beat = Heartbeat(at=at, agent="life", seq=1, slot_seq=seq, sent_at=5.0, watchdog_s=10.0)
        step = self.decider.step(self.state, beat, self.now)
        self.take(step)
        return sent(step.effects)

    def answer(self) -> None:
        """All that was asked is answered at once."""
        while self.asked:
            request = self.asked.pop(0)
            match request:
                case ReadPromise():
                    seen = PromiseSeen(key=request.key, incident="h1-1", promise=self.promise, revision=7)
                    self.hear(seen)
                case AskUnseen(peer=peer):
                    self.hear(self._seen(request, peer))
                case ClaimPromise():
                    self.claimed.append(request)
                    if self.slow:
                        return
                    self.hear(Claimed(key=request.key, incident="h1-1", ours=self.ours))
                case _:
                    assert isinstance(request, Fence)

    def _seen(self, request: AskUnseen, peer: str) -> Unseen | Expired:
        if peer not in self.answers:
            return Expired(key=request.key, request="ask_unseen", reason="no answer")
        beat = None if self.trouble else self.slot
        slots = (SlotSeen(datastore="nfs", beat=beat, trouble=self.trouble),)
        return Unseen(
            key=request.key,
            incident="h1-1",
            peer=peer,
            asked_at=request.asked_at,
            quick=request.quick,
            answer=Answer.UNKNOWN if request.quick else self.answers[peer],
            unheard_s=self.unheard_s[peer],
            slots=slots,
        )

    def fails(self) -> None:
        self.hear(failed(H1, vm("a")))
        self.answer()

    def until_fenced(self, most_s: float = 60.0) -> float | None:
        """How long after now it is fenced; None where it is not."""
        began = self.now
        while not any(isinstance(fact, HostFenced) for fact in self.told):
            wake_at = self.decider.wake_at(self.state)
            if wake_at is None or wake_at > began + most_s:
                self.now = began + most_s
                return None
            self.wait()
            self.answer()
        return self.now - began

    def missing(self) -> str:
        """What an attempt by power that ends now says of it."""
        self.hear(Fenced(key="fence/h1-1/1", incident="h1-1", missing=("the device is dead",)))
        return "; ".join(self.told[-1].missing) if self.told else ""


def heard_then_failed(**more: Any) -> Desk:
    """Heard for the last time, and held failed four seconds later."""
    one = Desk(**more)
    one.beats()
    one.now += 4.0
    one.fails()
    return one


def test_it_is_presumed_its_own_bound_and_the_margin_after_its_last_word_whenever_the_verdict_came() -> None:
    one = heard_then_failed()
    after_s = one.until_fenced()
    assert after_s is not None
    assert 4.0 + after_s == pytest.approx(WAIT_S, abs=0.05)
    fact = one.told[-1]
    assert (fact.proof.of, fact.proof.method) == (H1, ProofMethod.WATCHDOG)
    assert "10 s" in fact.proof.detail
    assert one.claimed[0].revision == 7, "as it was read before the count began"
    assert one.state.presume.watches.get("h1") is None


def test_what_the_host_advertised_counts_and_nothing_that_we_assume() -> None:
    long = PROMISE.model_copy(update={"timeout_s": 60.0})
    one = heard_then_failed(promise=long)
    after_s = one.until_fenced(most_s=100)
    assert after_s is not None
    assert 4.0 + after_s == pytest.approx(61.0 * 1.01 + 2.0, abs=0.05)


def test_s21_a_host_that_never_promised_is_never_presumed() -> None:
    one = heard_then_failed(promise=None)
    assert one.until_fenced(most_s=3600) is None
    assert one.claimed == []
    assert "h1 has promised none" in one.missing()
    taken_back = PROMISE.model_copy(update={"withdrawn": True})
    assert heard_then_failed(promise=taken_back).until_fenced(most_s=3600) is None
    other_boot = PROMISE.model_copy(update={"at": boot("h1", 9)})
    assert heard_then_failed(promise=other_boot).until_fenced(most_s=3600) is None


def test_any_sign_of_life_begins_the_count_again() -> None:
    one = heard_then_failed()
    one.now += 6
    one.beats()
    after_s = one.until_fenced()
    assert after_s is not None
    assert after_s >= WAIT_S - 0.01

    seen = heard_then_failed()
    seen.until_fenced(most_s=4)
    seen.answers |= {"h4": Answer.REFUSED, "h5": Answer.HANGS}
    seen.until_fenced(most_s=2)
    seen.answers = dict.fromkeys(PEERS, Answer.SILENT)
    after_s = seen.until_fenced()
    assert after_s is not None
    assert after_s > WAIT_S - 2.0, "to two of four it was not unseen all the while"

    moves = heard_then_failed()
    moves.until_fenced(most_s=5)
    moves.slot = SlotBeat(host="h1", boot=H1.boot, seq=SEQ + 1, life="life")
    after_s = moves.until_fenced()
    assert after_s is not None
    assert after_s >= WAIT_S - 0.01


def test_a_write_that_it_announced_before_it_fell_silent_is_no_later_sign_of_life() -> None:
    one = heard_then_failed()
    assert one.slot is not None
    assert one.slot.seq == SEQ, "the last that it had begun when it was heard last"
    assert (one.until_fenced() or 0) < WAIT_S

    unannounced = Desk()
    unannounced.beats(seq=SEQ - 1)
    unannounced.now += 4
    unannounced.fails()
    after_s = unannounced.until_fenced()
    assert after_s is not None
    assert after_s >= WAIT_S - 0.01, (
        "nobody knows when that write was begun, but that it was before we read it"
    )

    other_life = Desk()
    other_life.slot = SlotBeat(host="h1", boot=H1.boot, seq=3, life="a later life")
    other_life.beats()
    other_life.now += 4
    other_life.fails()
    after_s = other_life.until_fenced()
    assert after_s is not None
    assert after_s >= WAIT_S - 0.01, "a new life of its agent counts from one again"


@pytest.mark.parametrize("event", [Paused(2.0), BusChanged(connected=False)])
def test_whoever_stood_still_or_was_deaf_counts_anew(event: Any) -> None:
    one = heard_then_failed()
    one.now += 7
    one.hear(event)
    after_s = one.until_fenced()
    assert after_s is not None
    assert after_s >= WAIT_S - 0.01


def test_whoever_leads_from_now_on_counts_from_now_on() -> None:
    """Another may have told the host until a moment ago that it is heard."""
    one = heard_then_failed()
    one.now += 8
    one.take(one.decider.resume(one.state, one.state.records, one.now))
    one.answer()
    after_s = one.until_fenced()
    assert after_s is not None
    assert after_s >= WAIT_S - 0.01


def test_two_of_four_peers_are_not_enough_and_those_that_do_not_answer_have_not_seen_that_it_is_gone() -> (
    None
):
    one = heard_then_failed()
    del one.answers["h4"], one.answers["h5"]
    assert one.until_fenced(most_s=120) is None
    assert "2 of its 4 peers report it unseen, 3 are needed: h4, h5" in one.missing()
    one.answers["h4"] = Answer.SILENT
    assert one.until_fenced() is not None


def test_s20_one_peer_of_four_that_lies_changes_nothing() -> None:
    """Whether it says that it sees the host, or that it does not: a majority of the others is needed, and enough."""
    one = heard_then_failed()
    one.answers["h5"] = Answer.UP
    assert one.until_fenced() is not None
    other = heard_then_failed()
    other.answers = {"h2": Answer.SILENT, "h3": Answer.UP, "h4": Answer.UP, "h5": Answer.UP}
    assert other.until_fenced(most_s=120) is None


def test_a_peer_that_it_greeted_since_does_not_count_before_its_time_is_over() -> None:
    one = heard_then_failed()
    one.unheard_s = {"h2": 1.0, "h3": 1.0, "h4": LONG_S, "h5": LONG_S}
    assert one.until_fenced(most_s=30) is None, "they say so again and again: it lives for them"
    one.unheard_s = {"h2": None, "h3": 1.0, "h4": LONG_S, "h5": LONG_S}
    assert one.until_fenced(most_s=30) is None, "one that does not listen cannot tell"
    one.unheard_s = dict.fromkeys(PEERS, LONG_S)
    assert one.until_fenced() is not None


def test_a_slot_that_nobody_can_read_is_no_slot_that_stands_still() -> None:
    one = heard_then_failed()
    one.trouble = "no answer in 2 s"
    assert one.until_fenced(most_s=120) is None
    assert "no peer could read the slot of h1 on nfs" in one.missing()


@pytest.mark.parametrize("slot", [None, SlotBeat(host="h1", boot="another", seq=SEQ, life="life")])
def test_where_a_slot_shows_nothing_of_this_boot_its_reader_may_look_at_another_place(slot: Any) -> None:
    one = heard_then_failed()
    one.slot = slot
    assert one.until_fenced(most_s=120) is None
    assert "no peer could read the slot of h1 on nfs" in one.missing()


def test_what_waited_in_the_inbox_while_another_led_does_not_begin_the_count_sooner() -> None:
    one = heard_then_failed()
    one.now += 8
    one.take(one.decider.resume(one.state, one.state.records, one.now))
    one.answer()
    one.now -= 1  # it was put there before we led
    one.beats()
    one.now += 1
    after_s = one.until_fenced()
    assert after_s is not None
    assert after_s >= WAIT_S - 0.01


def test_a_promise_that_was_withdrawn_meanwhile_presumes_nobody() -> None:
    one = heard_then_failed()
    one.ours, one.promise = False, None
    assert one.until_fenced(most_s=120) is None
    assert len(one.claimed) <= 1


def test_whoever_is_heard_while_the_promise_is_being_claimed_is_not_presumed() -> None:
    one = heard_then_failed()
    one.slow = True
    one.until_fenced(most_s=WAIT_S)
    assert len(one.claimed) == 1
    one.beats()
    one.hear(Claimed(key=one.claimed[0].key, incident="h1-1", ours=True))
    assert not any(isinstance(fact, HostFenced) for fact in one.told)


def test_the_first_proof_wins_and_who_recovers_is_left_alone() -> None:
    one = heard_then_failed()
    one.hear(Fenced(key="fence/h1-1/1", incident="h1-1", proof=proof(H1)))
    assert one.until_fenced() == 0.0
    assert one.told[-1].proof.method is ProofMethod.POWER_OFF
    assert one.decider.wake_at(one.state) is None

    back = heard_then_failed()
    back.hear(HostRecovered(at=H1, incident="h1-1", epoch=1))
    back.hear(Fenced(key="fence/h1-1/1", incident="h1-1", missing=("dead",)))
    assert back.state.records["h1"].phase is Phase.STOOD_DOWN
    assert back.until_fenced(most_s=120) is None


def test_people_are_told_of_a_failed_attempt_only_once_the_promise_cannot_be_the_proof_either() -> None:
    one = heard_then_failed()
    assert one.missing() == ""
    assert one.state.records["h1"].phase is Phase.WAITING, "it is tried again all the same"
    del one.answers["h2"], one.answers["h3"]
    one.until_fenced(most_s=30)
    said = one.missing()
    assert "the device is dead" in said
    assert "watchdog: 2 of its 4 peers report it unseen" in said


def test_only_who_has_a_watchdog_is_told_that_it_is_heard() -> None:
    one = Desk()
    assert one.beats() == [Heard(at=H1, sent_at=5.0)]
    step = one.decider.step(one.state, Heartbeat(at=boot("h2"), agent="life", seq=1), one.now)
    assert sent(step.effects) == []
